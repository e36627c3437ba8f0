"""Evaluation sets as n-grams, to keep what a model is measured by out of what it learns from."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice

import numpy as np
import numpy.typing as npt

from skywork_trainer.config import Decontamination
from skywork_trainer.prepare.filters import normalise
from skywork_trainer.prepare.ngrams import Hashes, Words

_BATCH_CHARACTERS = 1 << 20
_BATCH_RECORDS = 1024
_BITS = 24
"""Low bits of an n-gram that are looked up first: 2 MiB, which a core's cache holds."""


class EvaluationSet:
    """The n-grams of all texts of an evaluation set's records."""

    def __init__(self, options: Decontamination, records: Iterable[Mapping[str, object]]) -> None:
        self.words = options.words
        self.records = 0
        self.too_short = 0
        """Records without any text of so many words: nothing can be found of them."""
        found = [np.zeros(0, np.uint64)]
        remaining = iter(records)
        while batch := list(islice(remaining, _BATCH_RECORDS)):
            found.append(self._read(batch))
        self._ngrams = np.unique(np.concatenate(found))
        bits = np.zeros(1 << _BITS, np.bool_)
        bits[_low(self._ngrams)] = True
        self._bits = np.packbits(bits, bitorder="little")

    @property
    def ngrams(self) -> int:
        """How many different n-grams there are."""
        return len(self._ngrams)

    def matches(self, text: str) -> bool:
        """Return whether a text shares a run of `words` words with any record."""
        return bool(self.matches_all([text])[0])

    def matches_all(self, texts: Sequence[str]) -> npt.NDArray[np.bool_]:
        """Return for each of the texts whether it matches."""
        if not len(self._ngrams) or not len(texts):
            return np.zeros(len(texts), np.bool_)
        return np.concatenate([self._matches(batch) for batch in _batches(texts)])

    def _matches(self, texts: Sequence[str]) -> npt.NDArray[np.bool_]:
        matching = np.zeros(len(texts), np.bool_)
        ngrams, text = Words(texts).ngrams(self.words)
        low = _low(ngrams)
        # A bit tells nearly all from those that need a search.
        maybe = np.flatnonzero(self._bits[low >> 3] >> (low & 7).astype(np.uint8) & 1)
        place = np.searchsorted(self._ngrams, ngrams[maybe])
        place[place == len(self._ngrams)] = 0
        matching[text[maybe[self._ngrams[place] == ngrams[maybe]]]] = True
        return matching

    def _read(self, records: Sequence[Mapping[str, object]]) -> Hashes:
        texts: list[str] = []
        owners: list[int] = []
        for number, record in enumerate(records):
            for text in _strings(record):
                texts.append(normalise(text))
                owners.append(number)
        words = Words(texts)
        long = np.array(owners, np.int64)[words.counts >= self.words]
        self.records += len(records)
        self.too_short += len(records) - len(np.unique(long))
        return words.ngrams(self.words)[0]


def _batches(texts: Sequence[str]) -> Iterator[Sequence[str]]:
    """Yield the texts in runs of about a megabyte: enough for numpy, and still within a core's cache."""
    begin = characters = 0
    for end, text in enumerate(texts):
        if characters and characters + len(text) > _BATCH_CHARACTERS:
            yield texts[begin:end]
            begin, characters = end, 0
        characters += len(text) + 1
    yield texts[begin:]


def _low(ngrams: Hashes) -> npt.NDArray[np.int64]:
    return (ngrams & np.uint64((1 << _BITS) - 1)).astype(np.int64)


def _strings(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for entry in value.values():
            yield from _strings(entry)
    elif isinstance(value, list | tuple):
        for entry in value:
            yield from _strings(entry)
