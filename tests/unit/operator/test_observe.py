"""What a look at a run asks of the API server and of agents, and what it takes as it is known."""

import time
from collections.abc import AsyncIterator, Mapping
from typing import Any, cast

import aiohttp
import pytest
from aiohttp import web
from skywork_operator import addresses
from skywork_operator.cluster import Cluster, Listed
from skywork_operator.observe import Observer, Sight
from skywork_operator.times import timestamp
from skywork_trainer.config import AgentPhase, AgentStatus

from tests.unit.operator.build import Clock, run


class Server:
    """An API server with one run's objects, which counts what it is asked for."""

    wrote: Any = None

    def __init__(self) -> None:
        self.jobs: list[dict[str, Any]] = []
        self.pods: list[dict[str, Any]] = []
        self.events: list[dict[str, Any]] = []
        self.asked: list[str] = []
        self.installed: set[str] = set()
        """API versions that have PodGroups."""

    async def serves(self, api_version: str, plural: str) -> bool:
        self.asked.append(api_version)
        return plural == "podgroups" and api_version in self.installed

    async def list_jobs(self, namespace: str, labels: Mapping[str, str]) -> Listed:
        self.asked.append("jobs")
        return Listed(list(self.jobs), 100)

    async def list_pods(self, namespace: str, labels: Mapping[str, str]) -> Listed:
        self.asked.append("pods")
        return Listed(list(self.pods), 100)

    async def list_events(self, namespace: str, uid: str) -> list[dict[str, Any]]:
        self.asked.append("events")
        return self.events


def job(*, age: float = 60.0) -> dict[str, Any]:
    metadata = {
        **_metadata("demo-general", "job", 1, {"skywork.dev/stage": "general"}, "run-uid"),
        "creationTimestamp": timestamp(time.time() - age),
    }
    return {"kind": "Job", "metadata": metadata, "spec": {"completions": 3, "template": {}}, "status": {}}


def pod(name: str, version: int = 2, *, phase: str = "Running", **labels: str) -> dict[str, Any]:
    metadata = _metadata(name, name, version, {"skywork.dev/stage": "general"} | labels, "job")
    status = {"phase": phase, "podIP": "127.0.0.1"} if phase == "Running" else {"phase": phase}
    return {"kind": "Pod", "metadata": metadata, "spec": {}, "status": status}


def _metadata(name: str, uid: str, version: int, labels: Mapping[str, str], owner: str) -> dict[str, Any]:
    return {
        "name": name,
        "namespace": "research",
        "uid": uid,
        "resourceVersion": str(version),
        "labels": {"skywork.dev/run": "demo", **labels},
        "ownerReferences": [{"uid": owner, "controller": True}],
    }


@pytest.fixture
def server() -> Server:
    return Server()


@pytest.fixture
async def asked() -> list[str]:
    """Questions that agents were asked."""
    return []


@pytest.fixture
async def observer(
    server: Server, clock: Clock, asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Observer]:
    async def answer(request: web.Request) -> web.Response:
        asked.append(request.path)
        return web.Response(
            text=AgentStatus(phase=AgentPhase.STANDBY).model_dump_json(), content_type="application/json"
        )

    application = web.Application()
    application.router.add_get("/status", answer)
    runner = web.AppRunner(application)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    monkeypatch.setattr(addresses, "AGENT_PORT", runner.addresses[0][1])
    async with aiohttp.ClientSession() as agents:
        yield Observer(cast(Cluster, server), agents, clock)
    await runner.cleanup()


async def look(
    observer: Observer, *, within: float = 5.0, patience: float = 2.0, gang: str = "None", **more: Any
) -> Sight:
    wanted = run(scheduling={"gang": gang})
    return await observer.look(wanted, None, within_seconds=within, patience_seconds=patience, **more)


def names(sight: Sight) -> list[str]:
    return sorted(pod.name for pod in sight.world.pods)


