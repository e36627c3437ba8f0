"""Faults by dice on the development cluster: `python -m dev.chaos --seed N [--minutes M]`; `make chaos SEED=N`.

The same seed gives the same faults, in the same order, at the same steps of the same run, next to which an undisturbed
twin has trained first. At the end nothing may be lost or repeated, and the losses must be the twin's.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dev.cluster import freezing, processes
from dev.cluster.paths import STATE
from dev.demo import faults, install
from dev.demo.environment import Environment, development_cluster
from dev.demo.install import ROOT, RUN_NAMESPACE
from tests.cluster import runs

STORAGE_OUTAGE_SECONDS = 20.0
FROZEN_SECONDS = 30.0
STEPS_BETWEEN = (15, 60)
RECOVERY_LIMIT_SECONDS = 180.0
SECONDS_PER_STEP = 0.9
"""Of a run that is disturbed so often, on two cores; an undisturbed one takes about half."""


@dataclass(frozen=True)
class Planned:
    """One fault to come."""

    step: int
    kind: str
    rank: int


def schedule(seed: int, steps: int) -> list[Planned]:
    """The faults of a run of so many steps."""
    dice = random.Random(seed)
    planned, step, bag = [], dice.randint(*STEPS_BETWEEN), list[str]()
    while step < steps - STEPS_BETWEEN[1]:
        # Out of a bag that is filled again when it is empty: each kind comes up, in any order.
        bag = bag or dice.sample(sorted(FAULTS), len(FAULTS))
        planned.append(Planned(step, bag.pop(), dice.randrange(3)))
        step += dice.randint(*STEPS_BETWEEN)
    return planned


class Chaos:
    """Puts faults into one run."""

    def __init__(self, environment: Environment, run: str, say: Callable[[str], None]) -> None:
        self.environment, self.kube, self.run, self.say = environment, environment.kube, run, say

    def kill_worker(self, rank: int) -> None:
        """SIGKILL a worker."""
        faults.kill_worker(self.kube, RUN_NAMESPACE, self._pod(rank))

    def stop_worker(self, rank: int) -> None:
        """SIGSTOP a worker: a hang."""
        faults.signal_worker(self.kube, RUN_NAMESPACE, self._pod(rank), "SIGSTOP")

    def delete_pod(self, rank: int) -> None:
        """Delete a pod with its grace period: SIGTERM, and it saves."""
        faults.delete_pod(self.kube, RUN_NAMESPACE, self._pod(rank))

    def crash_pod(self, rank: int) -> None:
        """Delete a pod without any grace."""
        name = self._pod(rank)["metadata"]["name"]
        self.kube.run("delete", "pod", "-n", RUN_NAMESPACE, name, "--grace-period=0", "--force", "--wait=false")

    def freeze_node(self, rank: int) -> None:
        """Freeze a node, and let it come back."""
        number = int(self._pod(rank)["spec"]["nodeName"].removeprefix("node-"))
        freezing.freeze(number)
        time.sleep(FROZEN_SECONDS)
        freezing.thaw(number)

    def kill_operator(self, rank: int) -> None:
        """Kill the operator's pod."""
        labels = ["-n", install.OPERATOR_NAMESPACE, "-l", "app.kubernetes.io/name=skywork-operator"]
        self.kube.run("delete", "pods", *labels, "--force", "--grace-period=0")

    def stop_storage(self, rank: int) -> None:
        """Have object storage answer nobody for a while."""
        (pid,) = [pid for name, pid in processes.pids(STATE).items() if name == "s3"]
        os.kill(pid, signal.SIGSTOP)
        time.sleep(STORAGE_OUTAGE_SECONDS)
        os.kill(pid, signal.SIGCONT)

    def status(self) -> dict[str, Any]:
        """The run's status."""
        return runs.get(self.environment, self.run)

    def at_step(self, step: int) -> bool:
        """Wait until the run trains behind `step`; False when it is over before that."""
        deadline = time.monotonic() + RECOVERY_LIMIT_SECONDS
        newest = -1
        while True:
            said = self.status()
            if said.get("state") in ("Succeeded", "Failed"):
                return False
            if said.get("state") == "Training" and said.get("step", 0) >= step:
                return True
            if said.get("step", 0) > newest:
                newest, deadline = said.get("step", 0), time.monotonic() + RECOVERY_LIMIT_SECONDS
            if time.monotonic() > deadline:
                raise RuntimeError(f"no step behind {newest} for {RECOVERY_LIMIT_SECONDS:.0f} s: {json.dumps(said)}")
            time.sleep(1.0)

    def _pod(self, rank: int) -> dict[str, Any]:
        found = runs.pods(self.environment, self.run)
        return found[rank % len(found)]


