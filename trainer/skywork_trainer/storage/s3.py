"""A prefix of a bucket as a store, on AWS or anything that speaks its protocol."""

import os
import uuid
from dataclasses import replace
from pathlib import Path
from typing import Any

from skywork_trainer.storage.body import LeastRate
from skywork_trainer.storage.calls import Calls, marked
from skywork_trainer.storage.retry import Retry, configured
from skywork_trainer.storage.store import StorageError, Store, checked
from skywork_trainer.storage.transfer import PART_BYTES, download_in_parts, upload_in_parts


class S3Store(Store):
    """Objects below s3://bucket/prefix; every call is made again after what may pass."""

    def __init__(
        self, bucket: str, prefix: str, *, retry: Retry | None = None, least_rate: LeastRate | None = None
    ) -> None:
        self.bucket = bucket
        self.prefix = f"{prefix}/" if prefix else ""
        self.uri = f"s3://{bucket}/{prefix}".rstrip("/")
        self._calls = Calls(bucket, retry or configured(os.environ), least_rate or LeastRate())

    def get(self, key: str) -> bytes:
        """Return the whole object; NotFound if there is none."""
        return self._calls.read(self._key(key))

    def get_range(self, key: str, start: int, length: int) -> bytes:
        """Return `length` bytes from `start`, fewer where the object ends."""
        if length <= 0:
            return b""
        try:
            return self._calls.read(self._key(key), (start, start + length - 1))
        except StorageError as error:
            if error.reason == "InvalidRange":
                return b""
            raise

    def put(self, key: str, data: bytes, *, if_absent: bool = False) -> None:
        """Write the object whole; `if_absent` is If-None-Match, which the server decides for all writers at once."""
        whole, mark = self._key(key), uuid.uuid4().hex
        if not if_absent:
            self._calls.run(whole, lambda s3: s3.put_object(Bucket=self.bucket, Key=whole, Body=data))
            return
        self._calls.write_once(
            whole,
            mark,
            lambda s3: s3.put_object(Bucket=self.bucket, Key=whole, Body=data, IfNoneMatch="*", Metadata=marked(mark)),
            "AlreadyExists",
        )

    def exists(self, key: str) -> bool:
        """Return whether there is an object; a missing bucket is an error, not an absent object."""
        try:
            self._head(key)
        except StorageError as error:
            if error.reason != "NotFound":
                raise
            return False
        return True

    def size(self, key: str) -> int:
        """Return the object's size in bytes; NotFound if there is none."""
        return int(self._head(key)["ContentLength"])

    def list(self, prefix: str = "") -> list[str]:
        """Return the keys that start with `prefix`, sorted."""
        found: list[str] = []
        wanted: dict[str, Any] = {"Bucket": self.bucket, "Prefix": self.prefix + prefix}
        while True:
            page = self._calls.run(self.prefix + prefix, lambda s3: s3.list_objects_v2(**wanted))
            found += [entry["Key"] for entry in page.get("Contents", [])]
            if not page.get("IsTruncated"):
                break
            wanted["ContinuationToken"] = page["NextContinuationToken"]
        # Some servers list a folder as an object of its own; it holds nothing and nobody wrote it.
        return sorted(key.removeprefix(self.prefix) for key in found if not key.endswith("/"))

    def delete(self, key: str) -> None:
        """Remove the object; one that is absent already is no error."""
        whole = self._key(key)
        try:
            self._calls.run(whole, lambda s3: s3.delete_object(Bucket=self.bucket, Key=whole))
        except StorageError as error:
            # Some servers answer 404 for an object that is gone already.
            if error.reason != "NotFound":
                raise

    def identity(self, key: str) -> str:
        """Return the ETag, which no server needs to read the object for."""
        return str(self._head(key)["ETag"]).strip('"')

    def upload(self, path: Path, key: str) -> None:
        """Write the object from a file, in parts and in parallel where it is large."""
        if path.stat().st_size > PART_BYTES:
            upload_in_parts(self._calls, self._key(key), path)
        else:
            self.put(key, path.read_bytes())

    def without_retries(self) -> "S3Store":
        """Return this store with one attempt a call; expired credentials are still dropped for the next."""
        once = replace(self._calls.retry, attempts=1)
        return S3Store(self.bucket, self.prefix.rstrip("/"), retry=once, least_rate=self._calls.least_rate)

    def _fetch(self, key: str, path: Path) -> None:
        download_in_parts(self._calls, self._key(key), path)

    def _head(self, key: str) -> Any:
        whole = self._key(key)
        return self._calls.run(whole, lambda s3: s3.head_object(Bucket=self.bucket, Key=whole))

    def _key(self, key: str) -> str:
        return self.prefix + checked(key)
