"""A worker that does what a file in its state folder says: real processes for the agent's tests."""

import faulthandler
import os
import signal
import subprocess
import time
from pathlib import Path

from skywork_trainer.config import Failure, Place, RunConfig, Section
from skywork_trainer.heartbeat import Heartbeat
from skywork_trainer.stacks import STACK_SIGNAL, stack_path


def preload(config: RunConfig) -> None:
    """Nothing to import."""


def stand_still(said: Path) -> None:
    """Show no sign of progress, for ever."""
    said.touch()
    while True:
        time.sleep(60)


def run(config: RunConfig, place: Place) -> int:
    asked: list[int] = []
    if (Path(os.environ["FAKE_WORKER_ORDERS"]) / "mute").exists():
        stand_still(place.state_dir / f"standing-{place.local_rank}")
    signal.signal(signal.SIGTERM, lambda *_: asked.append(1))
    folder = place.state_dir
    stacks = stack_path(folder, place.local_rank).open("w")
    faulthandler.register(STACK_SIGNAL, file=stacks, all_threads=True, chain=False)
    heart, section = Heartbeat(folder, place.local_rank), Section.STEP
    (folder / f"started-{place.local_rank}").write_text(f"{os.getpid()} {place.rank} {place.world_size}")
    order = Path(os.environ["FAKE_WORKER_ORDERS"]) / str(place.generation)
    while True:
        heart.beat(section, 7)
        if asked:
            (folder / f"asked-{place.local_rank}").touch()
        if asked and not (Path(os.environ["FAKE_WORKER_ORDERS"]) / "deaf").exists():
            (folder / f"saved-{place.local_rank}").touch()
            return 75
        if order.exists():
            words = order.read_text().split()
            helper = folder / f"helper-{place.local_rank}"
            if words[0] == "helper" and not helper.exists():
                helper.write_text(str(subprocess.Popen(["sleep", "600"]).pid))
            if words[0] == "section":
                section = Section(words[1])
                heart.beat(section, 7)
            if words[0] == "hang" or (words[0] == "section" and "hang" in words):
                stand_still(folder / f"standing-{place.local_rank}")
            if words[0] == "exit" and (len(words) < 3 or int(words[2]) == place.local_rank):
                return int(words[1])
            if words[0] == "fail" and int(words[1]) == place.local_rank:
                failure = Failure(time=time.time(), rank=place.rank, reason="AppError", message="ValueError: bad shape")
                (folder / f"failure-{place.local_rank}.json").write_text(failure.model_dump_json())
                return 1
        time.sleep(0.01)
