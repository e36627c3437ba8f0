"""The held-out domains of a run as one rank has them: opened when they are first needed, and agreed on by all.

A generation that goes on measures nothing for a while, and reading windows is time in which it could train.
"""

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict

from skywork_trainer.collectives import World
from skywork_trainer.config import DomainLoss
from skywork_trainer.data.errors import DataError
from skywork_trainer.windows import TextSizes, Windows

Opened = tuple[Sequence[Windows], Mapping[str, str]]
"""Domains that can be measured, and why others cannot, by name."""
_log = logging.getLogger(__name__)


class Domains:
    """What there is to measure."""

    def __init__(
        self,
        names: Sequence[str],
        *,
        world: World,
        opened: Callable[[], Opened] = lambda: ((), {}),
        sizes: Callable[[Windows], TextSizes] = lambda windows: TextSizes(),
    ) -> None:
        """`names` are those of the configuration; `sizes` says what text a domain is, and is asked on rank 0 only."""
        self.names = tuple(names)
        self._world, self._open, self._sizes = world, opened, sizes
        self._windows: tuple[Windows, ...] | None = None
        self._broken: dict[str, str] = {}

    @property
    def broken(self) -> Mapping[str, str]:
        """Why domains cannot be measured, by name, as far as is known."""
        return self._broken

    def windows(self, *, may_do_without: bool = True) -> tuple[Windows, ...]:
        """Return the domains that every rank can read. Collective when it is first called.

        Raises DataError, on all ranks, for one that cannot be read, unless the run may do without: one that has not
        begun must have all.
        """
        if self._windows is None:
            windows, broken = self._open() if self.names else ((), {})
            for told in self._world.gather_bytes(json.dumps(dict(broken)).encode()):
                self._broken |= json.loads(told)
            for domain, why in self._broken.items():
                if not may_do_without:
                    reason, _, message = why.partition(": ")
                    raise DataError(reason, message)
                _log.error("validation domain %s cannot be measured, training goes on without: %s", domain, why)
            self._windows = tuple(one for one in windows if one.domain not in self._broken)
        return self._windows

    def with_sizes(self, measured: Sequence[DomainLoss]) -> tuple[DomainLoss, ...]:
        """Return the losses with what text each is of, on rank 0; as they are on the others."""
        if self._world.rank or self._windows is None:
            return tuple(measured)
        sizes = {one.domain: self._sizes(one) for one in self._windows}
        return tuple(loss.model_copy(update=asdict(sizes[loss.domain])) for loss in measured)
