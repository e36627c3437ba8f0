"""Held-out domains: the same windows for every world and every step."""

from pathlib import Path

import numpy as np
import numpy.typing as npt

from skywork_trainer.config import RunConfig, Source
from skywork_trainer.data.cache import PartCache
from skywork_trainer.data.catalog import check_tokenizer, check_vocabulary
from skywork_trainer.data.errors import DataError
from skywork_trainer.data.reader import PartReader
from skywork_trainer.data.shards import SourceIndex, Tokens, read_index
from skywork_trainer.storage import open_store
from skywork_trainer.tokenizer import tokenizer_sha256


class ValidationSet:
    """The first `windows` sequences of a held-out domain."""

    tokens: Tokens
    """[windows, sequence_length + 1]; a short last window of a shard is filled up with zeros."""
    mask: npt.NDArray[np.bool_]
    """[windows, sequence_length]: which targets count."""

    def __init__(self, domain: Source, config: RunConfig, cache_dir: Path) -> None:
        """Read the domain's windows; DataError or StorageError when it cannot be measured with the run's tokenizer."""
        self.name = domain.name
        index = read_index(domain.name, domain.uri)
        check_tokenizer(domain.name, index, tokenizer_sha256(config.tokenizer_uri))
        check_vocabulary(index, config)
        self.fingerprint = index.fingerprint
        reader = PartReader(PartCache(cache_dir))
        self.tokens, self.mask = _first_windows(
            domain, index, reader, config.validation.windows, config.sequence_length
        )
        reader.close()
        if not len(self.tokens):
            raise DataError("SourceInvalid", f"validation domain {domain.name!r}: {domain.uri} holds no text")


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
