"""What the operator knows of runs' Jobs and pods between two reads: what a list said, kept up by watches and answers.

A list of one run's pods costs the API server a look at every pod of the namespace: the more runs, the more for each. A
pass that only looks takes what is known here; one that acts reads first (`policies.certainty`).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from skywork_operator.world import Key

T = TypeVar("T")


@dataclass
class _Known(Generic[T]):
    objects: dict[str, tuple[int, T]] = field(default_factory=dict)
    """By UID, with the version of each."""
    told: set[str] = field(default_factory=set)
    """UIDs of objects told of since the newest list began: it may show them as they were before."""
    gone: set[str] = field(default_factory=set)
    """UIDs of objects deleted since then: it may show them still."""
    listed: float | None = None
    """When the newest list began."""


class Mirror(Generic[T]):
    """The objects of one kind by run; only runs that were listed once are followed. `clock` counts seconds."""

    def __init__(self, parse: Callable[[Mapping[str, Any]], T], clock: Callable[[], float]) -> None:
        self._parse, self._clock = parse, clock
        self._runs: dict[Key, _Known[T]] = {}

    def known(self, key: Key, *, within_seconds: float) -> list[T] | None:
        """A run's objects; None where they were not listed within that time, so that they have to be."""
        run = self._runs.get(key)
        if run is None or run.listed is None or self._clock() - run.listed >= within_seconds:
            return None
        return [value for _, value in run.objects.values()]

    def begin(self, key: Key) -> float:
        """Say that a list begins, from when on no event may be missed; what `listed` wants to know of it."""
        run = self._runs.setdefault(key, _Known())
        run.told.clear()
        run.gone.clear()
        return self._clock()

    def listed(self, key: Key, bodies: Sequence[Mapping[str, Any]], *, version: int, began: float) -> list[T]:
        """Take over a list of that resource version; what an event told in the meantime is newer and stays."""
        run = self._runs.setdefault(key, _Known())
        # All else goes, whatever its version: a server restored from a backup counts from where that was made.
        kept = {uid: entry for uid in run.told if (entry := run.objects.get(uid)) is not None and entry[0] > version}
        for body in bodies:
            uid = body["metadata"]["uid"]
            if uid not in kept and uid not in run.gone:
                kept[uid] = int(body["metadata"]["resourceVersion"]), self._parse(body)
        run.objects, run.listed = kept, began
        return [value for _, value in kept.values()]

    def hear(self, key: Key, body: Mapping[str, Any], *, gone: bool = False) -> None:
        """Take over an object, out of an event or the answer to a write; an older one than is known is passed over."""
        run = self._runs.get(key)
        if run is None:
            return
        uid, version = body["metadata"]["uid"], int(body["metadata"]["resourceVersion"])
        before = run.objects.get(uid)
        run.told.add(uid)
        if gone:
            run.objects.pop(uid, None)
            run.gone.add(uid)
        elif uid not in run.gone and (before is None or before[0] < version):
            run.objects[uid] = version, self._parse(body)

    def forget(self, key: Key) -> None:
        """Know nothing of a run any more: it is gone, or what is known of it has proved wrong."""
        self._runs.pop(key, None)
