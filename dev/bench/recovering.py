"""From a kill to the next step: the product on the development cluster, beside torchrun's elastic launch.

The same decoder, as many sequences a step, on the same machine. Ours goes through the kubelet, the API server, the
operator and a checkpoint in S3; the peer's workers restore nothing.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from skywork_operator.parsing import parse_run
from skywork_operator.render import run_config
from skywork_trainer.config import AgentStatus, Model

from dev.bench.elastic import NAME, Torchrun
from dev.bench.figures import Figure, Goal, Peer, say
from dev.cluster import lifecycle
from dev.demo import faults, install
from dev.demo.environment import Environment, development_cluster
from dev.demo.install import ROOT, RUN_NAMESPACE
from tests.cluster import runs
from tests.waiting import until

NODES = 3
SEQUENCE_LENGTH = 128
LIMIT_SECONDS = 300.0
WASTED_EVERY_STEPS = 40
_LATE = int(0.6 * WASTED_EVERY_STEPS)


@dataclass(frozen=True)
class Kill:
    """Who is killed."""

    rank: int
    agent_lives: bool = False
    """Whether it is the worker alone, and not its agent as well."""
    limit_seconds: float = LIMIT_SECONDS
    """The peer is waited for that long."""


_KILLS = {
    "worker_killed": Kill(2, agent_lives=True),
    "agent_killed": Kill(2),
    # The peer's first agent holds its store.
    "first_agent_killed": Kill(0, limit_seconds=120.0),
}


def measure(folder: Path, *, quick: bool) -> Iterator[Figure]:
    """The figures; the cluster is booted unless it is up, and then taken down."""
    was_up = lifecycle.status()[1]
    environment = development_cluster(say)
    try:
        _install(environment)
        yield from _beside_torchrun(environment, folder, repeats=1 if quick else 3)
        yield from _recreated(environment, repeats=1 if quick else 3)
        yield from _wasted(environment, repeats=2 if quick else 5)
    finally:
        if not was_up:
            environment.down()


def _beside_torchrun(environment: Environment, folder: Path, *, repeats: int) -> Iterator[Figure]:
    run = _run("recovering")
    run["spec"]["trainer"]["nodes"] = {"min": 2, "max": NODES, "shrinkAfter": "0s", "growAfter": "1s"}
    ours: dict[str, list[float]] = {name: [] for name in _KILLS}
    for turn in range(repeats):
        # A run of its own for each turn: its Job pauses longer before every further pod that ended by itself.
        runs.start(environment, run)
        for name, kill in _KILLS.items():
            say(f"ours: {name}, turn {turn + 1} of {repeats}")
            fault = kill_worker if kill.agent_lives else kill_pod
            ours[name].append(_recovery(environment, "recovering", kill.rank, fault))
        runs.remove(environment, "recovering")
    theirs: dict[str, list[float]] = {name: [] for name in _KILLS}
    for turn in range(repeats):
        for name, kill in _KILLS.items():
            took = _theirs(folder / f"{name}-{turn}", _model(run), kill)
            say(f"{NAME}: {name}, turn {turn + 1} of {repeats}: {'never' if took is None else f'{took:.1f} s'}")
            theirs[name] += [took] if took is not None else []
    goal = Goal(of="ratio", at_least=10)
    for name in _KILLS:
        came_back = len(theirs[name])
        missing = None if came_back else f"did not train again in {repeats} of {repeats} tries"
        say(f"{NAME}: {name}: came back {came_back} of {repeats}")
        peer = Peer(name=NAME, values=theirs[name], missing=missing)
        yield Figure(figure=f"recovery.{name}", unit="s to the next step", values=ours[name], peer=peer, goal=goal)


def _run(name: str) -> dict[str, Any]:
    # The same node is struck again and again here, and shall not be left for that; nor shall pauses grow.
    policy = {"avoidNodes": {"strikes": 0}, "backoff": {"first": "1s", "max": "1s"}, "restartsWithoutProgress": 100}
    return runs.manifest(name, steps=100_000, failurePolicy=policy)


def _theirs(folder: Path, model: Model, kill: Kill) -> float | None:
    """Seconds to the peer's next step, in a job of its own; None when it never comes back."""
    sequences = runs.BATCH_TOKENS // SEQUENCE_LENGTH // NODES
    with Torchrun(folder, model, sequences=sequences, sequence_length=SEQUENCE_LENGTH) as torchrun:
        time.sleep(2)
        at = torchrun.kill_worker(kill.rank) if kill.agent_lives else torchrun.kill_agent(kill.rank)
        members = [number for number in range(NODES) if kill.agent_lives or number != kill.rank]
        stepped = torchrun.next_step(members, world=len(members), after=at, limit_seconds=kill.limit_seconds)
    return None if stepped is None else stepped - at


