"""A node's own copies of its ranks' files: `<cache>/checkpoints/<id>/`, bounded in number, trusted only by hash.

A checkpoint that was committed to the object store has its files here and its manifest there. One that is kept on the
nodes only has a `manifest.json` on every node; it can be restored where each node still has what its ranks read.
"""

import hashlib
import logging
import os
import shutil
from pathlib import Path

from skywork_trainer.checkpoint.manifest import ID, Manifest

_log = logging.getLogger(__name__)
LEAST_FREE = 2
"""The disk must hold a file so many times for it to be written."""
_CHUNK_BYTES = 8 << 20
_MANIFEST = "manifest.json"


def local_folder(cache: Path, uri: str) -> Path:
    """Return where a node keeps checkpoints of the run that saves to `uri`: runs may share a node's cache."""
    return cache / "checkpoints" / hashlib.sha256(uri.encode()).hexdigest()[:16]


def local_file(folder: Path, identity: str, name: str) -> Path:
    """Return where a node keeps a file of a checkpoint."""
    return folder / identity / name


def keep_file(folder: Path, identity: str, name: str, source: int, size: int, *, keep: int) -> None:
    """Copy a rank's file from a descriptor to the node's disk, after making room; OSError when the disk has none."""
    remove_older(folder, identity, keep)
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if free < LEAST_FREE * size:
        # The node's disk is also the cache of the data, and a pod that fills it is evicted.
        raise OSError(f"{folder} has {free} bytes free, {LEAST_FREE} times the {size} of the file are wanted")
    path = local_file(folder, identity, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    _write(path, source, size)


def note_local(folder: Path, manifest: Manifest) -> None:
    """Write the manifest of a checkpoint that only the nodes keep; it is restorable where every node has done so."""
    path = local_file(folder, manifest.id, _MANIFEST)
    temporary = path.with_name(f".{_MANIFEST}.{os.getpid()}")
    with temporary.open("wb") as file:
        file.write(manifest.model_dump_json().encode())
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def local_ids(folder: Path) -> list[str]:
    """Return the ids of checkpoints that this node can take part in restoring without the object store."""
    if not folder.is_dir():
        return []
    return sorted(path.parent.name for path in folder.glob(f"*/{_MANIFEST}") if ID.fullmatch(path.parent.name))


def read_local_manifest(folder: Path, identity: str, most_bytes: int) -> bytes:
    """Return at most so many bytes of a manifest kept here."""
    with local_file(folder, identity, _MANIFEST).open("rb") as file:
        return file.read(most_bytes)


def remove_older(folder: Path, identity: str, keep: int) -> None:
    """Remove all but the newest `keep` of the checkpoints that are older than `identity` from the node's disk."""
    if not folder.is_dir():
        return
    # Only older ones: other ranks of this node may be writing theirs of this one already.
    names = sorted(path.name for path in folder.iterdir() if ID.fullmatch(path.name) and path.name < identity)
    for name in names[: max(len(names) - keep, 0)]:
        shutil.rmtree(folder / name, ignore_errors=True)


def _write(path: Path, source: int, size: int) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            at = 0
            while at < size:
                chunk = os.pread(source, min(_CHUNK_BYTES, size - at), at)
                file.write(chunk)
                at += len(chunk)
        # Not synced: a node that loses its power loses its place in the world as well, and hashes tell.
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
