"""The liveness probe: red when the operator only looks alive."""

import kopf
import pytest
from skywork_operator.handlers import STALLED_QUEUE_SECONDS, STALLED_WATCH_SECONDS, Operator

from tests.unit.operator.build import DEFAULTS


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


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
