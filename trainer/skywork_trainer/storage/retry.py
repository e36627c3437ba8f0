"""When a failed call is made again: a pure policy, with its clock and its dice passed in."""

import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from skywork_trainer.storage.store import StorageError

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Retry:
    """Attempts of one call, the first included, and the pauses between them."""

    attempts: int = 6
    backoff_seconds: float = 0.5
    backoff_cap_seconds: float = 20.0
    sleep: Callable[[float], None] = time.sleep
    chance: Callable[[], float] = random.random

    def pause_seconds(self, failures: int, chance: float) -> float:
        """Return the pause after so many failures: exponential, with full jitter by `chance` in [0, 1)."""
        # The exponent is bounded because a float is: 2.0 ** 1024 raises.
        return chance * min(self.backoff_cap_seconds, self.backoff_seconds * 2.0 ** min(failures - 1, 30))

    def run(self, attempt: Callable[[int], T]) -> T:
        """Return what `attempt` returns, making it again after every retryable StorageError; raise the last one.

        It is passed how many attempts have failed before: one that failed may have done its work all the same.
        """
        failures = 0
        while True:
            try:
                return attempt(failures)
            except StorageError as error:
                failures += 1
                if not error.retryable or failures >= self.attempts:
                    raise
            self.sleep(self.pause_seconds(failures, self.chance()))


def configured(environment: Mapping[str, str]) -> Retry:
    """Return the policy for this environment: AWS_MAX_ATTEMPTS attempts in all, as in every AWS SDK; Refused if wrong.

    Nothing below multiplies them: botocore's own retries are switched off, and `data.fetch`, which asks again by
    itself, uses `Store.without_retries`.
    """
    said = environment.get("AWS_MAX_ATTEMPTS", "").strip()
    if not said:
        return Retry()
    if not said.isdecimal() or int(said) < 1:
        raise StorageError("Refused", f"AWS_MAX_ATTEMPTS is {said!r}: it must be a whole number, 1 or more")
    return Retry(attempts=int(said))