def _recreated(environment: Environment, *, repeats: int) -> Iterator[Figure]:
    """A worker anew in its pod, beside the whole pod anew, on as many nodes."""
    runs.start(environment, _run("recreating"))
    kept, anew = [], []
    for turn in range(repeats):
        say(f"in place and anew, turn {turn + 1} of {repeats}")
        _trains(environment, "recreating", NODES)
        uids = _uids(environment, "recreating")
        kept.append(_recovery(environment, "recreating", 1, kill_worker))
        if _uids(environment, "recreating") != uids:
            raise RuntimeError("a killed worker cost a pod")
        anew.append(_recovery(environment, "recreating", 1, delete_pod))
    runs.remove(environment, "recreating")
    peer = Peer(name="the pod made anew", values=anew)
    yield Figure(figure=f"recovery.in_place_of_{NODES}", unit="s to the next step", values=kept, peer=peer)


def _wasted(environment: Environment, *, repeats: int) -> Iterator[Figure]:
    """Steps that are trained twice because a node was taken: asked to leave, beside gone without a word."""
    wasted: dict[str, list[float]] = {"saved": [], "killed": []}
    for name, fault in (("saved", delete_pod), ("killed", kill_pod)):
        run = _run(f"wasted-{name}")
        run["spec"]["checkpoints"] |= {"everySteps": WASTED_EVERY_STEPS}
        del run["spec"]["checkpoints"]["every"]
        runs.start(environment, run)
        for attempt in range(repeats):
            say(f"steps wasted, {name}, {attempt + 1} of {repeats}")
            before = _trains(environment, f"wasted-{name}", NODES)
            # Not right behind a checkpoint, where nothing could be lost.
            until(lambda run=run["metadata"]["name"]: _step(environment, run) % WASTED_EVERY_STEPS > _LATE)  # type: ignore[misc]
            at = _step(environment, f"wasted-{name}")
            fault(environment, runs.pods(environment, f"wasted-{name}")[1])
            resumed = _resumed(environment, f"wasted-{name}", after=before)
            wasted[name].append(float(max(at - resumed, 0)))
        runs.remove(environment, f"wasted-{name}")
    peer = Peer(name="killed without a word", values=wasted["killed"])
    # Of one interval: bar 3 of the research's twelve.
    goal = Goal(of="value", at_most=0.05 * WASTED_EVERY_STEPS)
    yield Figure(figure="recovery.wasted_steps", unit=f"of {WASTED_EVERY_STEPS} between checkpoints",
                 values=wasted["saved"], peer=peer, goal=goal)  # fmt: skip


def _recovery(
    environment: Environment, run: str, rank: int, kill: Callable[[Environment, dict[str, Any]], float]
) -> float:
    generation = _trains(environment, run, NODES)
    at = kill(environment, _of_rank(environment, run, rank))
    first = faults.first_step_after(
        environment.kube, RUN_NAMESPACE, run, generation=generation, timeout_seconds=LIMIT_SECONDS, tick=lambda: None
    )
    say(f"ours: {first - at:.2f} s")
    return first - at


def _trains(environment: Environment, run: str, nodes: int) -> int:
    """The generation, once all nodes train and have done a few steps."""

    def settled() -> int | None:
        status = runs.get(environment, run)
        if status.get("state") != "Training" or status["nodes"]["training"] != nodes:
            return None
        said = _leader(environment, run)
        here = said is not None and said.progress is not None and said.generation == status["generation"]
        return status["generation"] if here and said.progress.step > said.progress.first_step + 5 else None  # type: ignore[union-attr]

    found: int = until(settled, LIMIT_SECONDS)
    return found


