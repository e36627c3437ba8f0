"""A process that has imported everything a worker needs, and forks workers from that on request.

Importing torch and DeepSpeed takes seconds; forking a process that has done so takes milliseconds. It must stay
single-threaded and must not touch a GPU: neither threads nor a CUDA context survive a fork.

Requests and answers are JSON lines over one socket. Requests: {"fork": PLACE}. Answers: {"warm": SECONDS},
{"forked": PID, "local_rank": N}, {"exited": PID, "code": N}.
"""

import ctypes
import gc
import importlib
import json
import os
import select
import signal
import socket
import sys
import time
import traceback
from typing import Any

from skywork_trainer.config import Place, RunConfig

_PR_SET_PDEATHSIG = 1


def main(arguments: list[str]) -> int:
    """Serve until the socket closes; arguments: file descriptor of the socket, module of the worker, config path."""
    fd, module_name, config_path = int(arguments[0]), arguments[1], arguments[2]
    die_with_parent()
    # A terminal sends SIGINT to the whole group; what then happens to the workers is the agent's to say.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    channel = socket.socket(fileno=fd)
    started = time.monotonic()
    module = importlib.import_module(module_name)
    with open(config_path, "rb") as file:
        config = RunConfig.model_validate_json(file.read())
    module.preload(config)
    # A collection in a fork would else visit, and so copy, every object of its parent.
    gc.freeze()
    wake_read, wake_write = os.pipe()
    os.set_blocking(wake_write, False)
    os.set_blocking(wake_read, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
    _send(channel, {"warm": time.monotonic() - started})
    pending = b""
    while True:
        ready, _, _ = select.select([channel.fileno(), wake_read], [], [])
        if wake_read in ready:
            _drain(wake_read)
            _report_exits(channel)
        if channel.fileno() in ready:
            received = channel.recv(65536)
            if not received:
                return 0
            *lines, pending = (pending + received).split(b"\n")
            for line in lines:
                place = Place.model_validate(json.loads(line)["fork"])
                pid = _fork(module, config, place, (channel.fileno(), wake_read, wake_write))
                _send(channel, {"forked": pid, "local_rank": place.local_rank})


def die_with_parent() -> None:
    """Have the kernel SIGKILL this process when the thread that started it ends: nothing may outlive the agent."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _fork(module: Any, config: RunConfig, place: Place, inherited: tuple[int, ...]) -> int:
    parent = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        die_with_parent()
        if os.getppid() != parent:
            os._exit(1)
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for fd in inherited:
            os.close(fd)
        code = module.run(config, place)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        # Not sys.exit: this process shares its parent's exit handlers, which are the parent's to run.
        os._exit(code)


def _report_exits(channel: socket.socket) -> None:
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        _send(channel, {"exited": pid, "code": os.waitstatus_to_exitcode(status)})


def _drain(fd: int) -> None:
    try:
        while os.read(fd, 4096):
            pass
    except BlockingIOError:
        return


def _send(channel: socket.socket, message: dict[str, Any]) -> None:
    channel.sendall(json.dumps(message).encode() + b"\n")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
