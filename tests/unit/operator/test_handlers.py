"""Kopf's events and probe: what becomes work, what is taken over, and red when the operator only looks alive."""

from collections.abc import Mapping
from typing import Any

import kopf
import pytest
from skywork_operator.handlers import STALLED_QUEUE_SECONDS, STALLED_WATCH_SECONDS, Operator, pace_seconds
from skywork_operator.observe import Observer

from tests.unit.operator.build import DEFAULTS, Clock


@pytest.fixture
def operator(clock: Clock) -> Operator:
    return Operator(DEFAULTS, [], clock=clock)


async def test_a_quiet_cluster_is_healthy_as_long_as_the_operator_s_own_heartbeat_comes_back(
    operator: Operator, clock: Clock
) -> None:
    for _ in range(10):
        clock.now += STALLED_WATCH_SECONDS - 1
        await operator.heartbeat_event()
        assert await operator.probe() == "ok"


async def test_a_watch_that_brings_nothing_back_is_dead(operator: Operator, clock: Clock) -> None:
    clock.now = STALLED_WATCH_SECONDS + 1
    with pytest.raises(kopf.PermanentError, match="no watch event"):
        await operator.probe()


async def test_a_run_that_no_worker_takes_turns_the_probe_red(operator: Operator, clock: Clock) -> None:
    await operator.run_event(name="demo", namespace="research")
    clock.now = STALLED_QUEUE_SECONDS + 1
    await operator.heartbeat_event()
    with pytest.raises(kopf.PermanentError, match="queue stalls"):
        await operator.probe()


async def test_events_of_foreign_pods_are_not_work(operator: Operator) -> None:
    await operator.child_event("ADDED", {}, labels={"app": "web"}, namespace="research")
    assert len(operator.queue) == 0
    await operator.child_event("ADDED", {}, labels={"skywork.dev/run": "demo"}, namespace="research")
    assert await operator.queue.get() == ("research", "demo")


class Listening(Observer):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[str, bool]] = []

    def hear(self, body: Mapping[str, Any], *, gone: bool = False) -> None:
        self.told.append((body["metadata"]["name"], gone))


@pytest.mark.parametrize(("type", "gone"), [(None, False), ("ADDED", False), ("MODIFIED", False), ("DELETED", True)])
async def test_what_a_watch_tells_of_a_pod_is_known_to_the_next_pass(
    operator: Operator, type: str | None, gone: bool
) -> None:
    operator.observer = observer = Listening()
    event = {"object": {"metadata": {"name": "demo-general-0"}}}
    await operator.child_event(type, event, labels={"skywork.dev/run": "demo"}, namespace="research")
    assert observer.told == [("demo-general-0", gone)]


@pytest.mark.parametrize(("runs", "seconds"), [(0, 0.25), (1, 0.25), (25, 0.25), (100, 1.0), (200, 2.0), (5000, 2.0)])
def test_the_more_runs_there_are_the_less_often_each_is_looked_at_for_its_pods_sake(runs: int, seconds: float) -> None:
    assert pace_seconds(runs) == pytest.approx(seconds)
