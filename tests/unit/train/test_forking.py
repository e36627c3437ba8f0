"""A fork begins with another run's checkpoint, goes on as that run would have, and leaves it as it is."""

import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
from skywork_trainer.checkpoint.history import audit
from skywork_trainer.checkpoint.manifest import committed, read_manifest
from skywork_trainer.cli import main
from skywork_trainer.config import (
    EXIT_CONFIG,
    Checkpoints,
    Failure,
    Progress,
    RunConfig,
    Source,
    StartFrom,
    Validation,
)
from skywork_trainer.storage import open_store

from tests.unit.train.world import MODEL, Fault, done, run_config, train

HELD_OUT = Validation(every_tokens=1 << 40, windows=3, domains=(Source(name="web", uri="file:///x"),))


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """A run of eight steps, trained, each of whose steps is committed."""
    folder = tmp_path_factory.mktemp("parent")
    config = run_config(folder, validation=HELD_OUT)
    checkpoints = Checkpoints(uri=config.checkpoints.uri, every_steps=1, background=False, keep_last=99)
    config = config.model_copy(update={"checkpoints": checkpoints})
    assert train(config, folder, size=2) == done(2)
    return config


def forked(parent: RunConfig, folder: Path, step: int, **changes: Any) -> RunConfig:
    start = StartFrom(uri=parent.checkpoints.uri, step=step)
    return run_config(folder, **({"start_from": start, "validation": HELD_OUT} | changes))


def failure(folder: Path) -> Failure:
    return Failure.model_validate_json((folder / "state-1" / "failure-0.json").read_bytes())


def test_a_fork_has_the_losses_its_parent_had_bit_for_bit_and_writes_nothing_there(
    tmp_path: Path, parent: RunConfig
) -> None:
    before = open_store(parent.checkpoints.uri).list()
    config = forked(parent, tmp_path, 4)
    assert train(config, tmp_path, size=2) == done(2)
    theirs, ours = audit(open_store(parent.checkpoints.uri)), audit(open_store(config.checkpoints.uri))
    assert ours.losses == theirs.losses[4:]
    assert (ours.steps, ours.samples_lost, ours.samples_repeated) == (8, 0, 0)
    assert open_store(parent.checkpoints.uri).list() == before
    assert Progress.model_validate_json((tmp_path / "state-1/progress.json").read_bytes()).first_step == 4


def test_a_fork_that_dies_before_its_first_save_begins_again_and_behind_it_needs_its_parent_no_more(
    tmp_path: Path, parent: RunConfig
) -> None:
    copy = tmp_path / "parent"
    shutil.copytree(Path(parent.checkpoints.uri.removeprefix("file://")), copy)
    config = forked(parent, tmp_path, 3, start_from=StartFrom(uri=copy.as_uri(), step=3))
    train(config, tmp_path, size=2, fault=Fault(rank=1, step=5, signal=signal.SIGKILL))
    assert not committed(open_store(config.checkpoints.uri))
    train(config, tmp_path, size=2, generation=2, fault=Fault(rank=1, step=5, signal=signal.SIGTERM))
    (saved,) = committed(open_store(config.checkpoints.uri))
    shutil.rmtree(copy)
    assert train(config, tmp_path, size=2, generation=3) == done(2)
    manifest = read_manifest(open_store(config.checkpoints.uri), saved)
    assert (manifest.parent, manifest.counters.forked_step) == ("", 3)
    assert audit(open_store(config.checkpoints.uri)).losses == audit(open_store(parent.checkpoints.uri)).losses[3:]


def test_a_fork_may_begin_with_a_later_stage_at_another_rate(
    tmp_path: Path, parent: RunConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    config = forked(parent, tmp_path, 8, steps=(8, 2), stage="s1")
    assert train(config, tmp_path, size=1) == done(1)
    store = open_store(config.checkpoints.uri)
    newest = read_manifest(store, committed(store)[-1])
    assert (newest.step, newest.stage, len(audit(store).losses)) == (10, "s1", 2)
    assert [domain.step for domain in newest.counters.stage_start_validation] == [8], "measured before it trains"
    assert main(["checkpoints", "show", config.checkpoints.uri, newest.id]) == 0
    assert newest.counters.forked_from in capsys.readouterr().out
    assert newest.counters.forked_from.startswith(parent.checkpoints.uri)


def test_a_fork_of_a_step_that_is_not_there_is_refused_with_those_that_are(tmp_path: Path, parent: RunConfig) -> None:
    folder = tmp_path / "store"
    assert train(forked(parent, tmp_path, 7, start_from=StartFrom(uri=folder.as_uri(), step=7)), tmp_path, size=1) == [
        EXIT_CONFIG
    ]
    assert failure(tmp_path).reason == "CheckpointMissing"
    other = tmp_path / "other"
    config = forked(parent, other, 9, steps=(8, 8), stage="s1")
    assert train(config, other, size=1) == [EXIT_CONFIG]
    told = failure(other)
    assert (told.reason, told.retryable) == ("CheckpointMissing", False)
    assert "startFrom: there is no checkpoint '9'" in told.message
    assert "-000000000008 are the newest" in told.message


def test_a_fork_of_another_model_or_of_damaged_files_is_refused_on_all_ranks_and_nothing_is_written(
    tmp_path: Path, parent: RunConfig
) -> None:
    other = forked(parent, tmp_path, 4, model=MODEL.model_copy(update={"ffn": 64}))
    assert train(other, tmp_path, size=2) == [EXIT_CONFIG] * 2
    assert "startFrom: checkpoint" in failure(tmp_path).message
    assert "ffn was 48, is 64" in failure(tmp_path).message
    copy = tmp_path / "parent"
    shutil.copytree(Path(parent.checkpoints.uri.removeprefix("file://")), copy)
    (damaged,) = copy.glob("checkpoints/*-000000000004/rank-00001.safetensors")
    damaged.write_bytes(damaged.read_bytes()[:-7])
    folder = tmp_path / "damaged"
    config = forked(parent, folder, 4, start_from=StartFrom(uri=copy.as_uri(), step=4))
    assert train(config, folder, size=2) == [EXIT_CONFIG] * 2
    assert failure(folder).reason == "CheckpointCorrupt"
    assert not (copy / "quarantine").exists()
    assert not committed(open_store(config.checkpoints.uri))
