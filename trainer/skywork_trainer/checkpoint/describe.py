"""A checkpoint found by what a person calls it, and told in words."""

from dataclasses import dataclass

from pydantic import ValidationError

from skywork_trainer.checkpoint.history import History, history_key
from skywork_trainer.checkpoint.manifest import Manifest, committed, read_manifest
from skywork_trainer.storage import StorageError, Store

_MOST_PARENTS = 10


class NoSuchCheckpoint(Exception):
    """Nothing is committed under that name."""


@dataclass(frozen=True)
class Ancestor:
    """One link of the chain behind a checkpoint."""

    id: str
    present: bool
    """Whether it can still be loaded: older ones are removed, their history stays."""


def find(store: Store, name: str) -> Manifest:
    """Return the manifest of a checkpoint named by its id, its step or `newest`; NoSuchCheckpoint if there is none.

    Of several at one step the one of the newest generation is meant, which is also the one a run would go on from.
    CheckpointCorrupt when its manifest cannot be read.
    """
    identities = committed(store)
    if name == "newest":
        matching = identities
    else:
        matching = [i for i in identities if i == name or (name.isdecimal() and int(i.rpartition("-")[2]) == int(name))]
    if not matching:
        listed = f": {', '.join(identities[-5:])} are the newest" if identities else "; nothing is committed there"
        raise NoSuchCheckpoint(f"there is no checkpoint {name!r} at {store.uri}{listed}")
    return read_manifest(store, matching[-1])


def ancestors(store: Store, manifest: Manifest) -> list[Ancestor]:
    """Return the checkpoints behind this one, nearest first, at most ten, as far back as there is a history."""
    present, found, identity = set(committed(store)), list[Ancestor](), manifest.parent
    while identity and len(found) < _MOST_PARENTS:
        found.append(Ancestor(identity, identity in present))
        try:
            identity = History.model_validate_json(store.get(history_key(identity))).parent
        except ValidationError:
            break  # what is older is unknown, which is no reason to tell nothing
        except StorageError as error:
            if error.reason != "NotFound":
                raise
            break
    return found


def summary(store: Store, manifest: Manifest) -> dict[str, object]:
    """Return the manifest as plain data, without its lists of hashes and pieces but with what follows from them."""
    told = manifest.model_dump(mode="json", exclude={"files", "pieces"})
    told["size_bytes"] = sum(file.size for file in manifest.files)
    told["files"] = [{"name": file.name, "size_bytes": file.size} for file in manifest.files]
    told["parameters"] = sum(piece.length for piece in manifest.pieces if piece.kind == "master")
    told["ancestors"] = [{"id": link.id, "present": link.present} for link in ancestors(store, manifest)]
    return told
