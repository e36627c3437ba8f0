"""The tokenizer of a run: byte-level BPE in one `tokenizer.json`, known by the SHA-256 of that file."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from skywork_trainer.data.errors import DataError
from skywork_trainer.storage import StorageError, Store, open_store

TOKENIZER_FILE = "tokenizer.json"
END_OF_TEXT = "<|endoftext|>"
"""As tokenizers trained here spell it."""
_END_OF_TEXT_ELSEWHERE = ("<|end_of_text|>", "</s>", "<｜end▁of▁sentence｜>")
"""As open models spell it: Llama 3, Llama 2 and its kin, DeepSeek."""
MIN_VOCAB_SIZE = 257
"""End of text and one token for every byte."""


@dataclass(frozen=True)
class LoadedTokenizer:
    """A tokenizer as it was read: `content` is the file itself."""

    content: bytes

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer; text that spells a special token out is encoded as text."""
        tokenizer = Tokenizer.from_str(self.content.decode())
        tokenizer.encode_special_tokens = True
        return tokenizer

    @cached_property
    def sha256(self) -> str:
        """Identity, kept in every source's index and every checkpoint."""
        return hashlib.sha256(self.content).hexdigest()

    @cached_property
    def vocab_size(self) -> int:
        """One more than the largest token."""
        return 1 + max(self.tokenizer.get_vocab(with_added_tokens=True).values())

    @cached_property
    def end_of_text(self) -> int:
        """The token that ends every document."""
        own: int | None = self.tokenizer.token_to_id(END_OF_TEXT)
        if own is not None:
            return own
        # Only as special tokens: a vocabulary trained on HTML may well hold </s> as a piece of text.
        special = {t.content: number for number, t in self.tokenizer.get_added_tokens_decoder().items() if t.special}
        for name in _END_OF_TEXT_ELSEWHERE:
            if name in special:
                return int(special[name])
        raise DataError(
            "TokenizerInvalid",
            f"the tokenizer has no token that ends a document ({END_OF_TEXT}, {', '.join(_END_OF_TEXT_ELSEWHERE)}): "
            "train one with `skywork tokenizer train`",
        )


def locate_tokenizer(uri: str) -> tuple[Store, str]:
    """Return store and key of the tokenizer at `uri`, a folder or the file itself."""
    if uri.endswith(".json"):
        folder, _, key = uri.rpartition("/")
        return open_store(folder), key
    return open_store(uri), TOKENIZER_FILE


def tokenizer_sha256(uri: str) -> str:
    """Return the identity of the tokenizer at `uri`; DataError TokenizerInvalid if there is none."""
    return LoadedTokenizer(_content(uri)).sha256


def load_tokenizer(uri: str) -> LoadedTokenizer:
    """Read a tokenizer; DataError TokenizerInvalid when there is none or it cannot be used."""
    loaded = LoadedTokenizer(_content(uri))
    try:
        loaded.tokenizer.get_vocab_size()
    except Exception as error:  # the library raises bare Exception
        raise DataError("TokenizerInvalid", f"{uri} is no tokenizer.json: {error}") from error
    return loaded


def _content(uri: str) -> bytes:
    store, key = locate_tokenizer(uri)
    try:
        return store.get(key)
    except StorageError as error:
        if error.reason != "NotFound":
            raise
        raise DataError(
            "TokenizerInvalid", f"no tokenizer at {store.uri}/{key}: train one or correct the URI"
        ) from error


def train_tokenizer(texts: Iterator[str], vocab_size: int) -> LoadedTokenizer:
    """Train byte-level BPE; the same texts give the same file."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            # Chinese has no spaces: without this a whole clause would be one word, and merges would span phrases.
            pre_tokenizers.Split(Regex(r"\p{Han}{1,4}"), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return LoadedTokenizer(tokenizer.to_str(pretty=True).encode())