async def test_the_first_look_reads_everything_and_the_next_takes_what_is_known(
    observer: Observer, server: Server, asked: list[str]
) -> None:
    server.jobs, server.pods = [job()], [pod("a"), pod("b")]
    first = await look(observer)
    assert (first.certain, names(first), server.asked) == (True, ["a", "b"], ["jobs", "pods"])
    second = await look(observer)
    assert (second.certain, names(second), server.asked) == (False, ["a", "b"], ["jobs", "pods"])
    assert len(asked) == 4, "agents are asked each time"


async def test_what_watches_told_and_writes_answered_is_in_the_next_look(observer: Observer, server: Server) -> None:
    server.jobs, server.pods = [job()], [pod("a"), pod("b")]
    await look(observer)
    observer.hear(pod("a", 200), gone=True)
    server.wrote(pod("c", 201))
    assert names(await look(observer)) == ["b", "c"]


async def test_pods_that_prepare_data_and_pods_of_others_are_not_taken_for_the_stages(
    observer: Observer, server: Server
) -> None:
    server.jobs, server.pods = [job()], [pod("a")]
    await look(observer)
    preparing = pod("p", 200)
    del preparing["metadata"]["labels"]["skywork.dev/stage"]
    foreign = pod("f", 201)
    del foreign["metadata"]["labels"]["skywork.dev/run"]
    observer.hear(preparing)
    observer.hear(foreign)
    observer.hear(pod("o", 202, **{"skywork.dev/run": "other"}))
    assert names(await look(observer)) == ["a"]


async def test_a_look_that_has_to_be_certain_reads_and_does_not_ask_agents_twice(
    observer: Observer, server: Server, asked: list[str]
) -> None:
    server.jobs, server.pods = [job()], [pod("a"), pod("b")]
    await look(observer)
    known = await look(observer)
    before = len(asked)
    server.pods = [pod("a"), pod("new", 90)]
    certain = await look(observer, within=0, answers=known.answers)
    assert certain.certain
    assert names(certain) == ["a", "new"]
    assert len(asked) == before + 1, "the one that was not known"
    assert all(seen.agent is not None for seen in certain.world.pods)


async def test_an_agent_that_could_not_be_asked_yet_is_asked_by_the_look_that_has_to_be_certain(
    observer: Observer, server: Server
) -> None:
    server.jobs, server.pods = [job()], [pod("a", phase="Pending")]
    pending = await look(observer)
    server.pods = [pod("a", 90)]
    (running,) = (await look(observer, within=0, answers=pending.answers)).world.pods
    assert running.agent is not None


async def test_a_look_that_takes_anything_as_known_is_not_certain(
    observer: Observer, server: Server, clock: Clock
) -> None:
    assert (await look(observer)).certain, "there is no Job yet, so there are no pods to read"
    clock.now = 3.0
    server.jobs = [job()]
    server.wrote(job())
    second = await look(observer)
    assert not second.certain, "its Job is known from the answer to the write"
    assert list(second.world.jobs) == ["general"]
    clock.now = 5.5
    third = await look(observer)
    assert [kind for kind in server.asked if kind != "events"] == ["jobs", "pods", "jobs"]
    assert not third.certain, "its pods were read 2.5 s ago"


async def test_what_belongs_to_an_earlier_run_of_that_name_is_not_seen(observer: Observer, server: Server) -> None:
    stale, server.pods = job(), [pod("a"), pod("b")]
    server.pods[1]["metadata"]["ownerReferences"][0]["uid"] = "earlier-job"
    server.jobs = [job()]
    assert names(await look(observer)) == ["a"]
    stale["metadata"]["ownerReferences"][0]["uid"] = "earlier-run"
    server.jobs = [stale]
    assert (await look(observer, within=0)).world.jobs == {}


