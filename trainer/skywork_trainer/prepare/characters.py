"""What kind of character every code point is, and how many of each kind a text has."""

import unicodedata
from enum import IntEnum, StrEnum
from functools import cache
from itertools import chain
from typing import NamedTuple

import numpy as np
import numpy.typing as npt


class Script(StrEnum):
    """Scripts whose letters are told apart."""

    HAN = "Han"
    KANA = "Kana"
    HANGUL = "Hangul"
    THAI = "Thai"
    LATIN = "Latin"
    CYRILLIC = "Cyrillic"
    GREEK = "Greek"
    ARABIC = "Arabic"
    HEBREW = "Hebrew"
    DEVANAGARI = "Devanagari"


class Kind(IntEnum):
    """Kind of one code point; from MARK_ALONE on all belong to words."""

    INVISIBLE = 0
    SYMBOL = 1
    PUNCTUATION = 2
    MARK_ALONE = 3
    """Combining mark of a script in `ALONE`."""
    MARK = 4
    DIGIT = 5
    LETTER = 6
    """Letter of no script in `Script`; those follow, in the order of `Script`."""


SCRIPTS = tuple(Script)
ALONE = frozenset({Script.HAN, Script.KANA, Script.HANGUL, Script.THAI})
"""Scripts each character of which counts as a word: most are written without spaces."""

EVERYDAY_PUNCTUATION = ".,;:!?'\"()-" + "。，、；：！？“”‘’（）《》「」…—"
_FIRST_SCRIPT = Kind.LETTER + 1
_KINDS = _FIRST_SCRIPT + len(SCRIPTS)

# Blocks of the Unicode standard, first to last; only their letters (and marks, in ALONE) count.
_BLOCKS: dict[Script, tuple[tuple[int, int], ...]] = {
    Script.HAN: ((0x3005, 0x3007), (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x3FFFF)),
    Script.KANA: ((0x3040, 0x30FF), (0x31F0, 0x31FF), (0xFF66, 0xFF9F), (0x1AFF0, 0x1B16F)),
    Script.HANGUL: (
        *((0x1100, 0x11FF), (0x3131, 0x318E), (0xA960, 0xA97F), (0xAC00, 0xD7FF), (0xFFA0, 0xFFDC)),
        (0x302E, 0x302F),
    ),
    Script.THAI: ((0x0E00, 0x0E7F),),
    Script.LATIN: (
        *(
            (0x0041, 0x00AA),
            (0x00BA, 0x02B8),
            (0x1D00, 0x1D25),
            (0x1D2C, 0x1D5C),
            (0x1D62, 0x1D65),
            (0x1D6B, 0x1DBF),
            (0x1E00, 0x1EFF),
        ),
        *((0x2071, 0x209C), (0x212A, 0x212B), (0x2C60, 0x2C7F), (0xA722, 0xA7FF), (0xAB30, 0xAB64), (0xFB00, 0xFB06)),
        *((0xFF21, 0xFF5A), (0x10780, 0x107BA), (0x1DF00, 0x1DFFF)),
    ),
    Script.CYRILLIC: ((0x0400, 0x052F), (0x1C80, 0x1C8F), (0x1D2B, 0x1D2B), (0xA640, 0xA69F), (0x1E030, 0x1E08F)),
    Script.GREEK: ((0x0370, 0x03E1), (0x03F0, 0x03FF), (0x1F00, 0x1FFF)),
    Script.ARABIC: (
        (0x0600, 0x06FF),
        (0x0750, 0x077F),
        (0x0870, 0x08FF),
        (0xFB50, 0xFDFF),
        (0xFE70, 0xFEFE),
        (0x1EE00, 0x1EEFF),
    ),
    Script.HEBREW: ((0x0590, 0x05FF), (0xFB1D, 0xFB4F)),
    Script.DEVANAGARI: ((0x0900, 0x097F), (0xA8E0, 0xA8FF), (0x11B00, 0x11B5F)),
}


class Profile(NamedTuple):
    """How many characters of each kind a text has."""

    visible: int
    letters: int
    digits: int
    symbols: int
    """Visible, and neither letter, digit, combining mark nor everyday punctuation."""
    script_letters: tuple[int, ...]
    """In the order of `Script`."""

    def letters_in(self, script: Script) -> int:
        """Return how many of the letters belong to a script."""
        return self.script_letters[SCRIPTS.index(script)]


def profile(text: str) -> Profile:
    """Count the kinds of a text's characters."""
    counts = np.bincount(kinds()[code_points(text)], minlength=_KINDS).tolist()
    return Profile(
        visible=sum(counts) - counts[Kind.INVISIBLE],
        letters=sum(counts[Kind.LETTER :]),
        digits=counts[Kind.DIGIT],
        symbols=counts[Kind.SYMBOL],
        script_letters=tuple(counts[_FIRST_SCRIPT:]),
    )


def code_points(text: str) -> npt.NDArray[np.uint32]:
    """Return the code points of a text."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.dtype("<u4"))


@cache
def kinds() -> npt.NDArray[np.uint8]:
    """Return the kind of every code point: a Kind, or a script's place in `Script` after Kind.LETTER."""
    table = np.full(0x110000, Kind.SYMBOL, np.uint8)
    # The planes between are not assigned: asking for their categories would take most of the time.
    for start, stop in ((0, 0x40000), (0xE0000, 0xE1000)):
        categories = map(unicodedata.category, map(chr, range(start, stop)))
        table[start:stop] = np.fromiter(map(_KIND_OF_CATEGORY.__getitem__, categories), np.uint8, stop - start)
    table[[ord(sign) for sign in EVERYDAY_PUNCTUATION]] = Kind.PUNCTUATION
    table[0x3007] = Kind.LETTER  # 〇 is a number to Unicode, and written like any other Han character.
    for number, script in enumerate(SCRIPTS, _FIRST_SCRIPT):
        for first, last in _BLOCKS[script]:
            block = table[first : last + 1]
            block[block == Kind.LETTER] = number
            if script in ALONE:
                block[block == Kind.MARK] = Kind.MARK_ALONE
    table.flags.writeable = False
    return table


@cache
def alone() -> npt.NDArray[np.bool_]:
    """Return for every kind whether each of its characters is a word of its own."""
    lone = {Kind.MARK_ALONE, *(_FIRST_SCRIPT + SCRIPTS.index(script) for script in ALONE)}
    return np.array([kind in lone for kind in range(_KINDS)])


_KIND_OF_CATEGORY = dict(
    chain(
        ((name, Kind.INVISIBLE) for name in ("Cc", "Cf", "Zs", "Zl", "Zp")),
        ((name, Kind.MARK) for name in ("Mn", "Mc", "Me")),
        ((name, Kind.DIGIT) for name in ("Nd", "Nl", "No")),
        ((name, Kind.LETTER) for name in ("Lu", "Ll", "Lt", "Lm", "Lo")),
        ((name, Kind.SYMBOL) for name in ("Pc", "Pd", "Ps", "Pe", "Pi", "Pf", "Po")),
        ((name, Kind.SYMBOL) for name in ("Sm", "Sc", "Sk", "So", "Cs", "Co", "Cn")),
    )
)
