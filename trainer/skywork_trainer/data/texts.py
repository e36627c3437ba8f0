"""Raw text: JSON lines with a `text` key, plain, .gz or .zst, read in a fixed order from folders and buckets."""

import gzip
import io
import json
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import zstandard

from skywork_trainer.data.errors import DataError
from skywork_trainer.storage import FileStore, Store, open_store

SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".json.gz", ".json.zst")


@dataclass(frozen=True)
class TextFile:
    """One input file."""

    store: Store
    key: str

    @property
    def identity(self) -> str:
        """Word that changes with the content."""
        return self.store.identity(self.key)

    def lines(self) -> Iterator[bytes]:
        """Yield the lines, decompressed; DataError InputInvalid when the file is damaged."""
        try:
            with self._local() as path, _decompressed(path) as stream:
                yield from stream
        except (gzip.BadGzipFile, zstandard.ZstdError, EOFError) as error:
            raise DataError("InputInvalid", f"{self.store.uri}/{self.key}: damaged: {error}") from error

    @contextmanager
    def _local(self) -> Iterator[Path]:
        if isinstance(self.store, FileStore):
            yield self.store.root / self.key
            return
        # A copy first: a connection that breaks after an hour of reading could not be taken up again.
        with tempfile.TemporaryDirectory(prefix="skywork-input-") as folder:
            path = Path(folder) / Path(self.key).name
            self.store.download(self.key, path)
            yield path


def find_texts(inputs: Sequence[str]) -> list[TextFile]:
    """Return the files that paths, URIs and patterns name, in their order, each pattern's and folder's files sorted."""
    found = [file for argument in inputs for file in _find(argument)]
    if not found:
        raise DataError("InputMissing", "no input files")
    return found


def parse_text(line: bytes) -> str | None:
    """Return the document on a line; None when it is not JSON, or has no text, or text that is no Unicode."""
    try:
        document = json.loads(line)
        text = document.get("text") if isinstance(document, dict) else None
        if not isinstance(text, str) or not text:
            return None
        # JSON can spell half of a surrogate pair, which no encoding of Unicode holds.
        text.encode()
    except ValueError:
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


@contextmanager
def _decompressed(path: Path) -> Iterator[io.BufferedIOBase]:
    if path.name.endswith(".gz"):
        with gzip.open(path, "rb") as stream:
            yield stream
    elif path.name.endswith(".zst"):
        with path.open("rb") as raw, zstandard.ZstdDecompressor().stream_reader(raw, read_across_frames=True) as reader:
            yield io.BufferedReader(reader, 1 << 20)
    else:
        with path.open("rb") as stream:
            yield stream
