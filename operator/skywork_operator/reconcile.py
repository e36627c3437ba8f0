"""One pass over one run: observe, decide, act."""

import logging
import time
from typing import Any

import aiohttp

from skywork_operator.act import act
from skywork_operator.api.status import SkyworkRunStatus
from skywork_operator.cluster import ApiError, Cluster
from skywork_operator.decide import decide
from skywork_operator.metrics import Key, PassMetrics
from skywork_operator.observe import observe, parse_run
from skywork_operator.render import Defaults

_log = logging.getLogger(__name__)


class Reconciler:
    """Makes passes; holds connections and the newest status of each run for the metrics, and no other state."""

    def __init__(
        self, cluster: Cluster, agents: aiohttp.ClientSession, defaults: Defaults, metrics: PassMetrics
    ) -> None:
        self._cluster = cluster
        self._agents = agents
        self._defaults = defaults
        self._metrics = metrics
        self.statuses: dict[Key, SkyworkRunStatus] = {}

    async def reconcile(self, key: Key) -> float | None:
        """Pass once over the run; seconds until it wants to be looked at again, or None."""
        with self._metrics.seconds.time():
            again = await self._pass(key)
        self._metrics.passes.labels("ok").inc()
        return again

    async def _pass(self, key: Key) -> float | None:
        body = await self._cluster.get_run(*key)
        if body is None or "deletionTimestamp" in body["metadata"]:
            # Nothing to clean: Jobs and ConfigMaps are owned by the run and go with it; checkpoints stay.
            self.statuses.pop(key, None)
            return None
        run = parse_run(body)
        world = await observe(self._cluster, self._agents, run)
        now = time.time()
        plan = decide(world, now, self._defaults)
        await act(self._cluster, body, plan, now)
        self.statuses[key] = plan.status
        return plan.requeue_after_seconds

    def failed(self, key: Key, error: Exception, pause_seconds: float) -> None:
        """Log and count a pass that raised; one that met a newer version of its object is no error."""
        conflict = isinstance(error, ApiError) and error.status == 409
        self._metrics.passes.labels("conflict" if conflict else "error").inc()
        name = f"{key[0]}/{key[1]}"
        if conflict:
            _log.info("%s changed while it was looked at; again in %.1f s", name, pause_seconds)
        else:
            detail: Any = error if isinstance(error, ApiError) else None
            _log.warning(
                "pass over %s failed, again in %.1f s: %s",
                name,
                pause_seconds,
                error,
                exc_info=None if detail else error,
            )
