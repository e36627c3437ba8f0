"""Held-out domains: the same windows for every world and every step, and what text they are."""

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from skywork_trainer.config import RunConfig, Source
from skywork_trainer.data.cache import PartCache
from skywork_trainer.data.catalog import check_tokenizer, check_vocabulary
from skywork_trainer.data.errors import DataError
from skywork_trainer.data.reader import PartReader
from skywork_trainer.data.shards import SourceIndex, Tokens, read_index
from skywork_trainer.storage import StorageError, open_store
from skywork_trainer.token_text import TokenText, count_tokens
from skywork_trainer.tokenizer import load_tokenizer, tokenizer_sha256
from skywork_trainer.windows import TextSizes, Windows


class Sizer:
    """Finds out what text the windows of domains are; reads tokenizers when it is first asked."""

    def __init__(self, config: RunConfig) -> None:
        self._tokenizer, self._reference = config.tokenizer_uri, config.validation.reference_tokenizer_uri
        self._known: dict[str, TextSizes] = {}

    def __call__(self, windows: Windows) -> TextSizes:
        """Return the sizes of one domain's windows."""
        name = windows.domain
        if name not in self._known:
            text, reference = self._read
            rows = zip(windows.tokens_WS, windows.valid_WT, strict=True)
            targets = [row[1:][counts] for row, counts in rows]
            documents = [one for row in targets for one in text.documents(row.tolist())] if reference else []
            self._known[name] = TextSizes(
                characters=sum(text.characters(row) for row in targets),
                bytes=sum(text.bytes(row) for row in targets),
                reference_tokens=count_tokens(reference, documents) if reference is not None else 0,
            )
        return self._known[name]

    @cached_property
    def _read(self) -> tuple[TokenText, Tokenizer | None]:
        reference = load_tokenizer(self._reference).tokenizer if self._reference is not None else None
        return TokenText(load_tokenizer(self._tokenizer)), reference


def open_held_out(config: RunConfig, cache_dir: Path) -> tuple[list[Windows], Mapping[str, str]]:
    """Read the windows of every domain; return those that can be measured, and why others cannot, by name.

    Raises DataError when a tokenizer is not there, StorageError when storage does not answer.
    """
    if not config.validation.domains:
        return [], {}
    tokenizer = tokenizer_sha256(config.tokenizer_uri)
    if config.validation.reference_tokenizer_uri is not None:
        tokenizer_sha256(config.validation.reference_tokenizer_uri)
    found, broken = [], {}
    for domain in config.validation.domains:
        try:
            found.append(Windows(domain.name, *_read(domain, config, cache_dir, tokenizer)))
        except (DataError, StorageError) as error:
            if error.retryable:
                raise
            broken[domain.name] = f"{error.reason}: {error.message}"
    return found, broken


def _read(
    domain: Source, config: RunConfig, cache_dir: Path, tokenizer_sha256: str
) -> tuple[Tokens, npt.NDArray[np.bool_]]:
    index = read_index(domain.name, domain.uri)
    check_tokenizer(domain.name, index, tokenizer_sha256)
    check_vocabulary(index, config)
    reader = PartReader(PartCache(cache_dir))
    try:
        tokens, mask = _first_windows(domain, index, reader, config.validation.windows, config.sequence_length)
    finally:
        reader.close()
    if not len(tokens):
        raise DataError(
            "SourceInvalid",
            f"validation domain {domain.name!r}: {domain.uri} holds {index.tokens} tokens and no shard of two or more, "
            "so there is nothing to predict: prepare it from more text",
        )
    return tokens, mask


def _first_windows(
    domain: Source, index: SourceIndex, reader: PartReader, windows: int, sequence_length: int
) -> tuple[Tokens, npt.NDArray[np.bool_]]:
    store = open_store(domain.uri)
    tokens = np.zeros((windows, sequence_length + 1), dtype=np.int64)
    mask = np.zeros((windows, sequence_length), dtype=np.bool_)
    filled = 0
    for shard in index.shards:
        for start in range(0, shard.tokens - 1, sequence_length)[: windows - filled]:
            count = min(sequence_length + 1, shard.tokens - start)
            tokens[filled, :count] = reader.tokens(store, index, shard, start, count)
            mask[filled, : count - 1] = True
            filled += 1
    return tokens[:filled], mask[:filled]
