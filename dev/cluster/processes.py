"""Daemons with a log and a pid file, and waiting on conditions."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path


def start(
    name: str, command: Sequence[str], folder: Path, environment: Mapping[str, str] | None = None
) -> subprocess.Popen[bytes]:
    """Start a daemon in a session of its own; its log and pid lie in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{name}.log").open("ab") as log:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            env={**os.environ, **(environment or {})},
        )
    (folder / f"{name}.pid").write_text(str(process.pid))
    return process


def wait(
    what: str,
    ready: Callable[[], bool],
    seconds: float,
    log: Path | None = None,
    daemon: subprocess.Popen[bytes] | None = None,
) -> None:
    """Wait until `ready`; raises RuntimeError naming `what` and the end of `log`, at once when `daemon` has ended."""
    deadline = time.monotonic() + seconds
    while not ready():
        if daemon is not None and daemon.poll() is not None:
            raise RuntimeError(f"{what}: the program ended with code {daemon.returncode}{tail(log)}")
        if time.monotonic() > deadline:
            raise RuntimeError(f"{what} was not ready within {seconds:.0f} s{tail(log)}")
        time.sleep(0.1)


def tail(log: Path | None) -> str:
    """The end of a log, as the second half of an error message; empty without a log."""
    if log is None or not log.exists():
        return ""
    return f"; the end of {log}:\n" + "\n".join(log.read_text(errors="replace").splitlines()[-15:])


def alive(pid: int) -> bool:
    """Whether the process runs (a zombie does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def pids(folder: Path) -> dict[str, int]:
    """Living daemons whose pid files lie below `folder`; a number that another program has got since is left out."""
    found = {}
    # Two levels and no deeper: below them lie the pods' own files, which vanish while they are listed.
    for path in sorted([*folder.glob("*.pid"), *folder.glob("*/*.pid")]):
        text = path.read_text().strip() if path.is_file() else ""
        if text.isdigit() and alive(int(text)) and str(folder) in _command(int(text)):
            found[str(path.relative_to(folder).with_suffix(""))] = int(text)
    return found


def mentioning(text: str, programs: Collection[str]) -> list[int]:
    """Processes that run one of `programs` with `text` in their command line, so never an editor or a shell."""
    numbers = [int(p.name) for p in Path("/proc").iterdir() if p.name.isdigit()]
    return [n for n in numbers if text in _command(n) and _program(n) in programs and alive(n)]


def kill(numbers: Sequence[int], seconds: float = 10) -> None:
    """SIGKILL processes and wait until they are gone."""
    for number in numbers:
        try:
            os.kill(number, signal.SIGKILL)
        except ProcessLookupError:
            continue
    deadline = time.monotonic() + seconds
    while any(alive(n) for n in numbers) and time.monotonic() < deadline:
        _reap()
        time.sleep(0.05)


def _reap() -> None:
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass


def _program(number: int) -> str:
    try:
        return Path(f"/proc/{number}/exe").readlink().name.removesuffix(" (deleted)")
    except OSError:
        return ""


def _command(number: int) -> str:
    try:
        return Path(f"/proc/{number}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return ""
