"""The agent with real processes, real signals and real HTTP."""

import functools
import json
import os
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from skywork_trainer.config import AgentStatus, Membership, Role

from tests import waiting
from tests.unit.train_config import run_config

until = functools.partial(waiting.until, seconds=20, pause_seconds=0.01)


class Agent:
    """One agent process in a folder."""

    def __init__(self, folder: Path, config: str | None = None) -> None:
        self.folder = folder
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        (folder / "orders").mkdir()
        (folder / "run.json").write_text(config or run_config(folder).model_dump_json())
        command = [sys.executable, "-m", "tests.unit.agent.run_agent", "agent"]
        command += ["--config", str(folder / "run.json"), "--membership", str(folder / "membership")]
        command += ["--state-dir", str(folder / "state"), "--cache-dir", str(folder / "cache")]
        command += ["--termination-log", str(folder / "last-words"), "--workers", "2", "--port", str(self.port)]
        command += ["--worker-module", "tests.unit.agent.fake_worker", "--drain-seconds", "5", "--grace-seconds", "2"]
        environment = {**os.environ, "FAKE_WORKER_ORDERS": str(folder / "orders")}
        self.log = folder / "agent.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(command, env=environment, stderr=log)

    def say(self, generation: int, role: Role = Role.TRAIN, **changes: Any) -> None:
        fields: dict[str, Any] = {"nodes": 1, "master": "127.0.0.1:29500"} | changes
        word = Membership(generation=generation, role=role, **fields)
        new = self.folder / "membership.new"
        new.write_text(word.model_dump_json())
        new.rename(self.folder / "membership")

    def order(self, generation: int, words: str) -> None:
        (self.folder / "orders" / str(generation)).write_text(words)

    def get(self, path: str) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=20) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()
        except OSError:
            return 0, ""

    def status(self) -> AgentStatus | None:
        code, text = self.get("/status")
        return AgentStatus.model_validate_json(text) if code == 200 else None

    def training(self, generation: int) -> AgentStatus:
        def both() -> AgentStatus | None:
            said = self.status()
            started = list((self.folder / "state" / str(generation)).glob("started-*"))
            return said if said and said.generation == generation and len(said.workers) == len(started) == 2 else None

        found: AgentStatus = until(both)
        return found

    def metric(self, name: str, **labels: str) -> float | None:
        families = text_string_to_metric_families(self.get("/metrics")[1])
        found = [
            s for family in families for s in family.samples if s.name == name and labels.items() <= s.labels.items()
        ]
        return found[0].value if found else None

    def phase(self, phase: str) -> AgentStatus:
        found: AgentStatus = until(lambda: (s := self.status()) and s.phase == phase and s)
        return found


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Agent]:
    started = Agent(tmp_path)
    yield started
    started.process.kill()
    started.process.wait()
    print(started.log.read_text())


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def test_a_killed_worker_fails_the_generation_and_the_next_one_starts_in_the_same_pod(agent: Agent) -> None:
    agent.say(1)
    first = agent.training(1)
    assert agent.get("/readyz")[0] == 200
    os.kill(first.workers[1], signal.SIGKILL)
    failed = agent.phase("Failed")
    assert failed.failure is not None
    assert (failed.failure.reason, failed.failure.rank) == ("Killed", 1)
    until(lambda: all(gone(pid) for pid in first.workers))
    assert agent.get("/readyz")[0] == 503
    agent.say(2)
    second = agent.training(2)
    assert set(second.workers).isdisjoint(first.workers)
    assert second.failure is None
    assert agent.process.poll() is None


def test_the_worker_s_own_explanation_is_the_cause(agent: Agent) -> None:
    agent.order(1, "fail 0")
    agent.say(1)
    failed = agent.phase("Failed")
    assert failed.failure is not None and failed.failure.message == "ValueError: bad shape"


def test_a_finished_stage_ends_the_agent_with_0_and_its_last_words(agent: Agent) -> None:
    agent.say(1)
    agent.training(1)
    agent.order(1, "exit 0")
    assert agent.process.wait(20) == 0
    assert json.loads((agent.folder / "last-words").read_text())["phase"] == "Done"


