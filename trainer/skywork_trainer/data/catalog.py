"""What a run reads, sequence by sequence, without reading it: the plan, the order and the indexes put together.

The trainer, `skywork data order` and the tests all ask here.
"""

import hashlib
import json
import logging
from dataclasses import dataclass

from skywork_trainer.config import RunConfig, Source
from skywork_trainer.data.errors import DataError
from skywork_trainer.data.mixture import Plan
from skywork_trainer.data.order import Order
from skywork_trainer.data.shards import SourceIndex, Windows, read_index
from skywork_trainer.storage import Store, open_store
from skywork_trainer.tokenizer import tokenizer_sha256

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Trace:
    """Where one sequence of the run comes from."""

    sequence: int
    stage: str
    source: str
    nth: int
    """How many sequences of the source the run has drawn before it."""
    epoch: int
    """How often the source has been read through before."""
    window: int
    """Which of the source's sequences it is."""
    shard: str
    first_token: int
    """Where it starts in the shard."""


class CatalogSource:
    """One source: its index, its windows and the order in which they are drawn."""

    def __init__(self, source: Source, config: RunConfig, tokenizer: str) -> None:
        """Read the index; DataError or StorageError when the run cannot be trained on it."""
        self.name = source.name
        self.on_corrupt = source.on_corrupt
        self.index = read_index(source.name, source.uri)
        check_tokenizer(source.name, self.index, tokenizer)
        check_vocabulary(self.index, config)
        self.store: Store = open_store(source.uri)
        self.windows = Windows(self.index, config.sequence_length)
        if not len(self.windows):
            raise DataError(
                "SourceInvalid",
                f"source {source.name!r}: no shard at {source.uri} holds a sequence of {config.sequence_length} tokens"
                ": prepare more text, or lower batch.sequenceLength",
            )
        self.order = Order(seed=config.seed, source=source.name, size=len(self.windows))


class Catalog:
    """The sequences of a run, up to the end of the stage that `config` names."""

    def __init__(self, config: RunConfig) -> None:
        """Read the indexes; DataError or StorageError when the run cannot be trained on them."""
        self.config = config
        # A source that only a later stage draws from may not be prepared yet.
        used = {entry.source for stage in config.stages[: config.stage_index + 1] for entry in stage.mixture}
        self.tokenizer_sha256 = tokenizer_sha256(config.tokenizer_uri)
        self.sources = {
            source.name: CatalogSource(source, config, self.tokenizer_sha256)
            for source in config.sources
            if source.name in used
        }
        self._plan = Plan(config, {name: len(source.windows) for name, source in self.sources.items()})

    @property
    def fingerprints(self) -> dict[str, str]:
        """Identity of every source's content, for the checkpoint."""
        return {name: source.index.fingerprint for name, source in self.sources.items()}

    @property
    def end_of_text(self) -> int:
        """The token that ends every document."""
        return next(iter(self.sources.values())).index.end_of_text

    def warnings(self) -> tuple[str, ...]:
        """Return what a person should know about this stage's data, in a sentence each."""
        return self._plan.warnings(self.config.stage_index)

    def locate(self, sequence: int) -> tuple[CatalogSource, int]:
        """Return the source of a sequence and which of its windows it is."""
        draw = self._plan.draw(sequence)
        source = self.sources[draw.source]
        return source, source.order.locate(draw.nth)[1]

    def trace(self, sequence: int) -> Trace:
        """Return all that decides what a sequence is."""
        draw = self._plan.draw(sequence)
        source = self.sources[draw.source]
        epoch, window = source.order.locate(draw.nth)
        shard, first_token = source.windows.locate(window)
        return Trace(
            sequence=sequence,
            stage=self.config.stages[draw.stage].name,
            source=draw.source,
            nth=draw.nth,
            epoch=epoch,
            window=window,
            shard=source.index.shards[shard].file,
            first_token=first_token,
        )

    def drawn(self, sequence: int) -> dict[str, int]:
        """Return how many sequences of each source the current stage draws before sequence `sequence` of the run."""
        return self._plan.drawn(self.config.stage_index, sequence)

    def epochs(self, sequence: int) -> dict[str, float]:
        """Return how often the sequences [0, sequence) of the run have read each source."""
        return self._plan.epochs(sequence)

    def past_hash(self, sequence: int) -> str:
        """Return the identity of all that decided the draws [0, sequence).

        A checkpoint keeps it, and a run that computes another on resuming has had its past edited. The plan of stages
        not begun by then takes no part.
        """
        config = self.config
        stages = config.stages[: self._plan.reached(sequence)]
        used = {entry.source for stage in stages for entry in stage.mixture}
        past = {
            "seed": config.seed,
            "sequence_length": config.sequence_length,
            "global_batch_sequences": config.global_batch_sequences,
            "tokenizer": self.tokenizer_sha256,
            "sources": {name: self.sources[name].index.fingerprint for name in used},
            # Only a source that stops at its limit changes what is drawn.
            "limits": {s.name: s.max_epochs for s in config.sources if s.name in used and s.stops_at_limit},
            "stages": [
                [-(-stage.tokens // config.global_batch_tokens), [e.model_dump(mode="json") for e in stage.mixture]]
                for stage in stages
            ],
        }
        return hashlib.sha256(json.dumps(past, sort_keys=True).encode()).hexdigest()


def check_vocabulary(index: SourceIndex, config: RunConfig) -> None:
    """Raise DataError VocabularyTooLarge when the model has no embedding for some token."""
    if index.vocab_size > config.model.vocab_size:
        raise DataError(
            "VocabularyTooLarge",
            f"the tokenizer at {config.tokenizer_uri} has {index.vocab_size} tokens, model.vocabSize is "
            f"{config.model.vocab_size}: raise model.vocabSize to at least {index.vocab_size}, or use the "
            "tokenizer that the model was sized for",
        )


def check_tokenizer(name: str, index: SourceIndex, tokenizer: str) -> None:
    """Raise DataError TokenizerMismatch when a source was prepared with another tokenizer than this SHA-256."""
    if index.tokenizer_sha256 != tokenizer:
        raise DataError(
            "TokenizerMismatch",
            f"source {name!r} was prepared with tokenizer {index.tokenizer_sha256[:12]}, the run uses "
            f"{tokenizer[:12]}: prepare the source with the run's tokenizer, or correct tokenizer.uri",
        )
