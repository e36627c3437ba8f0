"""Where the time of one process goes: at every moment it is in one state, and the states add up to its life."""

import time
from collections.abc import Callable

from skywork_trainer.control import Section, Spent

_OF_SECTION = {
    Section.INIT: Spent.INITIALIZE,
    Section.RESTORE: Spent.RESTORE,
    Section.FIRST_STEP: Spent.TRAIN,
    Section.STEP: Spent.TRAIN,
    Section.VALIDATE: Spent.VALIDATE,
    Section.SAVE: Spent.CHECKPOINT,
}


class Spending:
    """Seconds by state since it was made."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._state, self._since = Spent.INITIALIZE, clock()
        self._seconds: dict[Spent, float] = {}

    def enter(self, section: Section) -> None:
        """Say what the process does from now on."""
        self._close()
        self._state = _OF_SECTION[section]

    def waited(self, seconds: float) -> None:
        """Say that so much of the time just spent was waiting for data."""
        self._close()
        taken = min(seconds, self._seconds.get(self._state, 0.0))
        self._seconds[self._state] = self._seconds.get(self._state, 0.0) - taken
        self._seconds[Spent.DATA_WAIT] = self._seconds.get(Spent.DATA_WAIT, 0.0) + taken

    def seconds(self) -> dict[str, float]:
        """Return all of it by state, as of now."""
        self._close()
        return {str(state): value for state, value in self._seconds.items()}

    def _close(self) -> None:
        now = self._clock()
        self._seconds[self._state] = self._seconds.get(self._state, 0.0) + now - self._since
        self._since = now
