"""Objects below one URI, in S3 or in a folder: the only module that speaks to either.

Both kinds promise the same: an object appears whole or not at all, a failed call says in one word why
(`StorageError.reason`) and whether trying again may help (`StorageError.retryable`).
"""

import errno
import hashlib
import os
import uuid
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

_TEMPORARY = ".skywork-tmp-"
_BODY_ATTEMPTS = 4


class StorageError(Exception):
    """A storage call failed: `reason` is CamelCase for machines, the message says to a person what to do.

    Reasons: BucketMissing, AccessDenied, NotFound, AlreadyExists, InvalidUri, Refused; retryable: StorageUnreachable.
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
        temporary = _temporary_beside(path)
        try:
            self._fetch(key, temporary)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def open_store(uri: str) -> Store:
    """Return the store for s3://bucket/prefix or file:///folder; talks to nobody yet."""
    parts = urlsplit(uri)
    if parts.scheme == "s3" and parts.netloc:
        return S3Store(parts.netloc, parts.path.strip("/"))
    if parts.scheme == "file" and parts.netloc in ("", "localhost") and parts.path.startswith("/"):
        return FileStore(Path(unquote(parts.path)))
    raise StorageError("InvalidUri", f"{uri!r} is neither s3://bucket/prefix nor file:///absolute/folder")


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
                if not name.startswith(_TEMPORARY)
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
        return self.root / _checked(key)

    @contextmanager
    def _new_file(self, key: str, *, if_absent: bool = False) -> Iterator[Path]:
        path = self._path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = _temporary_beside(path)
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


class S3Store(Store):
    """A prefix of a bucket, on AWS or anything that speaks its protocol (AWS_ENDPOINT_URL)."""

    def __init__(self, bucket: str, prefix: str) -> None:
        self.bucket = bucket
        self.prefix = f"{prefix}/" if prefix else ""
        self.uri = f"s3://{bucket}/{prefix}".rstrip("/")

    def get(self, key: str) -> bytes:
        """Return the whole object; NotFound if there is none."""
        return self._read(key, None)

    def get_range(self, key: str, start: int, length: int) -> bytes:
        """Return `length` bytes from `start`, fewer where the object ends."""
        if length <= 0:
            return b""
        try:
            return self._read(key, f"bytes={start}-{start + length - 1}")
        except StorageError as error:
            if error.reason == "InvalidRange":
                return b""
            raise

    def put(self, key: str, data: bytes, *, if_absent: bool = False) -> None:
        """Write the object whole; `if_absent` is If-None-Match, which the server decides for all writers at once."""
        with self._errors(key):
            if if_absent:
                self._client.put_object(Bucket=self.bucket, Key=self._key(key), Body=data, IfNoneMatch="*")
            else:
                self._client.put_object(Bucket=self.bucket, Key=self._key(key), Body=data)

    def exists(self, key: str) -> bool:
        """Return whether there is an object; a missing bucket is an error, not an absent object."""
        try:
            with self._errors(key):
                self._client.head_object(Bucket=self.bucket, Key=self._key(key))
        except StorageError as error:
            if error.reason != "NotFound":
                raise
            return False
        return True

    def size(self, key: str) -> int:
        """Return the object's size in bytes; NotFound if there is none."""
        with self._errors(key):
            return self._client.head_object(Bucket=self.bucket, Key=self._key(key))["ContentLength"]

    def list(self, prefix: str = "") -> list[str]:
        """Return the keys that start with `prefix`, sorted."""
        with self._errors(prefix):
            pages = self._client.get_paginator("list_objects_v2").paginate(
                Bucket=self.bucket, Prefix=self.prefix + prefix
            )
            found = (entry["Key"] for page in pages for entry in page.get("Contents", []))
            # Some servers list a folder as an object of its own; it holds nothing and nobody wrote it.
            return sorted(key.removeprefix(self.prefix) for key in found if not key.endswith("/"))

    def delete(self, key: str) -> None:
        """Remove the object; one that is absent already is no error."""
        # Some servers answer 404 for an object that is gone already.
        try:
            with self._errors(key):
                self._client.delete_object(Bucket=self.bucket, Key=self._key(key))
        except StorageError as error:
            if error.reason != "NotFound":
                raise

    def identity(self, key: str) -> str:
        """Return the ETag, which no server needs to read the object for."""
        with self._errors(key):
            return self._client.head_object(Bucket=self.bucket, Key=self._key(key))["ETag"].strip('"')

    def upload(self, path: Path, key: str) -> None:
        """Write the object from a file, in parts and in parallel where it is large."""
        with self._errors(key), path.open("rb") as file:
            self._client.upload_fileobj(file, self.bucket, self._key(key))

    def _fetch(self, key: str, path: Path) -> None:
        with self._errors(key):
            self._client.download_file(self.bucket, self._key(key), str(path))

    def _key(self, key: str) -> str:
        return self.prefix + _checked(key)

    @property
    def _client(self) -> "S3Client":
        return _s3_client(os.getpid())

    def _read(self, key: str, byte_range: str | None) -> bytes:
        from botocore.exceptions import BotoCoreError

        options = {"Range": byte_range} if byte_range else {}
        with self._errors(key):
            # The client's own retries end where the body begins.
            for attempt in range(_BODY_ATTEMPTS):
                answer = self._client.get_object(Bucket=self.bucket, Key=self._key(key), **options)  # type: ignore[arg-type]
                try:
                    return answer["Body"].read()
                except BotoCoreError:
                    if attempt == _BODY_ATTEMPTS - 1:
                        raise
        raise AssertionError("unreachable")

    @contextmanager
    def _errors(self, key: str) -> Iterator[None]:
        from boto3.exceptions import Boto3Error
        from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError, PartialCredentialsError

        try:
            yield
        except ClientError as error:
            raise self._from_answer(key, error) from error
        except (NoCredentialsError, PartialCredentialsError) as error:
            raise StorageError(
                "AccessDenied",
                f"{self.uri}: no credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a role",
            ) from error
        except (BotoCoreError, Boto3Error) as error:
            raise StorageError(
                "StorageUnreachable", f"{self.uri} at {self._endpoint()}: {error}", retryable=True
            ) from error

    def _from_answer(self, key: str, error: "Exception") -> StorageError:
        from botocore.exceptions import ClientError

        assert isinstance(error, ClientError)
        code = error.response.get("Error", {}).get("Code", "")
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        where = f"{self.uri}/{key}"
        if code == "404":
            # HEAD has no body: the answer does not tell a missing bucket from a missing key.
            code = "NoSuchKey" if self._bucket_exists() else "NoSuchBucket"
        if code == "NoSuchBucket":
            return StorageError(
                "BucketMissing",
                f"bucket {self.bucket!r} does not exist at {self._endpoint()}: create it or correct {self.uri}",
            )
        if code in ("PreconditionFailed", "412"):
            return StorageError("AlreadyExists", f"{where} exists already")
        if code in ("InvalidRange", "416"):
            return StorageError("InvalidRange", f"{where}: the range starts behind the end")
        if status == 404:
            return StorageError("NotFound", f"{where} does not exist at {self._endpoint()}")
        if status in (401, 403):
            return StorageError(
                "AccessDenied", f"{where} at {self._endpoint()}: {code}: check the credentials and the bucket's policy"
            )
        if status >= 500 or status in (408, 409, 429) or code in ("SlowDown", "RequestTimeout"):
            return StorageError("StorageUnreachable", f"{where} at {self._endpoint()}: {error}", retryable=True)
        return StorageError("Refused", f"{where} at {self._endpoint()}: {error}")

    def _bucket_exists(self) -> bool:
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            self._client.head_bucket(Bucket=self.bucket)
        except ClientError as error:
            return error.response.get("ResponseMetadata", {}).get("HTTPStatusCode") != 404
        except BotoCoreError:
            return True
        return True

    def _endpoint(self) -> str:
        return self._client.meta.endpoint_url


