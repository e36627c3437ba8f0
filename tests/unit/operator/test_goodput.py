"""Where the time of a run goes: any sequence of generations, crashes, operator restarts and missed polls adds up."""

from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from skywork_operator.api.status import SkyworkRunStatus, TimeSpent
from skywork_operator.policies import goodput
from skywork_operator.times import seconds
from skywork_operator.world import Job
from skywork_trainer.config import AgentPhase, AgentStatus, Progress, Spent

from tests.unit.operator.build import NOW, ago, failed, plan, pod, progress, run, world


def words(generation: int, spent: dict[str, float], **fields: Any) -> AgentStatus:
    values: dict[str, Any] = {"time": NOW, "section": "step", "restored_time": NOW, "spent": spent}
    return AgentStatus(phase=AgentPhase.TRAINING, generation=generation, progress=Progress(**(values | fields)))


def after(*said: AgentStatus, wall: float = 1e6) -> dict[str, float]:
    """Sums of what was said, without those that are 0."""
    time: TimeSpent | None = None
    for one in said:
        time = goodput.heard(time, one, wall)
    assert time is not None
    return {state.value: spent for state, spent in goodput.by_state(time).items() if spent}


# -- tables ----------------------------------------------------------------------------------------------------------


def test_a_generation_s_account_is_counted_once_however_often_it_is_heard() -> None:
    first = words(1, {"initialize": 5, "train": 10}, step=4)
    second = words(1, {"initialize": 5, "train": 25.5, "validate": 2, "dataWait": 1}, step=9)
    assert after(first, first, second, second) == {"initialize": 5, "train": 25.5, "validate": 2, "dataWait": 1}


def test_what_an_older_generation_says_comes_too_late() -> None:
    assert after(words(2, {"train": 3}, step=1), words(1, {"train": 500}, step=90)) == {"train": 3}


def test_generations_are_added_up() -> None:
    said = [words(n, {"restore": 1.0, "train": 10.0}, first_step=10 * n, step=10 * n + 10) for n in range(3)]
    assert after(*said) == {"restore": 3, "train": 30}


def test_steps_behind_the_checkpoint_are_lost_while_they_are_trained_again() -> None:
    """100 steps of 2 s, then back to step 80: the 20 steps that were taken back cost 40 s."""
    died = words(1, {"train": 200}, step=100)
    reading = words(2, {"restore": 3}, section="restore", restored_time=0.0)
    assert after(died, reading) == {"train": 200, "restore": 3}
    again = words(2, {"restore": 3, "train": 25}, first_step=80, step=90)
    assert after(died, reading, again) == {"train": 200, "lost": 25, "restore": 3}
    beyond = words(2, {"restore": 3, "train": 70}, first_step=80, step=115)
    assert after(died, reading, again, beyond) == {"train": 230, "lost": 40, "restore": 3}


def test_a_generation_that_dies_before_its_first_step_takes_nothing_more_back() -> None:
    died = words(1, {"train": 200}, step=100)
    stillborn = words(2, {"restore": 9}, first_step=80, step=80)
    third = words(3, {"train": 100}, first_step=80, step=130)
    assert after(died, stillborn, third) == {"train": 260, "lost": 40, "restore": 9}


def test_what_was_counted_is_not_taken_back_when_a_generation_says_less() -> None:
    """Waiting for data counts as training until the step says how long it waited."""
    within = words(1, {"train": 10, "dataWait": 1}, step=3)
    told = words(1, {"train": 8, "dataWait": 3}, step=3)
    assert after(within, told) == {"train": 10, "dataWait": 3}
    assert after(within, told, words(1, {"train": 12, "dataWait": 3}, step=4)) == {"train": 12, "dataWait": 3}


def test_an_older_word_of_the_same_generation_takes_nothing_back_twice() -> None:
    reading = words(2, {"restore": 1}, section="restore", restored_time=0.0)
    again = words(2, {"restore": 1, "train": 10}, first_step=80, step=90)
    assert after(words(1, {"train": 100}, step=100), reading, again, reading, again) == {
        "train": 100, "lost": 10, "restore": 1,
    }  # fmt: skip
    further = words(2, {"restore": 1, "train": 40}, first_step=80, step=120)
    assert after(words(1, {"train": 100}, step=100), reading, again, reading, again, further)["lost"] == 20


def test_a_fork_or_a_run_applied_again_begins_behind_step_0_and_has_lost_nothing() -> None:
    assert after(words(1, {"train": 10}, first_step=500, step=505)) == {"train": 10}


