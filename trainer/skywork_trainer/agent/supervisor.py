"""The agent's loop: see, decide, do; twenty times a second."""

import contextlib
import logging
import shutil
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest
from pydantic import ValidationError

from skywork_trainer.agent.membership import MembershipFile
from skywork_trainer.agent.policy import Do, Step, View, decide
from skywork_trainer.agent.server import Pages, serve
from skywork_trainer.agent.workers import Workers
from skywork_trainer.config import (
    EXIT_DONE,
    EXIT_LEFT,
    PEER_LOST,
    AgentPhase,
    AgentStatus,
    Failure,
    Membership,
    Place,
    Progress,
)

_TICK_SECONDS = 0.05
_STALLED_SECONDS = 30.0
_TERMINATION_BYTES = 4096
_MOST_SERVER_DEATHS = 5
_log = logging.getLogger(__name__)
_T = TypeVar("_T", Failure, Progress)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How one agent is run."""

    config_path: Path
    membership_path: Path
    state_dir: Path
    cache_dir: Path
    termination_log: Path
    workers: int
    port: int
    drain_seconds: float
    grace_seconds: float
    worker_module: str


class Supervisor:
    """Owns the workers of one pod."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._file = MembershipFile(settings.membership_path)
        self._word: Membership | None = None
        self._current: Membership | None = None
        self._stopped = False
        self._drain_deadline: float | None = None
        self._leaving = False
        self._phase = AgentPhase.STANDBY
        self._failure: Failure | None = None
        self._ticked = time.monotonic()
        self._registry = CollectorRegistry()
        self._exits = Counter(
            "skywork_agent_worker_exits", "Workers that ended, by reason.", ["reason"], registry=self._registry
        )
        self._warm = Gauge(
            "skywork_agent_fork_server_warm_seconds", "Time until workers could be forked.", registry=self._registry
        )
        self._generation = Gauge("skywork_agent_generation", "Newest generation started here.", registry=self._registry)
        self._alive = Gauge("skywork_agent_workers", "Workers that run.", registry=self._registry)

    def run(self) -> int:
        """Supervise until the stage is done (0), cannot be done (64), or the pod is asked to leave (75)."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        self._settings.state_dir.mkdir(parents=True, exist_ok=True)
        workers = Workers(module=self._settings.worker_module, config_path=self._settings.config_path)
        self._workers = workers
        pages = Pages(
            status=lambda: self.status().model_dump_json(),
            metrics=self._metrics,
            unready=self._unready,
            unhealthy=self._unhealthy,
        )
        server = serve(pages, self._settings.port)
        _log.info("agent listens on port %d, %d workers to a generation", server.server_port, self._settings.workers)
        try:
            while True:
                code = self._tick()
                if code is not None:
                    return code
        finally:
            workers.stop()
            server.shutdown()

    def status(self) -> AgentStatus:
        """What the agent says of itself."""
        word = self._current
        leads = word is not None and word.rank == 0
        return AgentStatus(
            phase=self._phase,
            generation=word.generation if word else 0,
            rank=word.rank if word else -1,
            workers=tuple(self._workers.alive.values()),
            failure=self._failure,
            progress=_read(Progress, self._folder() / "progress.json") if leads else None,
        )

    def _tick(self) -> int | None:
        self._workers.hear(_TICK_SECONDS)
        self._ticked = time.monotonic()
        self._word = self._file.read()
        if self._workers.server_deaths > _MOST_SERVER_DEATHS:
            _log.error("the fork server died %d times; giving the pod up", self._workers.server_deaths)
            return 1
        self._note_failure()
        step = decide(self._view(), time.monotonic())
        if step.phase is not self._phase:
            _log.info("generation %d: %s", self._current.generation if self._current else 0, step.phase)
        self._phase = step.phase
        return self._do(step)

    def _view(self) -> View:
        return View(
            membership=self._word,
            generation=self._current.generation if self._current else 0,
            alive=self._workers.running(),
            exits=tuple(code for _, code in self._workers.exits.values()),
            stopped=self._stopped,
            drain_deadline=self._drain_deadline,
            leaving=self._leaving,
            warm=self._workers.warm_seconds is not None,
        )

    def _do(self, step: Step) -> int | None:
        if step.do is Do.START and self._word is not None:
            self._start(self._word)
        elif step.do is Do.DRAIN:
            limit = self._settings.grace_seconds if self._leaving else self._settings.drain_seconds
            _log.info("asking %d workers to save and leave within %.0f s", self._workers.running(), limit)
            self._drain_deadline = time.monotonic() + limit
            self._workers.signal(signal.SIGTERM)
        elif step.do is Do.KILL:
            self._stopped = self._stopped or self._failure is None
            self._workers.signal(signal.SIGKILL)
        elif step.do is Do.EXIT:
            self._write_last_words()
            return step.exit_code
        return None

    def _start(self, word: Membership) -> None:
        self._current, self._stopped, self._drain_deadline, self._failure = word, False, None, None
        self._generation.set(word.generation)
        folder = self._folder()
        folder.mkdir(parents=True, exist_ok=True)
        for old in self._settings.state_dir.iterdir():
            if old.name.isdigit() and int(old.name) < word.generation - 1:
                shutil.rmtree(old, ignore_errors=True)
        count = self._settings.workers
        address, _, port = word.master.rpartition(":")
        _log.info("generation %d: node rank %d of %d, master %s", word.generation, word.rank, word.nodes, word.master)
        self._workers.fork(
            [
                Place(
                    generation=word.generation,
                    rank=word.rank * count + local,
                    world_size=word.nodes * count,
                    local_rank=local,
                    local_world_size=count,
                    master_address=address,
                    master_port=int(port),
                    state_dir=folder,
                    cache_dir=self._settings.cache_dir,
                )
                for local in range(count)
            ]
        )

    def _note_failure(self) -> None:
        """Keep the earliest cause of the generation's end; what peers say afterwards is only an echo of it."""
        if self._failure is not None or self._stopped or self._current is None:
            return
        broken = {r: e for r, e in self._workers.exits.items() if e[1] not in (EXIT_DONE, EXIT_LEFT)}
        if not broken:
            return
        written = [_read(Failure, self._folder() / f"failure-{local}.json") for local in broken]
        first = self._current.rank * self._settings.workers
        causes = [w for w in written if w is not None]
        causes += [
            _unexplained(first + local, when, code)
            for (local, (when, code)), w in zip(broken.items(), written, strict=True)
            if w is None
        ]
        self._failure = min(causes, key=lambda cause: (cause.reason == PEER_LOST, cause.time))
        self._exits.labels(self._failure.reason).inc()
        _log.error("%s: %s", self._failure.reason, self._failure.message)

    def _folder(self) -> Path:
        return self._settings.state_dir / str(self._current.generation if self._current else 0)

    def _metrics(self) -> str:
        self._alive.set(self._workers.running())
        if self._workers.warm_seconds is not None:
            self._warm.set(self._workers.warm_seconds)
        own = generate_latest(self._registry).decode()
        path = self._folder() / "metrics.prom"
        leads = self._current is not None and self._current.rank == 0
        return own + (path.read_text() if leads and path.exists() else "")

    def _unready(self) -> str:
        if self._phase is AgentPhase.STANDBY and self._workers.warm_seconds is None:
            return "the fork server is not warm yet"
        return "" if self._phase in (AgentPhase.STANDBY, AgentPhase.TRAINING) else f"phase {self._phase}"

    def _unhealthy(self) -> str:
        age = time.monotonic() - self._ticked
        return f"the loop has stood still for {age:.0f} s" if age > _STALLED_SECONDS else ""

    def _on_signal(self, *_: object) -> None:
        self._leaving = True

    def _write_last_words(self) -> None:
        """Leave the status as the pod's termination message; the kubelet keeps 4096 bytes."""
        said = self.status()
        if said.failure is not None and len(said.failure.message) > 1000:
            short = said.failure.model_copy(update={"message": said.failure.message[:1000] + " …"})
            said = said.model_copy(update={"failure": short})
        text = said.model_dump_json()
        if len(text.encode()) > _TERMINATION_BYTES and said.progress is not None:
            lean = said.progress.model_copy(update={"stage_start_validation": ()})
            text = said.model_copy(update={"progress": lean}).model_dump_json()
        if len(text.encode()) <= _TERMINATION_BYTES:
            with contextlib.suppress(OSError):
                self._settings.termination_log.write_text(text)


def _unexplained(rank: int, when: float, code: int) -> Failure:
    if code < 0:
        name = signal.Signals(-code).name
        hint = "; the node may be out of memory" if name == "SIGKILL" else ""
        return Failure(time=when, rank=rank, reason="Killed", message=f"worker rank {rank} was killed by {name}{hint}")
    text = f"worker rank {rank} exited with code {code} and left no explanation; see its log"
    return Failure(time=when, rank=rank, reason="AppError", message=text)


def _read(model: type[_T], path: Path) -> _T | None:
    try:
        return model.model_validate_json(path.read_bytes())
    except (FileNotFoundError, ValidationError):
        return None
