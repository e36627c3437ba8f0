"""Where each array of a rank's fragments lies in its safetensors file; bytes are moved elsewhere."""

import json
from collections.abc import Sequence
from dataclasses import dataclass

from skywork_trainer.checkpoint.manifest import Piece
from skywork_trainer.engine import KINDS, Span

_FLOAT_BYTES = 4


@dataclass(frozen=True)
class Layout:
    """One rank's file: its first bytes, its size, and the pieces in the order of the spans and of KINDS."""

    header: bytes
    size: int
    pieces: tuple[Piece, ...]


def file_name(file_index: int) -> str:
    """Return the name of a rank's file."""
    return f"rank-{file_index:05d}.safetensors"


def lay_out(spans: Sequence[Span], *, file_index: int) -> Layout:
    """Return the layout of a file that holds the spans' arrays.

    The three arrays of a span lie side by side: a reader of another world size then reads few, long ranges.
    """
    header: dict[str, object] = {}
    placed, data_bytes = [], 0
    for span in spans:
        for kind in KINDS:
            end = data_bytes + span.length * _FLOAT_BYTES
            header[f"{span.name}@{span.start}.{kind}"] = {
                "dtype": "F32",
                "shape": [span.length],
                "data_offsets": [data_bytes, end],
            }
            placed.append((span, kind, data_bytes))
            data_bytes = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # safetensors wants its data aligned
    start = 8 + len(text)
    pieces = tuple(
        Piece(name=s.name, kind=kind, start=s.start, length=s.length, file=file_index, offset=start + offset)
        for s, kind, offset in placed
    )
    return Layout(len(text).to_bytes(8, "little") + text, start + data_bytes, pieces)