@lru_cache(maxsize=1)
def _s3_client(pid: int) -> "S3Client":
    """Return this process's client: sockets inherited through a fork would mix two processes' answers."""
    import boto3
    from botocore.config import Config

    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    # boto3 itself reads only AWS_DEFAULT_REGION; the other SDKs and the pod-identity webhook set AWS_REGION.
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or ("us-east-1" if endpoint else None)
    client = boto3.session.Session().client(
        "s3",
        region_name=region,
        endpoint_url=endpoint or None,
        config=Config(
            retries={"mode": "standard", "total_max_attempts": int(os.environ.get("AWS_MAX_ATTEMPTS", "6"))},
            connect_timeout=5,
            read_timeout=20,
            max_pool_connections=16,
            s3={"addressing_style": "path" if endpoint else "auto"},
            # The default since 2025 sends CRC trailers that older MinIO and other servers reject or store as content.
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        ),
    )
    client.meta.events.register("needs-retry.s3", _count_request)
    return client


requests: Counter[tuple[str, str]] = Counter()
"""Requests of this process by operation and answer (HTTP status, or the error's name), every attempt counted."""


def _count_request(
    operation: object = None, response: object = None, caught_exception: Exception | None = None, **_: object
) -> None:
    answered = isinstance(response, tuple)
    answer = str(response[0].status_code) if answered else type(caught_exception).__name__  # type: ignore[index]
    requests[str(getattr(operation, "name", "")), answer] += 1


def _checked(key: str) -> str:
    if not key or key.startswith("/") or ".." in key.split("/"):
        raise StorageError("InvalidUri", f"{key!r} is no key: it must be relative and stay below its store")
    return key


def _temporary_beside(path: Path) -> Path:
    return path.with_name(_TEMPORARY + uuid.uuid4().hex)


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
