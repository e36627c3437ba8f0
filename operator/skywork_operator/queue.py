"""A work queue with client-go's semantics: each key is worked on by one worker at a time, and never forgotten.

A key added while it is worked on is worked on once more afterwards; adding it twice is adding it once.
"""

import asyncio
import random
from collections import deque
from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)

RETRY_FIRST_SECONDS = 0.1
RETRY_LIMIT_SECONDS = 60.0
_LEAST_JITTER = 0.8
_MOST_PASSED = 10_000
_LONGEST_PACE_SECONDS = 60.0


class WorkQueue(Generic[K]):
    """Keys to reconcile; all methods must be called from one event loop."""

    def __init__(self, clock: Callable[[], float], *, waited: Callable[[float], None] = lambda seconds: None) -> None:
        self._clock = clock
        self._waited = waited
        """Told how long each key has waited for its worker."""
        self._ready: deque[K] = deque()
        self._dirty: dict[K, float] = {}
        self._processing: dict[K, float] = {}
        self._timers: dict[K, asyncio.TimerHandle] = {}
        self._failures: dict[K, tuple[int, float]] = {}
        """Failures in a row, and when the pause after the last of them is over."""
        self._passed: dict[K, float] = {}
        """When the last pass over a key ended."""
        self._wakeup = asyncio.Event()
        self.adds_total = 0
        self.retries_total = 0

    def add(self, key: K) -> None:
        """Ask for a pass over `key`, now or as soon as the pass in progress has ended."""
        timer = self._timers.pop(key, None)
        if timer is not None:
            timer.cancel()
        if key in self._dirty:
            return
        self.adds_total += 1
        self._dirty[key] = self._clock()
        if key not in self._processing:
            self._push(key)

    def add_paced(self, key: K, pace_seconds: float) -> None:
        """Ask for a pass, at once unless the last one is not yet that long ago: a burst becomes one pass."""
        over = self._passed.get(key)
        ago = 0.0 if key in self._processing else pace_seconds if over is None else self._clock() - over
        if ago >= pace_seconds:
            self.add(key)
        else:
            self.add_after(key, pace_seconds - ago)

    def add_after(self, key: K, seconds: float) -> None:
        """Ask for a pass in `seconds`, unless one is due earlier."""
        loop = asyncio.get_running_loop()
        due = loop.time() + seconds
        waiting = self._timers.get(key)
        if waiting is not None:
            if waiting.when() <= due:
                return
            waiting.cancel()
        self._timers[key] = loop.call_at(due, self.add, key)

    def retry(self, key: K) -> float:
        """Ask for another pass after a failed one, later after each failure in a row; returns the pause in seconds.

        Passes that events ask for while a pause lasts do not lengthen the next: ten in one second of an outage would
        otherwise have the run wait a minute after it.
        """
        now = self._clock()
        failures, over = self._failures.get(key, (0, now))
        if now >= over:
            failures += 1
        pause = min(RETRY_FIRST_SECONDS * 2.0 ** (failures - 1), RETRY_LIMIT_SECONDS)
        if now >= over:
            self._failures[key] = failures, now + _LEAST_JITTER * pause
        self.retries_total += 1
        pause *= random.uniform(_LEAST_JITTER, 1.2)
        self.add_after(key, pause)
        return pause

    def succeeded(self, key: K) -> None:
        """Start the pauses between failures from the beginning."""
        self._failures.pop(key, None)

    async def get(self) -> K:
        """Next key to work on; `done` must follow."""
        while not self._ready:
            self._wakeup.clear()
            await self._wakeup.wait()
        key = self._ready.popleft()
        now = self._clock()
        self._waited(now - self._dirty.pop(key))
        self._processing[key] = now
        return key

    def done(self, key: K) -> None:
        """End the pass over `key`."""
        del self._processing[key]
        self._passed[key] = now = self._clock()
        if len(self._passed) > _MOST_PASSED:
            self._passed = {known: over for known, over in self._passed.items() if now - over < _LONGEST_PACE_SECONDS}
        if key in self._dirty:
            self._push(key)

    def __len__(self) -> int:
        return len(self._ready)

    def oldest_wait_seconds(self) -> float:
        """Age of the key that has waited longest for a worker; 0 when none waits."""
        return self._clock() - min((self._dirty[key] for key in self._ready), default=self._clock())

    def longest_pass_seconds(self) -> float:
        """Age of the pass that has run longest; 0 when none runs."""
        return self._clock() - min(self._processing.values(), default=self._clock())

    def _push(self, key: K) -> None:
        self._ready.append(key)
        self._wakeup.set()


async def work(
    queue: WorkQueue[K],
    reconcile: Callable[[K], Awaitable[float | None]],
    *,
    failed: Callable[[K, Exception, float], None],
    pass_limit_seconds: float,
) -> None:
    """Work on keys for ever; `reconcile` returns the seconds until the next pass over its key, or None."""
    while True:
        key = await queue.get()
        try:
            async with asyncio.timeout(pass_limit_seconds):
                again = await reconcile(key)
        except Exception as error:
            failed(key, error, queue.retry(key))
        else:
            queue.succeeded(key)
            if again is not None:
                queue.add_after(key, again)
        finally:
            queue.done(key)
