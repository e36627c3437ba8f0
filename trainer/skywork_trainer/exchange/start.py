"""How a run begins with the weights of another model instead of random ones."""

import logging

from tokenizers import Tokenizer

from skywork_trainer.collectives import World
from skywork_trainer.config import RunConfig
from skywork_trainer.engine import Engine
from skywork_trainer.exchange import WeightsError
from skywork_trainer.exchange.geometry import differences
from skywork_trainer.exchange.weights import WeightFolder, WeightReader, open_weights, read_limited
from skywork_trainer.storage import open_store
from skywork_trainer.tokenizer import TOKENIZER_FILE, load_tokenizer

_log = logging.getLogger(__name__)
_MOST_TOKENIZER_BYTES = 100_000_000


def load_initial_weights(config: RunConfig, engine: Engine, world: World) -> None:
    """Fill the engine with the weights at `config.initial_weights_uri`, moments and step count zero; collective.

    Raises WeightsError, in the same words on every rank, when they cannot be read or are not for this run's geometry
    and tokenizer. Each rank reads only the byte ranges it answers for.
    """
    opened = b""
    if world.rank == 0:
        # One rank asks, all read by its answer: a folder that is being replaced cannot give two ranks two models.
        opened = _fitting(config).model_dump_json().encode()
    folder = WeightFolder.model_validate_json(world.broadcast_bytes(opened))
    reader = WeightReader(folder, config.model)
    engine.load_fragments(reader, optimizer_step=0)
    failures = [text.decode() for text in world.gather_bytes((reader.failure or "").encode()) if text]
    if failures:
        raise WeightsError("WeightsInvalid", failures[0])
    _log.info("starting from the weights at %s", folder.uri)


def _fitting(config: RunConfig) -> WeightFolder:
    assert config.initial_weights_uri is not None
    folder = open_weights(config.initial_weights_uri)
    wrong = differences(folder.model, config.model)
    if wrong:
        raise WeightsError(
            "WeightsMismatch",
            f"the weights at {folder.uri} do not fit this run: {'; '.join(wrong)}. `skywork checkpoints geometry "
            f"{folder.uri}` prints the model block that does; a larger vocabSize is fine, a smaller one would cut "
            "tokens off",
        )
    check_tokenizer(folder.uri, config.tokenizer_uri)
    return folder


def check_tokenizer(weights_uri: str, tokenizer_uri: str) -> None:
    """Raise WeightsMismatch unless every token of the weights' tokenizer has the same number in the run's.

    The run's may have more. Weights without a tokenizer.json are taken on trust, with a warning.
    """
    store = open_store(weights_uri)
    content = read_limited(store, TOKENIZER_FILE, _MOST_TOKENIZER_BYTES)
    if content is None:
        _log.warning("%s has no %s: whether the run's tokenizer is theirs is not checked", store.uri, TOKENIZER_FILE)
        return
    try:
        theirs: dict[str, int] = Tokenizer.from_str(content.decode()).get_vocab(with_added_tokens=True)
    except Exception as error:  # the library raises bare Exception
        raise WeightsError("WeightsInvalid", f"{store.uri}/{TOKENIZER_FILE} cannot be read: {error}") from error
    ours: dict[str, int] = load_tokenizer(tokenizer_uri).tokenizer.get_vocab(with_added_tokens=True)
    moved = sorted((number, token) for token, number in theirs.items() if ours.get(token) != number)
    if moved:
        number, token = moved[0]
        said = f"is {ours[token]}" if token in ours else "is missing"
        raise WeightsError(
            "WeightsMismatch",
            f"the weights at {store.uri} were trained with another tokenizer: {len(moved)} of its {len(theirs)} tokens "
            f"have another number in {tokenizer_uri}, the first is {token!r}, which is {number} there and {said} here. "
            f"Use {store.uri}/{TOKENIZER_FILE}, or one that only adds to it",
        )
