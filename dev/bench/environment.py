"""What benchmarks run against: peers in environments of their own, and a real S3 server."""

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dev.bench.figures import say
from dev.cluster import paths, processes
from dev.cluster.build import ensure_built
from dev.cluster.storage import start_storage

PEERS = Path(__file__).parent / "peers"


def peer_python(name: str, *requirements: str) -> Path | None:
    """Return the Python of an environment that holds the requirements, made at the first call; None without network."""
    folder = paths.cache() / "peers" / name
    python = folder / "bin/python"
    stamp = folder / ".installed"
    wanted = "\n".join(requirements)
    if stamp.exists() and stamp.read_text() == wanted:
        return python
    say(f"installing {' '.join(requirements)} for comparison")
    shutil.rmtree(folder, ignore_errors=True)
    uv = str(paths.cache() / "uv/bin/uv")
    for command in (
        ["venv", "-q", "--python", sys.executable, str(folder)],
        ["pip", "install", "-q", "--python", str(python), *requirements],
    ):
        done = subprocess.run([uv, *command], capture_output=True, text=True, check=False)
        if done.returncode:
            say(f"the peer is left out, it cannot be installed: {done.stderr.strip().splitlines()[-1:]}")
            return None
    stamp.write_text(wanted)
    return python


def measured(command: list[str], *, environment: dict[str, str] | None = None) -> dict[str, float]:
    """Run a process that prints one JSON object of numbers; return them."""
    done = subprocess.run(
        command,
        env=os.environ | (environment or {}),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(command[:4])} failed: {done.stderr[-2000:]}")
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    numbers: dict[str, float] = json.loads(lines[-1])
    return numbers


@contextmanager
def s3_server(folder: Path) -> Iterator[dict[str, str]]:
    """Run an S3 server over `folder`; yields the variables that open it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    described = start_storage(folder, ensure_built(say), address="127.0.0.1", port=port)
    try:
        yield {
            "AWS_ENDPOINT_URL": described["endpoint"],
            "AWS_ACCESS_KEY_ID": described["accessKey"],
            "AWS_SECRET_ACCESS_KEY": described["secretKey"],
            "AWS_REGION": described["region"],
        }
    finally:
        processes.kill(list(processes.pids(folder).values()))
