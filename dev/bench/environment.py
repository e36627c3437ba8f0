"""What benchmarks run against: peers in environments of their own, and a real S3 server."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from dev.bench.figures import say
from dev.cluster import paths, processes
from dev.cluster.build import ensure_built
from dev.cluster.storage import start_storage

_PEERS = Path(__file__).parent / "peers"
_INSTALL_SECONDS = 1200


class PeerEnvironment:
    """A peer's script and the Python with the packages locked for it; installed at the first use."""

    def __init__(self, name: str, script: str) -> None:
        self.missing: str | None = None
        """Why it cannot run."""
        folder = paths.cache() / "peers" / name
        self._command = [str(folder / "bin/python"), str(_PEERS / script)]
        locked = _PEERS / f"{name}.txt"
        stamp = folder / ".installed"
        if not (stamp.exists() and stamp.read_text() == locked.read_text()):
            self.missing = _install(folder, locked)
            if self.missing:
                say(f"{name}: the peer's part is left out: {self.missing}")
                return
            stamp.write_text(locked.read_text())

    def run(self, *arguments: object, environment: Mapping[str, str] | None = None) -> dict[str, float]:
        """Run the script; return the numbers that it prints."""
        return measured([*self._command, *map(str, arguments)], environment=environment)


def _install(folder: Path, locked: Path) -> str | None:
    """Make the environment as the file says; return why not."""
    uv = paths.cache() / "uv/bin/uv"
    if not uv.exists():
        return f"{uv} is missing: run `make setup` first"
    say(f"installing {locked.stem} and what it needs into {folder}, for comparison")
    for command in (
        ["venv", "-q", "--allow-existing", "--python", sys.executable, str(folder)],
        ["pip", "sync", "-q", "--python", str(folder / "bin/python"), str(locked)],
    ):
        try:
            done = subprocess.run([uv, *command], capture_output=True, text=True, timeout=_INSTALL_SECONDS, check=False)
        except subprocess.TimeoutExpired:
            return f"not installed after {_INSTALL_SECONDS} s"
        if done.returncode:
            return f"not installed, is there a network? {' '.join(done.stderr.split())[:300]}"
    return None


def ours(module: str, *arguments: object, prefix: Sequence[str] = (), **environment: str) -> dict[str, float]:
    """Run a module of the benchmarks in a fresh process of this Python; return the numbers that it prints."""
    return measured([*prefix, sys.executable, "-m", f"dev.bench.{module}", *map(str, arguments)], environment)


def measured(command: Sequence[str], environment: Mapping[str, str] | None = None) -> dict[str, float]:
    """Run a process that prints one JSON object of numbers; return them."""
    variables = {**os.environ, **(environment or {})}
    done = subprocess.run(command, env=variables, capture_output=True, text=True, check=False, cwd=paths.ROOT)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command[:5])} failed: {done.stderr[-2000:]}")
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    numbers: dict[str, float] = json.loads(lines[-1])
    return numbers


@contextmanager
def s3_server(folder: Path) -> Iterator[dict[str, str]]:
    """Run an S3 server whose buckets are the folders in `folder`/s3/buckets; yields the variables that open it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    described = start_storage(folder, ensure_built(say), address="127.0.0.1", port=port)
    try:
        yield {
            "AWS_ENDPOINT_URL": described["endpoint"],
            "S3_ENDPOINT_URL": described["endpoint"],
            "AWS_ACCESS_KEY_ID": described["accessKey"],
            "AWS_SECRET_ACCESS_KEY": described["secretKey"],
            "AWS_REGION": described["region"],
            "AWS_DEFAULT_REGION": described["region"],
            "AWS_EC2_METADATA_DISABLED": "true",
        }
    finally:
        processes.kill(list(processes.pids(folder).values()))
