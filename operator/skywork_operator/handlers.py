"""The operator as Kopf runs it: watch events become keys of the work queue, and nothing else is decided here."""

import asyncio
import logging
import os
import random
import socket
import time
import uuid
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import aiohttp
import kopf
from prometheus_client import CollectorRegistry

from skywork_operator.api import GROUP, PLURAL, VERSION
from skywork_operator.cluster import Cluster
from skywork_operator.forgetful import NoDifferences, NoProgress
from skywork_operator.leading import Election
from skywork_operator.listening import Listener
from skywork_operator.metrics import OperatorCollector, PassMetrics, queue_seconds
from skywork_operator.observe import Observer
from skywork_operator.parsing import parse_node
from skywork_operator.queue import WorkQueue, work
from skywork_operator.reconcile import Reconciler
from skywork_operator.render import MANAGED_LABEL, MANAGER, RUN_LABEL, Defaults
from skywork_operator.world import Key, Node

WORKERS = 8
"""Passes side by side: a pass mostly waits for the API server and for agents."""
AGENT_CONNECTIONS = 256
PASS_LIMIT_SECONDS = 60.0
PACE_SECONDS = 0.25
"""Least time between passes over a run for its pods' and Jobs' sake: a pod that comes up tells of it a dozen times."""
PACE_SECONDS_PER_RUN = 0.01
"""With many runs the API server has better things to do. Agents and nodes are heard at once all the same."""
LONGEST_PACE_SECONDS = 2.0
RESYNC_SECONDS = 300.0
HEARTBEAT_SECONDS = 20.0
STALLED_QUEUE_SECONDS = 90.0
STALLED_WATCH_SECONDS = 90.0
_SELECTOR = f"{MANAGED_LABEL}={MANAGER}"
_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
_log = logging.getLogger(__name__)


