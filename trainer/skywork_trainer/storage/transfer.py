"""Large objects, in parts and in parallel: a failed part is sent or fetched again, not the whole object.

Threads share what one client's connections can carry; a part is held in memory while it travels.
"""

import os
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

from skywork_trainer.storage.calls import Calls, marked
from skywork_trainer.storage.store import StorageError

PART_BYTES = 1 << 23
"""8 MiB; S3 wants at least 5 MiB of every part but the last."""
_MOST_PARTS = 10_000
_THREADS = 8


def upload_in_parts(calls: Calls, key: str, path: Path) -> None:
    """Write the object from a file, which appears whole, by the last call, or not at all."""
    size = path.stat().st_size
    part_bytes = max(PART_BYTES, -(-size // _MOST_PARTS))
    mark = uuid.uuid4().hex
    begun = calls.run(key, lambda s3: s3.create_multipart_upload(Bucket=calls.bucket, Key=key, Metadata=marked(mark)))
    upload = begun["UploadId"]

    def send(number: int) -> str:
        content = os.pread(file, part_bytes, number * part_bytes)
        return calls.run(
            key,
            lambda s3: s3.upload_part(
                Bucket=calls.bucket, Key=key, UploadId=upload, PartNumber=number + 1, Body=content
            ),
        )["ETag"]

    with _abandoned_on_failure(calls, key, upload):
        file = os.open(path, os.O_RDONLY)
        try:
            with ThreadPoolExecutor(_THREADS, thread_name_prefix="upload") as pool:
                tags = list(pool.map(send, range(-(-size // part_bytes))))
        finally:
            os.close(file)
        parts = [{"PartNumber": number, "ETag": tag} for number, tag in enumerate(tags, 1)]
        calls.write_once(
            key,
            mark,
            lambda s3: s3.complete_multipart_upload(
                Bucket=calls.bucket,
                Key=key,
                UploadId=upload,
                MultipartUpload={"Parts": parts},  # type: ignore[typeddict-item]
            ),
            # An upload that is complete does not exist any more.
            "NotFound",
        )


@contextmanager
def _abandoned_on_failure(calls: Calls, key: str, upload: str) -> Iterator[None]:
    # Parts of an upload that nobody ends are kept, and paid for, until a rule of the bucket removes them.
    try:
        yield
    except BaseException:
        with suppress(StorageError):
            calls.run(key, lambda s3: s3.abort_multipart_upload(Bucket=calls.bucket, Key=key, UploadId=upload))
        raise


def download_in_parts(calls: Calls, key: str, path: Path) -> None:
    """Copy the object into a file, which a failure leaves incomplete; Replaced if it changes meanwhile."""
    head = calls.run(key, lambda s3: s3.head_object(Bucket=calls.bucket, Key=key))
    size, tag = head["ContentLength"], head["ETag"]
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)

    def bring(start: int) -> None:
        # The ETag holds the parts together: half of one object and half of its successor is neither.
        last = min(start + PART_BYTES, size) - 1
        content = calls.read(key, (start, last), if_match=tag)
        if len(content) != last + 1 - start:
            raise StorageError(
                "StorageUnreachable", f"{key}: {len(content)} bytes for bytes {start}-{last}", retryable=True
            )
        os.pwrite(file, content, start)

    try:
        with ThreadPoolExecutor(_THREADS, thread_name_prefix="download") as pool:
            list(pool.map(bring, range(0, size, PART_BYTES)))
    finally:
        os.close(file)
