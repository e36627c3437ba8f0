"""What the agent makes of wrong configurations, broken words, races and orphans; real processes where they matter."""

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from skywork_trainer.agent import supervisor
from skywork_trainer.agent.membership import MembershipFile
from skywork_trainer.agent.supervisor import Settings, Supervisor
from skywork_trainer.agent.workers import Workers
from skywork_trainer.config import AgentStatus, Failure, Place, Role
from skywork_trainer.requests import read_request

from tests.unit.agent.test_agent_processes import Agent, gone, until
from tests.unit.train_config import run_config


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Agent]:
    started = Agent(tmp_path)
    yield started
    started.process.kill()
    started.process.wait()


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])


def last_words(agent: Agent) -> AgentStatus:
    return AgentStatus.model_validate_json((agent.folder / "last-words").read_text())


def test_a_configuration_that_cannot_be_read_is_not_retried(tmp_path: Path) -> None:
    agent = Agent(tmp_path, config='{"run": "x"}')
    try:
        assert agent.process.wait(20) == 64
    finally:
        agent.process.kill()
        agent.process.wait()
    failure = last_words(agent).failure
    assert failure is not None and not failure.retryable
    assert failure.reason == "InvalidConfig" and "namespace" in failure.message


def test_exit_64_without_an_explanation_is_still_not_retryable(agent: Agent) -> None:
    agent.say(1)
    agent.training(1)
    agent.order(1, "exit 64")
    assert agent.process.wait(20) == 64
    failure = last_words(agent).failure
    assert failure is not None and not failure.retryable


@pytest.mark.parametrize("letter", ["x", "语", "\x01"])
def test_last_words_fit_the_kubelet_s_limit_and_keep_the_cause(agent: Agent, letter: str) -> None:
    agent.say(1)
    agent.training(1)
    cause = Failure(time=1.0, rank=0, reason="AppError", message=letter * 4000, retryable=False)
    (agent.folder / "state/1/failure-0.json").write_text(cause.model_dump_json())
    agent.order(1, "exit 64")
    assert agent.process.wait(20) == 64
    assert len((agent.folder / "last-words").read_bytes()) <= 4096
    said = last_words(agent).failure
    assert said is not None and said.reason == "AppError" and said.message.startswith(letter * 100)


def test_a_failed_pod_that_becomes_a_spare_is_ready_again(agent: Agent) -> None:
    agent.say(1)
    os.kill(agent.training(1).workers[0], signal.SIGKILL)
    agent.phase("Failed")
    code, why = agent.get("/readyz")
    assert code == 503 and "Killed" in why
    agent.say(2, Role.STANDBY)
    agent.phase("Standby")
    assert agent.get("/readyz")[0] == 200


def test_a_standby_pod_drains_its_workers_and_keeps_its_warm_fork_server(agent: Agent) -> None:
    agent.say(1)
    said = agent.training(1)
    server = parent(said.workers[0])
    agent.say(2, Role.STANDBY, drain=True)
    agent.phase("Standby")
    assert len(list((agent.folder / "state/1").glob("saved-*"))) == 2
    agent.say(3)
    assert parent(agent.training(3).workers[0]) == server


def test_the_earliest_written_cause_wins_over_the_echo_that_was_heard_first(agent: Agent) -> None:
    """Rank 1 has said why it broke, but lingers; rank 0, which only lost it, is the first to end."""
    agent.say(1)
    agent.training(1)
    for local, reason, when in ((1, "StorageUnreachable", 1.0), (0, "PeerLost", 2.0)):
        failure = Failure(time=when, rank=local, reason=reason, message="m")
        (agent.folder / f"state/1/failure-{local}.json").write_text(failure.model_dump_json())
    agent.order(1, "exit 1 0")
    failed = agent.phase("Failed")
    assert failed.failure is not None and failed.failure.reason == "StorageUnreachable"


@pytest.mark.parametrize("wrong", [{"master": ""}, {"master": "10.0.0.1"}, {"rank": 1}, {"nodes": 0}])
def test_a_word_that_names_no_place_in_a_world_is_no_word(tmp_path: Path, wrong: dict[str, object]) -> None:
    path = tmp_path / "membership"
    good = {"generation": 1, "role": "train", "rank": 0, "nodes": 1, "master": "10.0.0.1:29500"}
    path.write_text(json.dumps(good))
    file = MembershipFile(path)
    first = file.read()
    assert first is not None
    path.write_text(json.dumps({**good, **wrong, "generation": 22}))
    assert file.read() == first


def test_bytes_that_are_no_text_are_no_membership(tmp_path: Path) -> None:
    (tmp_path / "membership").write_bytes(b"\xff\xfe{")
    assert MembershipFile(tmp_path / "membership").read() is None


def test_the_folders_of_the_last_two_generations_are_kept(agent: Agent) -> None:
    for generation in (1, 5, 9):
        agent.say(generation)
        agent.training(generation)
    assert sorted(path.name for path in (agent.folder / "state").iterdir()) == ["5", "9"]


def test_deletion_during_a_drain_does_not_wait_longer_than_the_kubelet(agent: Agent) -> None:
    agent.say(1)
    agent.training(1)
    (agent.folder / "orders/deaf").touch()
    agent.say(2, drain=True)
    until(lambda: "2" in (agent.folder / "membership").read_text() and agent.get("/status")[0] == 200)
    until(lambda: (agent.folder / "state/1/asked-0").exists())
    asked = time.monotonic()
    agent.process.terminate()
    assert agent.process.wait(20) == 75
    assert time.monotonic() - asked < 4, "the grace is 2 s, the drain it interrupts 5 s"


