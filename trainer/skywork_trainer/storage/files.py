"""A folder as a store: for tests, and for file systems that every node shares."""

import errno
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from skywork_trainer.storage.store import TEMPORARY, StorageError, Store, checked, temporary_beside


class FileStore(Store):
    """A folder, for tests and for file systems shared by every node."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.uri = root.as_uri()

    def get(self, key: str) -> bytes:
        """Return the whole object; NotFound if there is none."""
        with self._errors(key):
            return self._path(key).read_bytes()

    def get_range(self, key: str, start: int, length: int) -> bytes:
        """Return `length` bytes from `start`, fewer where the file ends."""
        with self._errors(key), self._path(key).open("rb") as file:
            file.seek(start)
            return file.read(length)

    def put(self, key: str, data: bytes, *, if_absent: bool = False) -> None:
        """Write to a temporary file, sync it, then rename (or link, which fails when the name is taken)."""
        with self._errors(key), self._new_file(key, if_absent=if_absent) as temporary:
            temporary.write_bytes(data)

    def exists(self, key: str) -> bool:
        """Return whether the file exists."""
        with self._errors(key):
            return self._path(key).is_file()

    def size(self, key: str) -> int:
        """Return the file's size in bytes; NotFound if there is none."""
        with self._errors(key):
            return self._path(key).stat().st_size

    def list(self, prefix: str = "") -> list[str]:
        """Return the keys that start with `prefix`, sorted; files still being written are left out."""
        folder = self.root / prefix.rpartition("/")[0]
        with self._errors(prefix):
            keys = [
                (Path(parent) / name).relative_to(self.root).as_posix()
                for parent, _, names in os.walk(folder)
                for name in names
                if not name.startswith(TEMPORARY)
            ]
        return sorted(key for key in keys if key.startswith(prefix))

    def delete(self, key: str) -> None:
        """Remove the file; one that is absent already is no error."""
        with self._errors(key):
            self._path(key).unlink(missing_ok=True)

    def identity(self, key: str) -> str:
        """Return the content's SHA-256: a file's times change when it is merely copied."""
        with self._errors(key), self._path(key).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def upload(self, path: Path, key: str) -> None:
        """Copy the file in, whole or not at all."""
        with self._errors(key), self._new_file(key) as temporary:
            _copy(path, temporary)

    def _fetch(self, key: str, path: Path) -> None:
        with self._errors(key):
            _copy(self._path(key), path)

    def _path(self, key: str) -> Path:
        return self.root / checked(key)

    @contextmanager
    def _new_file(self, key: str, *, if_absent: bool = False) -> Iterator[Path]:
        path = self._path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = temporary_beside(path)
        try:
            yield temporary
            _sync(temporary)
            if if_absent:
                path.hardlink_to(temporary)
            else:
                temporary.replace(path)
            _sync(path.parent)
        finally:
            temporary.unlink(missing_ok=True)

    @contextmanager
    def _errors(self, key: str) -> Iterator[None]:
        where = f"{self.uri}/{key}"
        try:
            yield
        except FileExistsError as error:
            raise StorageError("AlreadyExists", f"{where} exists already") from error
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
            raise StorageError("NotFound", f"{where} does not exist") from error
        except PermissionError as error:
            raise StorageError("AccessDenied", f"{where}: {error.strerror}: check owner and mode") from error
        except OSError as error:
            raise StorageError("StorageUnreachable", f"{where}: {error.strerror or error}", retryable=True) from error


def _copy(source: Path, target: Path) -> None:
    with source.open("rb") as reader, target.open("wb") as writer:
        while chunk := reader.read(1 << 20):
            writer.write(chunk)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network file systems refuse to sync a folder; their renames last without it.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)
