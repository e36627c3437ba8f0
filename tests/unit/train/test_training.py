"""A run is one run: whatever the world sizes, kills and restarts, every sample once and one loss curve."""

import signal
import time
from pathlib import Path

import pytest
from skywork_trainer.checkpoint.history import Audit, audit
from skywork_trainer.checkpoint.manifest import committed, manifest_key, read_manifest
from skywork_trainer.config import (
    EXIT_CONFIG,
    EXIT_LEFT,
    Checkpoints,
    Engine,
    Failure,
    Progress,
    RunConfig,
    Source,
    Validation,
)
from skywork_trainer.storage import open_store

from tests.unit.train.world import BATCH, MODEL, TOKENS_PER_STEP, Fault, done, run_config, start, train, train_rank


def audited(config: RunConfig) -> Audit:
    return audit(open_store(config.checkpoints.uri))


def progress(folder: Path, generation: int) -> Progress:
    return Progress.model_validate_json((folder / f"state-{generation}" / "progress.json").read_bytes())


def failure(folder: Path, generation: int, local_rank: int = 0) -> Failure:
    return Failure.model_validate_json((folder / f"state-{generation}" / f"failure-{local_rank}.json").read_bytes())


def every_step(config: RunConfig, *, keep_last: int = 2) -> RunConfig:
    """Save after each step, and train on only when that is committed."""
    checkpoints = Checkpoints(uri=config.checkpoints.uri, every_steps=1, background=False, keep_last=keep_last)
    return config.model_copy(update={"checkpoints": checkpoints})


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    folder = tmp_path_factory.mktemp("undisturbed")
    config = run_config(folder)
    assert train(config, folder, size=2) == done(2)
    return audited(config).losses


@pytest.mark.parametrize("killed_at", [1, 3, 7])
def test_a_killed_and_resumed_run_has_the_undisturbed_loss_curve_bit_for_bit(
    tmp_path: Path, undisturbed: list[float], killed_at: int
) -> None:
    config = every_step(run_config(tmp_path))
    codes = train(config, tmp_path, size=2, fault=Fault(rank=1, step=killed_at, signal=signal.SIGKILL))
    assert codes == [1, -signal.SIGKILL]
    assert failure(tmp_path, 1).reason == "PeerLost"
    assert train(config, tmp_path, size=2, generation=2) == done(2)
    assert progress(tmp_path, 2).first_step == killed_at
    result = audited(config)
    assert (result.steps, result.samples_lost, result.samples_repeated) == (8, 0, 0)
    assert result.losses == undisturbed


def test_one_rank_asked_to_leave_makes_all_save_the_same_step_and_nothing_is_trained_twice(
    tmp_path: Path, undisturbed: list[float]
) -> None:
    config = run_config(tmp_path)
    codes = train(config, tmp_path, size=2, fault=Fault(rank=1, step=4, signal=signal.SIGTERM))
    assert codes == [EXIT_LEFT, EXIT_LEFT]
    (saved,) = committed(open_store(config.checkpoints.uri))
    assert saved.endswith("-000000000005")
    assert train(config, tmp_path, size=2, generation=2) == done(2)
    assert progress(tmp_path, 2).resumed_from == saved
    assert audited(config).losses == undisturbed


def test_a_worker_asked_to_leave_while_it_waits_for_its_peers_leaves_at_once(tmp_path: Path) -> None:
    config = run_config(tmp_path)
    ranks = start(train_rank, 2, config, tmp_path, 1, None, only=(0,))
    deadline = time.monotonic() + 30
    while not (tmp_path / "state-1" / "progress.json").exists():
        assert time.monotonic() < deadline
    ranks.terminate(0)
    assert ranks.codes() == [EXIT_LEFT]


@pytest.mark.parametrize("zero_stage", [0, 1, 2])
def test_growing_and_shrinking_changes_neither_the_samples_nor_beyond_rounding_the_loss(
    tmp_path: Path, undisturbed: list[float], zero_stage: int
) -> None:
    config = run_config(tmp_path, engine=Engine(zero_stage=zero_stage, micro_batch_sequences=2))
    for generation, (size, leaves_at) in enumerate([(1, 1), (3, 4), (2, None)], start=1):
        fault = None if leaves_at is None else Fault(rank=0, step=leaves_at, signal=signal.SIGTERM)
        codes = train(config, tmp_path, size=size, generation=generation, fault=fault)
        assert codes == ([EXIT_LEFT] * size if fault else done(size))
    result = audited(config)
    assert (result.steps, result.samples_lost, result.samples_repeated) == (8, 0, 0)
    # Sums over ranks are taken in another order: fp32 rounding, amplified a little by each update.
    assert result.losses == pytest.approx(undisturbed, abs=2e-5)


def test_validation_is_bit_identical_for_any_world_size(tmp_path: Path) -> None:
    seen = []
    domains = (Source(name="web", uri="file:///x"), Source(name="code", uri="file:///x"))
    for size in (1, 2, 3):
        folder = tmp_path / str(size)
        config = run_config(folder, validation=Validation(every_tokens=1 << 40, windows=7, domains=domains))
        assert train(config, folder, size=size) == done(size)
        seen.append(progress(folder, 1).stage_start_validation)
    assert seen[0] == seen[1] == seen[2]
    assert [domain.domain for domain in seen[0]] == ["web", "code"]


