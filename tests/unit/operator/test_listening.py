"""Questions held open to agents: which are asked, and what an answer does."""

import asyncio
from collections.abc import AsyncIterator, Callable

import aiohttp
import pytest
from aiohttp import web
from skywork_operator import addresses, listening
from skywork_operator.listening import MOST_OF_A_RUN, Listener
from skywork_operator.world import Pod
from skywork_trainer.config import AgentPhase, AgentStatus, Membership, Role

from tests.unit.operator.build import place, pod

KEY = ("research", "demo")


class Agents:
    """An HTTP server that stands for all agents; by default it holds every question open."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.open = 0
        self.answers: asyncio.Queue[int] = asyncio.Queue()
        """Status codes of the next answers; while there are none, questions are held."""

    async def answer(self, request: web.Request) -> web.Response:
        self.asked.append(request.path_qs)
        self.open += 1
        try:
            return web.Response(status=await self.answers.get())
        finally:
            self.open -= 1


@pytest.fixture
async def agents(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Agents]:
    standing = Agents()
    application = web.Application()
    application.router.add_get("/over", standing.answer)
    runner = web.AppRunner(application, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    monkeypatch.setattr(addresses, "AGENT_PORT", runner.addresses[0][1])
    yield standing
    await runner.cleanup()


@pytest.fixture
async def heard() -> list[tuple[str, str]]:
    return []


@pytest.fixture
async def listener(agents: Agents, heard: list[tuple[str, str]]) -> AsyncIterator[Listener]:
    started = Listener(aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)), heard.append)
    yield started
    await started.close()


def member(index: int, generation: int = 3, **changes: object) -> Pod:
    return pod(index, generation=generation, ip="127.0.0.1", **changes)


async def becomes(what: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not what():  # noqa: ASYNC110 - what is waited for are other tasks' and a server's states
            await asyncio.sleep(0.01)


async def others_are_asked(agents: Agents, listener: Listener) -> list[str]:
    """What was asked before an agent of another run is, which is asked after all that are due."""
    listener.follow(("research", "last"), [member(0, generation=99)])
    await becomes(lambda: "/over?generation=99" in agents.asked)
    return [asked for asked in agents.asked if asked != "/over?generation=99"]


async def test_the_end_of_a_generation_is_heard_of_at_once_and_each_is_asked_about_it_once(
    agents: Agents, listener: Listener, heard: list[tuple[str, str]]
) -> None:
    listener.follow(KEY, [member(0)])
    await becomes(lambda: agents.open == 1)
    assert (agents.asked, heard) == (["/over?generation=3"], [])
    agents.answers.put_nowait(200)
    await becomes(lambda: heard == [KEY])
    listener.follow(KEY, [member(0)])
    assert await others_are_asked(agents, listener) == ["/over?generation=3"]
    listener.follow(KEY, [member(0, generation=4)])
    await becomes(lambda: "/over?generation=4" in agents.asked)


async def test_an_agent_that_only_says_it_still_trains_is_asked_again_without_a_pass(
    agents: Agents, listener: Listener, heard: list[tuple[str, str]]
) -> None:
    agents.answers.put_nowait(204)
    listener.follow(KEY, [member(0)])
    await becomes(lambda: len(agents.asked) == 2 and agents.open == 1)
    assert heard == []


async def test_an_agent_that_does_not_know_the_question_is_left_to_the_probes(
    agents: Agents, listener: Listener, heard: list[tuple[str, str]]
) -> None:
    agents.answers.put_nowait(404)
    listener.follow(KEY, [member(0)])
    await becomes(lambda: len(agents.asked) == 1 and agents.open == 0)
    listener.follow(KEY, [member(0)])
    assert len(await others_are_asked(agents, listener)) == 1
    assert heard == []


async def test_an_agent_that_is_gone_is_looked_at(
    listener: Listener, heard: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(addresses, "AGENT_PORT", 9)
    listener.follow(KEY, [member(0)])
    await becomes(lambda: heard == [KEY])


async def test_whoever_leaves_the_world_is_asked_no_more(agents: Agents, listener: Listener) -> None:
    listener.follow(KEY, [member(0), member(1)])
    await becomes(lambda: agents.open == 2)
    listener.follow(KEY, [member(0)])
    await becomes(lambda: agents.open == 1)
    listener.follow(KEY, [])
    await becomes(lambda: agents.open == 0)


@pytest.mark.parametrize(
    "seen",
    [
        pytest.param(pod(0), id="stands by"),
        pytest.param(member(0, agent=None), id="does not answer"),
        pytest.param(member(0, terminating=True), id="ends"),
        pytest.param(member(0, membership=place(4, 0)), id="has not begun what it was told"),
        pytest.param(member(0, phase=AgentPhase.FAILED), id="has failed already"),
        pytest.param(
            pod(0, agent=AgentStatus(phase=AgentPhase.STANDBY), membership=Membership(generation=3, role=Role.STANDBY)),
            id="was benched",
        ),
    ],
)
async def test_only_agents_that_train_what_they_were_told_are_asked(
    agents: Agents, listener: Listener, seen: Pod
) -> None:
    listener.follow(KEY, [seen])
    assert await others_are_asked(agents, listener) == []


async def test_of_many_members_the_lowest_ranks_are_asked_and_of_many_runs_the_first(
    agents: Agents, listener: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listening, "MOST", MOST_OF_A_RUN + 2)
    listener.follow(KEY, [member(index) for index in range(MOST_OF_A_RUN + 5)])
    await becomes(lambda: agents.open == MOST_OF_A_RUN)
    listener.follow(("research", "other"), [member(index) for index in range(4)])
    await becomes(lambda: agents.open == MOST_OF_A_RUN + 2)
    listener.follow(KEY, [])
    await becomes(lambda: agents.open == 2)
    listener.follow(("research", "other"), [member(index) for index in range(4)])
    await becomes(lambda: agents.open == 4)
