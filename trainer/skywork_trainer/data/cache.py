"""Shards on the node's disk: fetched once for all its workers, verified once, evicted when nobody reads them.

A shard's name is its SHA-256, so a file that is there is right. A reader holds a shared flock on `<sha256>.lock`,
fetching and evicting take it exclusively: the kernel drops it with the process, so a SIGKILL leaves nothing to mend.
"""

import fcntl
import hashlib
import logging
import mmap
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from skywork_trainer.data.errors import DataError
from skywork_trainer.data.shards import Shard
from skywork_trainer.storage import Store

DEFAULT_CAPACITY_BYTES = 1 << 40
_log = logging.getLogger(__name__)


class OpenShard:
    """A shard mapped into memory; it stays in the cache until `close`."""

    def __init__(self, path: Path, dtype: np.dtype[np.uint16] | np.dtype[np.uint32], lock: int) -> None:
        self._lock = lock
        with path.open("rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._dtype = dtype

    def read(self, start: int, count: int) -> npt.NDArray[np.int64]:
        """Return a copy of `count` tokens from token `start`."""
        width = self._dtype.itemsize
        return np.frombuffer(self._map[start * width : (start + count) * width], dtype=self._dtype).astype(np.int64)

    def close(self) -> None:
        """Let the shard be evicted."""
        self._map.close()
        os.close(self._lock)


class ShardCache:
    """A folder of shards shared by the worker processes of a node, held below `capacity_bytes` where possible."""

    def __init__(self, root: Path, *, capacity_bytes: int = DEFAULT_CAPACITY_BYTES) -> None:
        self._root = root
        self._capacity_bytes = capacity_bytes
        root.mkdir(parents=True, exist_ok=True)
        for abandoned in root.glob("*.fetch"):
            self._if_unused(abandoned.stem, partial(shutil.rmtree, abandoned, ignore_errors=True))

    def open(self, store: Store, shard: Shard, dtype: np.dtype[np.uint16] | np.dtype[np.uint32]) -> OpenShard:
        """Return the shard, fetched if this node lacks it; DataError ShardCorrupt if its content stays wrong."""
        path = self._root / f"{shard.sha256}.bin"
        lock = os.open(self._lock_path(shard.sha256), os.O_RDWR | os.O_CREAT, 0o644)
        try:
            while True:
                fcntl.flock(lock, fcntl.LOCK_SH)
                if path.exists():
                    os.utime(self._lock_path(shard.sha256))
                    return OpenShard(path, dtype, lock)
                # A lock cannot be exchanged for another in one step: look again after each wait.
                fcntl.flock(lock, fcntl.LOCK_EX)
                if not path.exists():
                    self._make_room(shard.bytes)
                    self._fetch(store, shard, path)
        except BaseException:
            os.close(lock)
            raise

    def _fetch(self, store: Store, shard: Shard, path: Path) -> None:
        folder = self._root / f"{shard.sha256}.fetch"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        fetched = folder / shard.file
        for attempt in range(2):
            store.download(shard.file, fetched)
            with fetched.open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
                os.fsync(file.fileno())
            if found == shard.sha256:
                fetched.replace(path)
                folder.rmdir()
                return
            _log.warning("%s/%s: wrong content on attempt %d: sha256 %s", store.uri, shard.file, attempt + 1, found)
        shutil.rmtree(folder, ignore_errors=True)
        raise DataError(
            "ShardCorrupt",
            f"{store.uri}/{shard.file}: sha256 is {found}, the index says {shard.sha256}: the object was damaged or "
            "replaced: restore it, or prepare the source again",
        )

    def _make_room(self, incoming_bytes: int) -> None:
        sizes = {}
        for path in self._root.glob("*.bin"):
            with suppress(FileNotFoundError):
                sizes[path] = (self._lock_path(path.stem).stat().st_mtime_ns, path.stat().st_size)
        held = sum(size for _, size in sizes.values())
        for path in sorted(sizes, key=lambda path: sizes[path]):
            if held + incoming_bytes <= self._capacity_bytes:
                return
            if self._if_unused(path.stem, partial(path.unlink, missing_ok=True)):
                held -= sizes[path][1]
        if held + incoming_bytes > self._capacity_bytes:
            _log.warning("cache %s exceeds its %d bytes: the rest is in use", self._root, self._capacity_bytes)

    def _if_unused(self, name: str, action: Callable[[], None]) -> bool:
        lock = os.open(self._lock_path(name), os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            action()
        except BlockingIOError:
            return False
        finally:
            os.close(lock)
        return True

    def _lock_path(self, name: str) -> Path:
        return self._root / f"{name}.lock"