def test_validation_comes_before_a_stage_every_so_many_tokens_and_at_its_end(tmp_path: Path) -> None:
    validation = Validation(every_tokens=3 * TOKENS_PER_STEP, windows=3, domains=(Source(name="web", uri="file:///x"),))
    config = every_step(run_config(tmp_path, validation=validation, steps=(8, 2)), keep_last=99)
    assert train(config, tmp_path, size=1) == done(1)
    store = open_store(config.checkpoints.uri)
    manifests = [read_manifest(store, identity) for identity in committed(store)]
    assert [m.counters.validation[0].step for m in manifests] == [0, 0, 3, 3, 3, 6, 6, 8]
    second = config.model_copy(update={"stage": "s1"})
    assert train(second, tmp_path, size=1, generation=2) == done(1)
    assert progress(tmp_path, 2).stage_start_validation[0].step == 8
    assert progress(tmp_path, 2).validation[0].step == 10


def test_the_next_stage_goes_on_from_the_last_ones_final_checkpoint_with_its_optimizer_state(tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    first = run_config(parts, steps=(4, 4))
    assert train(first, parts, size=2) == done(2)
    second = first.model_copy(update={"stage": "s1"})
    assert train(second, parts, size=2, generation=2) == done(2)
    assert progress(parts, 2).first_step == 4
    assert progress(parts, 2).source_sequences == {"main": 4 * BATCH}
    # Killed in the second stage: going on must find the same curve as going through.
    config = every_step(run_config(whole, steps=(4, 4)))
    assert train(config, whole, size=2) == done(2)
    config = config.model_copy(update={"stage": "s1"})
    train(config, whole, size=2, generation=2, fault=Fault(rank=0, step=6, signal=signal.SIGKILL))
    assert train(config, whole, size=2, generation=3) == done(2)
    assert audited(config).losses == audited(second).losses


def test_a_stage_that_is_complete_reports_what_its_last_checkpoint_knows_and_is_done(tmp_path: Path) -> None:
    validation = Validation(every_tokens=1 << 40, windows=3, domains=(Source(name="web", uri="file:///x"),))
    config = run_config(tmp_path, validation=validation)
    assert train(config, tmp_path, size=2) == done(2)
    before = committed(open_store(config.checkpoints.uri))
    assert train(config, tmp_path, size=1, generation=2) == done(1)
    assert committed(open_store(config.checkpoints.uri)) == before
    now, then = progress(tmp_path, 2), progress(tmp_path, 1)
    assert (now.step, now.validation, now.source_sequences) == (8, then.validation, then.source_sequences)
    assert (now.checkpoint, now.checkpoint_step) == (then.checkpoint, 8)


def test_a_corrupt_checkpoint_is_passed_over_for_the_one_before(tmp_path: Path, undisturbed: list[float]) -> None:
    config = every_step(run_config(tmp_path))
    train(config, tmp_path, size=2, fault=Fault(rank=0, step=5, signal=signal.SIGKILL))
    store = open_store(config.checkpoints.uri)
    older, newest = committed(store)
    key = f"checkpoints/{newest}/rank-00001.safetensors"
    damaged = bytearray(store.get(key))
    damaged[-3] ^= 0xFF
    store.put(key, bytes(damaged))
    assert train(config, tmp_path, size=2, generation=2) == done(2)
    assert progress(tmp_path, 2).resumed_from == older
    assert "skywork_checkpoint_corrupt{" in (tmp_path / "state-2" / "metrics.prom").read_text()
    result = audited(config)
    assert (result.samples_lost, result.samples_repeated, result.losses) == (0, 0, undisturbed)


def test_another_model_at_the_same_place_is_refused_and_nothing_is_touched(tmp_path: Path) -> None:
    config = run_config(tmp_path)
    assert train(config, tmp_path, size=1) == done(1)
    store = open_store(config.checkpoints.uri)
    before = store.list()
    other = config.model_copy(update={"model": MODEL.model_copy(update={"ffn": 64})})
    assert train(other, tmp_path, size=2, generation=2) == [EXIT_CONFIG, EXIT_CONFIG]
    told = failure(tmp_path, 2)
    assert (told.reason, told.retryable) == ("CheckpointMismatch", False)
    assert "ffn was 48, is 64" in told.message
    assert store.list() == before


def test_a_later_stage_without_any_checkpoint_is_refused(tmp_path: Path) -> None:
    config = run_config(tmp_path, steps=(2, 2), stage="s1")
    assert train(config, tmp_path, size=1) == [EXIT_CONFIG]
    assert failure(tmp_path, 1).reason == "CheckpointMissing"


def test_when_all_checkpoints_are_corrupt_the_run_stops_instead_of_starting_anew(tmp_path: Path) -> None:
    config = run_config(tmp_path)
    assert train(config, tmp_path, size=1) == done(1)
    store = open_store(config.checkpoints.uri)
    store.put(manifest_key(committed(store)[0]), b"{}")
    assert train(config, tmp_path, size=1, generation=2) == [EXIT_CONFIG]
    assert failure(tmp_path, 2).reason == "CheckpointCorrupt"


def test_metrics_carry_the_runs_labels_and_count_on_after_a_restart(tmp_path: Path) -> None:
    config = run_config(tmp_path)
    train(config, tmp_path, size=1, fault=Fault(rank=0, step=3, signal=signal.SIGTERM))
    assert train(config, tmp_path, size=1, generation=2) == done(1)
    text = (tmp_path / "state-2" / "metrics.prom").read_text()
    labels = '{namespace="n",run="r",stage="s0"}'
    assert f"skywork_train_steps_total{labels} 8.0" in text
    assert f"skywork_train_tokens_total{labels} {8.0 * TOKENS_PER_STEP}" in text
    assert 'skywork_source_sequences_total{namespace="n",run="r",source="main",stage="s0"} 48.0' in text
    assert f"skywork_generation{labels} 2.0" in text
