"""The peer of recoveries: torchrun's elastic launch with the c10d rendezvous, tuned, three agents on this machine."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

NAME = "torchrun elastic c10d, tuned"
_AGENTS = 3
_TUNED = "last_call_timeout=1,keep_alive_interval=1,keep_alive_max_attempt=3"
"""By default a lost agent is missed after 15 s, and the others wait for it another 30 s."""
_START_SECONDS = 180.0


class Torchrun:
    """Three agents with one worker each; use as a context manager."""

    def __init__(self, folder: Path, worker: Sequence[str], variables: Mapping[str, str]) -> None:
        """`worker` are the arguments of dev.bench.elastic_rank, run with these environment variables."""
        self._folder, self._port = folder, _free_port()
        self._agents: dict[int, subprocess.Popen[bytes]] = {}
        self._worker, self._variables = ["-m", "dev.bench.elastic_rank", *worker], variables

    def __enter__(self) -> "Torchrun":
        self._folder.mkdir()
        began = time.time()
        # Whoever is there first holds the store: that shall be the first agent.
        self._start(0)
        while not self._store_answers():
            if self._agents[0].poll() is not None or time.time() - began > _START_SECONDS:
                self.__exit__()
                raise RuntimeError(f"torchrun's store does not answer, see {self._folder}")
            time.sleep(0.1)
        for number in range(1, _AGENTS):
            self._start(number)
        if self.next_step(range(_AGENTS), world=_AGENTS, after=began, limit_seconds=_START_SECONDS) is None:
            self.__exit__()
            raise RuntimeError(f"torchrun has not started within {_START_SECONDS:.0f} s, see {self._folder}")
        return self

    def __exit__(self, *_: object) -> None:
        for number, agent in self._agents.items():
            self._kill(self._pid(number))
            agent.kill()
            agent.wait()

    def kill_worker(self, number: int) -> float:
        """SIGKILL a worker under its agent; the time of that."""
        pid, now = self._pid(number), time.time()
        self._kill(pid)
        return now

    def kill_agent(self, number: int) -> float:
        """SIGKILL an agent and its worker; the time of that."""
        pid, now = self._pid(number), time.time()
        self._agents[number].kill()
        self._kill(pid)
        self._agents[number].wait()
        return now

    def next_step(self, members: Sequence[int], *, world: int, after: float, limit_seconds: float) -> float | None:
        """When the first of `members` has done a step in a world made after that; None if none does in time."""
        deadline = time.monotonic() + limit_seconds
        while time.monotonic() < deadline:
            for number in members:
                events = [entry for entry in self._events(number) if entry["time"] > after]
                # Workers are started anew for every world.
                started = {entry["pid"] for entry in events if entry["event"] == "start"}
                steps = [e["time"] for e in events if e["event"] == "step" and e["pid"] in started]
                worlds = {e["world"] for e in events if e["event"] == "step" and e["pid"] in started}
                if steps and world in worlds:
                    return float(steps[0])
            if all(self._agents[number].poll() is not None for number in members):
                return None
            time.sleep(0.05)
        return None

    def _start(self, number: int) -> None:
        command = [
            sys.executable, "-m", "torch.distributed.run", "--nnodes", f"2:{_AGENTS}", "--nproc-per-node", "1",
            "--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{self._port}", "--rdzv-id", "peer",
            "--rdzv-conf", _TUNED, "--max-restarts", "100", "--monitor-interval", "0.1", *self._worker,
            "--folder", str(self._folder / f"agent-{number}"), "--events", str(self._path(number)),
        ]  # fmt: skip
        # Shared, the store forgets its address for agents that come later, and nothing starts again.
        variables = {**os.environ, **self._variables, "OMP_NUM_THREADS": "1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
        with (self._folder / f"agent-{number}.log").open("ab") as log:
            self._agents[number] = subprocess.Popen(command, env=variables, stdout=log, stderr=log)

    def _store_answers(self) -> bool:
        with suppress(OSError), socket.create_connection(("127.0.0.1", self._port), timeout=1):
            return True
        return False

    def _path(self, number: int) -> Path:
        return self._folder / f"agent-{number}.jsonl"

    def _events(self, number: int) -> list[dict[str, Any]]:
        path = self._path(number)
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        return [json.loads(line) for line in lines if line.endswith("\n")]

    def _pid(self, number: int) -> int:
        started = [int(entry["pid"]) for entry in self._events(number) if entry["event"] == "start"]
        return started[-1] if started else 0

    def _kill(self, pid: int) -> None:
        if pid:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
