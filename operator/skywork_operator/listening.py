"""Hearing from agents at once that their generation is over: a question that each holds open until it is so.

Readiness tells the same through the kubelet, whose probes are a second apart; in pods that started together they fall
together. That remains the way for agents beyond the limits below, of an older version, or behind a proxy.
"""

import asyncio
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import aiohttp
from skywork_trainer.config import OVER_HOLD_SECONDS, OVER_PATH, AgentPhase

from skywork_operator.addresses import agent_url
from skywork_operator.world import Key, Pod

MOST_OF_A_RUN = 16
MOST = 512
"""Connections that are held open, each some tens of KiB."""
_PATIENCE = aiohttp.ClientTimeout(total=OVER_HOLD_SECONDS + 10, connect=2)
_SHORT_SECONDS = 1.0


@dataclass(frozen=True)
class _Asked:
    uid: str
    ip: str
    generation: int


class Listener:
    """Holds the questions of all runs; `heard` is called with the key of a run of which an agent has answered."""

    def __init__(self, agents: aiohttp.ClientSession, heard: Callable[[Key], None]) -> None:
        self._agents, self._heard = agents, heard
        self._tasks: dict[Key, dict[_Asked, asyncio.Task[None]]] = {}

    def follow(self, key: Key, pods: Iterable[Pod]) -> None:
        """Ask the agents of pods that train, the lowest ranks first, and no others of that run any more.

        One that has answered is not asked again about the same generation.
        """
        wanted = [_asked(pod) for pod in sorted(pods, key=_rank) if _trains(pod)][:MOST_OF_A_RUN]
        held = self._tasks.pop(key, {})
        for gone in held.keys() - set(wanted):
            held.pop(gone).cancel()
        room = MOST - sum(not task.done() for tasks in self._tasks.values() for task in tasks.values())
        for asked in wanted[:room]:
            if asked not in held:
                held[asked] = asyncio.create_task(self._ask(key, asked))
        if held:
            self._tasks[key] = held

    async def close(self) -> None:
        """Give up all questions."""
        for tasks in self._tasks.values():
            for task in tasks.values():
                task.cancel()
        self._tasks.clear()
        await self._agents.close()

    async def _ask(self, key: Key, asked: _Asked) -> None:
        url = agent_url(asked.ip, f"{OVER_PATH}?generation={asked.generation}")
        while True:
            began = time.monotonic()
            try:
                async with self._agents.get(url, timeout=_PATIENCE) as answer:
                    status = answer.status
            except (aiohttp.ClientError, TimeoutError):
                self._heard(key)
                # Something between us may end quiet connections; one that ends as soon as it began is an agent's end.
                if time.monotonic() - began > _SHORT_SECONDS:
                    continue
                return
            if status == 200:
                self._heard(key)
            if status != 204:
                return


def _asked(pod: Pod) -> _Asked:
    assert pod.agent is not None
    return _Asked(pod.uid, pod.ip, pod.agent.generation)


def _rank(pod: Pod) -> int:
    return pod.membership.rank if pod.membership is not None else 0


def _trains(pod: Pod) -> bool:
    """Whether the agent is in the generation that it was told of, so that there is an end to hear of."""
    agent, word = pod.agent, pod.membership
    if agent is None or word is None or pod.terminating:
        return False
    return agent.phase is AgentPhase.TRAINING and agent.generation == word.generation
