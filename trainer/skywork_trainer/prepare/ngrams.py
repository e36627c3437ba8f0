"""Runs of words as 64-bit numbers, the same on every machine: what documents are compared by.

The hash of characters [a, b) is (H[b] - H[a]) / p^a for the prefix sums H of code * p^i modulo 2^64, so that one pass
over a batch of texts gives the hash of every word, and a second one over those the hash of every run.
"""

from collections.abc import Sequence
from functools import cache

import numpy as np
import numpy.typing as npt

from skywork_trainer.prepare.characters import Kind, alone, code_points, kinds

Hashes = npt.NDArray[np.uint64]

# Odd, so that they have an inverse modulo 2^64; changing one changes what every stored n-gram means.
CHARACTER_BASE = 0x9E6D_62D0_6F6A_9A95
WORD_BASE = 0xD1B5_4A32_D192_ED05

_SEPARATOR, _PART, _ALONE = range(3)
_TABLE_POWERS = 1 << 20


def word_ngrams(text: str, words: int) -> Hashes:
    """Return the hashes of all runs of `words` consecutive words of a text, in its order; none if it has fewer."""
    return Words([text]).ngrams(words)[0]


class Words:
    """The words of a batch of texts.

    A word is a run of letters, digits and combining marks in lower case; every character of the scripts in
    `characters.ALONE` is one by itself.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        lowered = [text.lower() for text in texts]
        self._texts = len(lowered)
        codes = code_points("\n".join(lowered))
        starts, ends = _bounds(_roles()[codes])
        self._hashes = _mix(_runs(codes, CHARACTER_BASE, starts, ends))
        # Lengths only now: a lower-case text can be longer.
        edges = np.cumsum([0, *(len(text) + 1 for text in lowered)])
        self._first = np.searchsorted(starts, edges)

    @property
    def counts(self) -> npt.NDArray[np.int64]:
        """How many words each text has."""
        return np.diff(self._first)

    def ngrams(self, words: int) -> tuple[Hashes, npt.NDArray[np.int64]]:
        """Return the hashes of all runs of `words` words, and the number of the text each lies in."""
        if words < 1:
            raise ValueError("an n-gram has at least one word")
        total = len(self._hashes)
        if total < words:
            return np.zeros(0, np.uint64), np.zeros(0, np.int64)
        starts = np.arange(total - words + 1)
        hashes = _mix(_runs(self._hashes, WORD_BASE, starts, starts + words))
        text = np.repeat(np.arange(self._texts), self.counts)
        inside = text[: len(starts)] == text[words - 1 :]
        return hashes[inside], text[: len(starts)][inside]


def _bounds(roles: npt.NDArray[np.uint8]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return where words start and where they end."""
    part, lone = roles == _PART, roles == _ALONE
    starts, ends = part.copy(), part.copy()
    starts[1:] &= ~part[:-1]
    ends[:-1] &= ~part[1:]
    return np.flatnonzero(starts | lone), np.flatnonzero(ends | lone) + 1


def _runs(
    values: npt.NDArray[np.uint32] | Hashes, base: int, starts: npt.NDArray[np.int64], ends: npt.NDArray[np.int64]
) -> Hashes:
    """Return the polynomial in `base` of the values in every [start, end)."""
    sums = np.zeros(len(values) + 1, np.uint64)
    np.cumsum(values * _powers(base, len(values)), out=sums[1:])
    return (sums[ends] - sums[starts]) * _powers(pow(base, -1, 1 << 64), len(values))[starts]


def _mix(hashes: Hashes) -> Hashes:
    """Spread every bit of the input over all bits of the output (splitmix64's finaliser)."""
    hashes = (hashes ^ (hashes >> np.uint64(30))) * np.uint64(0xBF58_476D_1CE4_E5B9)
    hashes = (hashes ^ (hashes >> np.uint64(27))) * np.uint64(0x94D0_49BB_1331_11EB)
    return hashes ^ (hashes >> np.uint64(31))


def _powers(base: int, count: int) -> Hashes:
    """Return base^0 up to base^(count - 1) modulo 2^64."""
    table = _power_table(base)
    if count <= len(table):
        return table[:count]
    strides = [pow(base, at, 1 << 64) for at in range(0, count, len(table))]
    return np.multiply.outer(np.array(strides, np.uint64), table).ravel()[:count]


@cache
def _power_table(base: int) -> Hashes:
    table = np.ones(_TABLE_POWERS, np.uint64)
    known = 1
    while known < _TABLE_POWERS:
        table[known : 2 * known] = table[:known] * np.uint64(pow(base, known, 1 << 64))
        known *= 2
    table.flags.writeable = False
    return table


@cache
def _roles() -> npt.NDArray[np.uint8]:
    """Return for every code point whether it parts words, is part of one, or is one."""
    table = np.where(alone()[kinds()], _ALONE, np.where(kinds() >= Kind.MARK_ALONE, _PART, _SEPARATOR))
    return table.astype(np.uint8)
