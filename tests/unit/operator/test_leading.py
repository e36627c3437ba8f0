"""Who leads, with clocks and a Lease that a test holds in its hand."""

import copy
from typing import Any

import pytest
from skywork_operator.cluster import ApiError
from skywork_operator.leading import LEASE_SECONDS, RENEW_WITHIN_SECONDS, Election

from tests.unit.operator.build import Clock


class Lease:
    """What etcd keeps, with its versions."""

    def __init__(self) -> None:
        self.body: dict[str, Any] | None = None
        self.broken = False

    async def get_lease(self, namespace: str, name: str) -> dict[str, Any] | None:
        if self.broken:
            raise ApiError(503, "Unavailable", "no answer")
        return copy.deepcopy(self.body)

    async def put_lease(self, namespace: str, name: str, lease: dict[str, Any]) -> dict[str, Any]:
        held = (self.body or {"metadata": {}})["metadata"].get("resourceVersion")
        if lease["metadata"].get("resourceVersion") != held:
            raise ApiError(409, "Conflict", "changed")
        self.body = copy.deepcopy(lease)
        self.body["metadata"]["resourceVersion"] = str(int(held or 0) + 1)
        return self.body


@pytest.fixture
def lease() -> Lease:
    return Lease()


def candidate(lease: Lease, clock: Clock, name: str) -> Election:
    return Election(
        lease, namespace="n", name="l", identity=name, clock=clock, wall=lambda: 1.8e9 + clock.now, retry_seconds=0.0
    )


async def tries(election: Election) -> bool:
    return await election.attempt()


async def test_the_first_to_come_leads_and_the_second_waits_until_the_lease_has_run_out(
    lease: Lease, clock: Clock
) -> None:
    first, second = candidate(lease, clock, "first"), candidate(lease, clock, "second")
    assert await tries(first) and first.leads()
    assert not await tries(second)
    clock.now += LEASE_SECONDS
    assert not await tries(second), "it must not have changed for longer than that, by the second's own clock"
    clock.now += 0.1
    assert await tries(second) and second.leads()
    assert not first.leads()
    assert lease.body is not None
    assert (lease.body["spec"]["holderIdentity"], lease.body["spec"]["leaseTransitions"]) == ("second", 2)


async def test_there_are_never_two_leaders_whatever_breaks(lease: Lease, clock: Clock) -> None:
    first, second = candidate(lease, clock, "first"), candidate(lease, clock, "second")
    await tries(first)
    for tick in range(300):
        clock.now += 0.5
        lease.broken = 40 < tick % 100 < 80
        if tick % 3:
            await tries(first)
        await tries(second)
        assert not (first.leads() and second.leads())
        assert first.leads() or second.leads() or lease.broken or tick % 100 >= 60


async def test_a_leader_that_cannot_renew_stops_before_its_lease_runs_out(lease: Lease, clock: Clock) -> None:
    first = candidate(lease, clock, "first")
    await tries(first)
    lease.broken = True
    clock.now += RENEW_WITHIN_SECONDS - 0.1
    assert not await tries(first)
    assert first.leads()
    clock.now += 0.2
    assert not first.leads()
    assert RENEW_WITHIN_SECONDS < LEASE_SECONDS
    await first.hold()


async def test_an_answer_that_comes_late_renews_no_longer_than_from_when_it_was_asked_for(
    lease: Lease, clock: Clock
) -> None:
    first = candidate(lease, clock, "first")
    put = lease.put_lease

    async def late(namespace: str, name: str, body: dict[str, Any]) -> dict[str, Any]:
        answer = await put(namespace, name, body)
        clock.now += RENEW_WITHIN_SECONDS / 2
        return answer

    lease.put_lease = late  # type: ignore[method-assign]
    assert await tries(first) and first.leads()
    clock.now += RENEW_WITHIN_SECONDS / 2
    assert not first.leads(), "the others count from the moment at which the Lease was written"


async def test_a_leader_that_ends_lets_go_and_nobody_waits(lease: Lease, clock: Clock) -> None:
    first, second = candidate(lease, clock, "first"), candidate(lease, clock, "second")
    await tries(first)
    await first.release()
    assert not first.leads()
    assert await tries(second)


async def test_of_two_that_take_a_free_lease_at_once_one_gets_it(lease: Lease, clock: Clock) -> None:
    first, second = candidate(lease, clock, "first"), candidate(lease, clock, "second")
    free = await lease.get_lease("n", "l")
    assert await tries(first)

    async def as_it_was(namespace: str, name: str) -> dict[str, Any] | None:
        return free

    lease.get_lease = as_it_was  # type: ignore[method-assign]
    assert not await tries(second)
    assert first.leads() and not second.leads()
