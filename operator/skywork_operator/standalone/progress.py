"""A run's status, as lines for people."""

from skywork_operator.policies.conditions import find
from skywork_operator.world import Run


def line(run: Run) -> str:
    """Where the run stands."""
    status = run.status
    if status.state == "Training":
        rate = f", {status.tokens_per_second:,} tokens/s" if status.tokens_per_second else ""
        loss = f", loss {status.train_loss}" if status.train_loss else ""
        held_out = "".join(f" {entry.domain} {entry.loss}" for entry in status.validation_loss)
        return (
            f"stage {status.stage}: step {status.step}, {status.progress} of the run{loss}{rate}"
            f"{', validation' + held_out if held_out else ''}"
        )
    why = find(status.conditions, "Prepared" if status.state == "Preparing" else "Running")
    return f"{status.state or 'Pending'}: {why.message}" if why is not None else status.state or "Pending"


def verdict(run: Run, code: int) -> str:
    """How it ended, and what to do next."""
    status = run.status
    newest = f"; the newest checkpoint is step {status.last_checkpoint.step}" if status.last_checkpoint else ""
    if code == 0:
        return f"all stages are trained: {status.step} steps, {status.tokens:,} tokens{newest}"
    if code == 75:
        return f"interrupted; the same command goes on from the newest checkpoint below {run.spec.checkpoints.uri}"
    named = (find(status.conditions, "Failed"), find(status.conditions, "Accepted"))
    why = next((c for c in named if c is not None and (c.type == "Failed") == (c.status == "True")), None)
    return f"given up: {why.reason}: {why.message}{newest}" if why is not None else f"ended with code {code}{newest}"
