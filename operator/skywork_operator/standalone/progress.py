"""A run's status, as lines for people."""

from skywork_operator.policies import goodput
from skywork_operator.policies.conditions import find
from skywork_operator.world import Run


def line(run: Run) -> str:
    """Where the run stands."""
    status = run.status
    if status.state == "Training":
        rate = f", {status.tokens_per_second:,} tokens/s" if status.tokens_per_second else ""
        loss = f", loss {status.train_loss}" if status.train_loss else ""
        held_out = "".join(f" {entry.domain} {entry.loss}" for entry in status.validation_loss)
        if status.val_loss is not None and len(status.validation_loss) > 1:
            held_out += f" (mean {status.val_loss})"
        # Whole per cent: a line is printed when it changes.
        good = f", goodput {float(status.goodput):.0%}" if status.goodput is not None else ""
        left = f", {status.eta} left" if status.eta is not None else ""
        return (
            f"stage {status.stage}: step {status.step}, {status.progress} of the run{left}{loss}{rate}"
            f"{', validation' + held_out if held_out else ''}{good}"
        )
    why = find(status.conditions, "Prepared" if status.state == "Preparing" else "Running")
    return f"{status.state or 'Pending'}: {why.message}" if why is not None else status.state or "Pending"


def verdict(run: Run, code: int) -> str:
    """How it ended, and what to do next."""
    status = run.status
    newest = f"; the newest checkpoint is step {status.last_checkpoint.step}" if status.last_checkpoint else ""
    if code == 0:
        return f"all stages are trained: {status.step} steps, {status.tokens:,} tokens{newest}{_spent(run)}"
    if code == 75:
        return f"interrupted; the same command goes on from the newest checkpoint below {run.spec.checkpoints.uri}"
    named = (find(status.conditions, "Failed"), find(status.conditions, "Accepted"))
    why = next((c for c in named if c is not None and (c.type == "Failed") == (c.status == "True")), None)
    return f"given up: {why.reason}: {why.message}{newest}" if why is not None else f"ended with code {code}{newest}"


def _spent(run: Run) -> str:
    """Where the time went, largest part first; empty where nobody said."""
    if run.status.time is None:
        return ""
    parts = sorted(goodput.by_state(run.status.time).items(), key=lambda part: -part[1])
    total = sum(took for _, took in parts)
    told = [f"{state.value} {took / total:.0%}" for state, took in parts if total > 0 and took / total >= 0.005]
    return f"; time: {', '.join(told)} of {total:.0f} s" if told else ""