def test_a_wrong_configuration_ends_the_agent_with_64_and_its_reason(agent: Agent) -> None:
    agent.say(1)
    agent.training(1)
    agent.order(1, "exit 64")
    assert agent.process.wait(20) == 64
    assert json.loads((agent.folder / "last-words").read_text())["failure"]["reason"] == "AppError"


def test_a_deleted_pod_lets_its_workers_save_and_exits_with_75(agent: Agent) -> None:
    agent.say(1)
    agent.training(1)
    agent.process.terminate()
    assert agent.process.wait(20) == 75
    assert len(list((agent.folder / "state/1").glob("saved-*"))) == 2


def test_workers_that_do_not_save_in_time_are_killed_and_the_agent_still_leaves(agent: Agent) -> None:
    agent.say(1)
    said = agent.training(1)
    (agent.folder / "orders/deaf").touch()
    agent.process.terminate()
    assert agent.process.wait(20) == 75
    until(lambda: all(gone(pid) for pid in said.workers))


def test_a_growing_world_drains_the_old_generation_before_the_new_one_starts(agent: Agent) -> None:
    agent.say(1)
    agent.training(1)
    agent.say(2, drain=True)
    agent.training(2)
    assert len(list((agent.folder / "state/1").glob("saved-*"))) == 2


def test_an_agent_tells_of_a_word_it_has_read_before_it_can_act_on_it(agent: Agent) -> None:
    assert until(lambda: agent.status()).heard == 0
    agent.say(1)
    agent.training(1)
    (agent.folder / "orders/deaf").touch()
    agent.say(2, drain=True)
    said = until(lambda: (said := agent.status()) and said.heard == 2 and said)
    assert said.generation == 1, "its workers are still asked to save"


def test_a_question_about_a_generation_is_held_until_that_is_over(agent: Agent) -> None:
    agent.say(1)
    said = agent.training(1)
    with ThreadPoolExecutor(1) as asking:
        answer = asking.submit(agent.get, "/over?generation=1")
        assert agent.get("/over?generation=2") == (200, "over"), "of one that does not train here"
        assert agent.get("/over?generation=one")[0] == 400
        with pytest.raises(TimeoutError):
            answer.result(0.5)
        os.kill(said.workers[0], signal.SIGKILL)
        assert answer.result() == (200, "over")
    agent.phase("Failed")


def test_an_older_generation_is_never_gone_back_to(agent: Agent) -> None:
    agent.say(5)
    agent.training(5)
    agent.say(4)
    agent.say(5, Role.STANDBY)
    agent.say(6)
    agent.training(6)
    assert not (agent.folder / "state/4").exists()


def test_no_worker_outlives_an_agent_that_was_killed(agent: Agent) -> None:
    agent.say(1)
    said = agent.training(1)
    agent.process.kill()
    agent.process.wait()
    until(lambda: all(gone(pid) for pid in said.workers))


def test_a_dead_fork_server_fails_the_generation_and_is_replaced(agent: Agent) -> None:
    agent.say(1)
    said = agent.training(1)
    parent = int(Path(f"/proc/{said.workers[0]}/stat").read_text().rsplit(")", 1)[1].split()[1])
    os.kill(parent, signal.SIGKILL)
    failed = agent.phase("Failed")
    assert failed.failure is not None and "fork server died" in failed.failure.message
    until(lambda: all(gone(pid) for pid in said.workers))
    agent.say(2)
    agent.training(2)


def test_an_unreadable_membership_is_no_membership(agent: Agent) -> None:
    agent.say(1)
    agent.training(1)
    (agent.folder / "membership").write_text("{not json")
    agent.say(2)
    agent.training(2)


def test_metrics_are_the_agent_s_and_those_of_rank_0_and_of_every_worker(agent: Agent) -> None:
    agent.say(1)
    agent.training(1)
    (agent.folder / "state/1/metrics.prom").write_text("skywork_train_loss 3.5\n")
    for rank in range(2):
        (agent.folder / f"state/1/worker-{rank}.prom").write_text(f'skywork_data_cache_hits{{local_rank="{rank}"}} 7\n')
    code, text = agent.get("/metrics")
    assert code == 200
    assert agent.metric("skywork_agent_generation") == 1 and "skywork_train_loss 3.5" in text
    assert 'skywork_data_cache_hits{local_rank="1"} 7' in text
