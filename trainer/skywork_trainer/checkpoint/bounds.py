"""What a manifest may say before anything acts on it: sizes, places and names that a writer of ours could have written.

Whoever can write to the bucket can write a manifest. It is judged in memory that its own few bytes bound, and what
passes can make a reader neither leave the checkpoint's folder, nor allocate beyond a block, nor read a byte twice.
"""

import re
from collections.abc import Iterator
from itertools import pairwise
from typing import TYPE_CHECKING

from skywork_trainer.checkpoint import CheckpointCorrupt

if TYPE_CHECKING:
    from skywork_trainer.checkpoint.manifest import Manifest, Piece, RankFile

MOST_MANIFEST_BYTES = 32 << 20
"""Of 70 billion parameters on 4,096 ranks it has about 9 MiB, 20,000 objects and 200,000 values."""
MOST_OBJECTS = 100_000
"""JSON objects in it: one for each file and each piece."""
MOST_VALUES = 1_000_000
MOST_BLOCK_BYTES = 64 << 20
MOST_LAYERS = 4096
ARRAYS = ("master", "exp_avg", "exp_avg_sq")
FLOAT_BYTES = 4
_LARGEST = 1 << 50
_FILE = re.compile(r"rank-[0-9]{5,9}\.safetensors")
_SHA256 = re.compile(r"[0-9a-f]{64}")


def check_text(identity: str, text: bytes) -> None:
    """Raise CheckpointCorrupt when parsing the text could take memory out of proportion."""
    for name, found, most in (
        ("bytes", len(text), MOST_MANIFEST_BYTES),
        ("objects", text.count(b"{"), MOST_OBJECTS),
        ("values", text.count(b","), MOST_VALUES),
    ):
        if found > most:
            raise CheckpointCorrupt(f"manifest of {identity} has {found} {name} or more, at most {most} are read")


def check_manifest(manifest: "Manifest", identity: str) -> None:
    """Raise CheckpointCorrupt, naming field and value, unless a manifest describes whole, disjoint arrays."""
    for problem in _problems(manifest, identity):
        raise CheckpointCorrupt(f"manifest of {identity}: {problem}")


def _problems(manifest: "Manifest", identity: str) -> Iterator[str]:
    if manifest.id != identity:
        yield f"id is {_shown(manifest.id)}"
    if manifest.model.layers > MOST_LAYERS:
        yield f"model.layers is {manifest.model.layers}, at most {MOST_LAYERS} are read"
    for field in ("step", "tokens", "optimizer_step", "generation"):
        if not 0 <= getattr(manifest, field) < _LARGEST:
            yield f"{field} is {_shown(getattr(manifest, field))}"
    if len({file.name for file in manifest.files}) != len(manifest.files):
        yield "files: two have the same name"
    for number, file in enumerate(manifest.files):
        yield from (f"files[{number}].{problem}" for problem in _of_file(file))
    for number, piece in enumerate(manifest.pieces):
        yield from (f"pieces[{number}].{problem}" for problem in _of_piece(piece, manifest))
    yield from _of_arrays(manifest)


def _of_file(file: "RankFile") -> Iterator[str]:
    if not _FILE.fullmatch(file.name):
        yield f"name is {_shown(file.name)}, not rank-NNNNN.safetensors"
    if not 0 < file.size < _LARGEST:
        yield f"size is {_shown(file.size)}"
    if not 0 < file.block_bytes <= MOST_BLOCK_BYTES or file.block_bytes % FLOAT_BYTES:
        yield f"block_bytes is {_shown(file.block_bytes)}, not a multiple of 4 up to {MOST_BLOCK_BYTES}"
    elif len(file.sha256) != -(-file.size // file.block_bytes):
        yield f"sha256 has {len(file.sha256)} hashes for {_shown(file.size)} bytes in blocks of {file.block_bytes}"
    for index, digest in enumerate(file.sha256):
        if not _SHA256.fullmatch(digest):
            yield f"sha256[{index}] is {_shown(digest)}"


def _of_piece(piece: "Piece", manifest: "Manifest") -> Iterator[str]:
    if piece.kind not in ARRAYS:
        yield f"kind is {_shown(piece.kind)}, not one of {', '.join(ARRAYS)}"
    if not 0 <= piece.start < _LARGEST:
        yield f"start is {_shown(piece.start)}"
    if not 0 < piece.length < _LARGEST:
        yield f"length is {_shown(piece.length)}"
    if not 0 <= piece.file < len(manifest.files):
        yield f"file is {_shown(piece.file)}, there are {len(manifest.files)} files"
    elif piece.offset < 0 or piece.offset + piece.length * FLOAT_BYTES > manifest.files[piece.file].size:
        size = manifest.files[piece.file].size
        yield f"offset is {_shown(piece.offset)}: {_shown(piece.length)} numbers from there end beyond {size} bytes"


def _of_arrays(manifest: "Manifest") -> Iterator[str]:
    by_element = sorted(manifest.pieces, key=lambda piece: (piece.name, piece.kind, piece.start))
    end, array = 0, ("", "")
    for piece in by_element:
        if (piece.name, piece.kind) != array:
            end, array = 0, (piece.name, piece.kind)
        if piece.start != end:
            fault = "are missing" if piece.start > end else "are there twice"
            low, high = sorted((piece.start, end))
            yield f"pieces: elements {low} to {high} of {_shown(piece.name)} {piece.kind} {fault}"
        end = piece.start + piece.length
    by_byte = sorted(manifest.pieces, key=lambda piece: (piece.file, piece.offset))
    for one, other in pairwise(by_byte):
        if one.file == other.file and one.offset + one.length * FLOAT_BYTES > other.offset:
            yield f"pieces: {_shown(one.name)} and {_shown(other.name)} share bytes of file {one.file}"


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}…"
