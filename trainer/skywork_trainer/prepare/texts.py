"""Raw text: JSON lines, plain, .gz or .zst, and Parquet, found in folders and buckets and read piece by piece."""

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from skywork_trainer.data.errors import DataError
from skywork_trainer.storage import Store, open_store

JSON_SUFFIXES = (".jsonl", ".json", ".jsonl.gz", ".jsonl.zst", ".json.gz", ".json.zst")
SUFFIXES = (*JSON_SUFFIXES, ".parquet")
_READ_BYTES = 1 << 23


@dataclass(frozen=True)
class TextFile:
    """One input file."""

    store: Store
    key: str

    @property
    def uri(self) -> str:
        """Where it is, for people."""
        return f"{self.store.uri}/{self.key}"

    @property
    def identity(self) -> str:
        """Word that changes with the content."""
        return self.store.identity(self.key)

    @property
    def size(self) -> int:
        """Bytes."""
        return self.store.size(self.key)

    @property
    def can_be_cut(self) -> bool:
        """Whether reading may start in the middle."""
        return self.key.endswith((".jsonl", ".json"))

    def open(self) -> io.BufferedReader:
        """Return the file for reading, seekable and not downloaded first."""
        return io.BufferedReader(_Ranges(self), _READ_BYTES)


class _Ranges(io.RawIOBase):
    """An object as a file: every read is a request for a range of it, so a broken connection costs one range."""

    def __init__(self, file: TextFile) -> None:
        self._file, self._size, self._at = file, file.size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: "memoryview") -> int:  # type: ignore[override]
        length = min(len(buffer), self._size - self._at)
        content = self._file.store.get_range(self._file.key, self._at, length) if length > 0 else b""
        buffer[: len(content)] = content
        self._at += len(content)
        return len(content)


def find_texts(inputs: Sequence[str]) -> list[TextFile]:
    """Return the files that paths, URIs and patterns name, in their order, each pattern's and folder's files sorted."""
    found = [file for argument in inputs for file in _find(argument)]
    if not found:
        raise DataError("InputMissing", "no input files")
    return found


def parse_text(line: bytes, field: str = "text") -> str | None:
    """Return the document on a line; None when it is not JSON, or has no text, or text that is no Unicode."""
    try:
        document = json.loads(line)
    except ValueError:
        return None
    return checked_text(document.get(field) if isinstance(document, dict) else None)


def checked_text(text: object) -> str | None:
    """Return the text; None when it is none, or empty, or no Unicode."""
    if not isinstance(text, str) or not text:
        return None
    try:
        # JSON can spell half of a surrogate pair, which no encoding of Unicode holds.
        text.encode()
    except UnicodeEncodeError:
        return None
    return text


def _find(argument: str) -> list[TextFile]:
    uri = argument if "://" in argument else Path(argument).absolute().as_uri().replace("%2A", "*").replace("%3F", "?")
    folder, _, name = uri.rpartition("/")
    pattern = any(sign in uri for sign in "*?")
    if not pattern and name.endswith(SUFFIXES):
        store = open_store(folder)
        if not store.exists(name):
            raise DataError("InputMissing", f"input {argument} does not exist")
        return [TextFile(store, name)]
    if pattern:
        while any(sign in folder for sign in "*?"):
            folder = folder.rpartition("/")[0]
        wanted = uri[len(folder) + 1 :]
        store = open_store(folder)
        keys = [key for key in store.list() if fnmatchcase(key, wanted) and key.count("/") == wanted.count("/")]
    else:
        store = open_store(uri)
        keys = [key for key in store.list() if key.endswith(SUFFIXES)]
    if not keys:
        raise DataError("InputMissing", f"input {argument}: no file with {', '.join(SUFFIXES)} there")
    return [TextFile(store, key) for key in keys]
