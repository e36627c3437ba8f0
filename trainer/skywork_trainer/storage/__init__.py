"""Objects below one URI, in S3 or in a folder: the only package that speaks to either.

Both kinds promise the same: an object appears whole or not at all, a failed call says in one word why
(`StorageError.reason`) and whether trying again may help (`StorageError.retryable`). boto3 is imported by the first
call to S3, not before: the agent's start must not pay for it.
"""

from pathlib import Path
from urllib.parse import unquote, urlsplit

from skywork_trainer.storage.client import requests
from skywork_trainer.storage.files import FileStore
from skywork_trainer.storage.s3 import S3Store
from skywork_trainer.storage.store import StorageError, Store

__all__ = ["FileStore", "S3Store", "StorageError", "Store", "open_store", "requests"]


def open_store(uri: str) -> Store:
    """Return the store for s3://bucket/prefix or file:///folder; talks to nobody yet."""
    parts = urlsplit(uri)
    if parts.scheme == "s3" and parts.netloc:
        return S3Store(parts.netloc, parts.path.strip("/"))
    if parts.scheme == "file" and parts.netloc in ("", "localhost") and parts.path.startswith("/"):
        return FileStore(Path(unquote(parts.path)))
    raise StorageError("InvalidUri", f"{uri!r} is neither s3://bucket/prefix nor file:///absolute/folder")
