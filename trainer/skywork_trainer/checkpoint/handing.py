"""Orders handed to whoever carries them out: a process beside the worker, or the worker itself where nothing trains."""

import os
import select
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from skywork_trainer.checkpoint.orders import Answer, Commit, Trouble, WriteFile
from skywork_trainer.checkpoint.uploader import carry_out
from skywork_trainer.storage import Store


class Uploader(Protocol):
    """Takes one order at a time."""

    def send(self, order: WriteFile | Commit) -> None:
        """Begin to carry out the order."""
        ...

    def answer(self, seconds: float) -> Answer | None:
        """Return what became of the order, waiting for it so long; None while it is not known."""
        ...


class Inline:
    """Carries an order out in the worker, while it waits."""

    def __init__(self, store: Store, local: Path) -> None:
        self._store, self._local = store, local
        self._answer: Answer | None = None

    def send(self, order: WriteFile | Commit) -> None:
        """Carry the order out."""
        self._answer = carry_out(order, self._store, self._local)

    def answer(self, seconds: float) -> Answer | None:
        """Return what became of it."""
        return self._answer


class Beside:
    """Has a process of its own carry orders out; `fd` is the host copy that it reads."""

    def __init__(self, store: Store, local: Path, fd: int) -> None:
        # A fresh interpreter, not a fork: this process has threads, and on a GPU a CUDA context; neither survives one.
        self._process = subprocess.Popen(
            [sys.executable, "-m", "skywork_trainer.checkpoint.uploader", store.uri, str(local), str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=[fd],
        )
        self._heard = b""
        self._answer: Answer | None = None

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether it can take another order."""
        return self._process.poll() is None

    def send(self, order: WriteFile | Commit) -> None:
        """Hand the order over."""
        assert self._process.stdin is not None
        self._answer = None
        try:
            self._process.stdin.write(order.model_dump_json().encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            self._answer = self._died()

    def answer(self, seconds: float) -> Answer | None:
        """Return its answer, waiting so long."""
        if self._answer is None:
            self._hear(seconds)
        return self._answer

    def close(self) -> None:
        """End it, whatever it is doing."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with suppress(BrokenPipeError):
                    pipe.close()

    def _hear(self, seconds: float) -> None:
        assert self._process.stdout is not None
        out = self._process.stdout.fileno()
        while select.select([out], [], [], seconds)[0]:
            received = os.read(out, 1 << 16)
            self._heard += received
            line, ended, rest = self._heard.partition(b"\n")
            if ended:
                self._answer, self._heard = Answer.model_validate_json(line), rest
                return
            if not received:
                self._answer = self._died()
                return

    def _died(self) -> Answer:
        code = self._process.wait()
        message = f"the process that stores checkpoints ended with {code}; the next save starts another"
        return Answer(trouble=Trouble(reason="UploaderLost", message=message))
