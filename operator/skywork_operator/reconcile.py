"""One pass over one run: observe, decide, act."""

import logging
import time
from collections.abc import Mapping
from typing import Any

from skywork_operator.act import act
from skywork_operator.api.status import SkyworkRunStatus
from skywork_operator.cluster import ApiError, Cluster, NotLeading
from skywork_operator.decide import decide
from skywork_operator.listening import Listener
from skywork_operator.metrics import PassMetrics
from skywork_operator.observe import Observer
from skywork_operator.parsing import parse_run
from skywork_operator.policies import certainty
from skywork_operator.render import Defaults
from skywork_operator.world import Key, Node

LOOK_SECONDS_PER_RUN = 0.05
"""Twenty runs a second are looked at for no other reason than that time has passed."""
TRUST_SECONDS = 5.0
"""How long a pass may go by what watches told since the last list: they may have fallen silent."""
LATE_SECONDS = 2.0
"""Pods that are not made by then are late."""
_log = logging.getLogger(__name__)


class Reconciler:
    """Makes passes; holds the newest status of each run for the metrics, and decides on nothing it remembers."""

    def __init__(
        self,
        cluster: Cluster,
        observer: Observer,
        defaults: Defaults,
        metrics: PassMetrics,
        nodes: Mapping[str, Node] | None,
        listener: Listener,
    ) -> None:
        self._cluster = cluster
        self._observer = observer
        self._defaults = defaults
        self._metrics = metrics
        self._nodes = nodes
        self._listener = listener
        self.statuses: dict[Key, SkyworkRunStatus] = {}
        self.placed: dict[Key, frozenset[str]] = {}
        """Nodes that each run's pods are on, so that a node's event finds its runs."""

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
            self.placed.pop(key, None)
            self._listener.follow(key, ())
            self._observer.forget(key)
            return None
        run = parse_run(body)
        unhurried = len(self.statuses) * LOOK_SECONDS_PER_RUN
        patience = max(LATE_SECONDS, unhurried)
        within = max(TRUST_SECONDS, unhurried)
        sight = await self._observer.look(run, self._nodes, within_seconds=within, patience_seconds=patience)
        now = time.time()
        plan = decide(sight.world, now, self._defaults)
        if not sight.certain and certainty.wanted(run.status, plan):
            answers = sight.answers
            sight = await self._observer.look(
                run, self._nodes, within_seconds=0, patience_seconds=patience, answers=answers
            )
            now = time.time()
            plan = decide(sight.world, now, self._defaults)
        self.placed[key] = frozenset(pod.node for pod in sight.world.pods if pod.node)
        await act(self._cluster, body, plan, now)
        self._listener.follow(key, sight.world.pods)
        self.statuses[key] = plan.status
        again = plan.requeue_after_seconds
        # Many runs are looked at less often each: what must be quick comes as an event.
        return again if again is None or again < 1.0 else max(again, unhurried)

    def failed(self, key: Key, error: Exception, pause_seconds: float) -> None:
        """Log and count a pass that raised; one that met a newer version of its object is no error."""
        # Whatever was known may be what was wrong.
        self._observer.forget(key)
        conflict = isinstance(error, NotLeading) or (isinstance(error, ApiError) and error.status == 409)
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
