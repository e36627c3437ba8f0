"""Training goes on while checkpoints are stored, and neither a kill nor a request to leave costs a sample."""

import os
import random
import signal
from pathlib import Path

import pytest
from skywork_trainer.checkpoint.history import audit
from skywork_trainer.checkpoint.local import local_folder
from skywork_trainer.checkpoint.manifest import committed, read_manifest
from skywork_trainer.config import EXIT_LEFT, Checkpoints, Failure, Progress, RunConfig, Source, Validation
from skywork_trainer.storage import open_store

from tests.unit.train.world import TOKENS_PER_STEP, Fault, done, run_config, start, train, train_rank
from tests.waiting import until

PREEMPTIONS = int(os.environ.get("SKYWORK_PREEMPTIONS", "4"))
"""How many random moments are tried; 20 for a measurement."""
ENDLESS = 100_000
"""Steps of a stage that no test trains to its end."""


def progress(folder: Path, generation: int) -> Progress:
    path = folder / f"state-{generation}" / "progress.json"
    return Progress.model_validate_json(path.read_bytes()) if path.exists() else Progress()


def endless(folder: Path, **checkpoints: object) -> RunConfig:
    settings = Checkpoints(**({"uri": (folder / "store").as_uri(), "every_steps": 2, "keep_last": 99} | checkpoints))
    return run_config(folder, steps=(ENDLESS,), checkpoints=settings)


