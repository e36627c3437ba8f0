"""Kubernetes quantities and durations as numbers."""

import re
from decimal import Decimal

QUANTITY_PATTERN = r"^[1-9][0-9]*(\.[0-9]+)?(k|M|G|T|P|Ki|Mi|Gi|Ti|Pi)?$"
DURATION_PATTERN = r"^([0-9]+d)?([0-9]+h)?([0-9]+m)?([0-9]+s)?$"
AUTO_DURATION_PATTERN = r"^(Auto|([0-9]+d)?([0-9]+h)?([0-9]+m)?([0-9]+s)?)$"
DECIMAL_PATTERN = r"^[0-9]+(\.[0-9]+)?([eE]-?[0-9]+)?$"

_SUFFIXES = {"": 1} | {s: 1000 ** (i + 1) for i, s in enumerate("kMGTP")}
_SUFFIXES |= {s + "i": 1024 ** (i + 1) for i, s in enumerate("KMGTP")}
_SECONDS = {"d": 86400, "h": 3600, "m": 60, "s": 1}


def parse_quantity(text: str) -> int:
    """Whole number named by a quantity such as 130G or 16777216; raises ValueError on anything else."""
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)([A-Za-z]*)", text)
    if not match or match[2] not in _SUFFIXES:
        raise ValueError(f"{text!r} is not a quantity such as 2T, 130G or 16777216")
    return int(Decimal(match[1]) * _SUFFIXES[match[2]])


def short_quantity(number: int) -> str:
    """A whole number for people, to three digits: 61.4k, 1.25T."""
    for suffix, size in [(s, 1000 ** (i + 1)) for i, s in reversed(list(enumerate("kMGTP")))]:
        # What would be written as 1000k is 1M.
        if number >= 0.9995 * size:
            return f"{number / size:.3g}{suffix}"
    return str(number)


def parse_duration_seconds(text: str) -> float:
    """Seconds named by a duration such as 1h30m, 10m or 45s; raises ValueError on anything else."""
    if not text or not re.fullmatch(DURATION_PATTERN, text):
        raise ValueError(f"{text!r} is not a duration such as 1h30m, 10m or 45s")
    return float(sum(int(n) * _SECONDS[unit] for n, unit in re.findall(r"([0-9]+)([dhms])", text)))
