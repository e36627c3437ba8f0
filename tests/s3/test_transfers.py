"""Objects of several parts, on a real server, with faults on the way."""

import hashlib
import threading
from contextlib import suppress
from pathlib import Path

import pytest
from botocore.exceptions import ClientError
from skywork_trainer.storage import S3Store, StorageError, client
from skywork_trainer.storage.transfer import PART_BYTES

from tests.s3.proxy import Fault, Proxy, Request

SIZE = 2 * PART_BYTES + 12_345


@pytest.fixture(scope="session")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("large") / "large"
    path.write_bytes(hashlib.shake_128(b"large").digest(SIZE))
    return path


def unfinished(store: S3Store) -> int:
    found = client.current().client.list_multipart_uploads(Bucket=store.bucket, Prefix=store.prefix)
    return len(found.get("Uploads", []))


def completes(request: Request) -> bool:
    return request.method == "POST" and "uploadId=" in request.target


def sends_a_part(request: Request) -> bool:
    return "partNumber=" in request.target


def test_a_large_file_goes_up_and_comes_down_as_it_is(store: S3Store, large: Path, tmp_path: Path) -> None:
    store.upload(large, "large")
    store.download("large", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == large.read_bytes()
    assert store.size("large") == SIZE
    assert unfinished(store) == 0


@pytest.mark.parametrize("fault", [Fault.RESET, Fault.RESET_AFTER, Fault.SLOW_DOWN, Fault.FLIPPED_SENT])
def test_only_the_parts_that_failed_are_sent_again(store: S3Store, proxy: Proxy, large: Path, fault: Fault) -> None:
    proxy.plan(*[fault] * 4, spoils=sends_a_part)
    store.upload(large, "large")
    assert sum(map(sends_a_part, proxy.requests)) == 3 + 4
    assert store.get("large") == large.read_bytes()
    assert unfinished(store) == 0


@pytest.mark.parametrize("fault", [Fault.RESET, Fault.RESET_AFTER, Fault.STALLED, Fault.SLOW_DOWN])
def test_an_upload_whose_last_answer_was_lost_is_done(store: S3Store, proxy: Proxy, large: Path, fault: Fault) -> None:
    proxy.plan(fault, spoils=completes)
    store.upload(large, "large")
    assert not proxy.left()
    assert store.get("large") == large.read_bytes()


def test_an_upload_that_another_ended_is_no_success(store: S3Store, proxy: Proxy, large: Path) -> None:
    def abort(request: Request) -> bool:
        if not completes(request):
            return False
        upload = request.target.partition("uploadId=")[2].partition("&")[0]
        with suppress(ClientError):  # again
            client.current().client.abort_multipart_upload(
                Bucket=store.bucket, Key=f"{store.prefix}large", UploadId=upload
            )
        return True

    proxy.plan(Fault.RESET, spoils=abort)
    with pytest.raises(StorageError) as refusal:
        store.upload(large, "large")
    assert refusal.value.reason == "NotFound"
    assert not store.exists("large")


def test_an_upload_given_up_leaves_no_parts_and_the_old_object(store: S3Store, proxy: Proxy, large: Path) -> None:
    store.put("large", b"old")
    proxy.plan(*[Fault.SLOW_DOWN] * 100, spoils=sends_a_part)
    with pytest.raises(StorageError, match="SlowDown"):
        store.upload(large, "large")
    assert unfinished(store) == 0
    assert store.get("large") == b"old"


@pytest.mark.parametrize("fault", [Fault.RESET, Fault.RESET_IN_BODY, Fault.TRUNCATED, Fault.TRICKLED, Fault.BROKEN])
def test_only_the_parts_that_failed_are_fetched_again(
    store: S3Store, proxy: Proxy, large: Path, tmp_path: Path, fault: Fault
) -> None:
    store.upload(large, "large")
    proxy.plan(*[fault] * 4, spoils=lambda request: request.method == "GET")
    store.download("large", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == large.read_bytes()
    assert sum(request.method == "GET" for request in proxy.requests) == 3 + 4


def test_a_download_never_joins_parts_of_two_objects(store: S3Store, proxy: Proxy, large: Path, tmp_path: Path) -> None:
    store.upload(large, "large")

    replaced = threading.Lock()

    def replace(request: Request) -> bool:
        if request.method == "GET" and replaced.acquire(blocking=False):
            store.put("large", b"new" * (SIZE // 3))
        return False

    proxy.plan(spoils=replace)
    with pytest.raises(StorageError, match="was replaced while it was read") as refusal:
        store.download("large", tmp_path / "copy")
    assert (refusal.value.reason, refusal.value.retryable) == ("Replaced", True)
    assert not list(tmp_path.iterdir())


def test_an_empty_file_goes_up_and_comes_down(store: S3Store, tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    store.upload(tmp_path / "empty", "empty")
    store.download("empty", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == b""
    with pytest.raises(StorageError, match="missing does not exist") as refusal:
        store.download("missing", tmp_path / "other")
    assert refusal.value.reason == "NotFound"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy", "empty"]
