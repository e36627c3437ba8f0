"""What text tokens stand for: how many bytes and characters, and what another tokenizer would make of it.

A window of tokens may begin or end inside a character. Lengths are taken token by token, so that windows which
partition a text have lengths that add up to the text's.
"""

import json
import re
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from skywork_trainer.tokenizer import LoadedTokenizer

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_SPACE = "▁"
"""How SentencePiece spells a space."""


class TokenText:
    """The bytes behind every token of one tokenizer; special tokens stand for no text."""

    def __init__(self, loaded: LoadedTokenizer) -> None:
        self._end_of_text = loaded.end_of_text
        self._texts = _texts(loaded)
        sizes = [len(text) for text in self._texts]
        # A character is counted where it begins: continuation bytes are 10xxxxxx.
        begun = [sum(byte & 0xC0 != 0x80 for byte in text) for text in self._texts]
        self._bytes_V = np.array(sizes, dtype=np.int64)
        self._characters_V = np.array(begun, dtype=np.int64)

    def bytes(self, tokens: npt.NDArray[np.int64]) -> int:
        """Return how many bytes of UTF-8 the tokens stand for."""
        return int(self._bytes_V[tokens].sum())

    def characters(self, tokens: npt.NDArray[np.int64]) -> int:
        """Return how many characters begin in the tokens."""
        return int(self._characters_V[tokens].sum())

    def documents(self, tokens: Sequence[int]) -> list[str]:
        """Return the text of the tokens, cut where documents end; characters that are not whole are left out."""
        pieces, piece = [], bytearray()
        for token in (*tokens, self._end_of_text):
            if token == self._end_of_text:
                if piece:
                    pieces.append(piece.decode(errors="ignore"))
                piece = bytearray()
            else:
                piece += self._texts[token]
        return pieces


def count_tokens(reference: Tokenizer, documents: Sequence[str]) -> int:
    """Return how many tokens a tokenizer makes of the documents, special tokens not counted."""
    encoded = reference.encode_batch_fast(list(documents), add_special_tokens=False)
    return sum(len(one.ids) for one in encoded)


def _texts(loaded: LoadedTokenizer) -> list[bytes]:
    tokenizer = loaded.tokenizer
    special = {number for number, token in tokenizer.get_added_tokens_decoder().items() if token.special}
    added = {number for number in tokenizer.get_added_tokens_decoder() if number not in special}
    in_bytes = "ByteLevel" in json.dumps(json.loads(loaded.content).get("decoder"))
    texts = [b""] * loaded.vocab_size
    for text, number in tokenizer.get_vocab(with_added_tokens=True).items():
        if number in special:
            continue
        texts[number] = text.encode() if number in added else _of_bytes(text) if in_bytes else _of_pieces(text)
    return texts


def _of_bytes(text: str) -> bytes:
    """Return what a token of byte-level BPE stands for: one character of it is one byte."""
    return bytes(_BYTES[character] for character in text) if all(c in _BYTES for c in text) else text.encode()


def _of_pieces(text: str) -> bytes:
    """Return what a piece of SentencePiece stands for."""
    byte = _BYTE_TOKEN.fullmatch(text)
    return bytes([int(byte[1], 16)]) if byte else text.replace(_SPACE, " ").encode()


def _byte_alphabet() -> dict[str, int]:
    """Return the byte that each character of byte-level BPE means: printable ones themselves, others from U+0100 on."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    moved = [byte for byte in range(0x100) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + at): byte for at, byte in enumerate(moved)}


_BYTES = _byte_alphabet()
