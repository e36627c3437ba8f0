"""Each node's own cgroup, in every controller, on cgroup v1, v2 or the hybrid of both."""

import os
import signal
import time
from pathlib import Path


def _mounts() -> list[tuple[Path, str]]:
    lines = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    found = [(Path(line[1]), line[2]) for line in lines if line[2] in ("cgroup", "cgroup2")]
    # On a hybrid machine the v2 tree has no controllers, and the kubelet does not look at it.
    return [m for m in found if m[1] == "cgroup"] or found


def create(name: str) -> None:
    """Make the cgroup `name`; the kubelet refuses to start under one that is not there."""
    for mount, kind in _mounts():
        folder = mount / name
        folder.mkdir(exist_ok=True)
        if kind == "cgroup2":
            controllers = (mount / "cgroup.controllers").read_text().split()
            for parent in (mount, folder):
                (parent / "cgroup.subtree_control").write_text(" ".join(f"+{c}" for c in controllers))
        for setting in ("cpuset.cpus", "cpuset.mems"):
            # A v1 cpuset starts empty, and no process can enter an empty one.
            if kind == "cgroup" and (folder / setting).exists():
                (folder / setting).write_text((mount / setting).read_text())


def set_frozen(name: str, frozen: bool) -> None:
    """Stop every process in the cgroup where it stands, or let them go on."""
    for folder in existing(name):
        # Version 1 says it in words in a controller of its own, version 2 in each cgroup by a number.
        if (folder / "freezer.state").exists():
            (folder / "freezer.state").write_text("FROZEN" if frozen else "THAWED")
        elif (folder / "cgroup.freeze").exists():
            (folder / "cgroup.freeze").write_text("1" if frozen else "0")


def existing(name: str) -> list[Path]:
    """Folders of the cgroup `name` that exist."""
    return [mount / name for mount, _ in _mounts() if (mount / name).exists()]


def remove(name: str, seconds: float = 15) -> None:
    """Kill every process in the cgroup and remove it with all below it."""
    deadline = time.monotonic() + seconds
    while True:
        for folder in existing(name):
            # From below, and without minding those that go by themselves meanwhile: a runtime may still tidy up, too.
            for path, _, _ in os.walk(folder, topdown=False):
                _empty(Path(path))
        if not existing(name) or time.monotonic() > deadline:
            return
        time.sleep(0.1)


def _empty(folder: Path) -> None:
    try:
        if (folder / "freezer.state").exists():
            (folder / "freezer.state").write_text("THAWED")
        for number in (folder / "cgroup.procs").read_text().split():
            os.kill(int(number), signal.SIGKILL)
        folder.rmdir()
    except (OSError, ProcessLookupError):
        return
