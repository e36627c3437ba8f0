"""A folder of a Llama's weights, opened and checked; its spans as an engine's `Reader`, with no conversion between."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import PurePosixPath

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from skywork_trainer.config import Model
from skywork_trainer.engine import Span
from skywork_trainer.exchange import WeightsError
from skywork_trainer.exchange.geometry import EMBEDDING, HEAD, geometry_of, parameters
from skywork_trainer.exchange.headers import DTYPE_BYTES, Located, read_header
from skywork_trainer.storage import StorageError, Store, open_store

INDEX_FILE = "model.safetensors.index.json"
SINGLE_FILE = "model.safetensors"
CONFIG_FILE = "config.json"
_MOST_CONFIG_BYTES = 1 << 20
_MOST_INDEX_BYTES = 100_000_000
_MOST_FILES = 10_000
_PICKLED = (".bin", ".pt", ".pth", ".ckpt")
_TORCH = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_CHUNK_ELEMENTS = 1 << 22
_THREADS = 8


class WeightFolder(BaseModel):
    """A checked folder: every parameter of `model`, by our name, and where it lies. Small: headers, no weights."""

    model_config = ConfigDict(frozen=True)

    uri: str
    model: Model
    tied: bool
    """Whether the head is the embedding."""
    tensors: dict[str, Located]


def open_weights(uri: str) -> WeightFolder:
    """Return the checked folder at `uri`; reads config.json and the headers, no weights.

    Raises WeightsError: Missing where there is no such folder, Invalid where it is not a whole, plain Llama in
    safetensors; StorageError where storage fails.
    """
    store = open_store(uri)
    config = read_limited(store, CONFIG_FILE, _MOST_CONFIG_BYTES)
    if config is None:
        raise WeightsError("WeightsMissing", f"there is no {CONFIG_FILE} at {store.uri}: correct the URI")
    model, tied = geometry_of(config, f"{store.uri}/{CONFIG_FILE}")
    return WeightFolder(uri=uri, model=model, tied=tied, tensors=_placed(_tensors(store), model, tied, store.uri))


def read_limited(store: Store, key: str, most_bytes: int) -> bytes | None:
    """Return a small object, None if there is none; WeightsError if it is larger than it can be."""
    try:
        size = store.size(key)
    except StorageError as error:
        if error.reason != "NotFound":
            raise
        return None
    if size > most_bytes:
        raise WeightsError("WeightsInvalid", f"{store.uri}/{key} has {size} bytes, more than {most_bytes}: not read")
    return store.get(key)


def _tensors(store: Store) -> dict[str, Located]:
    index = read_limited(store, INDEX_FILE, _MOST_INDEX_BYTES)
    files = [SINGLE_FILE] if index is None else _indexed_files(index, f"{store.uri}/{INDEX_FILE}")
    found: dict[str, Located] = {}
    for file in files:
        try:
            header = read_header(store, file)
        except StorageError as error:
            if error.reason != "NotFound":
                raise
            raise _absent(store, file, single=index is None) from error
        for name, located in header.items():
            if name in found:
                raise WeightsError("WeightsInvalid", f"{store.uri}: {name!r} is in {found[name].file} and in {file}")
            found[name] = located
    return found


def _absent(store: Store, file: str, *, single: bool) -> WeightsError:
    if not single:
        return WeightsError("WeightsMissing", f"{store.uri}/{INDEX_FILE} names {file}, which is not there")
    pickled = [key for key in store.list() if key.endswith(_PICKLED)]
    if pickled:
        return WeightsError(
            "WeightsInvalid",
            f"{store.uri} holds {pickled[0]} but no safetensors: that is a pickle, which runs code when it is read "
            "and is never opened here. Save the model anew with save_pretrained(..., safe_serialization=True)",
        )
    return WeightsError("WeightsMissing", f"there is neither {SINGLE_FILE} nor {INDEX_FILE} at {store.uri}")


def _indexed_files(index: bytes, where: str) -> list[str]:
    try:
        names = json.loads(index)["weight_map"].values()
        files = sorted({str(name) for name in names})
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise WeightsError("WeightsInvalid", f"{where} is no index of safetensors files: {error}") from error
    for file in files:
        # It is joined to the folder's URI: a path of somebody else's making must not lead out of it.
        if PurePosixPath(file).name != file or not file.endswith(".safetensors"):
            raise WeightsError("WeightsInvalid", f"{where} names {file[:200]!r}, no safetensors file beside it")
    if not 1 <= len(files) <= _MOST_FILES:
        raise WeightsError("WeightsInvalid", f"{where} names {len(files)} files; 1 to {_MOST_FILES} are read")
    return files


def _placed(found: dict[str, Located], model: Model, tied: bool, where: str) -> dict[str, Located]:
    """Return the tensors by our names; every one of the geometry's is there, of its shape, and no other."""
    placed, missing, wrong = {}, [], []
    for parameter in parameters(model):
        theirs = "model.embed_tokens.weight" if tied and parameter.name == HEAD else parameter.theirs
        located = found.get(theirs)
        if located is None:
            missing.append(theirs)
        elif located.shape != parameter.shape:
            wrong.append(f"{theirs} is {list(located.shape)}, config.json makes it {list(parameter.shape)}")
        elif located.dtype not in DTYPE_BYTES:
            wrong.append(f"{theirs} is {located.dtype[:20]}, only {', '.join(DTYPE_BYTES)} are read")
        else:
            placed[parameter.name] = located
    expected = {parameter.theirs for parameter in parameters(model)}
    # Old files carry the rotary frequencies, which follow from rope_theta.
    extra = sorted(name for name in found if name not in expected and not name.endswith(".rotary_emb.inv_freq"))
    for some, what in ((missing, "are missing"), (wrong, ""), (extra, "have no place in the model")):
        if some:
            listed = ", ".join(name[:200] for name in some[:3]) + (f" and {len(some) - 3} more" if some[3:] else "")
            raise WeightsError("WeightsInvalid", f"{where}: {listed} {what}".rstrip())
    return placed


