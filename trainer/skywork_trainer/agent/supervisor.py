"""The agent's loop: see, decide, do; twenty times a second."""

import contextlib
import ctypes
import logging
import os
import shutil
import signal
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path

from skywork_trainer.agent import hangs
from skywork_trainer.agent.causes import explain, last_words, read, root_cause, wrong_config
from skywork_trainer.agent.cgroup import memory_kills
from skywork_trainer.agent.exposition import merged
from skywork_trainer.agent.membership import MembershipFile
from skywork_trainer.agent.node_metrics import NodeMetrics
from skywork_trainer.agent.policy import Do, Step, View, decide, is_failure
from skywork_trainer.agent.server import Pages, serve
from skywork_trainer.agent.workers import Workers
from skywork_trainer.config import (
    EXIT_CONFIG,
    EXIT_DONE,
    AgentPhase,
    AgentStatus,
    Failure,
    HangLimits,
    Membership,
    Place,
    Progress,
    Section,
    load,
)
from skywork_trainer.heartbeat import Beat, read_beat
from skywork_trainer.requests import write_request
from skywork_trainer.stacks import STACK_SIGNAL, stack_path

_TICK_SECONDS = 0.05
_STALLED_SECONDS = 30.0
_PR_SET_CHILD_SUBREAPER = 36
_MOST_SERVER_DEATHS = 5
_BEATS_SECONDS = 0.25
_UNDEAD_SECONDS = 20.0
_log = logging.getLogger(__name__)


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
        self._leave_deadline: float | None = None
        self._asked_at: float | None = None
        self._killed: set[int] = set()
        self._judged: set[int] = set()
        self._workers = Workers(module=settings.worker_module, config_path=settings.config_path)
        self._phase = AgentPhase.STANDBY
        self._failure: Failure | None = None
        self._hung_until: float | None = None
        self._killed_at: float | None = None
        self._heard_time = self._read_time = self._start_time = 0.0
        self._forked_at = self._beats_read = 0.0
        self._memory_kills = memory_kills()
        self._limits = HangLimits()
        self._ticked = time.monotonic()
        self._metrics = NodeMetrics(settings.cache_dir)
        self._asked_for = ""
        self._turned = threading.Condition()

    def run(self) -> int:
        """Supervise until the stage is done (0), cannot be done (64), or the pod is asked to leave (75)."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        self._settings.state_dir.mkdir(parents=True, exist_ok=True)
        # Orphans fall to PID 1. In a pod that shares its process namespace, or outside one, that is somebody else.
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)
        self._failure = wrong_config(self._settings.config_path, time.time())
        if self._failure is None:
            config = load(self._settings.config_path)
            self._limits = config.hang
            self._metrics.label({"namespace": config.namespace, "run": config.run, "stage": config.stage})
        if self._failure is not None:
            _log.error("%s: %s", self._failure.reason, self._failure.message)
            self._phase = AgentPhase.FAILED
            self._write_last_words()
            return EXIT_CONFIG
        pages = Pages(
            status=lambda: self.status().model_dump_json(),
            over=self.over,
            metrics=self._exposition,
            unready=self._unready,
            unhealthy=self._unhealthy,
        )
        try:
            server = serve(pages, self._settings.port)
        except OSError as error:
            _log.error("port %d cannot be listened on: %s", self._settings.port, error)
            return 1
        self._workers.start_server()
        _log.info("agent listens on port %d, %d workers to a generation", server.server_port, self._settings.workers)
        try:
            while True:
                code = self._tick()
                if code is not None:
                    return code
        finally:
            self._workers.stop()
            server.shutdown()

    def status(self) -> AgentStatus:
        """What the agent says of itself."""
        word = self._current
        leads = word is not None and word.rank == 0
        return AgentStatus(
            phase=self._phase,
            generation=word.generation if word else 0,
            heard=self._word.generation if self._word else 0,
            rank=word.rank if word else -1,
            workers=tuple(self._workers.alive.values()),
            read_time=self._read_time,
            start_time=self._start_time,
            forward_seconds=max((beat.forward_seconds for beat in self._beats().values()), default=0.0),
            failure=self._failure,
            progress=read(Progress, self._folder() / "progress.json") if leads else None,
        )

    def over(self, generation: int, seconds: float) -> bool:
        """Wait until `generation` trains here no more, or so long; return whether it does not."""
        with self._turned:
            return self._turned.wait_for(lambda: not self._trains(generation), seconds)

    def _trains(self, generation: int) -> bool:
        current = self._current
        return current is not None and current.generation == generation and self._phase is AgentPhase.TRAINING

    def _tick(self) -> int | None:
        self._workers.hear(_TICK_SECONDS)
        self._workers.bury()
        self._ticked = time.monotonic()
        self._read_membership()
        self._time_start()
        if self._workers.server_deaths > _MOST_SERVER_DEATHS:
            _log.error("the fork server died %d times; giving the pod up", self._workers.server_deaths)
            return 1
        self._judge_ends()
        self._judge_progress()
        step = decide(self._view(), time.monotonic())
        if step.phase is not self._phase:
            _log.info("%s: %s", self, step.phase)
        before, self._phase = (self._phase, self._current), step.phase
        code = self._do(step)
        if before != (self._phase, self._current):
            with self._turned:
                self._turned.notify_all()
        return code

    def _view(self) -> View:
        return View(
            membership=self._word,
            generation=self._current.generation if self._current else 0,
            alive=self._workers.running(),
            exits=tuple(end.code for end in self._workers.exits.values()),
            stopped=self._stopped,
            drain_deadline=self._deadline(),
            leaving=self._leave_deadline is not None,
            warm=self._workers.warm_seconds is not None,
            hung_until=self._hung_until,
            undead=self._killed_at is not None and time.monotonic() - self._killed_at > _UNDEAD_SECONDS,
        )

    def _do(self, step: Step) -> int | None:
        if step.do is Do.START and self._word is not None:
            self._start(self._word)
        elif step.do is Do.DRAIN:
            self._drain_deadline = self._leave_deadline or time.monotonic() + self._settings.drain_seconds
            limit = self._drain_deadline - time.monotonic()
            _log.info("%s: asking %d workers to save and leave within %.0f s", self, self._workers.running(), limit)
            self._workers.ask_to_leave()
        elif step.do is Do.KILL:
            self._take_stacks_of_the_stale()
            self._killed_at = self._killed_at or time.monotonic()
            self._stopped = self._stopped or self._failure is None
            self._killed |= self._workers.alive.keys()
            self._workers.signal(signal.SIGKILL)
        elif step.do is Do.EXIT:
            self._write_last_words()
            return step.exit_code
        return None

    def _start(self, word: Membership) -> None:
        self._current, self._stopped, self._drain_deadline, self._failure = word, False, None, None
        self._hung_until = self._killed_at = None
        self._read_time, self._start_time = self._heard_time, 0.0
        self._memory_kills = memory_kills()
        self._metrics.set("generation", word.generation)
        self._asked_for = ""
        self._killed, self._judged = set(), set()
        folder = self._folder()
        folder.mkdir(parents=True, exist_ok=True)
        kept = sorted((old for old in self._settings.state_dir.iterdir() if old.name.isdecimal()), key=_number)
        for old in kept[:-2]:
            shutil.rmtree(old, ignore_errors=True)
        count = self._settings.workers
        address, _, port = word.master.rpartition(":")
        _log.info("%s: of %d nodes, master %s", self, word.nodes, word.master)
        self._forked_at = time.monotonic()
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
                    before_step=word.before_step,
                    check=word.check,
                    after=word.after,
                )
                for local in range(count)
            ]
        )

    def _judge_ends(self) -> None:
        """Count the workers that ended since, and say why the generation did.

        Judged anew with each end: the first one heard of may be an echo of another that follows.
        """
        word, asked = self._current, self._drain_deadline is not None
        fresh = self._workers.exits.keys() - self._judged
        if word is None or not fresh:
            return
        self._judged |= fresh
        first = word.rank * self._settings.workers
        if not self._workers.running():
            self._killed_at = None
        # What we killed ourselves explains nothing: siblings of a failed worker, a world that is superseded.
        ours = {r for r, end in self._workers.exits.items() if r in self._killed and end.code == -signal.SIGKILL}
        kills = memory_kills()
        starved = kills is not None and kills > (self._memory_kills or 0)
        broken = {
            r: replace(end, out_of_memory=starved)
            for r, end in self._workers.exits.items()
            if r not in ours and is_failure(end.code, asked=asked)
        }
        for local in fresh:
            end = self._workers.exits[local]
            if local in ours:
                reason = "Stopped"
            elif local in broken:
                reason = explain(self._folder(), first + local, local, broken[local]).reason
            else:
                reason = "Done" if end.code == EXIT_DONE else "Left"
            self._metrics.exited(reason)
        # What workers of a world that hangs say as they are ended, or as their peers are, only follows from that.
        if not broken or self._stopped or self._hung_until is not None:
            return
        cause = self._with_step(root_cause(self._folder(), first, broken), first)
        if cause != self._failure:
            self._failure = cause
            _log.error("%s: %s: %s", self, cause.reason, cause.message)

    def _with_step(self, cause: Failure, first_rank: int) -> Failure:
        if cause.step is not None:
            return cause
        beat = read_beat(self._folder(), cause.rank - first_rank)
        if beat is None or beat.section in (Section.INIT, Section.RESTORE):
            return cause
        return cause.model_copy(update={"step": beat.step})

    # -- hangs -------------------------------------------------------------------------------------------------------

    def _judge_progress(self) -> None:
        """Give up a generation whose workers show no progress, with word of where each of them stands."""
        word, now = self._current, time.monotonic()
        quiet = self._failure is not None or self._killed_at is not None or not self._workers.alive
        if word is None or quiet or now - self._beats_read < _BEATS_SECONDS:
            return
        self._beats_read = now
        beats = self._beats()
        self._metrics.set("longest_silence_seconds", now - min(beat.time for beat in beats.values()))
        late = hangs.overdue(beats, self._limits, now)
        if not late:
            return
        where = self._take_stacks()
        self._failure = hangs.failure(word.rank * self._settings.workers, late, beats, where)
        self._hung_until = time.monotonic() + hangs.HOLD_SECONDS
        self._metrics.hung(beats[late[0]].section)
        _log.error("%s: %s: %s", self, self._failure.reason, self._failure.message)

    def _beats(self) -> dict[int, Beat]:
        """The newest sign of every worker that runs; one that gave none yet counts from its start."""
        begun = Beat(Section.INIT, self._forked_at, 0)
        # A copy: whoever asks for the status does so from another thread, while workers end.
        return {local: read_beat(self._folder(), local) or begun for local in tuple(self._workers.alive)}

    def _take_stacks_of_the_stale(self) -> None:
        """A node of a world that hangs may be told to end it before its own time is up."""
        fresh = self._killed_at is None and self._hung_until is None
        if fresh and hangs.is_stale(self._beats(), self._limits, time.monotonic()):
            self._take_stacks()

    def _take_stacks(self) -> dict[int, hangs.Standstill]:
        """Have every worker write where it stands, log that, and return it by local rank."""
        folder, asked = self._folder(), dict(self._workers.alive)
        for local, pid in asked.items():
            # Before its first sign a worker has no handler, and the signal would end it.
            if read_beat(folder, local) is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, STACK_SIGNAL)
        found: dict[int, hangs.Standstill] = {}
        until = time.monotonic() + hangs.STACKS_SECONDS
        while len(found) < len(asked) and time.monotonic() < until:
            time.sleep(0.05)
            for local in asked.keys() - found.keys():
                with contextlib.suppress(OSError):
                    stands = hangs.standstill(stack_path(folder, local).read_text())
                    if stands is not None:
                        found[local] = stands
        for local, pid in asked.items():
            if local in found:
                _log.error("%s: stacks of worker %d:\n%s", self, local, stack_path(folder, local).read_text())
            found.setdefault(local, hangs.without_stacks(pid))
        return found

    # -- ---------------------------------------------------------------------------------------------------------------

    def _read_membership(self) -> None:
        word = self._file.read()
        if word is not None and (self._word is None or word.generation > self._word.generation):
            self._asked_at, self._heard_time = time.monotonic(), time.time()
        self._word = word
        self._pass_requests_on()

    def _pass_requests_on(self) -> None:
        """Tell the worker of rank 0 what is asked of the generation that trains."""
        word, current = self._word, self._current
        if word is None or current is None or word.generation != current.generation:
            return
        if word.validate_request != self._asked_for:
            self._asked_for = word.validate_request
            write_request(self._folder(), word.validate_request)

    def _time_start(self) -> None:
        """Take the time of a start once all its workers run."""
        if self._asked_at is None or self._current is None or self._word is None:
            return
        started = self._current.generation == self._word.generation
        if started and len(self._workers.alive) == self._settings.workers:
            self._metrics.set("last_start_seconds", time.monotonic() - self._asked_at)
            self._start_time = time.time()
            self._asked_at = None

    def _deadline(self) -> float | None:
        """When workers that were asked to leave are killed: the kubelet's patience cuts a drain short."""
        if self._drain_deadline is None or self._leave_deadline is None:
            return self._drain_deadline
        return min(self._drain_deadline, self._leave_deadline)

    def __str__(self) -> str:
        """Where this agent is, for its log."""
        word = self._current
        return f"generation {word.generation} node rank {word.rank}" if word else "no generation yet"

    def _folder(self) -> Path:
        return self._settings.state_dir / str(self._current.generation if self._current else 0)

    def _exposition(self) -> str:
        self._metrics.set("workers", self._workers.running())
        if self._workers.warm_seconds is not None:
            self._metrics.set("fork_server_warm_seconds", self._workers.warm_seconds)
        leads = self._current is not None and self._current.rank == 0
        written = sorted(self._folder().glob("worker-*.prom"))
        if leads:
            written.append(self._folder() / "metrics.prom")
        texts = [self._metrics.exposition(dict(self._workers.alive))]
        for path in written:
            with contextlib.suppress(FileNotFoundError):  # no worker has come that far
                texts.append(path.read_text())
        return merged(texts)

    def _unready(self) -> str:
        failure = self._failure
        if self._phase is AgentPhase.FAILED and failure is not None:
            return f"generation failed: {failure.reason}: {failure.message}"
        if self._phase is AgentPhase.STANDBY and self._workers.warm_seconds is None:
            return "the fork server is not warm yet"
        return "" if self._phase in (AgentPhase.STANDBY, AgentPhase.TRAINING) else f"phase {self._phase}"

    def _unhealthy(self) -> str:
        age = time.monotonic() - self._ticked
        return f"the loop has stood still for {age:.0f} s" if age > _STALLED_SECONDS else ""

    def _on_signal(self, *_: object) -> None:
        if self._leave_deadline is None:
            self._leave_deadline = time.monotonic() + self._settings.grace_seconds

    def _write_last_words(self) -> None:
        """Leave the status as the pod's termination message; the kubelet keeps 4096 bytes."""
        with contextlib.suppress(OSError):
            self._settings.termination_log.write_text(last_words(self.status()))


def _number(folder: Path) -> int:
    return int(folder.name)
