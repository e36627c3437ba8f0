"""The work queue: nothing forgotten, nothing worked on twice at once."""

import asyncio
import time

import pytest
from skywork_operator.queue import RETRY_FIRST_SECONDS, WorkQueue, work

from tests.unit.operator.build import Clock


async def test_a_key_added_twice_is_worked_on_once() -> None:
    queue: WorkQueue[str] = WorkQueue(Clock())
    queue.add("a")
    queue.add("a")
    assert await queue.get() == "a"
    queue.done("a")
    assert len(queue) == 0


async def test_a_key_added_while_it_is_worked_on_is_worked_on_again_afterwards() -> None:
    queue: WorkQueue[str] = WorkQueue(Clock())
    queue.add("a")
    await queue.get()
    queue.add("a")
    assert len(queue) == 0, "never two passes over one key at once"
    queue.done("a")
    assert await queue.get() == "a"


async def test_how_long_each_key_waited_for_its_worker_is_told() -> None:
    clock, waited = Clock(), list[float]()
    queue: WorkQueue[str] = WorkQueue(clock, waited=waited.append)
    queue.add("a")
    clock.now = 2.0
    queue.add("b")
    clock.now = 5.0
    assert [await queue.get(), await queue.get()] == ["a", "b"]
    assert waited == [5.0, 3.0]


async def test_a_failing_key_comes_back_with_growing_pauses_and_others_go_on() -> None:
    queue: WorkQueue[str] = WorkQueue(time.monotonic)
    pauses: list[float] = []
    seen: list[str] = []
    enough = asyncio.Event()

    async def reconcile(key: str) -> float | None:
        seen.append(key)
        if key == "bad" and len(pauses) < 3:
            raise RuntimeError("no")
        if key == "bad":
            enough.set()
        return None

    worker = asyncio.create_task(work(queue, reconcile, failed=lambda k, e, p: pauses.append(p), pass_limit_seconds=5))
    queue.add("bad")
    queue.add("good")
    await asyncio.wait_for(enough.wait(), 5)
    worker.cancel()
    assert "good" in seen
    assert pauses[0] < pauses[1] < pauses[2]


async def test_passes_that_events_ask_for_in_an_outage_do_not_lengthen_the_pause_behind_it() -> None:
    clock = Clock()
    queue: WorkQueue[str] = WorkQueue(clock)
    first = [queue.retry("a") for _ in range(20)]
    assert max(first) <= 1.2 * RETRY_FIRST_SECONDS
    clock.now += max(first)
    second = [queue.retry("a") for _ in range(20)]
    assert min(second) > max(first)
    assert max(second) <= 2 * 1.2 * RETRY_FIRST_SECONDS


async def test_an_earlier_wish_wins_over_a_later_timer() -> None:
    queue: WorkQueue[str] = WorkQueue(Clock())
    queue.add_after("a", 1000)
    queue.add_after("a", 0.001)
    queue.add_after("a", 2000)
    assert await asyncio.wait_for(queue.get(), 5) == "a"


async def test_the_age_of_waiting_keys_and_running_passes_is_known() -> None:
    clock = Clock()
    queue: WorkQueue[str] = WorkQueue(clock)
    queue.add("a")
    clock.now = 7
    assert queue.oldest_wait_seconds() == 7
    await queue.get()
    clock.now = 10
    assert (queue.oldest_wait_seconds(), queue.longest_pass_seconds()) == (0, 3)


async def test_a_pass_that_takes_too_long_is_cut_and_repeated() -> None:
    queue: WorkQueue[str] = WorkQueue(Clock())
    errors: list[Exception] = []
    failed = asyncio.Event()

    async def hang(_: str) -> float | None:
        await asyncio.Event().wait()
        return None

    def note(_: str, error: Exception, __: float) -> None:
        errors.append(error)
        failed.set()

    worker = asyncio.create_task(work(queue, hang, failed=note, pass_limit_seconds=0.01))
    queue.add("a")
    await asyncio.wait_for(failed.wait(), 5)
    worker.cancel()
    assert isinstance(errors[0], TimeoutError)


def test_retries_without_a_loop_are_refused() -> None:
    with pytest.raises(RuntimeError):
        WorkQueue[str](Clock()).add_after("a", 1)


async def test_a_burst_of_events_becomes_one_pass_at_once_and_one_when_the_pace_allows() -> None:
    loop = asyncio.get_running_loop()
    queue: WorkQueue[str] = WorkQueue(loop.time)
    queue.add_paced("a", 0.2)
    assert len(queue) == 1, "nobody passed over it lately"
    await queue.get()
    queue.add_paced("a", 0.2)
    queue.done("a")
    for _ in range(5):
        queue.add_paced("a", 0.2)
    assert len(queue) == 0
    over = loop.time()
    assert await queue.get() == "a"
    assert loop.time() - over > 0.1
    queue.done("a")
    queue.add_paced("b", 0.2)
    assert await queue.get() == "b", "others are not held up"


async def test_the_pace_counts_from_the_last_pass_and_not_from_the_event() -> None:
    loop, clock = asyncio.get_running_loop(), Clock()
    queue: WorkQueue[str] = WorkQueue(clock)
    queue.add("a")
    await queue.get()
    queue.done("a")
    clock.now += 9.5
    queue.add_paced("a", 10.0)
    assert queue._timers["a"].when() - loop.time() == pytest.approx(0.5, abs=0.1)
    queue._timers["a"].cancel()


async def test_what_is_urgent_does_not_wait_for_the_pace() -> None:
    queue: WorkQueue[str] = WorkQueue(Clock())
    queue.add("a")
    await queue.get()
    queue.done("a")
    queue.add_paced("a", 0.2)
    queue.add("a")
    assert await queue.get() == "a"
    queue.done("a")
    assert not queue._timers, "the paced one is answered as well"