class Operator:
    """Wires Kopf's events to the queue and the queue to the reconciler; `stop` is set when it must end."""

    def __init__(
        self,
        defaults: Defaults,
        namespaces: Sequence[str],
        *,
        elect: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.stop = asyncio.Event()
        self.broken = False
        """Whether one of the operator's own tasks has died, or the lead was lost."""
        self.works = not elect
        """Whether runs are worked on: not before this operator leads."""
        self.registry = CollectorRegistry()
        self.queue: WorkQueue[Key] = WorkQueue(clock, waited=queue_seconds(self.registry).observe)
        self._clock = clock
        self._defaults = defaults
        self._namespaces = list(namespaces)
        self._own_namespace = os.environ.get("POD_NAMESPACE", "default")
        # Namespaced, the watches see no other namespace than those, so our heartbeat has to be in one of them.
        self._heartbeat_namespace = self._namespaces[0] if self._namespaces else self._own_namespace
        self._elect = elect
        self._nodes: dict[str, Node] | None = None if self._namespaces else {}
        self.observer: Observer | None = None
        """Told of what the watches bring, once there is one."""
        self._reconciler: Reconciler | None = None
        self._heard = self._clock()
        self._tasks: list[asyncio.Task[Any]] = []
        self._closing: list[Callable[[], Awaitable[None]]] = []

    def kopf_registry(self) -> kopf.OperatorRegistry:
        """Handlers of one operator, apart from Kopf's global registry."""
        registry = kopf.OperatorRegistry()
        kopf.on.startup(registry=registry)(self.startup)
        kopf.on.cleanup(registry=registry)(self.cleanup)
        kopf.on.login(registry=registry)(_login)
        kopf.on.probe(registry=registry, id="alive")(self.probe)
        kopf.on.event(GROUP, VERSION, PLURAL, registry=registry)(self.run_event)
        kopf.on.event("batch", "v1", "jobs", registry=registry)(self.child_event)
        kopf.on.event("", "v1", "pods", registry=registry)(self.child_event)
        if self._nodes is not None:
            kopf.on.event("", "v1", "nodes", registry=registry)(self.node_event)
        kopf.on.event("coordination.k8s.io", "v1", "leases", registry=registry)(self.heartbeat_event)
        return registry

    def settings(self) -> kopf.OperatorSettings:
        """Kopf's settings: watch only our own Jobs and pods, and never give up on the API server."""
        settings = kopf.OperatorSettings()
        settings.watching.label_selectors["batch", "v1", "jobs"] = _SELECTOR
        settings.watching.label_selectors["", "v1", "pods"] = _SELECTOR
        settings.watching.label_selectors["coordination.k8s.io", "v1", "leases"] = _SELECTOR
        settings.networking.request_timeout = 30
        settings.networking.connect_timeout = 10
        settings.networking.error_backoffs = _Backoffs()
        settings.posting.enabled = False
        # Without it Kopf watches CRDs and namespaces, which a namespaced operator may not read.
        settings.scanning.disabled = True
        settings.persistence.finalizer = f"{GROUP}/unused"
        settings.persistence.progress_storage = NoProgress()
        settings.persistence.diffbase_storage = NoDifferences()
        return settings

    async def startup(self, **_: Any) -> None:
        """Connect, then start the queue's workers and the resync; with elections, once this operator leads."""
        cluster = await Cluster.connect()
        agents = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=AGENT_CONNECTIONS))
        # Questions that are held open shall not take the connections of those that are answered at once.
        held = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0, force_close=True))
        listener = Listener(held, self.queue.add)
        self._closing = [listener.close, agents.close, lambda: cluster.__aexit__(None)]
        if self._nodes is not None:
            self._nodes |= {body["metadata"]["name"]: parse_node(body) for body in await cluster.list_nodes()}
        self.observer = observer = Observer(cluster, agents, self._clock)
        reconciler = Reconciler(cluster, observer, self._defaults, PassMetrics(self.registry), self._nodes, listener)
        self._reconciler = reconciler
        self.registry.register(
            OperatorCollector(
                self.queue,
                reconciler.statuses,
                watch_age_seconds=self._watch_age_seconds,
                leads=lambda: self.works and not self.broken,
                wall=time.time,
            )
        )
        self._start(self._beat(cluster))
        if self._elect:
            self._start(self._lead(cluster, reconciler))
        else:
            self._work(cluster, reconciler)

    def _work(self, cluster: Cluster, reconciler: Reconciler) -> None:
        self.works = True
        for _index in range(WORKERS):
            self._start(
                work(self.queue, reconciler.reconcile, failed=reconciler.failed, pass_limit_seconds=PASS_LIMIT_SECONDS)
            )
        self._start(self._resync(cluster))

    async def _lead(self, cluster: Cluster, reconciler: Reconciler) -> None:
        """Wait for the lead, work, and end the process when it is lost: what a pass knows may be another's past."""
        election = Election(
            cluster,
            namespace=self._own_namespace,
            name=f"{MANAGER}-leader",
            identity=f"{socket.gethostname()}-{uuid.uuid4().hex[:8]}",
            clock=time.monotonic,
            wall=time.time,
        )
        cluster.may_write = election.leads
        await election.win()
        self._closing.insert(0, election.release)
        self._work(cluster, reconciler)
        await election.hold()
        self.broken = True
        self.stop.set()

    async def cleanup(self, **_: Any) -> None:
        """Stop the workers; a pass cut short is repeated by the next operator."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for close in self._closing:
            await close()

    async def run_event(self, name: str, namespace: str | None, **_: Any) -> None:
        """A run was seen, changed or deleted."""
        self._heard = self._clock()
        self.queue.add((namespace or "", name))

    async def child_event(
        self, type: str | None, event: Mapping[str, Any], labels: Mapping[str, str], namespace: str | None, **_: Any
    ) -> None:
        """A Job or pod of a run changed."""
        self._heard = self._clock()
        if RUN_LABEL in labels:
            runs = len(self._reconciler.statuses) if self._reconciler is not None else 0
            self.queue.add_paced((namespace or "", labels[RUN_LABEL]), pace_seconds(runs))
        if self.observer is not None:
            self.observer.hear(event["object"], gone=type == "DELETED")

    async def node_event(self, type: str | None, body: Mapping[str, Any], name: str, **_: Any) -> None:
        """A node changed: its runs are looked at when that is about its health or its place."""
        self._heard = self._clock()
        before = (self._nodes or {}).get(name)
        after = None if type == "DELETED" else parse_node(dict(body))
        if self._nodes is None or before == after:
            return
        if after is None:
            self._nodes.pop(name, None)
        else:
            self._nodes[name] = after
        if self._reconciler is not None:
            for key, placed in self._reconciler.placed.items():
                if name in placed:
                    self.queue.add(key)

    async def heartbeat_event(self, **_: Any) -> None:
        """Our own Lease came back through a watch: the watches are alive."""
        self._heard = self._clock()

    async def probe(self, **_: Any) -> str:
        """Liveness: red when the queue stalls, or when the watch does not even bring back our own heartbeat."""
        waiting, passing = self.queue.oldest_wait_seconds(), self.queue.longest_pass_seconds()
        if self.works and max(waiting, passing) > STALLED_QUEUE_SECONDS:
            # PermanentError: Kopf retries any other exception inside the probe's request, which then hangs.
            raise kopf.PermanentError(
                f"the work queue stalls: a run waits {waiting:.0f} s, a pass takes {passing:.0f} s"
            )
        if self._watch_age_seconds() > STALLED_WATCH_SECONDS:
            raise kopf.PermanentError(f"no watch event for {self._watch_age_seconds():.0f} s")
        return "ok"

    def _watch_age_seconds(self) -> float:
        return self._clock() - self._heard

    def _start(self, coroutine: Any) -> None:
        task = asyncio.create_task(coroutine)
        task.add_done_callback(self._ended)
        self._tasks.append(task)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        # Kopf does not notice our tasks: without this a dead worker would leave an operator that only watches.
        if not task.cancelled():
            _log.critical("a task of the operator ended", exc_info=task.exception())
            self.broken = True
            self.stop.set()

    async def _resync(self, cluster: Cluster) -> None:
        """Look at every run now and then: a deletion that fell into a gap of the watch is noticed here."""
        while True:
            try:
                watched: list[str | None] = [*self._namespaces] or [None]
                for namespace in watched:
                    for key in await cluster.list_runs(namespace):
                        self.queue.add(key)
                if self._nodes is not None:
                    fresh = {body["metadata"]["name"]: parse_node(body) for body in await cluster.list_nodes()}
                    self._nodes.clear()
                    self._nodes |= fresh
            except Exception as error:
                _log.warning("resync failed: %s", error)
            await asyncio.sleep(RESYNC_SECONDS * random.uniform(0.8, 1.2))

    async def _beat(self, cluster: Cluster) -> None:
        """Write a Lease that our own watch must bring back: on a quiet cluster silence alone would prove nothing."""
        while True:
            try:
                await cluster.renew_heartbeat(self._heartbeat_namespace, time.time())
            except Exception as error:
                _log.warning("heartbeat failed: %s", error)
            await asyncio.sleep(HEARTBEAT_SECONDS)


def pace_seconds(runs: int) -> float:
    """Least time between passes over one of so many runs for its pods' and Jobs' sake."""
    return min(max(PACE_SECONDS, runs * PACE_SECONDS_PER_RUN), LONGEST_PACE_SECONDS)


class _Backoffs:
    """Pauses between attempts to reach the API server: growing to a minute, for ever."""

    def __iter__(self) -> Iterator[float]:
        return (min(2.0 ** min(n, 6), 60.0) * random.uniform(0.8, 1.2) for n in count())


def _login(**kwargs: Any) -> kopf.ConnectionInfo | None:
    # Kopf's own in-cluster login asks DNS for the API server, which a cluster need not have; its address is given.
    host, port = os.environ.get("KUBERNETES_SERVICE_HOST"), os.environ.get("KUBERNETES_SERVICE_PORT", "443")
    if host and (_ACCOUNT / "token").exists():
        return kopf.ConnectionInfo(
            server=f"https://{f'[{host}]' if ':' in host else host}:{port}",
            ca_path=str(_ACCOUNT / "ca.crt"),
            scheme="Bearer",
            token=(_ACCOUNT / "token").read_text().strip(),
        )
    return kopf.login_with_kubeconfig(**kwargs)
