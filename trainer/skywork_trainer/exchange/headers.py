"""The header of a safetensors file, read from a stranger: every number is checked before it is used.

The format (https://github.com/huggingface/safetensors): 8 bytes of little-endian length, that much JSON, then the
arrays; `data_offsets` count from the end of the JSON.
"""

import json
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from skywork_trainer.exchange import WeightsError
from skywork_trainer.storage import Store

MOST_HEADER_BYTES = 100_000_000
"""The limit of the reference implementation."""
DTYPE_BYTES = {"F32": 4, "F16": 2, "BF16": 2}
"""Types that weights may have here; others of the format are refused by name."""

_Count = Annotated[int, Field(ge=0, le=1 << 50, strict=True)]


class Located(BaseModel):
    """Where one tensor lies: `offset` counts bytes from the start of `file`."""

    model_config = ConfigDict(frozen=True)

    file: str
    offset: int
    dtype: str
    shape: tuple[int, ...]

    @property
    def numel(self) -> int:
        """Elements of the tensor."""
        return _product(self.shape)


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid")

    dtype: str
    shape: Annotated[tuple[_Count, ...], Field(max_length=8)]
    data_offsets: tuple[_Count, _Count]


def read_header(store: Store, file: str) -> dict[str, Located]:
    """Return the tensors of one file by name; WeightsError WeightsInvalid names what is wrong, and where."""
    where = f"{store.uri}/{file}"
    size = store.size(file)
    start = store.get_range(file, 0, 8)
    if len(start) < 8:
        raise WeightsError("WeightsInvalid", f"{where} is no safetensors file: it has {size} bytes")
    length = int.from_bytes(start, "little")
    if length > min(MOST_HEADER_BYTES, size - 8):
        raise WeightsError(
            "WeightsInvalid",
            f"{where} is no safetensors file, or is cut short: its header would have {length} bytes, the file has "
            f"{size} (at most {MOST_HEADER_BYTES} are read)",
        )
    text = store.get_range(file, 8, length)
    try:
        header = json.loads(text, object_pairs_hook=_without_twins)
        if not isinstance(header, dict):
            raise ValueError("it is no object")
        header.pop("__metadata__", None)
        entries = {name: _Entry.model_validate(entry) for name, entry in header.items()}
    # RecursionError: brackets nested by the thousand.
    except (ValueError, ValidationError, RecursionError) as error:
        raise WeightsError("WeightsInvalid", f"the header of {where} cannot be read: {error}") from error
    _check(entries, size - 8 - length, where)
    return {
        name: Located(file=file, offset=8 + length + entry.data_offsets[0], dtype=entry.dtype, shape=entry.shape)
        for name, entry in entries.items()
    }


def _check(entries: dict[str, _Entry], data_bytes: int, where: str) -> None:
    end_before = 0
    for name, entry in sorted(entries.items(), key=lambda item: item[1].data_offsets):
        begin, end = entry.data_offsets
        if not begin <= end <= data_bytes:
            wrong = f"lies at bytes {begin} to {end} of {data_bytes}: the file is cut short or its header is wrong"
        elif begin < end_before:
            wrong = "overlaps another tensor"
        elif entry.dtype in DTYPE_BYTES and end - begin != _product(entry.shape) * DTYPE_BYTES[entry.dtype]:
            wrong = f"has {end - begin} bytes, which is not {entry.dtype} {list(entry.shape)}"
        else:
            end_before = end
            continue
        raise WeightsError("WeightsInvalid", f"{where}: tensor {name[:200]!r} {wrong}")


def _product(shape: tuple[int, ...]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    # Of two entries of one name, one reader would take the first and another the last.
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name occurs twice")
    return found
