"""Every node's part: one agent at a time, as a pod would run it, after the orders of node 0."""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.error import URLError

from pydantic import ValidationError
from skywork_trainer.config import AGENT_PORT, EXIT_CONFIG, EXIT_DONE, EXIT_LEFT, AgentStatus, Membership

from skywork_operator.standalone.processes import dies_with_parent, free_port
from skywork_operator.standalone.words import REPORT_SECONDS, AgentState, Orders, Report

PATIENCE_SECONDS = 60.0
"""How long a node goes on without a word from node 0."""
GRACE_SECONDS = 30.0
"""Time for workers to save, and then for the agent to end."""
_LONGEST_PAUSE_SECONDS = 60.0


class Unreachable(Exception):
    """Node 0 did not answer."""


@dataclass(frozen=True, kw_only=True)
class Folders:
    """Where a node keeps its files."""

    state: Path
    cache: Path


class Node:
    """Runs agents until node 0 says that the run has ended, or somebody asks this node to leave."""

    def __init__(
        self, number: int, folders: Folders, *, exchange: Callable[[Report], Orders], say: Callable[[str], None]
    ) -> None:
        self._number, self._folders, self._exchange, self._say = number, folders, exchange, say
        self._process: subprocess.Popen[bytes] | None = None
        self._report = Report(node=number)
        self._port = 0
        self._failures = 0
        self._rest_until = 0.0
        self._leaving = False
        self._written: Membership | None = None

    def leave(self) -> None:
        """Have the agent save and leave, then end; safe in a signal handler."""
        self._leaving = True

    def run(self) -> int:
        """Follow orders to the end; return the exit code of the agents' contract (0, 64, 75), or 1."""
        heard = time.monotonic()
        try:
            while True:
                self._look()
                try:
                    orders = self._exchange(self._report)
                    heard = time.monotonic()
                except Unreachable as error:
                    if time.monotonic() - heard > PATIENCE_SECONDS:
                        self._say(f"node 0 has not answered for {PATIENCE_SECONDS:.0f} s ({error}); giving up")
                        return 1
                    orders = Orders()
                if orders.end is not None:
                    return orders.end
                if self._leaving and self._left():
                    return EXIT_LEFT
                if not self._leaving:
                    self._obey(orders)
                time.sleep(REPORT_SECONDS)
        finally:
            self._stop()

    def _left(self) -> bool:
        """Ask the agent to leave; whether its end has been reported."""
        if self._report.leaving and self._process is None:
            return True
        if not self._report.leaving and self._process is not None:
            self._process.send_signal(signal.SIGTERM)
        self._report = self._report.model_copy(update={"leaving": True})
        return False

    def _obey(self, orders: Orders) -> None:
        if self._process is not None:
            if orders.membership is not None and orders.attempt == self._report.attempt:
                self._place(orders.membership)
            return
        done = self._report.stage == orders.stage and self._report.state is AgentState.SUCCEEDED
        wrong = self._report.exit_code == EXIT_CONFIG
        if orders.stage and not done and not wrong and time.monotonic() >= self._rest_until:
            self._start(orders)

    def _start(self, orders: Orders) -> None:
        folder = self._folders.state
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "run.json").write_text(orders.config)
        for stale in ("membership", "last-words"):
            (folder / stale).unlink(missing_ok=True)
        self._written = None
        self._port = free_port(AGENT_PORT + self._number)
        command = [
            sys.executable, "-m", "skywork_trainer", "agent", "--config", str(folder / "run.json"),
            "--membership", str(folder / "membership"), "--state-dir", str(folder / "workers"),
            "--cache-dir", str(self._folders.cache), "--termination-log", str(folder / "last-words"),
            "--workers", str(orders.workers), "--port", str(self._port),
            "--drain-seconds", str(GRACE_SECONDS), "--grace-seconds", str(GRACE_SECONDS - 5),
        ]  # fmt: skip
        environment = orders.environment | dict(os.environ)
        self._process = subprocess.Popen(command, env=environment, preexec_fn=dies_with_parent)
        self._report = Report(node=self._number, attempt=time.time_ns(), stage=orders.stage, state=AgentState.RUNNING)
        self._say(f"stage {orders.stage}: agent on port {self._port} (/status, /metrics), files in {folder}")

    def _place(self, word: Membership) -> None:
        if word == self._written:
            return
        path = self._folders.state / "membership"
        fresh = path.with_suffix(".new")
        fresh.write_text(word.model_dump_json())
        fresh.rename(path)
        self._written = word

    def _look(self) -> None:
        """Bring the report up to date."""
        if self._process is None:
            return
        code = self._process.poll()
        if code is None:
            self._report = self._report.model_copy(update={"agent": self._ask()})
            return
        self._process = None
        state = AgentState.SUCCEEDED if code == EXIT_DONE else AgentState.FAILED
        self._failures = 0 if code == EXIT_DONE else self._failures + 1
        pause = min(2.0 ** (self._failures - 1), _LONGEST_PAUSE_SECONDS) if self._failures else 0.0
        self._rest_until = time.monotonic() + pause
        self._report = self._report.model_copy(
            update={"state": state, "exit_code": code, "agent": self._last_words() or self._report.agent}
        )

    def _ask(self) -> AgentStatus | None:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self._port}/status", timeout=1.0) as answer:
                return AgentStatus.model_validate(json.load(answer))
        except (OSError, URLError, ValueError):
            return None

    def _last_words(self) -> AgentStatus | None:
        try:
            return AgentStatus.model_validate_json((self._folders.state / "last-words").read_bytes())
        except (OSError, ValidationError):
            return None

    def _stop(self) -> None:
        if self._process is None:
            return
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(GRACE_SECONDS + 5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
