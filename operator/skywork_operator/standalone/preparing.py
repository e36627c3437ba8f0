"""Preparations of sources as child processes of node 0, one after the other."""

import contextlib
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from pydantic import ValidationError
from skywork_trainer.config import EXIT_CONFIG, EXIT_DONE, Failure

from skywork_operator.render import Reading
from skywork_operator.standalone.processes import dies_with_parent
from skywork_operator.world import PrepareJob

_TRIES = 5
_LAST_WORDS_SECONDS = 10.0


class ChildPreparations:
    """Runs `skywork data prepare`, which goes on where it was stopped; a failure that may pass is retried."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self._folder, self._environment = folder, environment
        self._jobs: dict[tuple[str, Reading], PrepareJob] = {}
        self._running: tuple[tuple[str, Reading], subprocess.Popen[bytes]] | None = None
        self._tries = 0

    def start(self, source: str, reading: Reading, config: str) -> None:
        """Begin one reading of a source's inputs."""
        self._folder.mkdir(parents=True, exist_ok=True)
        self._path(source, "json").write_text(config)
        self._jobs[source, reading] = PrepareJob(
            source=source, reading=reading, name=f"{source}-{reading}", parts=1, succeeded=0
        )
        self._tries = 0
        self._spawn(source, reading)

    def jobs(self) -> tuple[PrepareJob, ...]:
        """How the readings begun so far stand."""
        if self._running is not None:
            key, process = self._running
            code = process.poll()
            if code is not None:
                self._running = None
                self._ended(key, code)
        return tuple(self._jobs.values())

    def stop(self) -> None:
        """End what runs; the same command goes on from there another time."""
        if self._running is not None:
            process = self._running[1]
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(_LAST_WORDS_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            self._running = None

    def _spawn(self, source: str, reading: Reading) -> None:
        words = self._path(source, "failure")
        words.unlink(missing_ok=True)
        command = [
            sys.executable, "-m", "skywork_trainer", "data", "prepare", "--config", str(self._path(source, "json")),
            "--phase", reading, "--workers", str(os.cpu_count() or 1), "--termination-log", str(words),
        ]  # fmt: skip
        process = subprocess.Popen(command, env=self._environment | dict(os.environ), preexec_fn=dies_with_parent)
        self._running = ((source, reading), process)

    def _ended(self, key: tuple[str, Reading], code: int) -> None:
        self._tries += 1
        job = self._jobs[key]
        if code == EXIT_DONE:
            self._jobs[key] = replace(job, complete=True, succeeded=1)
        elif code != EXIT_CONFIG and self._tries < _TRIES:
            self._spawn(*key)
        else:
            said: tuple[Failure, ...] = ()
            with contextlib.suppress(OSError, ValidationError):
                said = (Failure.model_validate_json(self._path(key[0], "failure").read_bytes()),)
            told = f"`skywork data prepare` exited with code {code} {self._tries} times"
            self._jobs[key] = replace(job, failed=told, failures=said)

    def _path(self, source: str, suffix: str) -> Path:
        return self._folder / f"{source}.{suffix}"