def test_metrics_count_every_worker_s_end_and_time_the_start(agent: Agent) -> None:
    agent.say(1)
    said = agent.training(1)
    assert 0 < (agent.metric("skywork_agent_last_start_seconds") or 0) < 20
    os.kill(said.workers[0], signal.SIGKILL)
    agent.phase("Failed")
    until(lambda: agent.metric("skywork_agent_worker_exits_total", reason="Stopped") == 1)
    assert agent.metric("skywork_agent_worker_exits_total", reason="Killed") == 1


def test_metrics_name_run_and_node_and_what_the_pod_uses_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NODE_NAME", "gpu-17")
    (tmp_path / "cache").mkdir()
    agent = Agent(tmp_path)
    try:
        agent.say(1)
        agent.training(1)
        of_the_run = {"namespace": "default", "run": "test", "stage": "general", "node": "gpu-17"}
        assert agent.metric("skywork_agent_workers", **of_the_run) == 2
        free, size = (agent.metric(f"skywork_agent_cache_{what}_bytes", **of_the_run) or 0 for what in ("free", "size"))
        assert 0 < free <= size
        assert (agent.metric("skywork_agent_cpu_seconds_total", **of_the_run) or 0) > 0
    finally:
        agent.process.kill()
        agent.process.wait()


def test_what_is_asked_of_a_generation_reaches_its_workers_and_starts_no_other(agent: Agent) -> None:
    agent.say(3)
    pids = agent.training(3).workers
    folder = agent.folder / "state" / "3"
    assert read_request(folder) == ""
    for request in ("first", "second"):
        agent.say(3, validate_request=request)
        until(lambda expected=request: read_request(folder) == expected)
    assert agent.training(3).workers == pids
    # It stands in the word to the next generation, too.
    agent.say(4, validate_request="second", after="Killed")
    agent.training(4)
    until(lambda: read_request(agent.folder / "state" / "4") == "second")


def test_orphans_of_a_killed_worker_are_reaped(agent: Agent) -> None:
    """A worker's helper process falls to PID 1 when the worker is killed; nobody else could bury it."""
    agent.order(1, "helper")
    agent.say(1)
    said = agent.training(1)
    path = agent.folder / "state/1/helper-0"
    helper = int(until(lambda: path.exists() and path.read_text()))
    os.kill(said.workers[0], signal.SIGKILL)
    agent.phase("Failed")
    until(lambda: parent(helper) == agent.process.pid)
    os.kill(helper, signal.SIGKILL)
    until(lambda: not Path(f"/proc/{helper}").exists())


def test_a_control_c_lets_the_workers_save(agent: Agent) -> None:
    """A terminal sends SIGINT to the whole process group, the fork server included."""
    agent.say(1)
    said = agent.training(1)
    os.kill(parent(said.workers[0]), signal.SIGINT)
    os.kill(agent.process.pid, signal.SIGINT)
    assert agent.process.wait(20) == 75
    assert len(list((agent.folder / "state/1").glob("saved-*"))) == 2


@pytest.fixture
def workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Workers]:
    monkeypatch.setenv("FAKE_WORKER_ORDERS", str(tmp_path))
    (tmp_path / "run.json").write_text(run_config(tmp_path).model_dump_json())
    made = Workers(module="tests.unit.agent.fake_worker", config_path=tmp_path / "run.json")
    made.start_server()
    until(lambda: made.hear(0.05) or made.warm_seconds is not None)
    yield made
    made.stop()


def place(folder: Path) -> Place:
    return Place(
        generation=1, rank=0, world_size=1, local_rank=0, local_world_size=1,
        master_address="127.0.0.1", master_port=29500, state_dir=folder, cache_dir=folder,
    )  # fmt: skip


def test_a_worker_whose_process_id_is_not_known_yet_is_still_asked_to_leave(workers: Workers, tmp_path: Path) -> None:
    workers.fork([place(tmp_path)])
    workers.ask_to_leave()
    until(lambda: workers.hear(0.05) or workers.exits)
    assert workers.exits[0].code in (75, -signal.SIGTERM)


def test_a_fork_server_that_dies_just_before_a_start_costs_a_generation_not_the_pod(
    workers: Workers, tmp_path: Path
) -> None:
    os.kill(workers.server_pid, signal.SIGKILL)
    until(lambda: gone(workers.server_pid))
    workers.fork([place(tmp_path)])
    until(lambda: workers.hear(0.05) or workers.exits)
    assert workers.exits[0].code == -signal.SIGKILL
    until(lambda: workers.hear(0.05) or workers.warm_seconds is not None)
    workers.fork([place(tmp_path)])
    until(lambda: workers.hear(0.05) or workers.alive)


def test_a_worker_that_ends_while_the_agent_is_asked_does_not_cost_the_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = {name: tmp_path / name for name in ("config_path", "membership_path", "termination_log")}
    folders = {"state_dir": tmp_path, "cache_dir": tmp_path}
    times = {"drain_seconds": 1.0, "grace_seconds": 1.0}
    asked = Supervisor(Settings(**paths, **folders, **times, workers=2, port=0, worker_module="none"))
    alive = asked._workers.alive
    alive.update({0: 11, 1: 12})

    def ends(folder: Path, local: int) -> None:
        alive.pop(1 - local, None)

    monkeypatch.setattr(supervisor, "read_beat", ends)
    assert asked.status().workers == (11, 12)
