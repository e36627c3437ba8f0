"""Whatever happens to a run, its curve reads as the run counts."""

import json
import random
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from skywork_trainer.checkpoint.history import History, history_key
from skywork_trainer.checkpoint.manifest import manifest_key
from skywork_trainer.curve import EventRecord, GenerationRecord, MixtureRecord, StepRecord, TimeRecord, curve_key
from skywork_trainer.curve import ValidationRecord as Validation
from skywork_trainer.curves.accounting import account, worked
from skywork_trainer.curves.reading import NoCurve, read_curve
from skywork_trainer.curves.run import Curve
from skywork_trainer.storage import FileStore, StorageError

from tests.unit.curves.writing import Run, distinct, of

THINGS = ("train", "validate", "save", "local", "half", "crash", "nodes", "rollback", "again", "fork", "spike")
happenings = st.lists(st.tuples(st.sampled_from(THINGS), st.integers(0, 9), st.integers(0, 3)), min_size=1, max_size=40)


class Unsynced(FileStore):
    """A folder whose files need not survive the machine."""

    def put(self, key: str, data: bytes, *, if_absent: bool = False) -> None:
        path = self.root / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def happen(folder: Path, things: list[tuple[str, int, int]]) -> list[Run]:
    dice = random.Random(json.dumps(things))
    runs = [Run(Unsynced(folder / "run-0"), dice).started()]
    for thing, number, which in things:
        run = runs[which % len(runs)]
        match thing:
            case "train":
                run.train(1 + number)
            case "validate":
                run.validate()
            case "save":
                run.save()
            case "local":
                run.save(durable=False)
            case "half":
                run.save(dies=True)
                run.crash()
            case "crash":
                run.crash()
            case "nodes":
                run.crash(nodes_too=True, after="PodLost")
            case "rollback":
                run.roll_back(number)
            case "again":
                run.apply_again()
            case "spike":
                run.spike()
            case "fork":
                forked = run.fork(Unsynced(folder / f"run-{len(runs)}"), number)
                if forked is not None:
                    runs.append(forked)
    return runs


def told(curve: Curve, kind: type) -> list[object]:
    return [one.record for one in curve.told if one.counted and isinstance(one.record, kind)]


