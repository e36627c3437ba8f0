from pathlib import Path
from typing import Any

import pytest
from skywork_operator.render import run_config
from skywork_operator.standalone.authority import SILENT_SECONDS, Authority
from skywork_operator.standalone.manifest import parse
from skywork_operator.standalone.words import AgentState, Orders, Report
from skywork_operator.world import PrepareJob
from skywork_trainer.config import AgentPhase, AgentStatus, Failure, Progress, load

from tests.unit.standalone.runs import manifest

PREPARED = {name: {"name": name, "uri": f"file:///data/{name}"} for name in ("main", "stem", "en")}
NOTHING_TO_PREPARE: dict[str, Any] = {
    "sources": [PREPARED["main"], PREPARED["stem"]],
    "validation": {"everyTokens": "40960", "domains": [PREPARED["en"]]},
}


class Prepared:
    """Preparations that are never asked for, or that end as they are told to."""

    def __init__(self) -> None:
        self.begun: list[tuple[str, str]] = []
        self.failed: str | None = None

    def start(self, source: str, reading: str, config: str) -> None:
        self.begun.append((source, reading))

    def jobs(self) -> tuple[PrepareJob, ...]:
        return tuple(
            PrepareJob(
                source=source, reading=reading, name=source, parts=1, complete=not self.failed, failed=self.failed
            )
            for source, reading in self.begun  # type: ignore[arg-type]
        )


class Play:
    """An authority and the nodes that report to it, on a clock of their own."""

    def __init__(self, nodes: int = 2, **changes: Any) -> None:
        body = manifest(Path("/runs"), **(NOTHING_TO_PREPARE | changes))
        self.now, self.said, self.preparations = 1000.0, list[str](), Prepared()
        self.authority = Authority(
            parse(body, nodes=nodes, gpus_per_node=0, now=self.now),
            workers=1,
            environment={"A": "b"},
            preparations=self.preparations,
            say=self.said.append,
        )

    def report(self, node: int, attempt: int, **fields: Any) -> Orders:
        values = {"stage": "general", "state": AgentState.RUNNING, "agent": AgentStatus(phase=AgentPhase.STANDBY)}
        report = Report(node=node, attempt=attempt, **(values | fields))
        return self.authority.hear(report, f"10.0.0.{node}", self.now)

    def advance(self, seconds: float = 1.0) -> None:
        self.now += seconds
        self.authority.advance(self.now)


def training(generation: int, step: int = 5) -> AgentStatus:
    progress = Progress(time=1.0, section="step", step=step, first_step_time=1.0, checkpoint="c", checkpoint_step=step)
    return AgentStatus(phase=AgentPhase.TRAINING, generation=generation, progress=progress)


def failed(generation: int, reason: str = "AppError", *, retryable: bool = True) -> AgentStatus:
    failure = Failure(time=1.0, rank=0, reason=reason, message="it broke", retryable=retryable)
    return AgentStatus(phase=AgentPhase.FAILED, generation=generation, failure=failure)


def world_of_two() -> Play:
    play = Play()
    play.advance()
    for node in (0, 1):
        play.report(node, 10 + node)
    play.advance()
    return play


def test_nodes_get_the_stage_s_configuration_as_the_operator_renders_it(tmp_path: Path) -> None:
    play = Play()
    assert play.report(0, 0) == Orders(workers=1, environment={"A": "b"})
    play.advance()
    orders = play.report(0, 0)
    (tmp_path / "run.json").write_text(orders.config)
    assert orders.stage == "general"
    assert load(tmp_path / "run.json") == run_config(play.authority.run, "general")


def test_a_world_forms_when_all_nodes_are_there_and_node_0_is_its_master() -> None:
    play = Play()
    play.authority.own_address = "10.0.0.9"
    play.advance()
    play.report(0, 10)
    play.advance(0.2)
    assert play.report(0, 10).membership is None, "one of two, and it is worth waiting"
    play.report(1, 11)
    play.advance(0.2)
    words = [play.report(0, 10).membership, play.report(1, 11).membership]
    assert [(w.generation, w.rank, w.nodes) for w in words if w] == [(1, 0, 2), (1, 1, 2)]
    assert words[1] is not None and words[1].master.startswith("10.0.0.9:")


def test_a_world_goes_on_with_fewer_nodes_after_the_manifest_s_patience() -> None:
    play = Play()
    play.advance()
    play.report(0, 10)
    play.advance(2.0)  # shrinkAfter is 1s
    word = play.report(0, 10).membership
    assert word is not None and word.nodes == 1


