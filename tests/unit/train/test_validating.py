"""Held-out losses in a training run: when they are measured, that no world size changes them, and what goes wrong."""

import shutil
import signal
from pathlib import Path

import pytest
from skywork_trainer.checkpoint.manifest import committed, read_manifest
from skywork_trainer.config import EXIT_CONFIG, EXIT_LEFT, Checkpoints, Failure, Progress, RunConfig, Source, Validation
from skywork_trainer.curve import Record, ValidationRecord, curve_key, decode
from skywork_trainer.requests import write_request
from skywork_trainer.storage import open_store

from tests.unit.train.world import GONE, TOKENS_PER_STEP, Fault, done, run_config, start, train, train_rank
from tests.waiting import until

RARELY = 1 << 40


def domains(*names: str) -> tuple[Source, ...]:
    return tuple(Source(name=name, uri="file:///x") for name in names)


def validating(*names: str, every: int = RARELY, **more: object) -> Validation:
    return Validation(every_tokens=every, windows=7, domains=domains(*names), **more)


def progress(folder: Path, generation: int) -> Progress:
    path = folder / f"state-{generation}" / "progress.json"
    return Progress.model_validate_json(path.read_bytes()) if path.exists() else Progress()


def records(config: RunConfig) -> list[Record]:
    store = open_store(config.checkpoints.uri)
    return [record for identity in committed(store) for record in decode(store.get(curve_key(identity)))]


def validations(config: RunConfig) -> list[ValidationRecord]:
    return [record for record in records(config) if isinstance(record, ValidationRecord)]


def test_the_same_checkpoint_has_the_same_loss_on_any_number_of_ranks(tmp_path: Path) -> None:
    # Trained without domains first: what is left to do at its end, whatever the world, is to measure them.
    trained = run_config(tmp_path / "one")
    assert train(trained, tmp_path / "one", size=2) == done(2)
    seen = []
    for size in (1, 2, 3, 5):
        folder = tmp_path / f"on-{size}"
        shutil.copytree(tmp_path / "one", folder)
        config = run_config(folder, validation=validating("web", "code"))
        assert train(config, folder, size=size, generation=2) == done(size)
        measured = progress(folder, 2).validation
        assert [loss.step for loss in measured] == [8, 8]
        seen.append([loss.loss for loss in measured])
    assert all(loss == pytest.approx(seen[0], abs=1e-6) for loss in seen)


def test_a_loss_says_what_text_it_is_of_and_is_kept_as_a_record(tmp_path: Path) -> None:
    config = run_config(tmp_path, validation=validating("web", "code", every=4 * TOKENS_PER_STEP))
    assert train(config, tmp_path, size=2) == done(2)
    newest = progress(tmp_path, 1).validation[0]
    assert (newest.characters, newest.bytes, newest.reference_tokens) == (90, 100, 50)
    assert newest.reference_loss == pytest.approx(newest.loss * newest.tokens / 50)
    assert [(v.step, v.stage_start) for v in validations(config)] == [(0, True), (4, False), (8, False)]
    assert validations(config)[-1].domains == progress(tmp_path, 1).validation
    curve = progress(tmp_path, 1).validation_curve
    assert [(point.step, sorted(point.losses)) for point in curve] == [(n, ["code", "web"]) for n in (0, 4, 8)]
    assert curve[0].train_loss is None and curve[1].train_loss is not None
    text = (tmp_path / "state-1/metrics.prom").read_text()
    labels = 'domain="web",namespace="n",run="r",stage="s0"'
    bits = newest.bits_per_byte
    assert f"skywork_validation_bpb{{{labels}}} {bits}" in text
    assert 'skywork_validations_total{namespace="n",run="r",stage="s0"} 3.0' in text


def test_a_domain_that_vanished_is_left_out_of_a_run_that_trains_and_keeps_its_last_loss(tmp_path: Path) -> None:
    config = run_config(tmp_path, validation=validating("web", "code"))
    train(config, tmp_path, size=2, fault=Fault(rank=0, step=3, signal=signal.SIGTERM))
    before = {loss.domain: loss for loss in progress(tmp_path, 1).validation}
    gone = (Source(name="web", uri="file:///x"), Source(name="code", uri=GONE))
    without = config.model_copy(update={"validation": config.validation.model_copy(update={"domains": gone})})
    assert train(without, tmp_path, size=2, generation=2) == done(2)
    after = {loss.domain: loss for loss in progress(tmp_path, 2).validation}
    assert (after["web"].step, after["code"]) == (8, before["code"])
    (told,) = [d for d in progress(tmp_path, 2).diagnoses if d.type == "ValidationIncomplete"]
    assert told.found and "code" in told.message and "gone" in told.message


