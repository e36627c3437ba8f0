"""Workers that show no progress: when that is a hang, where they stand, and what the agent does about it."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from skywork_trainer.agent.causes import End, explain
from skywork_trainer.agent.cgroup import memory_kills
from skywork_trainer.agent.hangs import failure, is_stale, overdue, standstill
from skywork_trainer.config import HANG, HangLimits, Role, Section
from skywork_trainer.heartbeat import Beat, Heartbeat, beat_path, read_beat

from tests.unit.agent.test_agent_processes import Agent, gone, until
from tests.unit.train_config import run_config

LIMITS = HangLimits(init=10, restore=60, first_step=40, step=5, validation=20, save=30)


@pytest.mark.parametrize(
    ("section", "limit"),
    [(Section.INIT, 10), (Section.RESTORE, 60), (Section.FIRST_STEP, 40), (Section.STEP, 5), (Section.VALIDATE, 20),
     (Section.SAVE, 30)],
)  # fmt: skip
def test_every_section_has_a_limit_of_its_own(section: Section, limit: float) -> None:
    beats = {0: Beat(section, 100.0, 7)}
    assert overdue(beats, LIMITS, 100.0 + limit) == []
    assert overdue(beats, LIMITS, 100.1 + limit) == [0]
    assert (is_stale(beats, LIMITS, 100 + limit / 2), is_stale(beats, LIMITS, 100.1 + limit / 2)) == (False, True)


def test_the_worker_that_has_stood_longest_comes_first() -> None:
    beats = {0: Beat(Section.STEP, 12.0, 7), 1: Beat(Section.STEP, 11.0, 7), 2: Beat(Section.STEP, 99.0, 8)}
    assert overdue(beats, LIMITS, 100.0) == [1, 0]


def test_a_record_that_is_half_written_is_no_sign(tmp_path: Path) -> None:
    assert read_beat(tmp_path, 0) is None
    Heartbeat(tmp_path, 0).beat(Section.VALIDATE, 12)
    found = read_beat(tmp_path, 0)
    assert found is not None and (found.section, found.step) == (Section.VALIDATE, 12)
    beat_path(tmp_path, 0).write_text("valid")
    assert read_beat(tmp_path, 0) is None


STACKS = """Thread 0x00007f1 (most recent call first):
  File "/usr/lib/python3.11/threading.py", line 327 in wait
  File "/usr/lib/python3.11/threading.py", line 1002 in _bootstrap

Current thread 0x00007f0 (most recent call first):
{frames}  File "/app/skywork_trainer/train.py", line 210 in _train_step
  File "/app/skywork_trainer/train.py", line 150 in run