def _leader(environment: Environment, run: str) -> AgentStatus | None:
    told = [faults.agent_status(environment.kube, RUN_NAMESPACE, pod) for pod in runs.pods(environment, run)]
    return next((said for said in told if said is not None and said.progress is not None), None)


def _step(environment: Environment, run: str) -> int:
    said = _leader(environment, run)
    return said.progress.step if said is not None and said.progress is not None else 0


def _resumed(environment: Environment, run: str, *, after: int) -> int:
    """Step from which a generation newer than `after` goes on."""

    def found() -> AgentStatus | None:
        said = _leader(environment, run)
        later = said is not None and said.generation > after and said.progress is not None
        return said if later and said.progress.first_step_time else None  # type: ignore[union-attr]

    said: AgentStatus = until(found, LIMIT_SECONDS)
    assert said.progress is not None
    return said.progress.first_step


def _of_rank(environment: Environment, run: str, rank: int) -> dict[str, Any]:
    for pod in runs.pods(environment, run):
        said = faults.agent_status(environment.kube, RUN_NAMESPACE, pod)
        if said is not None and said.rank == rank:
            return pod
    raise RuntimeError(f"no pod of {run} has rank {rank}")


def _uids(environment: Environment, run: str) -> set[str]:
    return {pod["metadata"]["uid"] for pod in runs.pods(environment, run)}


# -- kills, from outside the pods: kubectl exec alone would take a second ----------------------------------------------


def kill_worker(environment: Environment, pod: dict[str, Any]) -> float:
    """SIGKILL the pod's worker; the time of that."""
    said = faults.agent_status(environment.kube, RUN_NAMESPACE, pod)
    if said is None or not said.workers:
        raise RuntimeError(f"pod {pod['metadata']['name']} has no worker")
    pids = {inside: outside for outside, inside in _processes(pod["metadata"]["uid"]).items()}
    now = time.time()
    os.kill(pids[said.workers[0]], signal.SIGKILL)
    return now


def kill_pod(environment: Environment, pod: dict[str, Any]) -> float:
    """SIGKILL the agent and all workers of the pod at once; the time of that."""
    pids, now = _processes(pod["metadata"]["uid"]), time.time()
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return now


def delete_pod(environment: Environment, pod: dict[str, Any]) -> float:
    """Ask the pod to end; the time of that."""
    now = time.time()
    faults.delete_pod(environment.kube, RUN_NAMESPACE, pod)
    return now


def _processes(uid: str) -> dict[int, int]:
    """Process ids of the trainer container of a pod, here and inside it."""
    found = {}
    for folder in Path("/proc").iterdir():
        with suppress(OSError, ValueError, StopIteration):
            pid = int(folder.name)
            groups = (folder / "cgroup").read_text()
            if uid not in groups and uid.replace("-", "_") not in groups:
                continue
            lines = (folder / "status").read_text().splitlines()
            if "pause" not in lines[0]:
                found[pid] = int(next(line for line in lines if line.startswith("NSpid")).split()[-1])
    return found


def _model(run: dict[str, Any]) -> Model:
    metadata = run["metadata"] | {"uid": "u", "generation": 1, "creationTimestamp": "2026-01-01T00:00:00Z"}
    return run_config(parse_run(run | {"metadata": metadata}), "general").model


def _install(environment: Environment) -> None:
    # What these print is no figure.
    figures = os.dup(1)
    os.dup2(2, 1)
    try:
        corpus = environment.cache / "corpus"
        subprocess.run([sys.executable, "-m", "dev.corpus", "--output", str(corpus)], check=True, cwd=ROOT)
        install.make_bucket(environment.storage)
        install.prepare_data(environment.storage, corpus)
        install.make_namespace(environment.kube, RUN_NAMESPACE, environment.storage, hostpath=True)
        install.install_chart(environment.kube, environment.overlay)
    finally:
        os.dup2(figures, 1)
        os.close(figures)
