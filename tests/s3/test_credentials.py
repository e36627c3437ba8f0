"""Who asks, and where: credentials that expire, are replaced or are wrong; buckets and servers that are not there."""

import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from skywork_trainer.data.fetch import Part, Policy, fetch
from skywork_trainer.storage import S3Store, StorageError, client, open_store

from tests.s3.conftest import BUCKET, QUICK
from tests.s3.proxy import Fault, Proxy
from tests.waiting import until

Write = Callable[[str, str], None]


@pytest.fixture
def write_keys(other_client: pytest.MonkeyPatch, tmp_path: Path) -> Write:
    """Take credentials from a file, and return what writes it."""
    path = tmp_path / "credentials"

    def write(access_key: str, secret_key: str) -> None:
        new = path.with_suffix(".new")
        new.write_text(f"[default]\naws_access_key_id = {access_key}\naws_secret_access_key = {secret_key}\n")
        new.replace(path)

    other_client.delenv("AWS_ACCESS_KEY_ID")
    other_client.delenv("AWS_SECRET_ACCESS_KEY")
    other_client.setenv("AWS_SHARED_CREDENTIALS_FILE", str(path))
    return write


CALLS: dict[str, Callable[[S3Store], object]] = {
    "get": lambda store: store.get("a"),
    "get_range": lambda store: store.get_range("a", 0, 9),
    "put": lambda store: store.put("a", b"content"),
    "exists": lambda store: store.exists("a"),
    "size": lambda store: store.size("a"),
    "list": lambda store: store.list(),
    "delete": lambda store: store.delete("b"),
}


@pytest.mark.parametrize("call", CALLS)
def test_keys_that_expired_are_read_anew_from_their_file(
    store: S3Store, proxy: Proxy, server: dict[str, str], write_keys: Write, call: str
) -> None:
    write_keys(server["accessKey"], server["secretKey"])
    store.put("a", b"content")
    write_keys("OLD", "old")
    client.drop(client.current())
    assert client.current().session.get_credentials().access_key == "OLD"
    write_keys(server["accessKey"], server["secretKey"])
    proxy.plan()
    proxy.expired_keys.add("OLD")
    CALLS[call](store)
    assert {request.access_key for request in proxy.requests} == {"OLD", server["accessKey"]}
    proxy.plan()
    CALLS[call](store)
    assert {request.access_key for request in proxy.requests} == {server["accessKey"]}, "the new client stays"


@pytest.mark.parametrize("call", ["get", "put", "exists", "list"])
def test_keys_that_expired_and_are_not_replaced_are_an_error_that_says_what_to_do(
    store: S3Store, proxy: Proxy, server: dict[str, str], call: str
) -> None:
    store.put("a", b"content")
    proxy.plan()
    proxy.expired_keys.add(server["accessKey"])
    with pytest.raises(StorageError, match=r"ExpiredToken.*renew the Secret or the credentials file") as refusal:
        CALLS[call](store)
    assert (refusal.value.reason, refusal.value.retryable) == ("CredentialsExpired", True)
    # The answer to HEAD has no words: botocore asks whether the bucket is elsewhere, and we for the words.
    assert len(proxy.requests) == QUICK.attempts * (3 if call in ("exists", "size") else 1)


def test_a_fetch_goes_on_when_its_keys_are_replaced_late(
    store: S3Store, proxy: Proxy, server: dict[str, str], write_keys: Write
) -> None:
    digest = "ed7002b439e9ac845f22357d822bac1444730fbdb6016d3ec9432297b9ec9f73"
    write_keys(server["accessKey"], server["secretKey"])
    store.put("a", b"content")
    proxy.plan()
    proxy.expired_keys.add("OLD")
    write_keys("OLD", "old")
    client.drop(client.current())
    found: list[bytes] = []
    policy = Policy(backoff_seconds=0.01, backoff_cap_seconds=0.02)
    reader = threading.Thread(target=lambda: found.append(fetch(store, Part("a", 0, 7, digest), policy)))
    reader.start()
    until(lambda: len(proxy.requests) >= 4, 30, 0.01)
    write_keys(server["accessKey"], server["secretKey"])
    reader.join(30)
    assert found == [b"content"]


