"""Every method of the store on a real server, with every fault in its way."""

import pytest
from skywork_trainer.storage import S3Store, StorageError, client, requests

from tests.s3.proxy import Fault, Proxy, Request

CONTENT = bytes(range(256)) * 400
PASSING = [
    Fault.SLOW_DOWN,
    Fault.BROKEN,
    Fault.RESET,
    Fault.RESET_AFTER,
    Fault.RESET_IN_BODY,
    Fault.TRUNCATED,
    Fault.STALLED,
    Fault.TRICKLED,
]
WITHOUT_BODY = [fault for fault in PASSING if fault not in (Fault.RESET_IN_BODY, Fault.TRUNCATED, Fault.TRICKLED)]


def is_put(request: Request) -> bool:
    return request.method == "PUT"


@pytest.mark.parametrize("fault", PASSING)
def test_an_object_is_read_whole_and_in_ranges_whatever_befalls_two_requests(
    store: S3Store, proxy: Proxy, fault: Fault
) -> None:
    store.put("a", CONTENT)
    proxy.plan(fault, fault)
    assert store.get("a") == CONTENT
    proxy.plan(fault, fault)
    assert store.get_range("a", 1000, 70_000) == CONTENT[1000:71_000]
    assert not proxy.left()


@pytest.mark.parametrize("fault", [*WITHOUT_BODY, Fault.FLIPPED_SENT])
def test_an_object_is_written_as_it_is_whatever_befalls_two_requests(
    store: S3Store, proxy: Proxy, fault: Fault
) -> None:
    proxy.plan(fault, fault)
    store.put("a", CONTENT)
    assert not proxy.left()
    assert store.get("a") == CONTENT


@pytest.mark.parametrize("fault", WITHOUT_BODY)
def test_what_is_asked_about_an_object_is_answered_whatever_befalls_a_request(
    store: S3Store, proxy: Proxy, fault: Fault
) -> None:
    store.put("a", CONTENT)
    identity = store.identity("a")
    for ask, answer in (
        (lambda: store.size("a"), len(CONTENT)),
        (lambda: store.identity("a"), identity),
        (lambda: store.exists("b"), False),
        (store.list, ["a"]),
        (lambda: store.delete("a"), None),
    ):
        proxy.plan(fault)
        assert ask() == answer
        assert not proxy.left()
    assert not store.exists("a")


def test_a_range_that_ends_behind_the_object_is_cut_and_one_behind_it_is_empty(store: S3Store) -> None:
    store.put("a", b"hello")
    store.put("empty", b"")
    assert store.get_range("a", 0, 5) == b"hello"
    assert store.get_range("a", 3, 100) == b"lo"
    assert store.get_range("a", 50, 1) == b""
    assert store.get_range("a", 0, 0) == b""
    assert store.get_range("empty", 0, 9) == b""
    assert store.get("empty") == b""


@pytest.mark.parametrize("fault", [Fault.RESET_AFTER, Fault.STALLED, Fault.RESET, Fault.BROKEN])
def test_a_writer_whose_answer_was_lost_knows_its_own_object_again(store: S3Store, proxy: Proxy, fault: Fault) -> None:
    proxy.plan(fault, Fault.SLOW_DOWN, fault, spoils=is_put)
    store.put("lock", b"mine", if_absent=True)
    assert not proxy.left()
    assert store.get("lock") == b"mine"


def test_a_writer_whose_answer_was_lost_never_takes_an_equal_object_for_its_own(store: S3Store, proxy: Proxy) -> None:
    store.put("lock", b"equal", if_absent=True)
    proxy.plan(Fault.RESET_AFTER, Fault.RESET, spoils=is_put)
    with pytest.raises(StorageError, match="lock exists already") as refusal:
        store.put("lock", b"equal", if_absent=True)
    assert (refusal.value.reason, refusal.value.retryable) == ("AlreadyExists", False)


def test_of_two_writers_the_second_is_refused_at_once(store: S3Store, proxy: Proxy) -> None:
    store.put("lock", b"mine", if_absent=True)
    proxy.plan()
    with pytest.raises(StorageError, match="exists already"):
        store.put("lock", b"theirs", if_absent=True)
    assert len(proxy.requests) == 1
    assert store.get("lock") == b"mine"


def test_a_listing_of_several_pages_is_whole_though_each_page_fails_first(
    store: S3Store, proxy: Proxy, server: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    keys = [f"{number:04d}" for number in range(2100)]
    # Files of the server's own folder are its objects: two thousand PUTs would take longer than all other tests.
    folder = next(tmp_path_factory.getbasetemp().glob("s3-server*")) / "s3/buckets/data" / store.prefix
    folder.mkdir(parents=True)
    for key in keys:
        (folder / key).touch()
    proxy.plan(Fault.SLOW_DOWN, Fault.NONE, Fault.RESET_IN_BODY, Fault.NONE, Fault.TRUNCATED)
    assert store.list() == keys
    assert not proxy.left()
    assert len(proxy.requests) == 6


def test_a_store_that_keeps_failing_is_given_up_after_its_attempts(store: S3Store, proxy: Proxy) -> None:
    proxy.plan(*[Fault.SLOW_DOWN] * 20)
    with pytest.raises(StorageError, match="SlowDown") as refusal:
        store.get("a")
    assert (refusal.value.reason, refusal.value.retryable) == ("StorageUnreachable", True)
    assert len(proxy.requests) == 6


def test_a_caller_that_asks_again_itself_gets_one_attempt(store: S3Store, proxy: Proxy) -> None:
    proxy.plan(*[Fault.SLOW_DOWN] * 20)
    with pytest.raises(StorageError, match="SlowDown"):
        store.without_retries().get_range("a", 0, 9)
    assert len(proxy.requests) == 1


def test_every_attempt_is_counted_by_operation_and_answer(store: S3Store, proxy: Proxy) -> None:
    store.put("a", CONTENT)
    requests.clear()
    proxy.plan(Fault.SLOW_DOWN, Fault.RESET, Fault.SLOW_DOWN, Fault.TRUNCATED)
    store.get("a")
    store.get_range("a", 0, 9)
    assert requests == {
        ("GetObject", "503"): 2,
        ("GetObject", "ConnectionClosedError"): 1,
        ("GetObject", "200"): 2,
        ("GetObject", "206"): 1,
    }


def test_a_server_that_answers_a_range_with_the_whole_object_is_refused(
    store: S3Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.put("a", CONTENT)
    whole = client.current().client

    class Ignores:
        meta = whole.meta

        def get_object(self, Range: str, **options: str) -> object:
            return whole.get_object(**options)  # type: ignore[arg-type]

    opened = client.Opened(Ignores(), client.current().session, 0)  # type: ignore[arg-type]
    monkeypatch.setattr(client, "current", lambda: opened)
    with pytest.raises(StorageError, match="does not answer ranges with ranges"):
        store.get_range("a", 5, 5)