def test_a_failed_worker_starts_a_new_generation_and_too_many_without_progress_end_the_run() -> None:
    play = world_of_two()
    generations = []
    for _ in range(20):
        word = play.report(0, 10).membership
        assert word is not None
        generations.append(word.generation)
        play.report(0, 10, agent=failed(word.generation))
        play.report(1, 11, agent=failed(word.generation))
        play.advance()
        play.now += 61.0
        play.report(0, 10, agent=failed(word.generation))
        play.report(1, 11, agent=failed(word.generation))
        play.advance(0.1)
        if play.authority.end is not None:
            break
    assert play.authority.end == 1
    assert len(set(generations)) == 6, "five restarts without progress, as failurePolicy says"
    assert play.report(1, 11).end == 1
    assert any("WARNING AppError" in line for line in play.said)


def test_an_agent_that_says_the_configuration_is_wrong_ends_the_run_with_64() -> None:
    play = world_of_two()
    wrong = failed(1, "TokenizerMismatch", retryable=False)
    play.report(0, 10, state=AgentState.FAILED, exit_code=64, agent=wrong)
    play.advance()
    assert play.authority.end == 64
    assert "TokenizerMismatch" in " ".join(play.said)


def test_a_manifest_that_cannot_be_rendered_ends_the_run_before_anything_starts() -> None:
    play = Play(model={"layers": 1, "hidden": 30, "heads": 4, "ffn": 64, "vocabSize": 512})
    play.advance()
    assert play.authority.end == 64
    assert play.report(0, 0).stage == ""


@pytest.mark.parametrize("lost", ["silent", "began anew", "leaving", "ended"])
def test_a_node_that_is_lost_is_left_out_until_it_is_back(lost: str) -> None:
    play = world_of_two()
    play.report(0, 10, agent=training(1))
    if lost == "silent":
        play.now += SILENT_SECONDS + 1
        play.report(0, 10, agent=training(1))
    elif lost == "began anew":
        play.report(1, 0)
        play.report(1, 99, agent=None)
    elif lost == "leaving":
        play.report(1, 11, agent=training(1), leaving=True)
    else:
        play.report(1, 11, state=AgentState.FAILED, exit_code=75, agent=AgentStatus(phase=AgentPhase.LEFT))
    play.advance()
    assert play.authority.run.status.restarts.total == 1
    play.report(0, 10, agent=AgentStatus(phase=AgentPhase.STANDBY, generation=1))
    play.advance(2.0)
    word = play.report(0, 10).membership
    assert word is not None and (word.generation, word.nodes) == (2, 1)
    play.now += 40.0
    play.report(0, 10, agent=training(2, step=9))
    play.report(1, 100)
    play.advance()
    word = play.report(1, 100).membership
    assert word is not None and (word.generation, word.nodes) == (3, 2)


def test_stages_follow_each_other_and_the_last_one_ends_the_run_with_0() -> None:
    play = world_of_two()
    for stage, generation in (("general", 1), ("stem", 2)):
        for node in (0, 1):
            play.report(node, 10 * generation + node, stage=stage)
        play.advance()
        for node in (0, 1):
            attempt = 10 * generation + node
            word = play.report(node, attempt, stage=stage).membership
            assert word is not None and word.generation == generation
            done = AgentStatus(phase=AgentPhase.DONE, generation=generation)
            assert play.report(1, 10 * generation + 1, stage=stage).stage == stage, "until the last node is done"
            play.report(node, attempt, stage=stage, state=AgentState.SUCCEEDED, exit_code=0, agent=done)
            play.advance(0.1)
    assert play.authority.end == 0
    assert not play.authority.all_told(play.now)
    assert [play.report(node, 20 + node).end for node in (0, 1)] == [0, 0]
    assert play.authority.all_told(play.now)


def test_sources_are_prepared_before_the_stage_that_needs_them() -> None:
    source = manifest(Path("/runs"))["spec"]["sources"][0]
    play = Play(sources=[source, PREPARED["stem"]])
    play.advance()
    assert play.preparations.begun == [("main", "write")]
    assert play.report(0, 0).stage == ""
    play.advance()
    assert play.report(0, 0).stage == "general"


def test_a_preparation_that_failed_ends_the_run_with_its_reason() -> None:
    source = manifest(Path("/runs"))["spec"]["sources"][0]
    play = Play(sources=[source, PREPARED["stem"]])
    play.advance()
    play.preparations.failed = "the disk is full"
    play.advance()
    assert play.authority.end == 1
    assert "the disk is full" in play.said[-1]


def test_an_interruption_sends_every_node_home_and_starts_nothing_more() -> None:
    play = world_of_two()
    play.authority.leave()
    play.advance()
    assert play.report(1, 11, agent=failed(1)).end == 75
    assert play.report(0, 10).membership is None
