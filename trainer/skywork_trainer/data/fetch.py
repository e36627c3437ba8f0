"""One part of a shard out of the store: asked for again when it is slow, failing or wrong; never wrong bytes.

The first request gets a head start. If no answer has come by then a second one races it, for a connection that hangs
costs more than a request. Answers are taken only when their SHA-256 is the index's.
"""

import hashlib
import logging
import queue
import random
import statistics
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from skywork_trainer.data.errors import DataError
from skywork_trainer.storage import StorageError, Store

_log = logging.getLogger(__name__)


class Part(NamedTuple):
    """Bytes [start, start + length) of a file below a store, and their SHA-256 in hexadecimal."""

    file: str
    start: int
    length: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Policy:
    """When to ask again, and when to give up."""

    hedge_seconds: float = 2.0
    """Least head start of a request before another races it; three times the usual duration if that is more."""
    racing: int = 3
    """Requests that may be under way at once for one part."""
    corrupt_attempts: int = 3
    """Wrong answers after which the object itself is taken to be wrong."""
    backoff_seconds: float = 0.2
    backoff_cap_seconds: float = 10.0
    deadline_seconds: float = 300.0

    def pause_seconds(self, failures: int, chance: float) -> float:
        """Return how long to wait after so many failures: exponential, with full jitter by `chance` in [0, 1)."""
        return chance * min(self.backoff_cap_seconds, self.backoff_seconds * 2.0 ** min(failures, 20))


DEFAULT_POLICY = Policy()


@dataclass
class Tally:
    """What fetching took, over this process's life."""

    parts: int = 0
    bytes: int = 0
    hedged: int = 0
    retried: int = 0
    corrupt: int = 0
    seconds: deque[float] = field(default_factory=lambda: deque(maxlen=32))


tally = Tally()


def head_start_seconds(policy: Policy, recent_seconds: "deque[float] | list[float]") -> float:
    """Return how long a request may take before another races it."""
    return max(policy.hedge_seconds, 3 * statistics.median(recent_seconds) if recent_seconds else 0.0)


def fetch(
    store: Store,
    part: Part,
    policy: Policy = DEFAULT_POLICY,
    *,
    now: Callable[[], float] = time.monotonic,
    chance: Callable[[], float] = random.random,
) -> bytes:
    """Return the part's bytes, verified.

    DataError ShardCorrupt when the store keeps answering something else; StorageError when it refuses, or cannot be
    reached until the deadline.
    """
    return _Race(store, part, policy, now, chance).run()


class _Race:
    """The requests for one part."""

    def __init__(
        self, store: Store, part: Part, policy: Policy, now: Callable[[], float], chance: Callable[[], float]
    ) -> None:
        # Its own retries would multiply with these, and hold up the answer that one is wanted for.
        self._store, self._part, self._policy = store.without_retries(), part, policy
        self._now, self._chance = now, chance
        self._answers: queue.SimpleQueue[bytes | Exception] = queue.SimpleQueue()
        self._under_way = 0
        self._failures = 0
        self._corrupt = 0
        self._last_error: Exception | None = None

    def run(self) -> bytes:
        begun = self._now()
        deadline = begun + self._policy.deadline_seconds
        next_request = begun
        while (now := self._now()) < deadline:
            if now >= next_request and self._under_way < self._policy.racing:
                tally.hedged += self._under_way > 0
                self._request()
                next_request = now + head_start_seconds(self._policy, tally.seconds)
            full = self._under_way >= self._policy.racing
            try:
                answer = self._answers.get(
                    timeout=max((deadline if full else min(next_request, deadline)) - now, 0.001)
                )
            except queue.Empty:
                continue
            self._under_way -= 1
            if isinstance(answer, bytes) and self._is_right(answer):
                tally.parts, tally.bytes = tally.parts + 1, tally.bytes + len(answer)
                tally.seconds.append(self._now() - begun)
                return answer
            next_request = self._now() + self._after_failure(answer)
        raise StorageError(
            getattr(self._last_error, "reason", "StorageUnreachable"),
            f"{self._where()} could not be read within {self._policy.deadline_seconds:.0f} s after "
            f"{self._failures} failed requests; the last: {self._last_error or 'no answer'}",
            retryable=True,
        )

    def _request(self) -> None:
        # Not a pool: a request that hangs must neither hold up the next one nor the end of the process.
        threading.Thread(target=self._ask, name="fetch", daemon=True).start()
        self._under_way += 1

    def _ask(self) -> None:
        try:
            self._answers.put(self._store.get_range(self._part.file, self._part.start, self._part.length))
        except Exception as error:
            self._answers.put(error)

    def _is_right(self, content: bytes) -> bool:
        return hashlib.sha256(content).hexdigest() == self._part.sha256

    def _after_failure(self, answer: bytes | Exception) -> float:
        """Count a failed request; return the pause before the next one, or raise what no request can mend."""
        self._failures += 1
        tally.retried += 1
        if isinstance(answer, bytes):
            self._corrupt += 1
            tally.corrupt += 1
            found = hashlib.sha256(answer).hexdigest()
            _log.warning("%s: wrong content, %d bytes, sha256 %s", self._where(), len(answer), found)
            if self._corrupt >= self._policy.corrupt_attempts:
                raise DataError(
                    "ShardCorrupt",
                    f"{self._where()}: sha256 is {found}, the index says {self._part.sha256}: the object was damaged "
                    "or replaced: restore it, or prepare the source again",
                )
        elif isinstance(answer, StorageError) and answer.retryable:
            self._last_error = answer
            _log.info("%s: %s", self._where(), answer.message)
        else:
            raise answer
        return self._policy.pause_seconds(self._failures, self._chance())

    def _where(self) -> str:
        first, last = self._part.start, self._part.start + self._part.length - 1
        return f"{self._store.uri}/{self._part.file} bytes {first}-{last}"