FAULTS: dict[str, Callable[[Chaos, int], None]] = {
    "kill worker": Chaos.kill_worker,
    "hang worker": Chaos.stop_worker,
    "delete pod": Chaos.delete_pod,
    "crash pod": Chaos.crash_pod,
    "freeze node": Chaos.freeze_node,
    "kill operator": Chaos.kill_operator,
    "storage down": Chaos.stop_storage,
}


def disturb(environment: Environment, *, seed: int, steps: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Train `steps` steps undisturbed, then again through the faults of `seed`; return what came of it."""
    limits = {"stepTimeout": "15s", "validateTimeout": "60s", "saveTimeout": "60s", "initializeTimeout": "60s"}
    changes: dict[str, Any] = {"hangDetection": limits}
    twin = runs.manifest("chaos-twin", steps=steps, **changes)
    say(f"{steps} steps undisturbed")
    runs.start(environment, twin)
    runs.finished(environment, "chaos-twin", seconds=steps * 5.0 + 120)
    wanted = runs.audit(environment, "chaos-twin")["losses"]
    runs.remove(environment, "chaos-twin")
    planned = schedule(seed, steps)
    say(f"{len(planned)} faults of seed {seed}")
    runs.start(environment, runs.manifest("chaos", steps=steps, **changes))
    chaos, began, met = Chaos(environment, "chaos", say), time.monotonic(), []
    for fault in planned:
        if not chaos.at_step(fault.step):
            break
        say(f"step {fault.step}: {fault.kind}, rank {fault.rank}")
        # The world may be in the middle of something else: then this fault hits nothing, which is a case, too.
        with suppress(RuntimeError):
            FAULTS[fault.kind](chaos, fault.rank)
        met.append(fault.kind)
    status = runs.finished(environment, "chaos", seconds=steps * 5.0 + RECOVERY_LIMIT_SECONDS)
    counted = runs.audit(environment, "chaos")
    report = {
        "seed": seed,
        "steps": counted["steps"],
        "minutes": round((time.monotonic() - began) / 60, 1),
        "faults": {kind: met.count(kind) for kind in sorted(set(met))},
        "generations": status["generation"],
        "restarts": {entry["reason"]: entry["count"] for entry in status["restarts"].get("byReason", [])},
        "samplesLost": counted["samplesLost"],
        "samplesRepeated": counted["samplesRepeated"],
        "lossesEqualTheTwins": counted["losses"] == wanted,
    }
    runs.remove(environment, "chaos")
    return report


def main() -> int:
    """Exit with 0 when nothing was lost, repeated or changed."""
    parser = argparse.ArgumentParser(prog="python -m dev.chaos", description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=30.0, help="about how long the disturbed run shall take")
    parser.add_argument("--plan", action="store_true", help="only print the faults")
    options = parser.parse_args()
    steps = int(options.minutes * 60 / SECONDS_PER_STEP)
    if options.plan:
        for fault in schedule(options.seed, steps):
            print(f"step {fault.step}: {fault.kind}, rank {fault.rank}")
        return 0
    started = time.monotonic()

    def say(text: str) -> None:
        print(f"[{time.monotonic() - started:5.0f} s] chaos: {text}", file=sys.stderr, flush=True)

    environment = development_cluster(say)
    _install(environment)
    try:
        report = disturb(environment, seed=options.seed, steps=steps, say=say)
    finally:
        for number in (1, 2, 3):
            freezing.thaw(number)
    print(json.dumps(report))
    whole = report["steps"] == steps and not report["samplesLost"] and not report["samplesRepeated"]
    return 0 if whole and report["lossesEqualTheTwins"] else 1


def _install(environment: Environment) -> None:
    corpus = Path(environment.cache) / "corpus"
    subprocess.run([sys.executable, "-m", "dev.corpus", "--output", str(corpus)], check=True, cwd=ROOT)
    install.make_bucket(environment.storage)
    install.prepare_data(environment.storage, corpus)
    install.make_namespace(environment.kube, RUN_NAMESPACE, environment.storage, hostpath=True)
    install.install_chart(environment.kube, environment.overlay)


if __name__ == "__main__":
    sys.exit(main())