def uploaders(folder: Path) -> list[int]:
    """Processes that store checkpoints of this test."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = entry.read_bytes()
        except OSError:
            continue
        if b"skywork_trainer.checkpoint.uploader" in words and str(folder).encode() in words:
            found.append(int(entry.parent.name))
    return found


def metric(folder: Path, generation: int, name: str) -> float:
    path = folder / f"state-{generation}" / "metrics.prom"
    # Written now and then: a worker that has just begun has not told anything yet.
    text = path.read_text() if path.exists() else ""
    return sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith(name + "{"))


def test_training_goes_on_while_a_checkpoint_is_stored_and_a_kill_finds_the_last_committed_one(tmp_path: Path) -> None:
    config = endless(tmp_path)
    codes = train(config, tmp_path, size=2, fault=Fault(rank=1, step=-1, signal=signal.SIGKILL, commits=2))
    assert codes == [1, -signal.SIGKILL]
    until(lambda: not uploaders(tmp_path), 10)
    store = open_store(config.checkpoints.uri)
    newest = read_manifest(store, committed(store)[-1])
    assert newest.step < progress(tmp_path, 1).step, "steps were trained while it was stored"
    assert metric(tmp_path, 1, "skywork_checkpoint_skipped_total") > 0
    assert metric(tmp_path, 1, "skywork_checkpoint_stall_seconds_count") >= 1
    left = train(
        config, tmp_path, size=2, generation=2, fault=Fault(rank=0, step=newest.step + 7, signal=signal.SIGTERM)
    )
    assert left == [EXIT_LEFT] * 2
    assert progress(tmp_path, 2).first_step == newest.step
    result = audit(store)
    assert (result.steps, result.samples_lost, result.samples_repeated) == (newest.step + 8, 0, 0)
    whole = tmp_path / "whole"
    config = endless(whole, every_steps=ENDLESS)
    train(config, whole, size=2, fault=Fault(rank=0, step=newest.step + 7, signal=signal.SIGTERM))
    assert audit(open_store(config.checkpoints.uri)).losses == result.losses


def test_a_preemption_at_any_moment_loses_no_step(tmp_path: Path) -> None:
    config = endless(tmp_path)
    chance, reached = random.Random(PREEMPTIONS), 0
    for generation in range(1, PREEMPTIONS + 1):
        size = chance.randint(1, 3)
        ranks = start(train_rank, size, config, tmp_path, generation, None)
        least = reached + chance.randint(1, 40)
        until(lambda least=least, generation=generation: progress(tmp_path, generation).step >= least, 60, 0.001)
        ranks.terminate(chance.randrange(size))
        assert ranks.codes() == [EXIT_LEFT] * size
        last = progress(tmp_path, generation)
        store = open_store(config.checkpoints.uri)
        assert read_manifest(store, committed(store)[-1]).step == last.step == last.checkpoint_step
        assert last.first_step == reached, "the generation before lost a step"
        reached = last.step
    result = audit(open_store(config.checkpoints.uri))
    assert (result.steps, result.samples_lost, result.samples_repeated) == (reached, 0, 0)


@pytest.mark.parametrize("at_step", [0, 3])
def test_a_request_to_leave_cuts_a_validation_short_and_saves(tmp_path: Path, at_step: int) -> None:
    many = Validation(every_tokens=3 * TOKENS_PER_STEP, windows=60_000, domains=(Source(name="web", uri="file:///x"),))
    few = many.model_copy(update={"windows": 4})
    config = endless(tmp_path, every_steps=ENDLESS)
    generation = 1
    if at_step:
        config = config.model_copy(update={"validation": few})
        left = train(config, tmp_path, size=2, fault=Fault(rank=0, step=1, signal=signal.SIGTERM))
        assert left == [EXIT_LEFT] * 2
        generation = 2
    config = config.model_copy(update={"validation": many})
    ranks = start(train_rank, 2, config, tmp_path, generation, None)
    until(lambda: (p := progress(tmp_path, generation)).section == "validate" and p.step == at_step, 60, 0.001)
    ranks.terminate(1)
    assert ranks.codes() == [EXIT_LEFT] * 2
    store = open_store(config.checkpoints.uri)
    if not at_step:
        assert committed(store) == [], "nothing was trained, so nothing is lost"
        return
    manifest = read_manifest(store, committed(store)[-1])
    assert (manifest.step, manifest.counters.validation[0].step) == (3, 0)
    assert audit(store).samples_lost == 0


def test_a_world_on_the_same_nodes_reads_its_own_disks_and_one_on_others_the_store(tmp_path: Path) -> None:
    config = endless(tmp_path, local_keep=1)
    train(config, tmp_path, size=2, fault=Fault(rank=0, step=5, signal=signal.SIGTERM))
    store = open_store(config.checkpoints.uri)
    (identity,) = committed(store)[-1:]
    folders = [local_folder(tmp_path / f"cache-{rank}", config.checkpoints.uri) for rank in (0, 1)]
    assert [sorted(path.name for path in folder.iterdir())[-1] for folder in folders] == [identity, identity]
    assert max(len(list(folder.iterdir())) for folder in folders) <= 2, "one, and the one being written"
    # Without its file in the store the checkpoint is still whole where the nodes have it.
    key = f"checkpoints/{identity}/rank-00001.safetensors"
    content = store.get(key)
    store.delete(key)
    again = train(config, tmp_path, size=2, generation=2, fault=Fault(rank=0, step=8, signal=signal.SIGTERM))
    assert again == [EXIT_LEFT] * 2
    assert progress(tmp_path, 2).first_step == 6
    store.put(key, content)
    kept = folders[0] / committed(store)[-1] / "rank-00000.safetensors"
    kept.write_bytes(kept.read_bytes()[:-1] + b"x")
    assert train(config, tmp_path, size=2, generation=3, fault=Fault(rank=0, step=9, signal=signal.SIGTERM))
    assert progress(tmp_path, 3).first_step == 9, "a damaged local file is as good as none"
    assert audit(store).samples_lost == 0


@pytest.mark.parametrize("ends_there", [False, True])
def test_a_checkpoint_that_only_the_nodes_keep_is_gone_on_from_where_all_of_them_have_it(
    tmp_path: Path, ends_there: bool
) -> None:
    config = endless(tmp_path, every_steps=ENDLESS, local_keep=2, local_every_seconds=1e-9)
    store = open_store(config.checkpoints.uri)
    folders = [local_folder(tmp_path / f"cache-{rank}", config.checkpoints.uri) for rank in (0, 1)]
    ranks = start(train_rank, 2, config, tmp_path, 1, None)
    until(lambda: all(list(folder.glob("*/manifest.json")) for folder in folders), 60)
    ranks.kill(1)
    ranks.codes()
    assert committed(store) == []
    here, there = ({path.parent.name for path in folder.glob("*/manifest.json")} for folder in folders)
    newest = max(here & there)
    if ends_there:
        stages = run_config(tmp_path, steps=(int(newest.split("-")[2]),)).stages
        assert train(config.model_copy(update={"stages": stages}), tmp_path, size=2, generation=2) == done(2)
        assert progress(tmp_path, 2).resumed_from == newest
        assert committed(store)[-1].split("-")[2] == newest.split("-")[2], "a stage ends in the object store"
        assert (audit(store).samples_lost, audit(store).samples_repeated) == (0, 0)
        return
    ranks = start(train_rank, 2, config, tmp_path, 2, None)
    until(lambda: progress(tmp_path, 2).first_step_time > 0, 60)
    ranks.terminate(0)
    assert ranks.codes() == [EXIT_LEFT] * 2
    second = progress(tmp_path, 2)
    assert second.resumed_from == newest
    assert second.resumed_from.endswith(f"{second.first_step:012d}")
    result = audit(store)
    assert (result.steps, result.samples_lost, result.samples_repeated) == (second.step, 0, 0)


def test_a_generation_that_was_superseded_ends_with_that_reason(tmp_path: Path) -> None:
    config = endless(tmp_path, every_steps=ENDLESS)
    train(config, tmp_path, size=1, generation=5, fault=Fault(rank=0, step=2, signal=signal.SIGTERM))
    store = open_store(config.checkpoints.uri)
    before = store.list("checkpoints/")
    codes = train(config, tmp_path, size=2, generation=4, fault=Fault(rank=1, step=5, signal=signal.SIGTERM))
    assert codes == [1, 1]
    told = Failure.model_validate_json((tmp_path / "state-4" / "failure-0.json").read_bytes())
    assert (told.reason, told.retryable) == ("Superseded", True)
    assert [key for key in store.list("checkpoints/") if "manifest" in key] == [k for k in before if "manifest" in k]


def test_a_save_that_fails_is_counted_training_goes_on_and_the_next_one_covers_its_steps(tmp_path: Path) -> None:
    config = endless(tmp_path)
    ranks = start(train_rank, 2, config, tmp_path, 1, None)
    stopped = until(lambda: len(found := uploaders(tmp_path)) == 2 and found, 60, 0.01)
    for pid in stopped:
        os.kill(pid, signal.SIGSTOP)
    step = progress(tmp_path, 1).step
    until(lambda: progress(tmp_path, 1).step > step + 10, 60)
    for pid in stopped:
        os.kill(pid, signal.SIGKILL)
    until(lambda: metric(tmp_path, 1, "skywork_checkpoint_failures_total") >= 1, 60)
    newest = progress(tmp_path, 1).checkpoint_step
    until(lambda: progress(tmp_path, 1).checkpoint_step > max(newest, step), 60)
    assert not set(stopped) & set(uploaders(tmp_path))
    ranks.terminate(0)
    assert ranks.codes() == [EXIT_LEFT] * 2
    result = audit(open_store(config.checkpoints.uri))
    assert (result.steps, result.samples_lost, result.samples_repeated) == (progress(tmp_path, 1).step, 0, 0)


def test_the_process_that_stores_checkpoints_ends_with_its_worker_even_in_the_middle_of_a_save(tmp_path: Path) -> None:
    ranks = start(train_rank, 1, endless(tmp_path), tmp_path, 1, None)
    until(lambda: progress(tmp_path, 1).checkpoint, 60, 0.01)
    (beside,) = uploaders(tmp_path)
    os.kill(beside, signal.SIGSTOP)
    ranks.kill(0)
    assert ranks.codes() == [-signal.SIGKILL]
    until(lambda: not uploaders(tmp_path), 10, 0.01)


def test_the_end_of_a_stage_waits_for_its_commit(tmp_path: Path) -> None:
    config = endless(tmp_path).model_copy(update={"stages": run_config(tmp_path, steps=(30,)).stages})
    assert train(config, tmp_path, size=2) == done(2)
    store = open_store(config.checkpoints.uri)
    assert committed(store)[-1].endswith(f"{30:012d}")
    assert progress(tmp_path, 1).checkpoint_step == 30
    assert (audit(store).samples_lost, audit(store).samples_repeated) == (0, 0)
