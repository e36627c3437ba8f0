"""What nodes and node 0 say to each other, as JSON over HTTP."""

from enum import StrEnum

from pydantic import BaseModel, ConfigDict
from skywork_trainer.config import AgentStatus, Membership

REPORT_SECONDS = 0.25
"""Time between two reports of a node."""


class AgentState(StrEnum):
    """What has become of a node's newest agent."""

    NONE = "None"
    RUNNING = "Running"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"


class Report(BaseModel):
    """How one node stands."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    node: int
    attempt: int = 0
    """Names the agent: when it was started, nanoseconds; a later one replaces an earlier one. 0 before the first."""
    stage: str = ""
    """Stage the agent was started for."""
    state: AgentState = AgentState.NONE
    exit_code: int | None = None
    agent: AgentStatus | None = None
    """The agent's own words; its last ones when it has ended."""
    leaving: bool = False
    """The node was asked to end."""


class Orders(BaseModel):
    """What node 0 answers."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    stage: str = ""
    """Stage to run an agent for; none while empty."""
    config: str = ""
    """The stage's configuration for the trainer, JSON."""
    workers: int = 1
    """Of each agent."""
    environment: dict[str, str] = {}
    attempt: int = 0
    """The agent that the membership is for."""
    membership: Membership | None = None
    end: int | None = None
    """Exit code to end with, once the agent has saved and left; None while the run goes on."""