def test_a_fetch_whose_keys_stay_expired_says_so(store: S3Store, proxy: Proxy, server: dict[str, str]) -> None:
    proxy.expired_keys.add(server["accessKey"])
    with pytest.raises(StorageError, match="ExpiredToken") as refusal:
        fetch(store, Part("a", 0, 7, "0" * 64), Policy(backoff_seconds=0.01, deadline_seconds=0.5))
    assert refusal.value.reason == "CredentialsExpired"


@pytest.mark.parametrize(("access_key", "secret_key"), [("WRONG", ""), ("", "wrong")])
def test_wrong_keys_are_refused_at_once(
    store: S3Store, proxy: Proxy, server: dict[str, str], write_keys: Write, access_key: str, secret_key: str
) -> None:
    write_keys(access_key or server["accessKey"], secret_key or server["secretKey"])
    with pytest.raises(StorageError, match="check the credentials") as refusal:
        store.get("a")
    assert (refusal.value.reason, refusal.value.retryable) == ("AccessDenied", False)
    assert len(proxy.requests) == 1
    with pytest.raises(StorageError, match="check the credentials"):
        store.exists("a")


def test_wrong_keys_that_were_replaced_meanwhile_are_no_error(
    store: S3Store, proxy: Proxy, server: dict[str, str], write_keys: Write
) -> None:
    write_keys("WITHDRAWN", "x")
    client.current()
    write_keys(server["accessKey"], server["secretKey"])
    store.put("a", b"content")
    assert [request.access_key for request in proxy.requests] == ["WITHDRAWN", server["accessKey"]]


def test_no_keys_at_all_are_refused_until_there_are_some(
    store: S3Store, server: dict[str, str], write_keys: Write
) -> None:
    with pytest.raises(StorageError, match="no credentials: set AWS_ACCESS_KEY_ID") as refusal:
        store.get("a")
    assert (refusal.value.reason, refusal.value.retryable) == ("AccessDenied", False)
    write_keys(server["accessKey"], server["secretKey"])
    store.put("a", b"content")


@pytest.mark.parametrize("call", CALLS)
def test_a_missing_bucket_is_named_at_once(store: S3Store, proxy: Proxy, call: str) -> None:
    missing = open_store("s3://no-such-bucket/prefix")
    assert isinstance(missing, S3Store)
    with pytest.raises(StorageError, match=rf"bucket 'no-such-bucket' does not exist at {proxy.endpoint}") as refusal:
        CALLS[call](missing)
    assert (refusal.value.reason, refusal.value.retryable) == ("BucketMissing", False)


def test_a_bucket_name_that_cannot_be_is_refused_at_once(store: S3Store, proxy: Proxy) -> None:
    with pytest.raises(StorageError, match="Invalid bucket name") as refusal:
        open_store("s3://no,bucket/prefix").get("a")
    assert (refusal.value.reason, refusal.value.retryable) == ("Refused", False)
    assert not proxy.requests


def test_a_server_that_is_not_there_is_named(other_client: pytest.MonkeyPatch) -> None:
    client.requests.clear()
    other_client.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
    with pytest.raises(StorageError, match=r"at http://127\.0\.0\.1:9") as refusal:
        open_store(f"s3://{BUCKET}/x").get("a")
    assert (refusal.value.reason, refusal.value.retryable) == ("StorageUnreachable", True)
    assert client.requests == {("GetObject", "EndpointConnectionError"): QUICK.attempts}


def test_an_endpoint_that_is_no_url_is_refused(other_client: pytest.MonkeyPatch) -> None:
    other_client.setenv("AWS_ENDPOINT_URL_S3", "minio:9000/no scheme")
    with pytest.raises(StorageError, match="it must be like https://host:port") as refusal:
        open_store(f"s3://{BUCKET}/x").get("a")
    assert refusal.value.reason == "InvalidUri"


def test_a_request_of_a_dropped_client_ends_as_it_would_have(store: S3Store, proxy: Proxy) -> None:
    store.put("a", b"content")
    before = client.current()
    proxy.plan(Fault.EXPIRED)
    assert store.get("a") == b"content"
    assert client.current() is not before
    client.drop(before)
    now = client.current()
    client.drop(before)
    assert client.current() is now, "a client that fails late does not drop its successor"
