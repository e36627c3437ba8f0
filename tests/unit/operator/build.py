"""Builders of runs, pods and worlds for table tests of the policies."""

from typing import Any

from skywork_operator.api.status import SkyworkRunStatus
from skywork_operator.api.types import SkyworkRunSpec
from skywork_operator.decide import decide
from skywork_operator.render import Defaults
from skywork_operator.times import timestamp
from skywork_operator.world import Job, Plan, Pod, Run, World
from skywork_trainer.config import AgentPhase, AgentStatus, Failure, Membership, Progress, Role

NOW = 1_800_000_000.0
DEFAULTS = Defaults(image="trainer:test")

SPEC: dict[str, Any] = {
    "model": {"preset": "tiny"},
    "tokenizer": {"uri": "s3://data/tokenizer"},
    "trainer": {"nodes": {"min": 2, "max": 3, "shrinkAfter": "2m"}},
    "batch": {"sequenceLength": 64, "globalTokens": "1024"},
    "sources": [{"name": "main", "uri": "s3://data/main"}, {"name": "stem", "uri": "s3://data/stem"}],
    "checkpoints": {"uri": "s3://runs/demo"},
    "stages": [
        {
            "name": "general",
            "tokens": "102400",
            "learningRate": {"schedule": "Cosine", "peak": "1e-3", "final": "1e-4"},
            "mixture": [{"source": "main"}],
        },
        {
            "name": "stem",
            "tokens": "51200",
            "learningRate": {"schedule": "Constant"},
            "mixture": [
                {"source": "stem", "share": {"from": "0.1", "to": "0.4", "shape": "Quadratic"}},
                {"source": "main"},
            ],
        },
    ],
}


class Clock:
    """A clock that stands still until a test moves it."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def run(status: SkyworkRunStatus | None = None, **changes: Any) -> Run:
    return Run(
        name="demo",
        namespace="research",
        uid="run-uid",
        generation=1,
        created_seconds=int(NOW) - 1000,
        spec=SkyworkRunSpec.model_validate(SPEC | changes),
        status=status or SkyworkRunStatus(),
    )


def place(generation: int, rank: int, nodes: int = 3) -> Membership:
    return Membership(generation=generation, role=Role.TRAIN, rank=rank, nodes=nodes, master="10.0.0.1:29501")


def pod(index: int, *, generation: int = 0, phase: AgentPhase | None = None, **changes: Any) -> Pod:
    """A running pod: standing by, or training in `generation` as node rank `index`."""
    said = phase or (AgentPhase.TRAINING if generation else AgentPhase.STANDBY)
    agent = AgentStatus(phase=said, generation=generation, rank=index)
    fields: dict[str, Any] = {
        "name": f"demo-general-{index}-abcde",
        "uid": f"pod-{index}",
        "index": index,
        "ip": f"10.0.0.{index + 1}",
        "phase": "Running",
        "ready": True,
        "membership": place(generation, index) if generation else None,
        "agent": agent,
    }
    return Pod(**(fields | changes))


def failed(index: int, generation: int, *, reason: str = "Killed", time: float = NOW) -> Pod:
    failure = Failure(time=time, rank=index, reason=reason, message=f"worker rank {index} was killed by SIGKILL")
    agent = AgentStatus(phase=AgentPhase.FAILED, generation=generation, rank=index, failure=failure)
    return pod(index, generation=generation, agent=agent, ready=False)


def progress(step: int, generation: int = 1, **changes: Any) -> AgentStatus:
    fields: dict[str, Any] = {
        "time": NOW,
        "section": "step",
        "step": step,
        "first_step_time": NOW - 1,
        "train_loss": 5.0,
        "tokens_per_second": 1000.0,
    }
    return AgentStatus(
        phase=AgentPhase.TRAINING, generation=generation, rank=0, progress=Progress(**(fields | changes))
    )


def world(*pods: Pod, status: SkyworkRunStatus | None = None, stage: str = "general", **changes: Any) -> World:
    """A world in which `stage` has a Job with these pods."""
    return World(run=run(status, **changes), jobs={stage: Job(stage=stage, uid="job-uid")}, pods=pods)


def plan(seen: World, now: float = NOW) -> Plan:
    return decide(seen, now, DEFAULTS)


def status_after(seen: World, now: float = NOW) -> SkyworkRunStatus:
    return plan(seen, now).status


def condition(status: SkyworkRunStatus, type: str) -> tuple[str, str]:
    (said,) = [c for c in status.conditions if c.type == type]
    return said.status, said.reason


def ago(seconds: float) -> str:
    return timestamp(NOW - seconds)
