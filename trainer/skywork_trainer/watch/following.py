"""The loop: ask, tell, wait; until the run is over."""

from collections.abc import Callable

from skywork_trainer.kubectl import ClusterError
from skywork_trainer.watch.asking import Snapshot
from skywork_trainer.watch.view import View, view

SUCCEEDED, FAILED, DELETED = 0, 1, 1


def follow(
    ask: Callable[[], Snapshot],
    tell: Callable[[View], None],
    *,
    wait: Callable[[], None],
    now: Callable[[], float],
    once: bool = False,
) -> tuple[int, str]:
    """Tell of the run until it is over; return the exit code and a last word.

    What cannot be asked for a while is told of, and the last answer stays; ClusterError when there never was one.
    """
    last: Snapshot | None = None
    while True:
        problem = ""
        try:
            last = ask()
        except ClusterError as error:
            if last is None:
                raise
            if error.reason == "NotFound":
                return DELETED, "the run was deleted; its checkpoints and curves are where they were"
            problem = f"{error.reason}: {error.message}"
        seen = view(last, now=now(), problem=problem)
        tell(seen)
        if seen.ended and not problem:
            return (SUCCEEDED if seen.ended == "Succeeded" else FAILED), ""
        if once:
            return SUCCEEDED, ""
        wait()