async def test_lists_that_are_too_old_are_read_anew(observer: Observer, server: Server, clock: Clock) -> None:
    server.jobs, server.pods = [job()], [pod("a")]
    await look(observer)
    clock.now += 5.1
    server.pods = []
    assert names(await look(observer)) == []
    assert server.asked[:4] == ["jobs", "pods", "jobs", "pods"]


async def test_a_run_that_was_forgotten_is_read_anew(observer: Observer, server: Server) -> None:
    server.jobs, server.pods = [job()], [pod("a")]
    await look(observer)
    observer.forget(("research", "demo"))
    assert (await look(observer)).certain


@pytest.mark.parametrize(("age", "asks"), [(0.0, False), (3.0, False), (9.0, True)])
async def test_why_there_are_no_pods_is_asked_once_they_are_late(
    observer: Observer, server: Server, age: float, asks: bool
) -> None:
    server.jobs = [job(age=age)]
    server.events = [{"reason": "FailedCreate", "message": "exceeded quota: gpus"}]
    seen = await look(observer, patience=6.0)
    assert ("events" in server.asked) == asks
    assert (seen.world.jobs["general"].blocked is not None) == asks


@pytest.mark.parametrize(("since", "asks"), [(1.0, False), (9.0, True)])
async def test_why_a_pod_has_no_volumes_is_asked_once_that_is_late(
    observer: Observer, server: Server, since: float, asks: bool
) -> None:
    waiting = pod("a", phase="Pending")
    scheduled = {"type": "PodScheduled", "status": "True", "lastTransitionTime": timestamp(time.time() - since)}
    creating = {"name": "trainer", "state": {"waiting": {"reason": "ContainerCreating"}}}
    waiting["status"] |= {"conditions": [scheduled], "containerStatuses": [creating]}
    server.jobs, server.pods = [job()], [waiting]
    server.events = [{"reason": "FailedMount", "message": 'secret "s3" not found'}]
    seen = await look(observer, patience=6.0)
    assert ("events" in server.asked) == asks
    assert (seen.world.jobs["general"].blocked is not None) == asks


# -- PodGroups -------------------------------------------------------------------------------------------------------

BETA, ALPHA, VOLCANO = "scheduling.k8s.io/v1beta1", "scheduling.k8s.io/v1alpha2", "scheduling.volcano.sh/v1beta1"


@pytest.mark.parametrize(
    ("gang", "installed", "found"),
    [
        ("Auto", {BETA, ALPHA, VOLCANO}, BETA),
        ("Auto", {ALPHA}, ALPHA),
        ("Auto", {VOLCANO}, None),
        ("Volcano", {BETA, VOLCANO}, VOLCANO),
        ("Volcano", {BETA}, None),
        ("None", {BETA, VOLCANO}, None),
    ],
)
async def test_pod_groups_are_those_of_the_chosen_scheduler_or_kubernetes_newest(
    observer: Observer, server: Server, gang: str, installed: set[str], found: str | None
) -> None:
    server.installed = installed
    assert (await look(observer, gang=gang)).world.pod_groups == found


async def test_whether_there_are_pod_groups_is_asked_every_ten_seconds_for_all_runs_together(
    observer: Observer, server: Server, clock: Clock
) -> None:
    for _ in range(3):
        assert (await look(observer, gang="Auto")).world.pod_groups is None
    server.installed = {ALPHA}
    clock.now += 10
    assert (await look(observer, gang="Auto")).world.pod_groups == ALPHA
    assert [asked for asked in server.asked if asked == ALPHA] == [ALPHA, ALPHA]


async def test_once_every_stage_has_its_job_nobody_asks_for_pod_groups(observer: Observer, server: Server) -> None:
    later = job()
    later["metadata"] |= {"name": "demo-stem", "uid": "job-stem"}
    later["metadata"]["labels"] = later["metadata"]["labels"] | {"skywork.dev/stage": "stem"}
    server.jobs = [job(), later]
    await look(observer, gang="Auto")
    assert BETA not in server.asked
