"""The agent's side of the fork server: starts it, asks it for workers, and hears of their ends."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from skywork_trainer.agent.causes import End
from skywork_trainer.config import Place


@dataclass
class Workers:
    """The workers of one generation; call start_server() before anything else."""

    module: str
    config_path: Path
    warm_seconds: float | None = None
    """How long the fork server took to get ready; None until it is."""
    alive: dict[int, int] = field(default_factory=dict)
    """Process id by local rank."""
    exits: dict[int, End] = field(default_factory=dict)
    """By local rank, of those that ended."""
    server_deaths: int = 0

    def __post_init__(self) -> None:
        self._wanted: set[int] = set()
        self._pending = b""
        self._leaving = False

    @property
    def server_pid(self) -> int:
        """Process id of the fork server."""
        return self._process.pid

    def start_server(self) -> None:
        """Start the fork server, which gets warm in the background."""
        self.warm_seconds = None
        ours, theirs = socket.socketpair()
        command = [sys.executable, "-m", "skywork_trainer.agent.forkserver", str(theirs.fileno())]
        self._process = subprocess.Popen([*command, self.module, str(self.config_path)], pass_fds=[theirs.fileno()])
        theirs.close()
        self._channel = ours

    def fork(self, places: list[Place]) -> None:
        """Fork one worker for each place; forgets the generation before."""
        self.alive.clear()
        self.exits.clear()
        self._leaving = False
        self._wanted = {place.local_rank for place in places}
        # A fork server that has just died refuses; hear() is about to tell that its workers ended.
        with suppress(BrokenPipeError, ConnectionResetError):
            for place in places:
                message = {"fork": place.model_dump(mode="json")}
                self._channel.sendall(json.dumps(message).encode() + b"\n")

    def ask_to_leave(self) -> None:
        """SIGTERM to every worker that runs, and to those whose process id is not known yet once it is."""
        self._leaving = True
        self.signal(signal.SIGTERM)

    def running(self) -> int:
        """Workers that were asked for and have not ended."""
        return len(self._wanted - set(self.exits))

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to every worker that runs."""
        for pid in self.alive.values():
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    def hear(self, seconds: float) -> None:
        """Wait up to `seconds` for news of the fork server and take it in; restarts a fork server that died."""
        self._channel.settimeout(seconds)
        try:
            received = self._channel.recv(65536)
        except TimeoutError:
            return
        except ConnectionResetError:
            received = b""
        if not received:
            self._server_died()
            return
        *lines, self._pending = (self._pending + received).split(b"\n")
        for line in lines:
            self._take(json.loads(line))

    def stop(self) -> None:
        """End the fork server, and with it every worker."""
        self._process.kill()
        self._process.wait()
        self._channel.close()

    def bury(self) -> None:
        """Reap what fell to this process when its parent died: helpers of killed workers, workers of a dead server."""
        while True:
            try:
                # A look without reaping: the fork server's own status belongs to its Popen object.
                found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if found is None or found.si_pid == self._process.pid:
                return
            os.waitpid(found.si_pid, 0)

    def _take(self, message: dict[str, float]) -> None:
        if "warm" in message:
            self.warm_seconds = message["warm"]
        elif "forked" in message:
            self.alive[int(message["local_rank"])] = int(message["forked"])
            if self._leaving:
                with suppress(ProcessLookupError):
                    os.kill(int(message["forked"]), signal.SIGTERM)
        else:
            gone = [rank for rank, pid in self.alive.items() if pid == message["exited"]]
            for rank in gone:
                del self.alive[rank]
                self.exits[rank] = End(time=time.time(), code=int(message["code"]))

    def _server_died(self) -> None:
        # Its workers died with it (PR_SET_PDEATHSIG); nobody is left to report them.
        for rank in self._wanted - set(self.exits):
            self.exits[rank] = End(time=time.time(), code=-signal.SIGKILL, orphaned=True)
        self.alive.clear()
        self._process.kill()
        self._process.wait()
        self._channel.close()
        self._pending = b""
        self.server_deaths += 1
        self.start_server()
