"""Documents that say nearly the same as one before them, found by MinHash and locality-sensitive hashing."""

import hashlib
from functools import cache

import numpy as np
import numpy.typing as npt
from datasketch import MinHash, MinHashLSH

from skywork_trainer.config import NearDuplicates
from skywork_trainer.prepare.ngrams import Words

Signature = npt.NDArray[np.uint32]

_PRIME = np.uint64((1 << 61) - 1)
_NONE = np.uint32(0xFFFF_FFFF)
_WEIGHTS = (0.1, 0.9)
"""What a document found in vain and one overlooked weigh when the index is laid out: the former are looked at again."""
_STRIDE = 128
"""N-grams that are permuted at a time, so that the intermediate values stay in a core's cache."""


def signature(text: str, options: NearDuplicates) -> Signature:
    """Return the MinHash signature of a text's n-grams; of all its words' if it has fewer than `words`."""
    words = Words([text])
    count = int(words.counts[0])
    values = np.full(options.permutations, _NONE, np.uint32)
    if not count:
        return values
    # 32 bits, as the library's permutations want them.
    ngrams = words.ngrams(min(options.words, count))[0] >> np.uint64(32)
    scale, shift = _permutations(options.permutations)
    for start in range(0, len(ngrams), _STRIDE):
        permuted = ngrams[start : start + _STRIDE, None] * scale
        permuted += shift
        _modulo_prime(permuted)
        np.minimum(values, permuted.astype(np.uint32).min(axis=0), out=values)
    return values


class NearDuplicateFilter:
    """The signatures of the documents kept so far."""

    def __init__(self, options: NearDuplicates) -> None:
        self._threshold = options.threshold
        self._index = _index(options)
        self._scales = _permutations(options.permutations)
        self._kept = np.zeros((1024, options.permutations), np.uint32)
        self._documents = 0

    def seen(self, signature: Signature) -> bool:
        """Return whether a document kept earlier is estimated to be at least `threshold` alike; if not, keep this one.

        A document without words is like no other.
        """
        if (signature == _NONE).all():
            return False
        document = MinHash(hashvalues=signature, permutations=self._scales)
        candidates = self._index.query(document)
        # The index also finds documents that only share a band.
        if candidates and (self._kept[candidates] == signature).mean(axis=1).max() >= self._threshold:
            return True
        if self._documents == len(self._kept):
            self._kept = np.concatenate([self._kept, np.zeros_like(self._kept)])
        self._kept[self._documents] = signature
        self._index.insert(self._documents, document, check_duplication=False)
        self._documents += 1
        return False


def _index(options: NearDuplicates) -> MinHashLSH:
    def digest(band: bytes) -> bytes:
        # Less memory than the band itself would take as a key; a collision only costs a look at the estimate.
        return hashlib.blake2b(band, digest_size=8).digest()

    try:
        return MinHashLSH(options.threshold, options.permutations, _WEIGHTS, hashfunc=digest)
    except ValueError:
        # So high a threshold asks for a single band, which the library refuses; two overlook nothing that one finds.
        halves = (2, options.permutations // 2)
        return MinHashLSH(num_perm=options.permutations, params=halves, hashfunc=digest)


@cache
def _permutations(count: int) -> npt.NDArray[np.uint64]:
    """Return the library's permutations: the factors, and what is added."""
    return np.array(MinHash(count).permutations, np.uint64)


def _modulo_prime(values: npt.NDArray[np.uint64]) -> None:
    """Reduce values modulo 2^61 - 1, in place and without a division, which would take most of the time."""
    high = values >> np.uint64(61)
    values &= _PRIME
    values += high
    # Below the prime the difference wraps around and is the greater one.
    np.subtract(values, _PRIME, out=high)
    np.minimum(values, high, out=values)
