"""Faults by dice on the development cluster: `python -m dev.chaos --seed N [--minutes M]`; `make chaos SEED=N`.

The same seed gives the same faults, in the same order, at the same steps. The run is given another stage for as long as
the time is not over, and so lasts that long on any machine; then a twin trains the same stages undisturbed. Nothing may
be lost or repeated, and the losses must be the twin's.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
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
STAGE_STEPS = 400
STEPS_AHEAD = 200
"""Of the last stage, when another is appended: more than are trained while a fault lasts."""
RECOVERY_LIMIT_SECONDS = 180.0
PLANNED_SHOWN = 60


@dataclass(frozen=True)
class Planned:
    """One fault to come."""

    step: int
    kind: str
    rank: int

    def __str__(self) -> str:
        """For people."""
        return f"step {self.step}: {self.kind}, rank {self.rank}"


def schedule(seed: int) -> Iterator[Planned]:
    """The faults of a seed, without end."""
    dice = random.Random(seed)
    step, bag = 0, list[str]()
    while True:
        step += dice.randint(*STEPS_BETWEEN)
        # Out of a bag that is filled again when it is empty: each kind comes up, in any order.
        bag = bag or dice.sample(sorted(FAULTS), len(FAULTS))
        yield Planned(step, bag.pop(), dice.randrange(3))


class Chaos:
    """Puts faults into one run, which goes on until the time is over."""

    def __init__(self, environment: Environment, run: dict[str, Any], *, seconds: float) -> None:
        self.environment, self.kube, self.run = environment, environment.kube, run["metadata"]["name"]
        self.stages: list[dict[str, Any]] = list(run["spec"]["stages"])
        self._ends = time.monotonic() + seconds

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
        """Wait until the run trains behind `step`; False when the time is over or the run has failed."""
        deadline, newest = time.monotonic() + RECOVERY_LIMIT_SECONDS, -1
        while time.monotonic() < self._ends:
            said = self.status()
            if said.get("state") == "Failed":
                return False
            if said.get("step", 0) > len(self.stages) * STAGE_STEPS - STEPS_AHEAD:
                self._append()
            if said.get("state") == "Training" and said.get("step", 0) >= step:
                return True
            if said.get("step", 0) > newest:
                newest, deadline = said.get("step", 0), time.monotonic() + RECOVERY_LIMIT_SECONDS
            if time.monotonic() > deadline:
                raise RuntimeError(f"no step behind {newest} for {RECOVERY_LIMIT_SECONDS:.0f} s: {json.dumps(said)}")
            time.sleep(1.0)
        return False

    def _append(self) -> None:
        self.stages.append(_stage(self.stages[0], len(self.stages) + 1))
        patch = json.dumps({"spec": {"stages": self.stages}})
        self.kube.run("patch", "skyworkrun", "-n", RUN_NAMESPACE, self.run, "--type=merge", "-p", patch)

    def _pod(self, rank: int) -> dict[str, Any]:
        found = faults.run_pods(self.kube, RUN_NAMESPACE, self.run, self.status().get("stage", ""))
        if not found:
            raise RuntimeError(f"run {self.run} has no pods now")
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


def disturb(environment: Environment, *, seed: int, minutes: float, say: Callable[[str], None]) -> dict[str, Any]:
    """Train through the faults of `seed` for so long, then the same steps undisturbed; return what came of it."""
    run = _run("chaos")
    runs.start(environment, run)
    chaos, began, met = Chaos(environment, run, seconds=minutes * 60), time.monotonic(), list[str]()
    for fault in schedule(seed):
        if not chaos.at_step(fault.step):
            break
        say(str(fault))
        # The world may be in the middle of something else: then this fault hits nothing, which is a case, too.
        with suppress(RuntimeError):
            FAULTS[fault.kind](chaos, fault.rank)
        met.append(fault.kind)
    say("no more faults; the last stage is trained to its end")
    status = runs.finished(environment, "chaos", seconds=(STAGE_STEPS + STEPS_AHEAD) * 5.0 + RECOVERY_LIMIT_SECONDS)
    took, counted = (time.monotonic() - began) / 60, runs.audit(environment, "chaos")
    runs.remove(environment, "chaos")
    say(f"{counted['steps']} steps undisturbed")
    twin = _run("chaos-twin")
    twin["spec"]["stages"] = chaos.stages
    runs.start(environment, twin)
    runs.finished(environment, "chaos-twin", seconds=counted["steps"] * 5.0 + 120)
    wanted = runs.audit(environment, "chaos-twin")["losses"]
    runs.remove(environment, "chaos-twin")
    return {
        "seed": seed,
        "steps": counted["steps"],
        "stepsAskedFor": len(chaos.stages) * STAGE_STEPS,
        "minutes": round(took, 1),
        "minutesAskedFor": minutes,
        "faults": {kind: met.count(kind) for kind in sorted(set(met))},
        "generations": status["generation"],
        "restarts": {entry["reason"]: entry["count"] for entry in status["restarts"].get("byReason", [])},
        "samplesLost": counted["samplesLost"],
        "samplesRepeated": counted["samplesRepeated"],
        "lossesEqualTheTwins": counted["losses"] == wanted,
    }


def _run(name: str) -> dict[str, Any]:
    limits = {"stepTimeout": "15s", "validateTimeout": "60s", "saveTimeout": "60s", "initializeTimeout": "60s"}
    run = runs.manifest(name, steps=STAGE_STEPS, hangDetection=limits)
    run["spec"]["stages"] = [_stage(run["spec"]["stages"][0], 1)]
    return run


def _stage(like: dict[str, Any], number: int) -> dict[str, Any]:
    return like | {"name": f"part-{number}"}


def main() -> int:
    """Exit with 0 when the time was filled and nothing was lost, repeated or changed."""
    parser = argparse.ArgumentParser(prog="python -m dev.chaos", description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=30.0, help="how long the run is disturbed, at least")
    parser.add_argument("--plan", action="store_true", help=f"only print the first {PLANNED_SHOWN} faults")
    options = parser.parse_args()
    if options.plan:
        print(*islice(schedule(options.seed), PLANNED_SHOWN), sep="\n")
        return 0
    started = time.monotonic()

    def say(text: str) -> None:
        print(f"[{time.monotonic() - started:5.0f} s] chaos: {text}", file=sys.stderr, flush=True)

    environment = development_cluster(say)
    _install(environment)
    try:
        report = disturb(environment, seed=options.seed, minutes=options.minutes, say=say)
    finally:
        for number in (1, 2, 3):
            freezing.thaw(number)
    print(json.dumps(report))
    whole = report["steps"] == report["stepsAskedFor"] and report["minutes"] >= report["minutesAskedFor"]
    kept = not report["samplesLost"] and not report["samplesRepeated"] and report["lossesEqualTheTwins"]
    return 0 if whole and kept else 1


def _install(environment: Environment) -> None:
    corpus = Path(environment.cache) / "corpus"
    subprocess.run([sys.executable, "-m", "dev.corpus", "--output", str(corpus)], check=True, cwd=ROOT)
    install.make_bucket(environment.storage)
    install.prepare_data(environment.storage, corpus)
    install.make_namespace(environment.kube, RUN_NAMESPACE, environment.storage, hostpath=True)
    install.install_chart(environment.kube, environment.overlay)


if __name__ == "__main__":
    sys.exit(main())
