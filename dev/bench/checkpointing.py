"""What a save costs training, and what a world of another size costs to start from it."""

import json
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dev.bench.figures import Figure, Goal, Peer, say

_PEER = "DeepSpeed 0.19"


def measure(folder: Path, *, quick: bool) -> Iterator[Figure]:
    """Yield the stall of a save beside a bare copy and DeepSpeed's own, and the time to resume on another world."""
    say("two ranks train a model of 59 M parameters and save")
    saved = _world("save", folder, 2)
    told = f"{saved['megabytes']:.0f} MB a rank"
    yield Figure(
        figure="checkpoint.stall", unit="s", values=saved["stall"], goal=Goal(of="ratio", at_least=1 / 1.3),
        peer=Peer(name=f"bare copy of the same bytes, {told}", values=saved["copy"]),
    )  # fmt: skip
    yield Figure(
        figure="checkpoint.stall_beside_deepspeed", unit="s", values=saved["stall"],
        peer=Peer(name=f"{_PEER} engine.save_checkpoint, {told}", values=saved["peer"]),
    )  # fmt: skip
    say("three ranks start from it")
    loads = [_world("load", folder, 3) for _ in range(1 if quick else 3)]
    ours = [load["seconds"][0] for load in loads]
    yield Figure(
        figure="checkpoint.read_on_another_world", unit="bytes a byte needed", values=loads[0]["read_share"],
    )  # fmt: skip
    began = time.monotonic()
    missing = _convert(folder)
    converted = time.monotonic() - began
    theirs = [] if missing else [converted + _world("peer", folder, 3)["seconds"][0]]
    yield Figure(
        figure="checkpoint.load_on_another_world", unit="s", values=ours,
        peer=Peer(name=f"{_PEER} ds_to_universal and load", values=theirs, missing=missing),
    )  # fmt: skip
    # A save in the background is charged whole here: a world that is to be resized waits for it.
    save, save_theirs = statistics.median(saved["whole"]), statistics.median(saved["peer"])
    yield Figure(
        figure="checkpoint.resize", unit="s", values=[save + load for load in ours], goal=Goal(of="ratio", at_least=10),
        peer=Peer(
            name=f"{_PEER} save, ds_to_universal and load", values=[save_theirs + load for load in theirs],
            missing=missing,
        ),
    )  # fmt: skip


def _convert(folder: Path) -> str | None:
    """Convert DeepSpeed's checkpoint for another world; return why not, if it cannot be."""
    say("ds_to_universal")
    source, target = folder / "deepspeed/newest", folder / "deepspeed/universal"
    command = [sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal", "--input_folder", str(source)]
    done = subprocess.run(
        [*command, "--output_folder", str(target), "--inject_missing_state"],
        env=os.environ | {"DS_ACCELERATOR": "cpu"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    return done.stderr.strip().splitlines()[-1] if done.returncode else None


def _world(what: str, folder: Path, size: int) -> dict[str, Any]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "dev.bench.checkpoint_rank", what, str(folder)]
    ranks = [
        subprocess.Popen([*command, str(rank), str(size), str(port)], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for rank in range(size)
    ]
    ended = [rank.communicate() for rank in ranks]
    if any(rank.returncode for rank in ranks):
        raise RuntimeError("\n".join(error.decode()[-1500:] for _, error in ended))
    lines = [line for line in ended[0][0].decode().splitlines() if line.startswith("{")]
    told: dict[str, Any] = json.loads(lines[-1])
    return told
