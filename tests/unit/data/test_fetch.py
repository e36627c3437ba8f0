"""Fetching from a store that misbehaves on purpose; the real one is in tests/s3."""

import hashlib
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from skywork_trainer.data import fetch as module
from skywork_trainer.data.errors import DataError
from skywork_trainer.data.fetch import Part, Policy, fetch, head_start_seconds
from skywork_trainer.storage import FileStore, StorageError

CONTENT = bytes(range(256)) * 8
PART = Part("a.bin", 16, 1000, hashlib.sha256(CONTENT[16:1016]).hexdigest())
QUICK = Policy(hedge_seconds=0.05, backoff_seconds=0.001, deadline_seconds=20)


@pytest.fixture(autouse=True)
def fresh_tally(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "tally", module.Tally())


class Scripted(FileStore):
    """A folder whose first answers are scripted: "ok", "wrong", "short", "hang", or an error."""

    def __init__(self, root: Path, *script: str) -> None:
        super().__init__(root)
        (root / "a.bin").write_bytes(CONTENT)
        self._script = list(script)
        self._lock = threading.Lock()
        self.release = threading.Event()

    def get_range(self, key: str, start: int, length: int) -> bytes:
        with self._lock:
            answer = self._script.pop(0) if self._script else "ok"
        content = super().get_range(key, start, length)
        if answer == "hang":
            self.release.wait(60)
        if answer == "wrong":
            return bytes([content[0] ^ 1]) + content[1:]
        if answer == "short":
            return content[:-1]
        if answer in ("StorageUnreachable", "AccessDenied"):
            raise StorageError(answer, f"{key}: {answer}", retryable=answer == "StorageUnreachable")
        return content


@given(faults=st.lists(st.sampled_from(["wrong", "short", "StorageUnreachable"]), max_size=6))
def test_whatever_goes_wrong_the_bytes_are_right_or_the_error_is_clear(
    faults: list[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    store = Scripted(tmp_path_factory.mktemp("store"), *faults)
    corrupt = sum(fault in ("wrong", "short") for fault in faults)
    if corrupt >= QUICK.corrupt_attempts:
        with pytest.raises(DataError, match=r"a\.bin bytes 16-1015: sha256 is"):
            fetch(store, PART, QUICK)
    else:
        assert fetch(store, PART, QUICK) == CONTENT[16:1016]


def test_a_request_that_hangs_is_overtaken_by_another(tmp_path: Path) -> None:
    store = Scripted(tmp_path, "hang", "hang")
    assert fetch(store, PART, QUICK) == CONTENT[16:1016]
    assert module.tally.hedged == 2
    assert not store.release.is_set()
    store.release.set()


def test_what_no_request_can_mend_is_said_at_once(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="AccessDenied"):
        fetch(Scripted(tmp_path, "AccessDenied"), PART, QUICK)
    assert module.tally.retried == 1


def test_a_store_that_never_answers_is_given_up_with_what_it_said_last(tmp_path: Path) -> None:
    store = Scripted(tmp_path, *["StorageUnreachable"] * 10_000)
    with pytest.raises(StorageError, match=r"within 0 s after \d+ failed requests; the last: a\.bin") as refusal:
        fetch(store, PART, Policy(hedge_seconds=0.05, backoff_seconds=0.001, deadline_seconds=0.2))
    assert (refusal.value.reason, refusal.value.retryable) == ("StorageUnreachable", True)


@given(failures=st.integers(0, 10_000), chance=st.floats(0, 1, exclude_max=True))
def test_pauses_grow_to_the_cap_and_are_spread_down_to_nothing(failures: int, chance: float) -> None:
    policy = Policy()
    assert 0 <= policy.pause_seconds(failures, chance) <= policy.backoff_cap_seconds
    assert policy.pause_seconds(3, 0.999) > policy.pause_seconds(1, 0.999)


def test_a_request_gets_three_times_the_usual_time_before_another_races_it() -> None:
    assert head_start_seconds(Policy(), []) == 2.0
    assert head_start_seconds(Policy(), [0.1, 0.2, 0.1]) == 2.0
    assert head_start_seconds(Policy(), [1.0, 1.5, 9.0]) == 4.5
