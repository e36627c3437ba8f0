"""Many small objects, read in order and ahead of the reader: a long run has thousands, each a round trip away."""

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, Future

from skywork_trainer.storage import StorageError, Store

MOST_AHEAD = 64


def read_ahead(store: Store, keys: Sequence[str], pool: Executor) -> Iterator[tuple[str, bytes | None]]:
    """Yield every key with its content, in the order given; None for an object that is gone.

    The first is read alone, then ever more at once: whoever stops after a few has cost little.
    """
    waiting: deque[tuple[str, Future[bytes | None]]] = deque()
    depth, following = 1, iter(keys)
    while True:
        while len(waiting) < depth and (key := next(following, None)) is not None:
            waiting.append((key, pool.submit(_content, store, key)))
        if not waiting:
            return
        key, future = waiting.popleft()
        yield key, future.result()
        depth = min(2 * depth, MOST_AHEAD)


def _content(store: Store, key: str) -> bytes | None:
    try:
        return store.get(key)
    except StorageError as error:
        if error.reason != "NotFound":
            raise
        return None
