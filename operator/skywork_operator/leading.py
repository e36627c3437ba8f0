"""Which of several operators acts: the one that holds a Lease, and only while it is sure to hold it.

The rules are client-go's: others wait until a holder has not renewed for the Lease's duration, by their own clocks, and
a holder stops acting well before that. A call to the API server that hangs therefore costs the lead, never two leaders.
"""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Protocol

from skywork_operator.cluster import ApiError

LEASE_SECONDS = 15.0
RENEW_WITHIN_SECONDS = 10.0
RETRY_SECONDS = 2.0
_log = logging.getLogger(__name__)


class Leases(Protocol):
    """Where the Lease is kept."""

    async def get_lease(self, namespace: str, name: str) -> dict[str, Any] | None:
        """The Lease, or None while there is none."""

    async def put_lease(self, namespace: str, name: str, lease: dict[str, Any]) -> dict[str, Any]:
        """Create it, or replace it as it was read; ApiError 409 when another was faster."""


@dataclass(frozen=True, kw_only=True)
class Seen:
    """The newest Lease that was read, and since when, by the own clock, it has looked like that."""

    spec: dict[str, Any]
    since: float


def may_take(lease: dict[str, Any] | None, seen: Seen | None, *, identity: str, now: float) -> bool:
    """Whether `identity` may write itself into the Lease: it is free, its own, or has not been renewed for too long."""
    spec = (lease or {}).get("spec") or {}
    holder = spec.get("holderIdentity")
    if not holder or holder == identity:
        return True
    duration = float(spec.get("leaseDurationSeconds") or LEASE_SECONDS)
    return seen is not None and seen.spec == spec and now - seen.since > duration


class Election:
    """One candidate; `leads()` says whether it may act at this moment."""

    def __init__(
        self,
        leases: Leases,
        *,
        namespace: str,
        name: str,
        identity: str,
        clock: Callable[[], float],
        wall: Callable[[], float],
        retry_seconds: float = RETRY_SECONDS,
    ) -> None:
        self._leases, self._namespace, self._name, self._identity = leases, namespace, name, identity
        self._clock, self._wall, self._retry = clock, wall, retry_seconds
        self._seen: Seen | None = None
        self._renewed: float | None = None

    def leads(self) -> bool:
        """Whether the Lease was renewed recently enough that nobody else can have taken it."""
        return self._renewed is not None and self._clock() - self._renewed < RENEW_WITHIN_SECONDS

    async def win(self) -> None:
        """Return once this candidate leads."""
        while not await self.attempt():  # noqa: ASYNC110 - there is nobody who could set an event
            await asyncio.sleep(self._retry)
        _log.info("%s leads now", self._identity)

    async def hold(self) -> None:
        """Renew until that has failed for too long; return then, when `leads()` is false already."""
        while self.leads():
            await asyncio.sleep(self._retry)
            await self.attempt()
        _log.error("%s could not renew the Lease %s for %.0f s", self._identity, self._name, RENEW_WITHIN_SECONDS)

    async def release(self) -> None:
        """Let go of the Lease, so that nobody has to wait until it expires."""
        if not self.leads():
            return
        self._renewed = None
        lease = await self._leases.get_lease(self._namespace, self._name)
        if lease is not None and lease["spec"].get("holderIdentity") == self._identity:
            lease["spec"] |= {"holderIdentity": "", "leaseDurationSeconds": 1}
            await self._leases.put_lease(self._namespace, self._name, lease)

    async def attempt(self) -> bool:
        """Take or renew the Lease once; whether it is this candidate's now."""
        # Before the calls: the Lease was certainly ours at this moment, whenever the answer comes.
        asked = self._clock()
        try:
            async with asyncio.timeout(RENEW_WITHIN_SECONDS / 2):
                lease = await self._leases.get_lease(self._namespace, self._name)
                self._look(lease)
                if not may_take(lease, self._seen, identity=self._identity, now=self._clock()):
                    return False
                await self._leases.put_lease(self._namespace, self._name, self._claim(lease))
        except (ApiError, OSError, TimeoutError) as error:
            _log.warning("the Lease %s could not be renewed: %s", self._name, error or type(error).__name__)
            return False
        self._renewed = asked
        return True

    def _look(self, lease: dict[str, Any] | None) -> None:
        spec = (lease or {}).get("spec") or {}
        if self._seen is None or self._seen.spec != spec:
            self._seen = Seen(spec=dict(spec), since=self._clock())

    def _claim(self, lease: dict[str, Any] | None) -> dict[str, Any]:
        before = (lease or {}).get("spec") or {}
        now = datetime.fromtimestamp(self._wall(), UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        own = before.get("holderIdentity") == self._identity
        return {
            "metadata": (lease or {}).get("metadata") or {},
            "spec": {
                "holderIdentity": self._identity,
                "leaseDurationSeconds": int(LEASE_SECONDS),
                "acquireTime": before["acquireTime"] if own and "acquireTime" in before else now,
                "renewTime": now,
                "leaseTransitions": int(before.get("leaseTransitions") or 0) + (not own),
            },
        }
