"""When to save next: by time, steps or tokens, or by what a save costs and how often the run fails. Pure.

Auto is Young's and Daly's first-order optimum, sqrt(2 x cost of a save x mean time between failures): saving more
often costs more than it spares, saving less often loses more to each failure. The cost is how long training stands
still.
"""

import math
from collections.abc import Callable

from skywork_trainer.config import Checkpoints

DEFAULT_SECONDS = 600.0
SHORTEST_AUTO_SECONDS = 60.0
LONGEST_AUTO_SECONDS = 3600.0
PRIOR_SECONDS = 8 * 3600.0
"""A run that has seen nothing yet is taken to fail once in so long; what it sees soon outweighs this."""


def auto_seconds(*, stall_seconds: float, save_seconds: float, trained_seconds: float, failures: int) -> float:
    """Return the time between two saves.

    `save_seconds` is how long one takes in the background: a shorter interval would only skip saves.
    """
    between_failures = (trained_seconds + PRIOR_SECONDS) / (failures + 1)
    best = math.sqrt(2 * stall_seconds * between_failures)
    return max(min(max(best, SHORTEST_AUTO_SECONDS), LONGEST_AUTO_SECONDS), save_seconds)


class Interval:
    """Says when a save is due; one for each generation. `clock` returns seconds."""

    def __init__(
        self,
        every: Checkpoints,
        *,
        tokens_per_step: int,
        clock: Callable[[], float],
        trained_seconds: float,
        failures: int,
    ) -> None:
        self._every, self._tokens, self._clock = every, tokens_per_step, clock
        self._trained_seconds, self._failures = trained_seconds, failures
        self._started = self._last = self._last_local = clock()
        self._last_step: int | None = None
        self._costs: tuple[float, float] | None = None

    @property
    def trained_seconds(self) -> float:
        """Time that the run has trained for, this generation included."""
        return self._trained_seconds + self._clock() - self._started

    @property
    def seconds(self) -> float | None:
        """The time between two saves; None where steps or tokens decide."""
        if self._every.every_steps is not None or self._every.every_tokens is not None:
            return None
        if self._every.auto and self._costs is not None:
            stall, save = self._costs
            return auto_seconds(
                stall_seconds=stall,
                save_seconds=save,
                trained_seconds=self.trained_seconds,
                failures=self._failures,
            )
        return self._every.every_seconds or DEFAULT_SECONDS

    def due(self, step: int) -> bool:
        """Return whether to save after `step` steps of the run."""
        seconds = self.seconds
        if seconds is not None:
            return self._clock() - self._last >= seconds
        size = 1 if self._every.every_tokens is None else self._tokens
        every = self._every.every_steps or self._every.every_tokens or 1
        before = step - 1 if self._last_step is None else self._last_step
        return step * size // every > before * size // every

    def local_due(self) -> bool:
        """Return whether to save on the nodes only."""
        every = self._every.local_every_seconds
        return every is not None and self._clock() - max(self._last, self._last_local) >= every

    def begun(self, step: int, *, durable: bool) -> None:
        """Note that a save began, or was due and is passed over."""
        if durable:
            self._last, self._last_step = self._clock(), step
        else:
            self._last_local = self._clock()

    def measured(self, *, stall_seconds: float, save_seconds: float) -> None:
        """Note what a save cost."""
        self._costs = (stall_seconds, save_seconds)
