"""Checkpoints on a real S3 server that fails at each of a save's requests: what is restored is a committed state."""

from pathlib import Path

import pytest
from skywork_trainer.checkpoint.manifest import committed, read_manifest
from skywork_trainer.checkpoint.restore import Candidates
from skywork_trainer.collectives import World
from skywork_trainer.config import Checkpoints, RunConfig
from skywork_trainer.storage import S3Store, StorageError

from tests.s3.proxy import Fault, Proxy
from tests.unit.checkpoint.saving import OneArray, saver, snapshot
from tests.unit.train.world import run_config
from tests.waiting import until


def configuration(folder: Path, store: S3Store) -> RunConfig:
    return run_config(folder, checkpoints=Checkpoints(uri=store.uri, keep_last=2))


def restored(store: S3Store) -> tuple[int, float]:
    candidates, engine = Candidates(store, World()), OneArray(-1)
    while (manifest := candidates.next()) is not None:
        if candidates.load(manifest, engine):  # type: ignore[arg-type]
            return manifest.step, engine.value
    return 0, -1.0


@pytest.mark.parametrize(
    "fault",
    [Fault.SLOW_DOWN, Fault.BROKEN, Fault.RESET, Fault.RESET_AFTER, Fault.STALLED, Fault.FLIPPED_SENT],
)
def test_a_fault_at_any_request_that_writes_costs_at_most_that_save(
    tmp_path: Path, store: S3Store, proxy: Proxy, fault: Fault
) -> None:
    config = configuration(tmp_path, store)
    first = saver(store, config, tmp_path).save(snapshot(1))
    step, parent = 1, first.id
    for at in range(3):  # the rank's file, the history, the manifest
        writes: list[str] = []

        def turn(request: object, at: int = at, writes: list[str] = writes) -> bool:
            if getattr(request, "method", "") == "PUT":
                writes.append(str(getattr(request, "target", "")))
                return len(writes) == at + 1
            return False

        proxy.plan(fault, spoils=turn)
        step += 1
        manifest = saver(store, config, tmp_path).save(snapshot(step, parent=parent, parent_step=step - 1))
        assert proxy.left() == 0, "the fault befell nobody"
        proxy.heal()
        assert restored(store) == (step, float(step))
        parent = manifest.id


def test_a_server_that_stays_away_fails_the_save_and_leaves_the_one_before(
    tmp_path: Path, store: S3Store, proxy: Proxy
) -> None:
    config = configuration(tmp_path, store)
    saver(store, config, tmp_path).save(snapshot(1))
    proxy.plan(*[Fault.SLOW_DOWN] * 500)
    with pytest.raises(StorageError) as raised:
        saver(store, config, tmp_path).save(snapshot(2, parent_step=1))
    assert raised.value.retryable
    proxy.heal()
    assert restored(store) == (1, 1.0)


def test_a_slow_server_holds_up_no_step(tmp_path: Path, store: S3Store, proxy: Proxy) -> None:
    config = configuration(tmp_path, store)
    beside = saver(store, config, tmp_path)
    proxy.plan(Fault.STALLED, spoils=lambda request: request.method == "PUT")
    beside.begin(snapshot(1))
    until(lambda: proxy.left() == 0, 60, 0.01)
    for _ in range(100):
        assert beside.advance(beside.votes()) is None, "nothing is committed while the server stalls"
    assert beside.in_flight and committed(store) == []
    proxy.heal()
    outcome = beside.finish()
    beside.close()
    assert outcome is not None and read_manifest(store, committed(store)[0]).step == 1


def test_a_flipped_bit_on_the_way_back_is_asked_for_again(tmp_path: Path, store: S3Store, proxy: Proxy) -> None:
    saver(store, configuration(tmp_path, store), tmp_path).save(snapshot(1))
    proxy.plan(Fault.FLIPPED, spoils=lambda request: request.method == "GET" and "rank-00000" in request.target)
    assert restored(store) == (1, 1.0)
    assert proxy.left() == 0
    assert not store.list("quarantine/")