class WeightReader:
    """Reads spans of a run's parameters out of a folder of weights, moments zero; an engine's `Reader`.

    `model` is the run's geometry, the folder's but for a larger vocabulary: rows that the folder lacks are the mean of
    those it has. The model then gives new tokens the probability of an average one, and what it knew hardly moves
    (Hewitt 2021, "Initializing New Word Embeddings for Pretrained Language Models").

    A span that cannot be read comes back as zeros and `failure` says why: engines go on to their collectives, and the
    ranks then agree on what to do, where an exception on one rank would leave the others waiting.
    """

    def __init__(self, folder: WeightFolder, model: Model) -> None:
        self._store, self._folder, self._hidden = open_store(folder.uri), folder, model.hidden
        self._means: dict[str, Tensor] = {}
        self.failure: str | None = None

    def __call__(self, span: Span) -> tuple[Tensor, Tensor, Tensor]:
        """Return weights in fp32 and two moments of zero."""
        zero = torch.zeros(1).expand(span.length)
        try:
            weights = self._weights(span)
        except WeightsError as error:
            self.failure = self.failure or error.message
            return zero, zero, zero
        return weights, zero, zero

    def _weights(self, span: Span) -> Tensor:
        located = self._folder.tensors[span.name]
        known = max(min(span.length, located.numel - span.start), 0)
        out = torch.empty(span.length)
        if known:
            self._read(located, span.start, out[:known])
        if known < span.length:
            if span.name not in (EMBEDDING, HEAD):
                raise WeightsError("WeightsMismatch", f"{span.name} has {located.numel} elements, the run's has more")
            column = (span.start + known) % self._hidden
            rows = -(-(span.length - known + column) // self._hidden)
            mean = self._mean_row(span.name, located).repeat(rows)
            out[known:] = mean[column : column + span.length - known]
        return out

    def _mean_row(self, name: str, located: Located) -> Tensor:
        if name not in self._means:
            rows = max(_CHUNK_ELEMENTS // self._hidden, 1)
            total = torch.zeros(self._hidden, dtype=torch.float64)
            for first in range(0, located.shape[0], rows):
                part = torch.empty(min(rows, located.shape[0] - first) * self._hidden)
                self._read(located, first * self._hidden, part)
                total += part.view(-1, self._hidden).double().sum(dim=0)
            self._means[name] = (total / located.shape[0]).float()
        return self._means[name]

    def _read(self, located: Located, start: int, out: Tensor) -> None:
        """Fill `out` with elements of the flattened tensor from `start`, in parallel, each chunk where it belongs."""
        width = DTYPE_BYTES[located.dtype]

        def bring(first: int) -> None:
            target = out[first : first + _CHUNK_ELEMENTS]
            data = self._bytes(located, located.offset + (start + first) * width, target.numel() * width)
            target.copy_(torch.frombuffer(data, dtype=_TORCH[located.dtype]))

        with ThreadPoolExecutor(_THREADS, thread_name_prefix="weights") as pool:
            list(pool.map(bring, range(0, out.numel(), _CHUNK_ELEMENTS)))
        if not torch.isfinite(out).all():
            raise WeightsError("WeightsInvalid", f"{self._store.uri}/{located.file} holds values that are not finite")

    def _bytes(self, located: Located, offset: int, length: int) -> bytearray:
        try:
            data = self._store.get_range(located.file, offset, length)
        except StorageError as error:
            if error.reason != "NotFound":
                raise
            raise WeightsError("WeightsMissing", f"{self._store.uri}/{located.file} is gone") from error
        if len(data) != length:
            raise WeightsError(
                "WeightsInvalid", f"{self._store.uri}/{located.file} ends {length - len(data)} bytes early"
            )
        return bytearray(data)  # a copy: torch wants memory it may write to
