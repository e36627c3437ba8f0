"""Inputs cut into chunks: units of work that any process on any pod may take, in an order that is always the same."""

import gzip
import io
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import zstandard

from skywork_trainer.data.errors import DataError
from skywork_trainer.prepare.texts import TextFile, checked_text, parse_text

_ROWS = 256


@dataclass(frozen=True)
class Chunk:
    """Lines of one file that start at byte `start` or behind it, and before `end`; a file that cannot be cut is one."""

    number: int
    file: TextFile
    start: int
    end: int

    def documents(self, field: str) -> Iterator[tuple[bytes, str | None]]:
        """Yield the raw line and its text, None for a bad one; DataError InputInvalid when the file is damaged."""
        if self.file.key.endswith(".parquet"):
            yield from self._rows(field)
            return
        for line in self._lines():
            if line.strip():
                yield line, parse_text(line, field)

    def _lines(self) -> Iterator[bytes]:
        try:
            with self.file.open() as raw, _decompressed(self.file.key, raw) as stream:
                if not self.file.can_be_cut:
                    yield from stream
                    return
                at = self.start
                if at:
                    # The byte before tells whether a line starts here; otherwise it belongs to the chunk before.
                    stream.seek(at - 1)
                    at += len(stream.readline()) - 1
                while at < self.end and (line := stream.readline()):
                    at += len(line)
                    yield line
        except (gzip.BadGzipFile, zstandard.ZstdError, EOFError) as error:
            raise DataError("InputInvalid", f"{self.file.uri}: damaged: {error}") from error

    def _rows(self, field: str) -> Iterator[tuple[bytes, str | None]]:
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            with self.file.open() as raw, pq.ParquetFile(raw) as table:  # type: ignore[no-untyped-call]
                if field not in table.schema_arrow.names:
                    raise DataError(
                        "InputInvalid",
                        f"{self.file.uri} has no column {field!r}; its columns are "
                        f"{', '.join(table.schema_arrow.names)}: name one with --text-field",
                    )
                for rows in table.iter_batches(_ROWS, columns=[field]):
                    for value in rows.column(0).to_pylist():
                        text = checked_text(value)
                        yield (b"" if text else json.dumps(value, default=str).encode()), text
        except pa.ArrowException as error:
            raise DataError("InputInvalid", f"{self.file.uri}: damaged: {error}") from error


def cut(files: Sequence[TextFile], chunk_bytes: int) -> list[Chunk]:
    """Return the chunks of all files, in order; plain JSON lines are cut about every `chunk_bytes`."""
    chunks: list[Chunk] = []
    for file in files:
        size = file.size
        pieces = max(-(-size // chunk_bytes), 1) if file.can_be_cut else 1
        step = -(-size // pieces) if size else 1
        for piece in range(pieces):
            chunks.append(Chunk(len(chunks), file, piece * step, min((piece + 1) * step, size)))
    return chunks


@contextmanager
def _decompressed(key: str, raw: io.BufferedReader) -> Iterator[io.BufferedIOBase]:
    if key.endswith(".gz"):
        with gzip.open(raw, "rb") as stream:
            yield stream
    elif key.endswith(".zst"):
        with zstandard.ZstdDecompressor().stream_reader(raw, read_across_frames=True) as reader:
            yield io.BufferedReader(reader, 1 << 20)
    else:
        yield raw