@pytest.mark.parametrize("nonsense", [float("nan"), float("inf"), -5.0])
def test_seconds_that_are_none_count_as_nothing(nonsense: float) -> None:
    assert after(words(1, {"train": nonsense, "validate": 2})) == {"validate": 2}


def test_states_that_a_newer_trainer_knows_and_those_that_are_not_its_to_say_are_passed_over() -> None:
    assert after(words(1, {"train": 4, "idle": 50, "lost": 50, "compile": 50})) == {"train": 4}


def test_more_than_the_time_there_was_is_not_counted() -> None:
    """Two worlds overlap while one is drained."""
    assert after(words(1, {"train": 90, "checkpoint": 30}), wall=60) == {"train": 45, "checkpoint": 15}


# -- any history -----------------------------------------------------------------------------------------------------

PACE = st.integers(min_value=1, max_value=4000).map(lambda ms: ms / 1000)
SPAN = st.integers(min_value=0, max_value=900_000).map(lambda ms: ms / 1000)


@dataclass
class History:
    """A run as it really went, beside what a status that is polled now and then knows of it."""

    pace: float
    clock: float = 0.0
    status: SkyworkRunStatus = field(default_factory=lambda: SkyworkRunStatus(start_time=ago(0)))
    generation: int = 0
    spent: dict[str, float] = field(default_factory=dict)
    first_step: int = 0
    step: int = 0
    restored: bool = False
    counted: dict[str, float] = field(default_factory=lambda: dict.fromkeys((s.value for s in goodput.SAID), 0.0))
    """What was ever heard, by state."""
    heard: dict[str, float] = field(default_factory=dict)
    """Of this generation."""
    known_step: int = 0
    taken_back: int = 0
    """Steps that were known to be done, and that a later generation was known to resume before."""
    resumption_known: bool = False
    pace_known: bool = False
    said: list[AgentStatus] = field(default_factory=list)

    def work(self, state: Spent, took: float) -> None:
        self.clock += took
        self.spent[state.value] = self.spent.get(state.value, 0.0) + took

    def begin(self, back: int) -> None:
        self.generation += 1
        self.first_step = self.step = max(self.step - back, 0)
        self.spent, self.heard, self.restored, self.resumption_known = {}, {}, False, False

    def restore(self, took: float) -> None:
        self.work(Spent.RESTORE, took)
        self.restored = True

    def train(self, steps: int) -> None:
        self.work(Spent.TRAIN, steps * self.pace)
        self.step += steps

    def poll(self) -> None:
        """The operator hears rank 0."""
        section, at = ("step", NOW) if self.restored else ("init", 0.0)
        step, first = (self.step, self.first_step) if self.restored else (0, 0)
        word = words(self.generation, dict(self.spent), section=section, restored_time=at, step=step, first_step=first)
        self.said.append(word)
        self._count(word)
        for state in self.counted:
            self.counted[state] += self.spent.get(state, 0.0) - self.heard.get(state, 0.0)
        self.heard = dict(self.spent)
        if self.spent and self.restored:
            if not self.resumption_known and self.pace_known:
                self.taken_back += max(self.known_step - self.first_step, 0)
            self.pace_known |= self.step > self.first_step
            self.resumption_known, self.known_step = True, self.step

    def echo(self) -> None:
        """The operator hears something old once more."""
        if self.said:
            self._count(self.said[len(self.said) // 2])

    def forget(self) -> None:
        """The operator dies; the next one has but the status."""
        kept = self.status.model_dump_json(by_alias=True, exclude_none=True)
        self.status = SkyworkRunStatus.model_validate_json(kept)

    def _count(self, word: AgentStatus) -> None:
        before = goodput.by_state(self.status.time) if self.status.time is not None else {}
        wall = goodput.wall_seconds(self.status, NOW + self.clock)
        time = goodput.heard(self.status.time, word, wall)
        if time is not None:
            time = goodput.until(time, wall)
            sums = goodput.by_state(time)
            assert sum(sums.values()) == pytest.approx(wall, rel=0.01, abs=0.02)
            assert all(value >= 0 for value in sums.values())
            assert all(sums[state] >= before.get(state, 0) - 0.002 for state in Spent if state is not Spent.IDLE)
        self.status = self.status.model_copy(update={"time": time})


@st.composite
def histories(draw: st.DrawFn) -> History:
    history = History(pace=draw(PACE))
    for _ in range(draw(st.integers(1, 8))):
        history.begin(back=draw(st.integers(0, 50)))
        deeds = draw(st.lists(st.sampled_from(["poll", "echo", "forget", "idle", "stop", *goodput.SAID]), max_size=12))
        for deed in deeds:
            if deed == "stop":
                break
            if deed == "idle":
                history.clock += draw(SPAN)
            elif deed in ("poll", "echo", "forget"):
                getattr(history, deed)()
            elif deed is Spent.RESTORE and not history.restored:
                history.restore(draw(SPAN))
            elif deed is Spent.TRAIN and history.restored:
                history.train(draw(st.integers(1, 60)))
            elif deed is Spent.INITIALIZE and not history.restored:
                history.work(Spent.INITIALIZE, draw(SPAN))
            elif history.restored and deed in (Spent.CHECKPOINT, Spent.DATA_WAIT, Spent.VALIDATE):
                history.work(Spent(deed), draw(SPAN))
        history.clock += draw(SPAN)
    history.poll()
    return history


@given(histories())
def test_whatever_happens_time_adds_up_and_nothing_is_counted_twice(history: History) -> None:
    time = history.status.time
    if time is None:
        return
    sums = {state.value: spent for state, spent in goodput.by_state(time).items()}
    assert sums["train"] + sums["lost"] == pytest.approx(history.counted["train"], abs=0.1)
    for state in ("initialize", "restore", "checkpoint", "dataWait", "validate"):
        assert sums[state] == pytest.approx(history.counted[state], abs=0.1)
    lost = sums["lost"] + float(time.heard.owed)
    assert lost == pytest.approx(history.taken_back * history.pace, rel=0.01, abs=0.1)


# -- as the operator does it -----------------------------------------------------------------------------------------


def begun() -> SkyworkRunStatus:
    status = plan(world(pod(0), pod(1), pod(2)), NOW).status
    return status.model_copy(update={"start_time": ago(100)})


def said(step: int, spent: dict[str, float], generation: int = 1, **fields: Any) -> AgentStatus:
    return progress(step, generation, restored_time=NOW, spent=spent, **fields)


def members(first: AgentStatus, generation: int = 1) -> list[Any]:
    return [pod(0, generation=generation, agent=first), pod(1, generation=generation), pod(2, generation=generation)]


def total(status: SkyworkRunStatus) -> float:
    assert status.time is not None
    return sum(goodput.by_state(status.time).values())


def test_a_run_s_status_holds_where_its_time_went_through_a_crash_and_to_its_end() -> None:
    status = plan(world(*members(said(40, {"initialize": 10.0, "train": 80.0})), status=begun()), NOW).status
    assert status.time is not None
    assert (status.time.train, status.time.initialize, status.time.idle) == ("80.000", "10.000", "10.000")
    assert status.goodput == "0.800"
    first, _, third = members(said(40, {"initialize": 10.0, "train": 80.0}))
    status = plan(world(first, failed(1, 1), third, status=status), NOW + 20).status
    assert (status.generation, total(status)) == (2, pytest.approx(120))
    again = members(said(35, {"restore": 2.0, "train": 10.0}, generation=2, first_step=30), generation=2)
    status = plan(world(*again, status=status), NOW + 50).status
    assert status.time is not None
    assert (status.time.train, status.time.lost, status.time.restore) == ("80.000", "10.000", "2.000")
    assert total(status) == pytest.approx(150)
    done = {name: Job(stage=name, uid=name, complete=True) for name in ("general", "stem")}
    seen = world(status=status)
    ended = plan(type(seen)(run=run(status), jobs=done), NOW + 200).status
    assert (ended.state, ended.completion_time) == ("Succeeded", ago(-200))
    assert total(ended) == pytest.approx(300)
    assert seconds(ended.completion_time or "") - seconds(ended.start_time or "") == 300
    assert plan(type(seen)(run=run(ended), jobs=done), NOW + 9000).status == ended


@pytest.mark.parametrize("passes", [5])
def test_idle_time_alone_writes_no_status(passes: int) -> None:
    """A run that waits for a pod, one that is suspended, and one whose rank 0 has nothing new to say."""
    waiting = [pod(0), pod(1)]
    rests: dict[str, tuple[list[Any], dict[str, Any]]] = {
        "waiting": (waiting, {"trainer": {"nodes": {"min": 3, "max": 3}}}),
        "suspended": ([], {"suspend": True}),
        "standing": (members(said(7, {"train": 5.0})), {}),
    }
    for name, (pods, changes) in rests.items():
        status = plan(world(*pods, status=begun(), **changes), NOW).status
        status = plan(world(*pods, status=status, **changes), NOW + 1).status
        for number in range(passes):
            seen = plan(world(*pods, status=status, **changes), NOW + 10 + 60 * number)
            assert seen.status == status, name
