"""Parts of shards on the node's disk: fetched once for all its workers, verified once, evicted when nobody reads them.

A part's name is its SHA-256, so a file that is there is right. Readers hold a shared flock on the file, fetching holds
an exclusive one on `<sha256>.fetch`, which becomes the file by rename: the kernel drops locks with their process, so a
SIGKILL leaves nothing to mend.
"""

import fcntl
import logging
import os
from contextlib import suppress
from pathlib import Path

import numpy as np
import numpy.typing as npt

from skywork_trainer.data.fetch import Part, fetch
from skywork_trainer.storage import Store

DEFAULT_CAPACITY_BYTES = 1 << 40
_KEPT = 0.9
"""Evicting leaves this much of the capacity, so that the folder is not looked through at every fetch."""
_log = logging.getLogger(__name__)


class OpenPart:
    """A part on disk; it stays there until `close`."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def read(self, start: int, length: int) -> bytes:
        """Return `length` bytes from byte `start` of the part, fewer where it ends."""
        return os.pread(self._descriptor, length, start)

    def read_tokens(self, dtype: np.dtype[np.uint16] | np.dtype[np.uint32]) -> npt.NDArray[np.int64]:
        """Return the whole part as tokens."""
        return np.frombuffer(self.read(0, os.fstat(self._descriptor).st_size), dtype=dtype).astype(np.int64)

    def close(self) -> None:
        """Let the part be evicted."""
        os.close(self._descriptor)


class PartCache:
    """A folder of parts shared by the worker processes of a node, held below `capacity_bytes` where possible."""

    def __init__(self, root: Path, *, capacity_bytes: int = DEFAULT_CAPACITY_BYTES) -> None:
        self._root = root
        self._capacity_bytes = capacity_bytes
        self.hits = 0
        self.misses = 0
        root.mkdir(parents=True, exist_ok=True)
        for abandoned in root.glob("*.fetch"):
            _unlink_if_unused(abandoned)

    def open(self, store: Store, part: Part) -> OpenPart:
        """Return the part, fetched if this node lacks it; DataError ShardCorrupt if its content stays wrong."""
        hit = True
        while True:
            try:
                descriptor = os.open(self._root / f"{part.sha256}.bin", os.O_RDONLY)
            except FileNotFoundError:
                hit = False
                self._fetch(store, part)
                continue
            # An eviction in between only takes the name away; what is open stays readable.
            fcntl.flock(descriptor, fcntl.LOCK_SH)
            os.utime(descriptor)
            self.hits, self.misses = self.hits + hit, self.misses + (not hit)
            return OpenPart(descriptor)

    def holds(self, part: Part) -> bool:
        """Return whether the part is on this node's disk now."""
        return (self._root / f"{part.sha256}.bin").exists()

    def _fetch(self, store: Store, part: Part) -> None:
        """Put the part in place, or wait until another process has; the caller looks again."""
        temporary, final = self._root / f"{part.sha256}.fetch", self._root / f"{part.sha256}.bin"
        lock = os.open(temporary, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if final.exists() or not _names(temporary, lock):
                return
            content = fetch(store, part)
            os.ftruncate(lock, 0)
            with os.fdopen(os.dup(lock), "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            self._count(len(content))
            temporary.rename(final)
        except BaseException:
            with suppress(FileNotFoundError):
                temporary.unlink()
            raise
        finally:
            os.close(lock)

    def _count(self, incoming_bytes: int) -> None:
        """Keep the tally of held bytes, and evict when it passes the capacity.

        A kill between the tally and the rename makes the tally wrong by a part; evicting counts anew.
        """
        tally = os.open(self._root / "held", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(tally, fcntl.LOCK_EX)
            text = os.pread(tally, 32, 0)
            held = (int(text) if text.strip().isdigit() else self._evict(0)) + incoming_bytes
            if held > self._capacity_bytes:
                held = self._evict(incoming_bytes)
            os.ftruncate(tally, 0)
            os.pwrite(tally, b"%d" % held, 0)
        finally:
            os.close(tally)

    def _evict(self, incoming_bytes: int) -> int:
        """Remove parts that nobody reads, the longest unread first; return the bytes held afterwards."""
        found = []
        with os.scandir(self._root) as entries:
            for entry in entries:
                if entry.name.endswith(".bin"):
                    with suppress(FileNotFoundError):
                        status = entry.stat()
                        found.append((status.st_mtime_ns, status.st_size, entry.name))
        held = sum(size for _, size, _ in found) + incoming_bytes
        if held <= self._capacity_bytes:
            return held
        for _, size, name in sorted(found):
            if held <= self._capacity_bytes * _KEPT:
                break
            if _unlink_if_unused(self._root / name):
                held -= size
        if held > self._capacity_bytes:
            _log.warning("cache %s exceeds its %d bytes: the rest is in use", self._root, self._capacity_bytes)
        return held


def _unlink_if_unused(path: Path) -> bool:
    try:
        lock = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink(missing_ok=True)
    except BlockingIOError:
        return False
    finally:
        os.close(lock)
    return True


def _names(path: Path, descriptor: int) -> bool:
    """Return whether the path still leads to the open file: whoever held the lock before may have removed it."""
    try:
        return path.stat().st_ino == os.fstat(descriptor).st_ino
    except FileNotFoundError:
        return False
