"""Figures as messages write them."""

import math
from collections.abc import Iterable, Mapping

_UNITS = ((1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " k"))


def tokens(count: float) -> str:
    """Return a number of tokens, such as 2.31 T tokens."""
    if not math.isfinite(count):
        return "? tokens"
    for unit, name in _UNITS:
        # What rounds up to the next unit's first figure belongs to it.
        if abs(count) >= 0.9995 * unit:
            return f"{count / unit:.3g}{name} tokens"
    return f"{count:.0f} tokens"


def listed(words: Iterable[str], most: int = 5) -> str:
    """Return words with commas between them; those beyond `most` are counted."""
    known = list(words)
    more = f" and {len(known) - most} more" if len(known) > most else ""
    return ", ".join(known[:most]) + more


def repeated(epochs: Mapping[str, float], least: float) -> dict[str, float]:
    """Return the sources that were read at least `least` times, most often read first."""
    known = {name: times for name, times in epochs.items() if math.isfinite(times) and times >= least}
    return dict(sorted(known.items(), key=lambda entry: (-entry[1], entry[0])))


def times_read(epochs: Mapping[str, float]) -> str:
    """Return such as main read 3.1 times, books read 2.0 times."""
    return listed(f"{name} read {times:.1f} times" for name, times in epochs.items())