"""


def test_where_a_worker_stands_is_where_its_main_thread_does() -> None:
    own = standstill(STACKS.format(frames='  File "/app/skywork_trainer/data/reader.py", line 31 in read\n'))
    assert own is not None and not own.waits
    assert own.where == "reader.py:31 read < train.py:210 _train_step < train.py:150 run"
    inside = '  File "/x/torch/distributed/distributed_c10d.py", line 2501 in all_reduce\n'
    waiting = standstill(STACKS.format(frames=inside))
    assert waiting is not None and waiting.waits
    assert standstill("") is None


def test_of_several_workers_that_hang_the_one_outside_a_collective_is_named() -> None:
    own = standstill(STACKS.format(frames=""))
    waits = standstill(STACKS.format(frames='  File "/x/torch/distributed/c10d.py", line 1 in all_reduce\n'))
    assert own is not None and waits is not None
    beats = {0: Beat(Section.STEP, 0.0, 7), 1: Beat(Section.STEP, 1.0, 7)}
    said = failure(4, [0, 1], beats, {0: waits, 1: own})
    assert (said.rank, said.reason, said.step, said.waits) == (5, HANG, 7, False)
    assert "rank 5 (and 1 more on this node) has shown no progress for" in said.message
    assert "in its step behind step 7: train.py:210 _train_step" in said.message


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Agent]:
    limits = HangLimits(init=20, restore=60, first_step=60, step=0.7, validation=60, save=60)
    config = run_config(tmp_path).model_copy(update={"hang": limits})
    started = Agent(tmp_path, config.model_dump_json())
    yield started
    started.process.kill()
    started.process.wait()
    print(started.log.read_text())


def test_a_hang_is_told_with_the_place_where_it_stands_and_the_next_generation_starts_in_the_same_pod(
    agent: Agent,
) -> None:
    agent.say(1)
    workers = agent.training(1).workers
    agent.order(1, "hang")
    said = agent.phase("Failed").failure
    assert said is not None and (said.reason, said.step) == (HANG, 7)
    assert "fake_worker.py" in said.message and "stand_still" in said.message
    assert agent.get("/readyz")[0] == 503
    until(lambda: all(gone(pid) for pid in workers))
    assert agent.status().failure.reason == HANG  # type: ignore[union-attr]
    agent.say(2)
    agent.training(2)
    assert agent.log.read_text().count("stacks of worker") == 2
    assert agent.metric("skywork_agent_hangs_total", section="step") == 1


def test_a_worker_that_is_stopped_is_a_hang_too_and_told_as_such(agent: Agent) -> None:
    agent.say(1)
    first, second = agent.training(1).workers
    os.kill(first, signal.SIGSTOP)
    os.kill(second, signal.SIGSTOP)
    said = agent.phase("Failed").failure
    assert said is not None and said.reason == HANG
    assert "it is stopped" in said.message
    until(lambda: gone(first) and gone(second))


@pytest.mark.parametrize("section", ["first-step", "validate", "save", "restore"])
def test_compiling_validating_saving_and_restoring_may_take_longer_than_a_step(agent: Agent, section: str) -> None:
    agent.say(1)
    agent.training(1)
    agent.order(1, f"section {section} hang")
    until(lambda: len(list((agent.folder / "state/1").glob("standing-*"))) == 2)
    beat = read_beat(agent.folder / "state/1", 0)
    assert beat is not None and beat.section == section
    # What a hang would have needed, three times over, by the agent's own loop and not by ours.
    until(lambda: (agent.metric("skywork_agent_longest_silence_seconds") or 0) > 3 * 0.7)
    said = agent.status()
    assert said is not None and (said.phase, said.failure) == ("Training", None)


def test_a_worker_that_crashes_after_its_world_was_found_to_hang_does_not_change_what_is_told(agent: Agent) -> None:
    agent.say(1)
    workers = agent.training(1).workers
    agent.order(1, "hang")
    agent.phase("Failed")
    os.kill(workers[0], signal.SIGABRT)
    until(lambda: _exits(agent).get("Crashed") == 1)
    said = agent.status()
    assert said is not None and said.failure is not None and said.failure.reason == HANG
    until(lambda: _exits(agent) == {"Crashed": 1, "Stopped": 1})
    said = agent.status()
    assert said is not None and said.failure is not None and said.failure.reason == HANG


def test_a_worker_that_hangs_before_its_first_sign_is_not_ended_by_the_question_where_it_stands(
    tmp_path: Path,
) -> None:
    config = run_config(tmp_path).model_copy(update={"hang": HangLimits(init=0.7)})
    started = Agent(tmp_path, config.model_dump_json())
    try:
        (tmp_path / "orders/mute").touch()
        started.say(1)
        said = started.phase("Failed").failure
        assert said is not None and said.reason == HANG
        until(lambda: sum(_exits(started).values()) == 2)
        assert _exits(started) == {"Stopped": 2}
    finally:
        started.process.kill()
        started.process.wait()


def _exits(agent: Agent) -> dict[str, int]:
    families = text_string_to_metric_families(agent.get("/metrics")[1])
    ends = [s for family in families for s in family.samples if s.name == "skywork_agent_worker_exits_total"]
    return {end.labels["reason"]: int(end.value) for end in ends}


def test_a_world_that_is_ended_while_its_workers_stand_still_leaves_their_stacks_in_the_log(tmp_path: Path) -> None:
    limits = HangLimits(step=1.0)
    started = Agent(tmp_path, run_config(tmp_path).model_copy(update={"hang": limits}).model_dump_json())
    try:
        started.say(1)
        started.training(1)
        started.order(1, "hang")
        until(lambda: len(list((tmp_path / "state/1").glob("standing-*"))) == 2)
        until(lambda: (started.metric("skywork_agent_longest_silence_seconds") or 0) > 0.5)
        started.say(2)
        started.training(2)
    finally:
        started.process.kill()
        started.process.wait()
    assert "stand_still" in started.log.read_text()


def test_a_stage_that_was_trained_while_a_pod_stood_by_ends_it_with_success(agent: Agent) -> None:
    until(lambda: agent.status())
    agent.say(3, Role.DONE, nodes=0, master="")
    assert agent.process.wait(20) == 0


def test_a_word_from_a_newer_operator_is_read_as_far_as_it_is_known(agent: Agent) -> None:
    word = '{"generation":1,"role":"train","nodes":1,"master":"127.0.0.1:29500","colour":"blue"}'
    (agent.folder / "membership.new").write_text(word)
    (agent.folder / "membership.new").rename(agent.folder / "membership")
    agent.training(1)


@pytest.mark.parametrize(
    "text", ["low 0\noom_kill 3\noom 3\n", "oom_kill_disable 0\nunder_oom 0\noom_kill 3\n"], ids=["v2", "v1"]
)
def test_kills_for_memory_are_read_from_either_kind_of_control_group(tmp_path: Path, text: str) -> None:
    (tmp_path / "events").write_text(text)
    assert memory_kills((tmp_path / "none", tmp_path / "events")) == 3
    assert memory_kills((tmp_path / "none",)) is None


@pytest.mark.parametrize(
    ("code", "starved", "reason"),
    [(-9, False, "Killed"), (-9, True, "HostOutOfMemory"), (-11, True, "Crashed"), (-7, False, "Crashed"),
     (1, True, "AppError")],
)  # fmt: skip
def test_a_worker_that_the_kernel_killed_for_memory_is_told_from_one_that_crashed(
    tmp_path: Path, code: int, starved: bool, reason: str
) -> None:
    said = explain(tmp_path, 3, 0, End(time=1.0, code=code, out_of_memory=starved))
    assert said.reason == reason
    assert ("resources.limits.memory" in said.message) is (reason == "HostOutOfMemory")
