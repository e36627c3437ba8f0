"""Fetching ahead: what coming steps read is on the node's disk before they ask, within a budget of steps and bytes."""

import logging
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

from skywork_trainer.data.errors import DataError
from skywork_trainer.data.fetch import Part
from skywork_trainer.storage import StorageError

_FETCHERS = 4
_log = logging.getLogger(__name__)


class LookAhead:
    """Walks ahead of the training step in a thread of its own and fetches each part that it meets for the first time.

    `parts_of(step)` are the parts this rank reads for a step; `fetch(part)` puts one on the node's disk.
    """

    def __init__(
        self,
        parts_of: Callable[[int], Iterable[tuple[Part, Callable[[], None]]]],
        *,
        steps: int = 16,
        max_bytes: int = 1 << 28,
    ) -> None:
        self._parts_of, self._steps, self._max_bytes = parts_of, steps, max_bytes
        self._changed = threading.Condition()
        self._step = -1
        self._next = 0
        self._closed = False
        self._bytes_of_step: dict[int, int] = {}
        self._asked: dict[str, int] = {}
        self._pool = ThreadPoolExecutor(_FETCHERS, thread_name_prefix="fetch-ahead")
        self._walker: threading.Thread | None = None

    def advance(self, step: int) -> None:
        """Say that `step` is about to be read; those before it need nothing any more."""
        with self._changed:
            self._step = step
            self._next = max(self._next, step)
            for past in [known for known in self._bytes_of_step if known < step]:
                del self._bytes_of_step[past]
            for digest in [digest for digest, last in self._asked.items() if last < step]:
                del self._asked[digest]
            if self._walker is None:
                self._walker = threading.Thread(target=self._walk, name="look-ahead", daemon=True)
                self._walker.start()
            self._changed.notify_all()

    def close(self) -> None:
        """Fetch nothing more."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._pool.shutdown(wait=False, cancel_futures=True)
        if self._walker is not None:
            self._walker.join()

    def _walk(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closed or self._may_go_on())
                if self._closed:
                    return
                step = self._next
                self._next += 1
            try:
                self._submit(step)
            except (IndexError, KeyError):
                return  # beyond the run's end
            except (DataError, StorageError, OSError) as error:
                # Whatever fails here fails again, in the foreground, when the sequence is read.
                _log.info("fetching ahead for step %d: %s", step, error)

    def _may_go_on(self) -> bool:
        ahead = sum(bytes for step, bytes in self._bytes_of_step.items() if step > self._step)
        # The step itself and the next one are never held back, however large they are.
        return self._next <= self._step + 1 or (self._next <= self._step + self._steps and ahead < self._max_bytes)

    def _submit(self, step: int) -> None:
        for part, fetch in self._parts_of(step):
            with self._changed:
                if self._closed:
                    return
                known = part.sha256 in self._asked
                self._asked[part.sha256] = max(step, self._asked.get(part.sha256, 0))
                if known:
                    continue
                self._bytes_of_step[step] = self._bytes_of_step.get(step, 0) + part.length
            with suppress(RuntimeError):  # closed meanwhile
                self._pool.submit(_quietly, fetch)


def _quietly(fetch: Callable[[], None]) -> None:
    with suppress(DataError, StorageError, OSError):
        fetch()
