"""A checkpoint written as a folder that `transformers` loads: in bounded memory, whole or not at all, twice the same.

The folder is claimed by `skywork-export.json`, written first, which says what is being exported. A folder that holds
anything without that file, or with another one, is left alone. The index comes last: no index, no export. An export
that was interrupted goes on where it was, since what it writes depends on nothing but the claim.
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from skywork_trainer.checkpoint import CheckpointCorrupt
from skywork_trainer.checkpoint.blocks import Block, blocks, elements, in_parallel, read_block
from skywork_trainer.checkpoint.manifest import Manifest, Piece
from skywork_trainer.checkpoint.pieces import PieceReader
from skywork_trainer.checkpoint.verify import array_problems
from skywork_trainer.exchange import ExportRefused
from skywork_trainer.exchange.geometry import EMBEDDING, HEAD, Parameter, llama_config, parameters
from skywork_trainer.exchange.tokenizer import tokenizer_files
from skywork_trainer.exchange.weights import CONFIG_FILE, INDEX_FILE
from skywork_trainer.storage import StorageError, Store
from skywork_trainer.tokenizer import LoadedTokenizer

CLAIM_FILE = "skywork-export.json"
DTYPES = {"bf16": ("BF16", torch.bfloat16, 2), "fp32": ("F32", torch.float32, 4)}
SHARD_BYTES = 5_000_000_000
_CHUNK_ELEMENTS = 1 << 21
Progress = Callable[[int, int], None]
"""Called with bytes written and bytes in all."""


@dataclass(frozen=True)
class Shard:
    """One file: its tensors in order, and where each begins."""

    name: str
    header: bytes
    offsets: dict[str, int]
    """By our name: bytes from the start of the file."""
    size: int


@dataclass(frozen=True)
class Export:
    """What to write."""

    manifest: Manifest
    tokenizer: LoadedTokenizer
    dtype: str
    """A key of DTYPES."""
    shard_bytes: int = SHARD_BYTES
    """A file holds no more, unless one tensor alone is larger."""
    tied: bool = False
    """Leave the head out, because it is the embedding; refused unless it is, bit for bit."""

    def claim(self) -> bytes:
        """Return the content of the claim: equal claims mean equal exports."""
        content = hashlib.sha256()
        for file in self.manifest.files:
            content.update("".join(file.sha256).encode())
        claim = {
            "checkpoint": self.manifest.id,
            "checkpoint_sha256": content.hexdigest(),
            "dtype": self.dtype,
            "shard_bytes": self.shard_bytes,
            "step": self.manifest.step,
            "tied": self.tied,
            "tokenizer_sha256": self.tokenizer.sha256,
            "tokens": self.manifest.tokens,
        }
        return _json(claim)


def export(
    plan: Export,
    source: Store,
    target: Store,
    *,
    scratch: Path | None = None,
    progress: Progress = lambda done, total: None,
) -> bool:
    """Write the export from the checkpoint's store to `target`; return False if it was there already, whole.

    Needs room for one shard in `scratch`, and memory for a few blocks. Raises ExportRefused before anything is
    written; CheckpointCorrupt when the checkpoint cannot be read as it was written, StorageError: then there is no
    index, and the same call goes on.
    """
    if plan.tokenizer.sha256 != plan.manifest.tokenizer_sha256:
        raise ExportRefused(
            f"the run was trained with tokenizer {plan.manifest.tokenizer_sha256[:12]}, this is "
            f"{plan.tokenizer.sha256[:12]}: give the URI that spec.tokenizer.uri names"
        )
    for problem in array_problems(plan.manifest):
        # What is in no piece would be a hole in a file, which reads as zeros.
        raise CheckpointCorrupt(f"{plan.manifest.id}: {problem}")
    if plan.tied and not _equal_ends(plan.manifest, source):
        raise ExportRefused(f"the head of {plan.manifest.id} is not its embedding, bit for bit: export it untied")
    planned = shards(plan)
    small = _small_files(plan)
    _claim(plan, target, {*small, *(shard.name for shard in planned), INDEX_FILE})
    present = _present_sizes(target, [shard.name for shard in planned])
    if target.exists(INDEX_FILE) and all(present.get(shard.name) == shard.size for shard in planned):
        return False
    done, total = 0, sum(shard.size for shard in planned)
    for shard in planned:
        if present.get(shard.name) != shard.size:
            with tempfile.TemporaryDirectory(dir=scratch, prefix="skywork-export-") as folder:
                path = Path(folder) / shard.name
                for written in _write_shard(path, shard, plan, source):
                    progress(done + written, total)
                target.upload(path, shard.name)
        done += shard.size
        progress(done, total)
    for name, content in small.items():
        target.put(name, content)
    target.put(INDEX_FILE, _index(plan, planned))
    return True


def shards(plan: Export) -> list[Shard]:
    """Return the files of the export, packed in the order of the parameters; their sizes are exact."""
    width = DTYPES[plan.dtype][2]
    packed: list[list[Parameter]] = [[]]
    used = 0
    for parameter in _exported(plan):
        if packed[-1] and used + parameter.numel * width > plan.shard_bytes:
            packed.append([])
            used = 0
        packed[-1].append(parameter)
        used += parameter.numel * width
    names = [f"model-{number:05d}-of-{len(packed):05d}.safetensors" for number in range(1, len(packed) + 1)]
    return [_shard(name, group, plan.dtype) for name, group in zip(names, packed, strict=True)]


def _shard(name: str, group: Sequence[Parameter], dtype: str) -> Shard:
    label, _, width = DTYPES[dtype]
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offsets, end = {}, 0
    for parameter in group:
        begin, end = end, end + parameter.numel * width
        header[parameter.theirs] = {"dtype": label, "shape": parameter.shape, "data_offsets": [begin, end]}
        offsets[parameter.name] = begin
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # safetensors wants its data aligned
    start = 8 + len(text)
    head = len(text).to_bytes(8, "little") + text
    return Shard(name, head, {name: start + offset for name, offset in offsets.items()}, start + end)


def _write_shard(path: Path, shard: Shard, plan: Export, source: Store) -> Iterator[int]:
    """Write one file, yielding the bytes written so far: every block that has a part of it is read once."""
    _, dtype, width = DTYPES[plan.dtype]

    def convert(block: Block) -> list[tuple[int, memoryview]]:
        data = read_block(source, plan.manifest, block)
        parts = []
        for piece in block.pieces:
            first, values = elements(block, data, piece)
            parts.append((shard.offsets[piece.name] + first * width, _bytes(values.to(dtype))))
        return parts

    def wanted(piece: Piece) -> bool:
        return piece.kind == "master" and piece.name in shard.offsets

    written = len(shard.header)
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    try:
        os.pwrite(file, shard.header, 0)
        for parts in in_parallel(convert, blocks(plan.manifest, wanted)):
            for offset, data in parts:
                _write_all(file, data, offset)
                written += len(data)
            yield written
    finally:
        os.close(file)


def _write_all(file: int, view: memoryview, offset: int) -> None:
    while view:  # the kernel writes at most 2 GiB at a time
        count = os.pwrite(file, view, offset)
        view, offset = view[count:], offset + count


def _bytes(values: Tensor) -> memoryview:
    return values.contiguous().view(torch.uint8).numpy().data


def _equal_ends(manifest: Manifest, source: Store) -> bool:
    """Return whether head and embedding are the same bits."""
    read = PieceReader(source, manifest)
    size = {parameter.name: parameter.numel for parameter in parameters(manifest.model)}[HEAD]

    def equal(start: int) -> bool:
        length = min(_CHUNK_ELEMENTS, size - start)
        # As whole numbers: 0.0 equals -0.0, and nothing equals what is not a number.
        ends = [read(name, "master", start, length).view(torch.int32) for name in (EMBEDDING, HEAD)]
        return torch.equal(*ends)

    return all(in_parallel(equal, range(0, size, _CHUNK_ELEMENTS)))


def _exported(plan: Export) -> list[Parameter]:
    return [parameter for parameter in parameters(plan.manifest.model) if not (plan.tied and parameter.name == HEAD)]


def _small_files(plan: Export) -> dict[str, bytes]:
    manifest, end_of_text = plan.manifest, plan.tokenizer.end_of_text
    config = llama_config(
        manifest.model,
        sequence_length=manifest.sequence_length,
        end_of_text=end_of_text,
        tied=plan.tied,
        dtype=str(DTYPES[plan.dtype][1]).removeprefix("torch."),
    )
    return {
        CONFIG_FILE: _json(config),
        "generation_config.json": _json({"bos_token_id": end_of_text, "eos_token_id": end_of_text}),
        **tokenizer_files(plan.tokenizer, sequence_length=manifest.sequence_length),
    }


def _index(plan: Export, planned: Sequence[Shard]) -> bytes:
    names = {parameter.name: parameter.theirs for parameter in _exported(plan)}
    width = DTYPES[plan.dtype][2]
    return _json(
        {
            "metadata": {"total_size": sum(parameter.numel for parameter in _exported(plan)) * width},
            "weight_map": {names[name]: shard.name for shard in planned for name in shard.offsets},
        }
    )


def _claim(plan: Export, target: Store, ours: set[str]) -> None:
    claim = plan.claim()
    try:
        # The store decides between two exports that begin at once.
        if not target.list():
            target.put(CLAIM_FILE, claim, if_absent=True)
        present = target.get(CLAIM_FILE)
    except StorageError as error:
        if error.reason not in ("NotFound", "AlreadyExists"):
            raise
        present = b""
    foreign = sorted(set(target.list()) - ours - {CLAIM_FILE})
    if present != claim or foreign:
        what = "holds another export"
        if not present or present == claim:
            what = f"holds {foreign[0]}, which is none of the export's" if foreign else "holds files of an export"
        raise ExportRefused(f"{target.uri} {what}: name an empty folder, or remove what is there")


def _present_sizes(target: Store, names: Sequence[str]) -> dict[str, int]:
    listed = set(target.list())
    return {name: target.size(name) for name in names if name in listed}


def _json(value: object) -> bytes:
    return (json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()