def test_a_run_that_has_not_begun_is_refused_when_a_domain_is_missing(tmp_path: Path) -> None:
    validation = Validation(every_tokens=RARELY, domains=(*domains("web"), Source(name="code", uri=GONE)))
    config = run_config(tmp_path, validation=validation)
    assert train(config, tmp_path, size=2) == [EXIT_CONFIG, EXIT_CONFIG]
    told = Failure.model_validate_json((tmp_path / "state-1/failure-1.json").read_bytes())
    assert (told.reason, told.message) == ("SourceMissing", "gone")
    assert not committed(open_store(config.checkpoints.uri))


def test_domains_that_a_time_budget_leaves_out_come_first_the_next_time(tmp_path: Path) -> None:
    # A budget that the first domain always uses up: one is measured each time, the oldest.
    validation = validating("a", "b", "c", every=2 * TOKENS_PER_STEP, time_budget_seconds=1e-9)
    config = run_config(tmp_path, validation=validation)
    assert train(config, tmp_path, size=2) == done(2)
    assert [[one.domain for one in v.domains] for v in validations(config)] == [["a"], ["b"], ["c"], ["a"], ["b"]]
    newest = {loss.domain: loss.step for loss in progress(tmp_path, 1).validation}
    assert newest == {"a": 6, "b": 8, "c": 4}


def test_a_validation_that_is_asked_for_is_made_once_even_over_a_restart(tmp_path: Path) -> None:
    config = run_config(tmp_path, steps=(100_000,), validation=validating("web"))
    ranks = start(train_rank, 2, config, tmp_path, 1, None)
    until(lambda: progress(tmp_path, 1).step > 2, 60)
    write_request(tmp_path / "state-1", "first")
    until(lambda: progress(tmp_path, 1).validate_request == "first", 60)
    asked_at = progress(tmp_path, 1).validation[0].step
    assert asked_at > 2
    step = progress(tmp_path, 1).step
    until(lambda: progress(tmp_path, 1).step > step + 2, 60)
    ranks.terminate(1)
    assert ranks.codes() == [EXIT_LEFT, EXIT_LEFT]
    assert [v.step for v in validations(config)] == [0, asked_at]
    # The word of the operator still stands when the next generation begins.
    (tmp_path / "state-2").mkdir()
    write_request(tmp_path / "state-2", "first")
    ranks = start(train_rank, 2, config, tmp_path, 2, None)
    step = progress(tmp_path, 1).step
    until(lambda: progress(tmp_path, 2).step > step + 2, 60)
    ranks.terminate(0)
    assert ranks.codes() == [EXIT_LEFT, EXIT_LEFT]
    assert len(validations(config)) == 2


def test_counters_and_times_go_on_after_a_restart(tmp_path: Path) -> None:
    config = run_config(
        tmp_path,
        validation=validating("web", every=2 * TOKENS_PER_STEP),
        checkpoints=Checkpoints(uri=(tmp_path / "store").as_uri(), every_steps=2, keep_last=99, background=False),
    )
    train(config, tmp_path, size=1, fault=Fault(rank=0, step=5, signal=signal.SIGKILL))
    assert train(config, tmp_path, size=1, generation=2) == done(1)
    text = (tmp_path / "state-2/metrics.prom").read_text()
    labels = '{namespace="n",run="r",stage="s0"}'
    store = open_store(config.checkpoints.uri)
    assert f"skywork_checkpoint_commits_total{labels} {float(len(committed(store)))}" in text
    # At 0, 2, 4, 6 and the end.
    assert f"skywork_validations_total{labels} 5.0" in text
    kept = read_manifest(store, committed(store)[1]).counters.totals
    spent = progress(tmp_path, 2).spent
    train_line = next(line for line in text.splitlines() if line.startswith("skywork_train_time") and '"train"' in line)
    assert float(train_line.split()[-1]) >= kept["skywork_train_time_seconds/train"] > 0
    assert float(train_line.split()[-1]) == pytest.approx(
        kept["skywork_train_time_seconds/train"] + spent["train"], abs=0.05
    )
