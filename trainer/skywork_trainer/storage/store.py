"""What every store promises, and the one error of all of them."""

import uuid
from abc import ABC, abstractmethod
from pathlib import Path

TEMPORARY = ".skywork-tmp-"
"""Start of the name of a file that is still being written."""


class StorageError(Exception):
    """A storage call failed: `reason` is CamelCase for machines, the message says to a person what to do.

    Reasons: BucketMissing, AccessDenied, NotFound, AlreadyExists, InvalidUri, Refused; retryable: StorageUnreachable,
    CredentialsExpired, Replaced.
    """

    def __init__(self, reason: str, message: str, *, retryable: bool = False) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.retryable = retryable


class Store(ABC):
    """Objects below `uri`; keys are relative to it, with `/` between their parts."""

    uri: str

    @abstractmethod
    def get(self, key: str) -> bytes:
        """Return the whole object; NotFound if there is none."""

    @abstractmethod
    def get_range(self, key: str, start: int, length: int) -> bytes:
        """Return `length` bytes from `start`, fewer where the object ends; NotFound if there is no object."""

    @abstractmethod
    def put(self, key: str, data: bytes, *, if_absent: bool = False) -> None:
        """Write the object whole; with `if_absent`, AlreadyExists when there is one, decided by the store itself."""

    @abstractmethod
    def exists(self, key: str) -> bool:
        """Return whether there is an object; a missing bucket is an error, not an absent object."""

    @abstractmethod
    def size(self, key: str) -> int:
        """Return the object's size in bytes; NotFound if there is none."""

    @abstractmethod
    def list(self, prefix: str = "") -> list[str]:
        """Return the keys that start with `prefix`, sorted."""

    @abstractmethod
    def delete(self, key: str) -> None:
        """Remove the object; one that is absent already is no error."""

    @abstractmethod
    def identity(self, key: str) -> str:
        """Return a word that changes when the object's content does; NotFound if there is none."""

    @abstractmethod
    def upload(self, path: Path, key: str) -> None:
        """Write the object from a file, in parts and in parallel where it is large."""

    @abstractmethod
    def _fetch(self, key: str, path: Path) -> None:
        """Copy the object into a file that may be left half-written by a failure."""

    def download(self, key: str, path: Path) -> None:
        """Copy the object to `path`, which appears whole, by rename, or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = temporary_beside(path)
        try:
            self._fetch(key, temporary)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)

    def without_retries(self) -> "Store":
        """Return this store with one attempt a call, for callers that ask again by themselves."""
        return self


def checked(key: str) -> str:
    """Return the key; InvalidUri when it would lead out of its store."""
    if not key or key.startswith("/") or ".." in key.split("/"):
        raise StorageError("InvalidUri", f"{key!r} is no key: it must be relative and stay below its store")
    return key


def temporary_beside(path: Path) -> Path:
    """Return a name in the same folder, and so on the same file system, that nobody else uses."""
    return path.with_name(TEMPORARY + uuid.uuid4().hex)
