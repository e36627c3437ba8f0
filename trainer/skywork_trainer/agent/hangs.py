"""Which workers hang, where they stand, and how to say so."""

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from skywork_trainer.config import HANG, Failure, HangLimits, Section
from skywork_trainer.heartbeat import Beat

STACKS_SECONDS = 1.0
"""How long workers have to write their stacks."""
HOLD_SECONDS = 1.5
"""How long a world that hangs is left as it is: other nodes' agents need its workers alive to see where they stand."""
_FRAME = re.compile(r'^  File "(?P<file>[^"]+)", line (?P<line>\d+) in (?P<function>.+)$')
_COLLECTIVE = ("/torch/distributed/", "/skywork_trainer/collectives.py")
_FRAMES_TOLD = 4


@dataclass(frozen=True)
class Standstill:
    """Where a worker stands."""

    where: str
    waits: bool
    """Whether it is inside a collective."""


def overdue(beats: Mapping[int, Beat], limits: HangLimits, now: float) -> list[int]:
    """Return the local ranks whose newest sign of progress is older than their section allows, oldest first."""
    late = [rank for rank, beat in beats.items() if now - beat.time > limits.of(beat.section)]
    return sorted(late, key=lambda rank: beats[rank].time)


def is_stale(beats: Mapping[int, Beat], limits: HangLimits, now: float) -> bool:
    """Return whether some worker seems to hang although its time is not quite up: its stacks may be worth having."""
    return any(now - beat.time > limits.of(beat.section) / 2 for beat in beats.values())


def standstill(stacks: str) -> Standstill | None:
    """Return where the main thread of what faulthandler wrote stands; None while there is nothing to read.

    Threads come newest first, so the main one is the last.
    """
    blocks = [block for block in re.split(r"\n(?=Thread 0x|Current thread 0x)", "\n" + stacks) if "File" in block]
    if not blocks:
        return None
    frames = [match for line in blocks[-1].splitlines() if (match := _FRAME.match(line))]
    told = [f"{Path(f['file']).name}:{f['line']} {f['function']}" for f in frames[:_FRAMES_TOLD]]
    waits = any(part in frame["file"] for frame in frames for part in _COLLECTIVE)
    return Standstill(" < ".join(told), waits)


def without_stacks(pid: int) -> Standstill:
    """Return what the kernel says of a worker that wrote no stacks."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except (OSError, IndexError):
        return Standstill("it is gone", waits=False)
    known = {"T": "it is stopped", "t": "it is traced", "D": "it waits in the kernel, perhaps for a device or a disk"}
    return Standstill(known.get(state, f"it did not answer (state {state})"), waits=False)


def failure(first_rank: int, late: list[int], beats: Mapping[int, Beat], where: Mapping[int, Standstill]) -> Failure:
    """Return the hang of this node's workers `late`; one that does not wait for others says where the trouble is."""
    culprit = min(late, key=lambda rank: (where[rank].waits, beats[rank].time))
    beat, now = beats[culprit], time.monotonic()
    told = {"init": "joining its peers and opening its data", "restore": "reading a checkpoint"}
    doing = told.get(beat.section, f"its {beat.section} behind step {beat.step}")
    more = f" (and {len(late) - 1} more on this node)" if len(late) > 1 else ""
    text = (
        f"rank {first_rank + culprit}{more} has shown no progress for {now - beat.time:.0f} s in {doing}: "
        f"{where[culprit].where}"
    )
    return Failure(
        time=time.time(),
        rank=first_rank + culprit,
        reason=HANG,
        message=text,
        step=beat.step if beat.section not in (Section.INIT, Section.RESTORE) else None,
        waits=where[culprit].waits,
    )
