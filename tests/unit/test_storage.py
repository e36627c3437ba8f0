from pathlib import Path

import pytest
from skywork_trainer.storage import FileStore, StorageError, Store, client, open_store
from skywork_trainer.storage.store import TEMPORARY


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store((tmp_path / "with space").as_uri())


@pytest.fixture
def unreachable(monkeypatch: pytest.MonkeyPatch) -> None:
    client._open.cache_clear()
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")


def test_an_object_reads_back_whole_and_in_ranges(store: Store, tmp_path: Path) -> None:
    store.put("a/b", b"hello")
    assert store.get("a/b") == b"hello"
    assert store.get_range("a/b", 1, 3) == b"ell"
    assert store.get_range("a/b", 3, 100) == b"lo"
    assert store.get_range("a/b", 50, 1) == b""
    assert store.exists("a/b")
    assert not store.exists("a")
    store.download("a/b", tmp_path / "new" / "copy")
    assert (tmp_path / "new" / "copy").read_bytes() == b"hello"
    store.upload(tmp_path / "new" / "copy", "c")
    assert store.get("c") == b"hello"
    assert store.identity("c") == store.identity("a/b")


def test_listing_takes_a_prefix_of_the_key_and_leaves_out_what_is_still_being_written(store: Store) -> None:
    for key in ("step-2/manifest", "step-10/manifest", "step-1/manifest", "other"):
        store.put(key, b"")
    assert isinstance(store, FileStore)
    (store.root / "step-1" / f"{TEMPORARY}x").touch()
    assert store.list() == ["other", "step-1/manifest", "step-10/manifest", "step-2/manifest"]
    assert store.list("step-1") == ["step-1/manifest", "step-10/manifest"]
    assert store.list("step-1/") == ["step-1/manifest"]
    assert store.list("nowhere/") == []


def test_only_the_first_of_two_writers_creates_an_object(store: Store) -> None:
    store.put("manifest", b"mine", if_absent=True)
    with pytest.raises(StorageError, match="exists already") as refusal:
        store.put("manifest", b"theirs", if_absent=True)
    assert (refusal.value.reason, refusal.value.retryable) == ("AlreadyExists", False)
    assert store.get("manifest") == b"mine"
    assert store.list() == ["manifest"]


def test_deleting_what_is_gone_is_no_error(store: Store) -> None:
    store.put("a", b"")
    store.delete("a")
    store.delete("a")
    assert not store.exists("a")


def test_a_failed_download_leaves_the_old_file_and_no_litter(store: Store, tmp_path: Path) -> None:
    target = tmp_path / "folder" / "file"
    target.parent.mkdir()
    target.write_bytes(b"old")
    with pytest.raises(StorageError, match="does not exist") as refusal:
        store.download("missing", target)
    assert refusal.value.reason == "NotFound"
    assert list(target.parent.iterdir()) == [target]
    assert target.read_bytes() == b"old"


@pytest.mark.parametrize("key", ["", "/etc/passwd", "../outside", "a/../../b"])
def test_a_key_cannot_leave_its_store(store: Store, key: str) -> None:
    with pytest.raises(StorageError, match="is no key"):
        store.put(key, b"")


@pytest.mark.parametrize("uri", ["http://a/b", "s3:///prefix", "file://host/a", "file:relative", "/plain/path", ""])
def test_a_uri_of_another_kind_is_refused_with_what_is_allowed(uri: str) -> None:
    with pytest.raises(StorageError, match="s3://bucket/prefix nor file:///") as refusal:
        open_store(uri)
    assert refusal.value.reason == "InvalidUri"


@pytest.mark.usefixtures("unreachable")
def test_a_server_that_does_not_answer_may_be_tried_again() -> None:
    before = client.requests.copy()
    with pytest.raises(StorageError, match=r"http://127\.0\.0\.1:9") as refusal:
        open_store("s3://bucket/prefix").get("key")
    assert (refusal.value.reason, refusal.value.retryable) == ("StorageUnreachable", True)
    assert client.requests - before == {("GetObject", "EndpointConnectionError"): 1}, "AWS_MAX_ATTEMPTS"


@pytest.mark.usefixtures("unreachable")
def test_a_prepared_process_builds_clients_without_reading_descriptions_of_s3_and_with_its_own_keys(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(client, "_loader", None)
    client.prepare()
    read: list[str] = []
    from botocore.loaders import JSONFileLoader

    found = JSONFileLoader.load_file
    monkeypatch.setattr(JSONFileLoader, "load_file", lambda self, path: read.append(path) or found(self, path))
    opened = client.current()
    assert not [path for path in read if "/s3/" in path or path.endswith(("endpoints", "partitions"))]
    keys = opened.session.get_credentials()
    assert keys is not None and keys.access_key == "a"
    client._open.cache_clear()
