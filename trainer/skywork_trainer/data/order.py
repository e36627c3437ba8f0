"""The order in which a source's sequences are drawn: a keyed permutation, computed and never stored.

Blocks of neighbouring sequences are permuted, then the sequences inside each block, anew in every epoch. A block
keeps neighbours together so that a shard, once fetched, serves many draws; a small block mixes a batch better.
"""

import hashlib
from functools import lru_cache
from math import isqrt

BLOCK_SEQUENCES = 256
"""Longest run of neighbours that stay together."""
_LEAST_BLOCKS = 4096
_ROUNDS = 6
_WORD = (1 << 64) - 1


class Order:
    """The endless draw order of one source of `size` sequences: each epoch draws every sequence exactly once."""

    def __init__(self, *, seed: int, source: str, size: int) -> None:
        if size < 1:
            raise ValueError(f"a source needs at least one sequence, got {size}")
        self._identity = f"{seed}/{source}"
        self._size = size
        # A small source lies in few shards, which the cache holds anyway: there short blocks cost nothing, while long
        # ones would fill whole batches from one document.
        self._block_size = min(max(size // _LEAST_BLOCKS, 1), BLOCK_SEQUENCES)
        self._blocks = -(-size // self._block_size)
        self._key_of = lru_cache(maxsize=4)(self._epoch_key)

    def locate(self, nth: int) -> tuple[int, int]:
        """Return (epoch, sequence of the source) of the `nth` draw, counted from 0."""
        epoch, index = divmod(nth, self._size)
        return epoch, self._permuted(index, self._key_of(epoch))

    def _epoch_key(self, epoch: int) -> int:
        return int.from_bytes(hashlib.sha256(f"{self._identity}/{epoch}".encode()).digest()[:8], "little")

    def _permuted(self, index: int, key: int) -> int:
        while True:
            block, offset = divmod(index, self._block_size)
            block = permute(block, self._blocks, key)
            offset = permute(offset, self._block_size, key ^ _mix(block + 1))
            index = block * self._block_size + offset
            # The last block may be short: an image beyond the end walks on along its cycle until it is inside.
            if index < self._size:
                return index


def permute(index: int, size: int, key: int) -> int:
    """Return the image of `index` under the bijection of [0, size) that `key` chooses."""
    # A Feistel network over [0, left) x [0, right), the smallest near-square that holds `size`: walks are rare.
    left = isqrt(size - 1) + 1
    right = -(-size // left)
    while True:
        low, high = index % left, index // left
        for number in range(_ROUNDS):
            if number % 2:
                high = (high + _mix(key + (number << 32) + low)) % right
            else:
                low = (low + _mix(key + (number << 32) + high)) % left
        index = high * left + low
        if index < size:
            return index


def _mix(value: int) -> int:
    """Scramble 64 bits (the finaliser of splitmix64)."""
    value = (value + 0x9E3779B97F4A7C15) & _WORD
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _WORD
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _WORD
    return value ^ (value >> 31)
