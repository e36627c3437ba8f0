"""What one document must be like by itself to be trained on; documents are compared with others elsewhere."""

import unicodedata
from collections import Counter
from collections.abc import Iterator
from enum import StrEnum
from functools import cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from skywork_trainer.config import Filters
from skywork_trainer.prepare.characters import Script, code_points, profile

BLOCK_CHARACTERS = 20
"""Visible characters from which a line counts as a block; shorter ones repeat in good text, too."""

_LINE_ENDS = ("\r\n", "\r", "\v", "\f", "\x85", "\u2028", "\u2029")
_KEPT = (
    "\n\t" + "\u200c\u200d" + "\u0600\u0601\u0602\u0603\u0604\u0605\u06dd\u070f\u0890\u0891\u08e2\U000110bd\U000110cd"
)
"""Control and format characters that belong to text: joiners, which spell words, and signs that are visible."""


class Removal(StrEnum):
    """Why a document is not trained on."""

    TOO_SHORT = "TooShort"
    TOO_LONG = "TooLong"
    SYMBOLS = "Symbols"
    REPEATED = "RepeatedBlocks"
    LANGUAGE = "Language"
    DUPLICATE = "Duplicate"
    NEAR_DUPLICATE = "NearDuplicate"
    CONTAMINATED = "Contaminated"
    EMPTY = "Empty"


class Verdict(NamedTuple):
    """What the filters make of one document."""

    text: str | None
    """As it is to be trained on; None when it is not."""
    reason: Removal | None
    removed_characters: int
    """Characters of repeated blocks taken out of a document that stays."""


def cleaned(text: str, filters: Filters) -> str:
    """Return a document as it is judged and told from others: normalised, unless that is switched off."""
    return normalise(text) if filters.normalise else text


def examine(text: str, filters: Filters) -> Verdict:
    """Check a cleaned document against every limit that is set; the first one it breaks is the reason."""
    if not text or text.isspace():
        return Verdict(None, Removal.EMPTY, 0)
    removed = 0
    if filters.remove_repeated_blocks or filters.max_repeated_share < 1:
        shorter, repeated = without_repeated_blocks(text)
        if repeated / len(text) > filters.max_repeated_share:
            return Verdict(None, Removal.REPEATED, 0)
        if filters.remove_repeated_blocks:
            text, removed = shorter, repeated
    reason = _length(text, filters) or _characters(text, filters)
    return Verdict(None, reason, 0) if reason else Verdict(text, None, removed)


def normalise(text: str) -> str:
    """Return a text in Unicode NFC, with "\\n" for line ends, without invisible characters, needless blanks and lines.

    Doing it again changes nothing.
    """
    # Tells most texts from those that need the work, at a tenth of its cost.
    plain = text.replace("\n", "").replace("\t", "").isprintable()
    if not plain:
        for line_end in _LINE_ENDS:
            text = text.replace(line_end, "\n")
        text = _without_controls(text)
    # Behind the removal, because a letter and its accent may have met only now.
    if not text.isascii():
        text = unicodedata.normalize("NFC", text)
    # A printable text has no blanks but these two.
    if not plain or " \n" in text or "\t\n" in text:
        text = "\n".join([line.rstrip() for line in text.split("\n")])
    while "\n\n\n" in text:
        text = text.replace("\n\n\n", "\n\n")
    return text.strip()


def without_repeated_blocks(text: str) -> tuple[str, int]:
    """Return a text with only the first of equal blocks, and how many characters the others have.

    A block is a line of at least BLOCK_CHARACTERS visible characters, or a paragraph of several lines.
    """
    paragraphs = text.split("\n\n")
    # Most documents repeat nothing, and counting what can be a block finds that out quickly.
    long_lines = [line for line in text.split("\n") if len(line) >= BLOCK_CHARACTERS]
    suspects = {*_repeated(long_lines), *_repeated([paragraph for paragraph in paragraphs if "\n" in paragraph])}
    if not suspects:
        return text, 0
    seen: set[str] = set()
    kept: list[str] = []
    repeated = 0
    for paragraph in paragraphs:
        if paragraph in seen:
            repeated += len(paragraph)
            continue
        lines = paragraph.split("\n")
        if len(lines) > 1 and paragraph in suspects:
            seen.add(paragraph)
        staying = []
        for line in lines:
            if line not in suspects or not _is_block(line):
                staying.append(line)
            elif line in seen:
                repeated += len(line)
            else:
                seen.add(line)
                staying.append(line)
        if staying:
            kept.append("\n".join(staying))
    return "\n\n".join(kept), repeated


def _repeated(blocks: list[str]) -> Iterator[str]:
    return (block for block, count in Counter(blocks).items() if count > 1 and block and not block.isspace())


def _is_block(line: str) -> bool:
    return len(line) >= BLOCK_CHARACTERS and sum(map(len, line.split())) >= BLOCK_CHARACTERS


def _length(text: str, filters: Filters) -> Removal | None:
    if len(text) < filters.min_characters:
        return Removal.TOO_SHORT
    if filters.max_characters is not None and len(text) > filters.max_characters:
        return Removal.TOO_LONG
    return None


def _characters(text: str, filters: Filters) -> Removal | None:
    if filters.max_symbol_share >= 1 and not filters.min_script_share:
        return None
    counts = profile(text)
    if counts.symbols / max(counts.visible, 1) > filters.max_symbol_share:
        return Removal.SYMBOLS
    for script, least in filters.min_script_share.items():
        # A text without letters is in no language: it has none of what is asked for.
        if counts.letters_in(Script(script)) / max(counts.letters, 1) < least:
            return Removal.LANGUAGE
    return None


def _without_controls(text: str) -> str:
    codes = code_points(text)
    unwanted = _unwanted()[codes]
    if not unwanted.any():
        return text
    return codes[~unwanted].tobytes().decode("utf-32-le", "surrogatepass")


@cache
def _unwanted() -> npt.NDArray[np.bool_]:
    """Return for every code point whether it is a control or format character to remove."""
    table = np.zeros(0x110000, np.bool_)
    for start, stop in ((0, 0x40000), (0xE0000, 0xE1000)):
        categories = map(unicodedata.category, map(chr, range(start, stop)))
        table[start:stop] = np.fromiter((name in ("Cc", "Cf") for name in categories), np.bool_, stop - start)
    table[[ord(sign) for sign in _KEPT]] = False
    table.flags.writeable = False
    return table
