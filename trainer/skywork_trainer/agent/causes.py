"""Why a generation ended here, out of what its workers wrote and how they ended; and the agent's last words."""

import signal
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from skywork_trainer.config import EXIT_CONFIG, AgentStatus, Failure, load

TERMINATION_BYTES = 4096
"""The kubelet drops what a termination message has beyond this."""
_CRASHES = ("SIGSEGV", "SIGABRT", "SIGBUS", "SIGILL", "SIGFPE")
"""Signals that a program brings upon itself."""
_Document = TypeVar("_Document", bound=BaseModel)


@dataclass(frozen=True, kw_only=True)
class End:
    """How one worker ended."""

    time: float
    """Unix seconds, as the agent heard of it."""
    code: int
    """Exit code; a signal is its negative number."""
    orphaned: bool = False
    """It died because the fork server did."""
    out_of_memory: bool = False
    """The kernel has killed a process of this container for memory since the generation began."""


def wrong_config(path: Path, now: float) -> Failure | None:
    """Return why no worker can train by this configuration; None when it is sound."""
    try:
        load(path)
    except (OSError, ValidationError) as error:
        return Failure(time=now, rank=-1, reason="InvalidConfig", message=f"{path}: {error}", retryable=False)
    return None


def explain(folder: Path, rank: int, local_rank: int, end: End) -> Failure:
    """Return a worker's own account of its failure, or what its exit status tells."""
    said = read(Failure, folder / f"failure-{local_rank}.json")
    if said is not None:
        return said
    if end.orphaned:
        text = f"the fork server died, and worker rank {rank} with it; the node may be out of memory"
        return Failure(time=end.time, rank=rank, reason="Killed", message=text)
    if end.code < 0:
        name = _signal_name(-end.code)
        if name == "SIGKILL" and end.out_of_memory:
            text = (
                f"worker rank {rank} was killed because the pod used more memory than it may; raise "
                "resources.limits.memory of the container trainer in trainer.template"
            )
            return Failure(time=end.time, rank=rank, reason="HostOutOfMemory", message=text)
        hint = "; the node may be out of memory" if name == "SIGKILL" else ""
        text = f"worker rank {rank} was killed by {name}{hint}"
        return Failure(time=end.time, rank=rank, reason="Crashed" if name in _CRASHES else "Killed", message=text)
    text = f"worker rank {rank} exited with code {end.code} and left no explanation; see its log"
    retryable = end.code != EXIT_CONFIG
    return Failure(time=end.time, rank=rank, reason="AppError", message=text, retryable=retryable)


def root_cause(folder: Path, first_rank: int, broken: Mapping[int, End]) -> Failure:
    """Return the earliest cause; `broken` (at least one) are the ends, by local rank, that were failures.

    A sibling may have said why it broke and linger: every written account counts, ended or not. The loss of a peer
    is only an echo of something else, so it never wins by coming first.
    """
    told = [read(Failure, path) for path in folder.glob("failure-*.json")]
    causes = [failure for failure in told if failure is not None]
    causes += [explain(folder, first_rank + local, local, end) for local, end in broken.items()]
    return min(causes, key=lambda cause: cause.order)


def last_words(status: AgentStatus) -> str:
    """Return the status as JSON of at most TERMINATION_BYTES; what the operator needs least goes first."""
    said = status
    if said.failure is not None and len(said.failure.message) > 1000:
        said = _with_message(said, said.failure.message[:1000] + " …")
    for field in ("validation_curve", "diagnoses", "stage_start_validation", "source_sequences", "validation"):
        if _bytes(said) <= TERMINATION_BYTES or said.progress is None:
            break
        empty: object = {} if field == "source_sequences" else ()
        said = said.model_copy(update={"progress": said.progress.model_copy(update={field: empty})})
    if _bytes(said) > TERMINATION_BYTES:
        said = said.model_copy(update={"workers": ()})
    # A character takes up to six bytes of JSON, so a thousand of them may still be too many.
    while _bytes(said) > TERMINATION_BYTES and said.failure is not None and said.failure.message:
        said = _with_message(said, said.failure.message[: len(said.failure.message) * 3 // 4])
    return said.model_dump_json()


def read(model: type[_Document], path: Path) -> _Document | None:
    """Return the document at `path`, or None while there is none that can be read."""
    try:
        return model.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return None


def _with_message(status: AgentStatus, message: str) -> AgentStatus:
    assert status.failure is not None
    return status.model_copy(update={"failure": status.failure.model_copy(update={"message": message})})


def _bytes(status: AgentStatus) -> int:
    return len(status.model_dump_json().encode())


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # real-time signals have no name
        return f"signal {number}"
