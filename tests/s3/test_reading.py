"""The data plane on a flaky S3: the tokens of the undisturbed read, or a clear error."""

import functools
import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from skywork_trainer.config import RunConfig
from skywork_trainer.data import cache
from skywork_trainer.data import fetch as module
from skywork_trainer.data.errors import DataError
from skywork_trainer.data.fetch import Part, Policy, fetch
from skywork_trainer.data.stream import SequenceStream
from skywork_trainer.storage import S3Store, StorageError

from tests.s3.conftest import QUICK, settle
from tests.s3.proxy import Fault, Proxy, Request
from tests.unit.data.conftest import configure, prepare, small_parts, tokenizer, tokenizer_uri  # noqa: F401

T = TypeVar("T")
CONTENT = hashlib.shake_128(b"shard").digest(1 << 18)
PART = Part("shard.bin", 5000, 200_000, hashlib.sha256(CONTENT[5000:205_000]).hexdigest())
POLICY = Policy(hedge_seconds=0.1, backoff_seconds=0.002, backoff_cap_seconds=0.02, deadline_seconds=60)
FAULTS = [fault for fault in Fault if fault is not Fault.FLIPPED_SENT]
STAGE = {"name": "general", "tokens": 16 * 12 * 20, "mixture": [{"source": "main"}]}
SEQUENCES = range(240)


def is_get(request: Request) -> bool:
    return request.method == "GET"


def tried(read: Callable[[], T]) -> tuple[T | None, DataError | StorageError | None]:
    try:
        return read(), None
    except (DataError, StorageError) as error:
        return None, error


def tokens(config: RunConfig, folder: Path) -> list[list[int]]:
    stream = SequenceStream(config, folder)
    try:
        return [stream.read(sequence).tolist() for sequence in SEQUENCES]
    finally:
        stream.close()


@pytest.fixture(autouse=True)
def fresh_tally(monkeypatch: pytest.MonkeyPatch) -> None:
    # What earlier reads took decides how long a request may take before another races it.
    monkeypatch.setattr(module, "tally", module.Tally())
    monkeypatch.setattr(cache, "fetch", functools.partial(fetch, policy=POLICY))


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(faults=st.lists(st.sampled_from(FAULTS), max_size=6))
def test_a_part_is_read_right_or_not_at_all(store: S3Store, proxy: Proxy, faults: list[Fault]) -> None:
    settle(proxy)
    module.tally.seconds.clear()
    store.put(PART.file, CONTENT)
    proxy.plan(*faults, spoils=is_get)
    found, refusal = tried(lambda: fetch(store, PART, POLICY))
    assert refusal is not None or found == CONTENT[5000:205_000]
    if refusal is not None:
        assert refusal.reason == "ShardCorrupt"
        assert faults.count(Fault.FLIPPED) >= POLICY.corrupt_attempts, "all else passes"


@pytest.mark.parametrize("fault", [Fault.STALLED, Fault.TRICKLED])
def test_a_request_that_does_not_end_is_overtaken(store: S3Store, proxy: Proxy, fault: Fault) -> None:
    store.put(PART.file, CONTENT)
    proxy.plan(fault, fault, spoils=is_get)
    assert fetch(store, PART, POLICY) == CONTENT[5000:205_000]
    assert module.tally.hedged > 0
    assert not proxy.released.is_set()


def test_damage_that_stays_is_an_error_that_names_the_object(store: S3Store, proxy: Proxy) -> None:
    store.put(PART.file, CONTENT)
    proxy.plan(*[Fault.FLIPPED] * 9, spoils=is_get)
    with pytest.raises(DataError, match=r"shard\.bin bytes 5000-204999: sha256 is .* the index says"):
        fetch(store, PART, POLICY)
    assert len(proxy.requests) == POLICY.corrupt_attempts


def test_a_fetch_multiplies_no_attempts(store: S3Store, proxy: Proxy) -> None:
    store.put(PART.file, CONTENT)
    proxy.plan(*[Fault.SLOW_DOWN] * 5, spoils=is_get)
    assert fetch(store, PART, POLICY) == CONTENT[5000:205_000]
    assert len(proxy.requests) == 6
    assert module.tally.retried == 5


@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(faults=st.lists(st.sampled_from(FAULTS), max_size=12))
@example(faults=[Fault.NONE, Fault.FLIPPED] * 8)
def test_a_flaky_store_never_changes_a_token(
    store: S3Store,
    proxy: Proxy,
    prepare,  # noqa: F811
    configure,  # noqa: F811
    tmp_path: Path,
    faults: list[Fault],
) -> None:
    settle(proxy)
    module.tally.seconds.clear()
    if not store.exists("index.json"):
        folder = Path(prepare("main").removeprefix("file://"))
        for path in folder.glob("*.*"):
            store.upload(path, path.name)
    config = configure({"main": store.uri}, [STAGE])
    expected = tokens(config, tmp_path / "undisturbed")
    shutil.rmtree(tmp_path / "disturbed", ignore_errors=True)
    proxy.plan(*faults, spoils=is_get)
    found, refusal = tried(lambda: tokens(config, tmp_path / "disturbed"))
    assert refusal is not None or found == expected
    if refusal is not None:
        assert refusal.reason in ("ShardCorrupt", "SourceInvalid", "StorageUnreachable", "CredentialsExpired")
        assert Fault.FLIPPED in faults or len(faults) >= QUICK.attempts, "all else passes"
