"""Numbers as a person reads them. Pure."""

import math
from collections.abc import Mapping
from datetime import UTC, datetime
from itertools import pairwise

_UNITS = ("", "k", "M", "G", "T", "P")


def count(value: float | None) -> str:
    """Return a large number with an SI prefix and three digits or a few more: 1.23 T, 958 k, 42."""
    if value is None or not math.isfinite(value):
        return "–"
    exponent = 0
    while abs(value) >= 999.5 and exponent < len(_UNITS) - 1:
        value, exponent = value / 1000, exponent + 1
    digits = 0 if exponent == 0 or abs(value) >= 99.95 else 1 if abs(value) >= 9.995 else 2
    return f"{value:.{digits}f} {_UNITS[exponent]}".strip()


def number(value: float | None, digits: int = 4) -> str:
    """Return a number with so many digits behind the point, a dash where there is none."""
    return "–" if value is None or not math.isfinite(value) else f"{value:.{digits}f}"


def signed(value: float | None, digits: int = 4) -> str:
    """Return a change, with its sign."""
    return "–" if value is None or not math.isfinite(value) else f"{value:+.{digits}f}".replace("-", "−")


def share(value: float | None) -> str:
    """Return a part of one as a percentage."""
    return "–" if value is None or not math.isfinite(value) else f"{value:.1%}"


def shares(values: object) -> str:
    """Return what part each of some numbers by name is of their sum, the largest first; empty for anything else."""
    if not isinstance(values, Mapping):
        return ""
    known = {str(name): float(one) for name, one in values.items() if isinstance(one, int | float) and one > 0}
    total = sum(known.values())
    if not math.isfinite(total):
        return ""
    ordered = sorted(known.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{name} {share(one / total)}" for name, one in ordered)


def duration(seconds: float | None) -> str:
    """Return a time that passed, in its two largest units: 38 d 4 h, 2 h 5 min, 41 s."""
    if seconds is None or not math.isfinite(seconds):
        return "–"
    if 0 < seconds < 9.95:
        return f"{seconds:.1f} s"
    rest = round(seconds)
    for (unit, size), (smaller, less) in pairwise(_DURATIONS):
        if rest >= size:
            whole, part = divmod(rest, size)
            return f"{whole} {unit}" + (f" {part // less} {smaller}" if part // less else "")
    return f"{rest} s"


_DURATIONS = (("d", 86400), ("h", 3600), ("min", 60), ("s", 1))


def moment(unix_seconds: float | None) -> str:
    """Return a time in UTC to the minute."""
    if unix_seconds is None or not math.isfinite(unix_seconds):
        return "–"
    return datetime.fromtimestamp(unix_seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")