@settings(max_examples=200, suppress_health_check=[HealthCheck.too_slow])
@given(things=happenings)
def test_a_curve_reads_as_the_run_counts(things: list[tuple[str, int, int]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for run in happen(Path(folder), things):
            counts = run.counts()
            if counts is None:
                continue
            curve = read_curve(run.store)
            steps = of(counts.records, StepRecord)
            assert (curve.checkpoint, curve.step) == (counts.id, counts.step)
            assert curve.steps.step.tolist() == [one.step for one in steps]
            assert np.all(np.diff(curve.steps.step) > 0)
            for name in ("time", "loss", "norm", "seconds"):
                np.testing.assert_array_equal(getattr(curve.steps, name), [getattr(one, name) for one in steps])
            places = [(span.name, span.first_step, span.last_step) for span in curve.stages]
            named = [next(name for name, low, high in places if low < one.step <= high) for one in steps]
            assert named == [one.stage for one in steps]
            seen = [(v.step, v.stage, {d.domain: d.loss for d in v.domains}) for v in curve.validations]
            assert seen == distinct(of(counts.records, Validation))
            assert list(curve.mixtures) == of(counts.records, MixtureRecord)
            for kind in (GenerationRecord, EventRecord, TimeRecord):
                assert told(curve, kind) == of(counts.records, kind)
            assert curve.notes == ()


@settings(max_examples=200, suppress_health_check=[HealthCheck.too_slow])
@given(things=happenings)
def test_times_add_up_to_the_time_that_passed(things: list[tuple[str, int, int]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for run in happen(Path(folder), [one for one in things if one[0] != "again"]):
            if run.counts() is None:
                continue
            records = worked(read_curve(run.store))
            accounts = account(records)
            assert min(accounts.seconds.values()) >= 0
            began, ended = min(run.began), max(record.time for record in records)
            assert accounts.wall_seconds == pytest.approx(ended - began, abs=1e-3)


def started(tmp_path: Path) -> Run:
    return Run(Unsynced(tmp_path / "run"), random.Random(1)).started()


def test_what_a_rollback_takes_back_is_lost_time_and_no_step(tmp_path: Path) -> None:
    run = started(tmp_path)
    run.train(5)
    run.save()
    counted = run.spent["train"] + run.spent["dataWait"]
    run.train(4)
    run.save()
    lost = run.spent["train"] + run.spent["dataWait"] - counted
    run.roll_back(0)
    run.train(2)
    run.save()
    curve = read_curve(run.store)
    assert curve.steps.step.tolist() == [1, 2, 3, 4, 5], "the two that the rollback leaves out are trained by nobody"
    assert (curve.step, curve.notes) == (7, ())
    accounts = account(worked(curve))
    assert accounts.seconds["lost"] == pytest.approx(lost)
    assert accounts.seconds["checkpoint"] == pytest.approx(1.5), "standing still for a save is not trained again"
    assert [one.after for one in curve.generations] == ["", "LossSpike"]
    assert len(curve.rollbacks) == 1


def test_a_rollback_counts_before_anything_is_saved_behind_it(tmp_path: Path) -> None:
    run = started(tmp_path)
    for _ in range(3):
        run.train(5)
        run.save()
    run.roll_back(0)
    assert read_curve(run.store).step == 5


def test_a_part_whose_checkpoint_is_not_committed_yet_is_not_of_the_run(tmp_path: Path) -> None:
    run = started(tmp_path)
    run.train(5)
    run.save()
    run.train(5)
    run.spike()
    run.save(dies=True)
    curve = read_curve(run.store)
    assert (curve.step, len(curve.events), account(worked(curve)).seconds["lost"]) == (5, 0, 0.0)


def test_time_in_which_a_run_was_deleted_is_not_idle(tmp_path: Path) -> None:
    run = started(tmp_path)
    run.train(5)
    run.save()
    run.clock += 1e6
    run.apply_again()
    run.train(5)
    run.save()
    assert account(worked(read_curve(run.store))).wall_seconds < 1000


def test_a_checkpoint_that_was_passed_over_does_not_count(tmp_path: Path) -> None:
    run = started(tmp_path)
    run.train(5)
    run.save()
    run.train(5)
    run.save()
    run.store.put(f"quarantine/{run.parent}.json", b"{}")
    assert read_curve(run.store).step == 5


def test_curves_outlive_their_checkpoints(tmp_path: Path) -> None:
    run = started(tmp_path)
    for _ in range(3):
        run.train(5)
        run.save()
    for one in run.saved:
        run.store.delete(manifest_key(one.id))
    curve = read_curve(run.store)
    assert curve.steps.step.tolist() == list(range(1, 16))
    assert "no checkpoint is left" in curve.notes[0]


def with_histories(run: Run, *, without_parts: set[int], without_history: set[int] = frozenset()) -> None:  # type: ignore[assignment]
    """Give each checkpoint its history and take the parts of some away."""
    parent, first = "", 0
    for number, one in enumerate(run.saved):
        losses = tuple(record.loss for record in of(one.records, StepRecord)[first:])
        history = History(
            id=one.id, parent=parent, first_step=first, last_step=one.step, batch=1, ranks=(), losses=losses
        )
        if number not in without_history:
            run.store.put(history_key(one.id), history.model_dump_json().encode())
        if number in without_parts:
            run.store.delete(curve_key(one.id))
        parent, first = one.id, one.step


@pytest.mark.parametrize("missing", [{0, 1, 2}, {0, 3}, {9}, set(range(10)), {0, 2, 4, 6, 8}])
def test_where_a_part_is_missing_the_history_s_losses_stand_in_and_it_is_said(
    tmp_path: Path, missing: set[int]
) -> None:
    run = started(tmp_path)
    for _ in range(10):
        run.train(5)
        run.save()
    whole = read_curve(run.store)
    with_histories(run, without_parts=missing)
    curve = read_curve(run.store)
    np.testing.assert_array_equal(curve.steps.loss, whole.steps.loss)
    assert curve.steps.step.tolist() == list(range(1, 51))
    known = np.repeat([number not in missing for number in range(10)], 5)
    np.testing.assert_array_equal(curve.steps.time[known], whole.steps.time[known])
    assert np.isnan(curve.steps.time[~known]).all()
    (note,) = curve.notes
    assert f"of {5 * len(missing)} steps" in note and "only the training loss is known" in note


def test_what_has_neither_part_nor_history_is_left_out_and_it_is_said(tmp_path: Path) -> None:
    run = started(tmp_path)
    for _ in range(4):
        run.train(5)
        run.save()
    with_histories(run, without_parts={1}, without_history={1})
    curve = read_curve(run.store)
    assert curve.steps.step.tolist() == list(range(11, 21))
    assert curve.notes == (f"steps up to 10 are left out: {run.store.uri} has no record of {run.saved[1].id}",)


def test_a_part_that_cannot_be_read_is_named_and_its_history_stands_in(tmp_path: Path) -> None:
    run = started(tmp_path)
    for _ in range(4):
        run.train(5)
        run.save()
    with_histories(run, without_parts=set())
    run.store.put(curve_key(run.saved[2].id), b'{"kind": "part"')
    curve = read_curve(run.store)
    assert curve.steps.step.tolist() == list(range(1, 21))
    assert run.saved[2].id in curve.notes[0] and "line 1" in curve.notes[0]


def test_a_fork_whose_origin_cannot_be_read_shows_its_own_steps_and_says_why(tmp_path: Path) -> None:
    run = started(tmp_path)
    run.train(5)
    run.save()
    forked = run.fork(Unsynced(tmp_path / "fork"), 0)
    assert forked is not None
    forked.train(3)
    forked.save()

    def refuse(uri: str) -> FileStore:
        raise StorageError("AccessDenied", f"{uri} may not be read")

    curve = read_curve(forked.store, opened=refuse)
    assert curve.steps.step.tolist() == [6, 7, 8]
    assert "AccessDenied" in curve.notes[0] and run.store.uri in curve.notes[0]
    assert curve.forks == ((5, forked.forked_from),)
    assert read_curve(forked.store).steps.step.tolist() == list(range(1, 9))
    own = account(worked(read_curve(forked.store)))
    assert own.wall_seconds == pytest.approx(forked.clock - forked.began[0]), "the other run paid for its part itself"


def test_what_the_origin_of_a_fork_left_out_is_not_missing(tmp_path: Path) -> None:
    run = started(tmp_path)
    for _ in range(2):
        run.train(5)
        run.save()
    run.roll_back(0)
    run.train(5)
    run.save()
    forked = run.fork(Unsynced(tmp_path / "fork"), -1)
    assert forked is not None
    forked.train(3)
    forked.save()
    curve = read_curve(forked.store)
    assert curve.steps.step.tolist() == [1, 2, 3, 4, 5, 8, 9, 10, 11, 12, 13]
    assert curve.notes == ()


def test_a_part_that_says_too_much_adds_no_step_twice(tmp_path: Path) -> None:
    run = started(tmp_path)
    run.train(5)
    run.save()
    first = run.fresh or run.past
    run.fresh = list(first)  # as a writer would that forgot to forget
    run.train(5)
    run.save()
    run.train(1)
    run.save()
    curve = read_curve(run.store)
    assert curve.steps.step.tolist() == list(range(1, 12))
    np.testing.assert_array_equal(curve.steps.loss[:5], [one.loss for one in of(tuple(first), StepRecord)])


def test_a_folder_without_a_run_is_no_empty_curve(tmp_path: Path) -> None:
    with pytest.raises(NoCurve, match="holds no checkpoint and no curve"):
        read_curve(FileStore(tmp_path))
