"""From a kill to the next step: the product on the development cluster, beside torchrun's elastic launch.

Ours goes through the kubelet, the API server and the operator. The peer is measured twice on the same machine: with our
own trainer, so that both do the same work and only who restarts it differs; and with no more than our decoder under
DDP on random tokens, which restores nothing.
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

from kubernetes import client, config
from skywork_operator.parsing import parse_pod, parse_run
from skywork_operator.render import run_config
from skywork_operator.times import seconds
from skywork_trainer.config import AgentStatus, RunConfig

from dev.bench.elastic import NAME, Torchrun
from dev.bench.figures import Figure, Goal, Peer, say
from dev.cluster import freezing, lifecycle
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
        yield from _spared(environment, repeats=1 if quick else 3)
        yield from _frozen(environment, repeats=1 if quick else 3, with_operator=False)
        yield from _frozen(environment, repeats=1 if quick else 3, with_operator=True)
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
    for peer, worker in {NAME: _trainer_of_ours, f"{NAME}, bare DDP": _bare}.items():
        theirs: dict[str, list[float]] = {name: [] for name in _KILLS}
        for turn in range(min(repeats, 2)):
            for name, kill in _KILLS.items():
                place = folder / f"{worker.__name__}-{name}-{turn}"
                took = _theirs(place, worker(run, place), environment, kill)
                say(f"{peer}: {name}, turn {turn + 1}: {'never' if took is None else f'{took:.1f} s'}")
                theirs[name] += [took] if took is not None else []
        yield from _compared(ours, theirs, peer, "" if worker is _trainer_of_ours else "_beside_bare")


def _compared(ours: dict[str, list[float]], theirs: dict[str, list[float]], peer: str, suffix: str) -> Iterator[Figure]:
    for name in _KILLS:
        missing = None if theirs[name] else "never trained again"
        yield Figure(
            figure=f"recovery.{name}{suffix}", unit="s to the next step", values=ours[name],
            peer=Peer(name=peer, values=theirs[name], missing=missing), goal=Goal(of="ratio", at_least=10),
        )  # fmt: skip
    if not suffix:
        goal = Goal(of="value", at_most=2)
        yield Figure(figure="recovery.worker", unit="s to the next step", values=ours["worker_killed"], goal=goal)


def _run(name: str) -> dict[str, Any]:
    # The same node is struck again and again here, and shall not be left for that; nor shall pauses grow.
    policy = {"avoidNodes": {"strikes": 0}, "backoff": {"first": "1s", "max": "1s"}, "restartsWithoutProgress": 100}
    return runs.manifest(name, steps=100_000, failurePolicy=policy)


def _trainer_of_ours(run: dict[str, Any], place: Path) -> list[str]:
    config = _config(run)
    uri = f"{config.checkpoints.uri}-{place.name}"
    config = config.model_copy(update={"checkpoints": config.checkpoints.model_copy(update={"uri": uri})})
    place.mkdir(parents=True)
    (place / "run.json").write_text(config.model_dump_json())
    return ["trainer", "--config", str(place / "run.json")]


def _bare(run: dict[str, Any], place: Path) -> list[str]:
    place.mkdir(parents=True)
    sequences = runs.BATCH_TOKENS // SEQUENCE_LENGTH // NODES
    model = _config(run).model.model_dump_json()
    return ["bare", "--model", model, "--sequences", str(sequences), "--sequence-length", str(SEQUENCE_LENGTH)]


def _theirs(place: Path, worker: list[str], environment: Environment, kill: Kill) -> float | None:
    """Seconds to the peer's next step, in a job of its own; None when it never comes back."""
    with Torchrun(place / "torchrun", worker, environment.storage.environment()) as torchrun:
        # As ours: not before some steps are done, and checkpoints are there.
        time.sleep(8)
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
    peer, unit = Peer(name="the pod made anew", values=anew), "s to the next step"
    yield Figure(figure=f"recovery.in_place_of_{NODES}", unit=unit, values=kept, peer=peer)
    yield Figure(figure="recovery.pod_deleted", unit=unit, values=anew, goal=Goal(of="value", at_most=8))


def _spared(environment: Environment, *, repeats: int) -> Iterator[Figure]:
    """A pod deleted where a warm spare stands by."""
    run = _run("spared")
    run["spec"]["trainer"]["nodes"] = {"min": NODES - 1, "max": NODES - 1, "spares": 1}
    runs.start(environment, run)
    took = []
    for turn in range(repeats):
        say(f"a spare takes over, turn {turn + 1} of {repeats}")
        # Warm is what its agent calls ready.
        until(lambda: sum(parse_pod(p).ready for p in runs.pods(environment, "spared")) == NODES, LIMIT_SECONDS)
        took.append(_recovery(environment, "spared", 1, delete_pod, nodes=NODES - 1))
    runs.remove(environment, "spared")
    goal = Goal(of="value", at_most=3)
    yield Figure(figure="recovery.pod_deleted_with_spare", unit="s to the next step", values=took, goal=goal)


def _frozen(environment: Environment, *, repeats: int, with_operator: bool) -> Iterator[Figure]:
    """A node that stands still, from when it is declared NotReady; the operator is on another one, or on this one."""
    run, took, api = _run("freezing"), [], client.CoreV1Api(_api(environment))
    run["spec"]["trainer"]["nodes"] = {"min": 2, "max": NODES, "shrinkAfter": "0s", "growAfter": "1s"}
    for turn in range(repeats):
        say(f"a node freezes, turn {turn + 1} of {repeats}")
        # Anew each time: replacements share a node, and two members would be gone at once.
        runs.start(environment, run)
        _trains(environment, "freezing", NODES)
        at = {rank: _node(_of_rank(environment, "freezing", rank)) for rank in range(NODES)}
        operator = _operator(environment)
        away = next(rank for rank, node in reversed(at.items()) if (node == operator) is with_operator)
        number: list[int] = []

        def freeze(environment: Environment, pod: dict[str, Any], number: list[int] = number) -> float:
            number.append(_node(pod))
            freezing.freeze(number[0])
            until(lambda: not _is_ready(api, number[0]), LIMIT_SECONDS, 0.05)
            return time.time()

        try:
            took.append(_recovery(environment, "freezing", away, freeze))
        finally:
            for frozen in number:
                freezing.thaw(frozen)
        until(lambda: all(_is_ready(api, n + 1) for n in range(NODES)), LIMIT_SECONDS)
        runs.remove(environment, "freezing")
    goal, unit = Goal(of="value", at_most=5), "s from NotReady to the next step"
    suffix = "_with_operator" if with_operator else ""
    yield Figure(figure=f"recovery.node_frozen{suffix}", unit=unit, values=took, goal=goal)


def _node(pod: dict[str, Any]) -> int:
    return int(pod["spec"]["nodeName"].removeprefix("node-"))


def _operator(environment: Environment) -> int:
    labels = ["-n", install.OPERATOR_NAMESPACE, "-l", "app.kubernetes.io/name=skywork-operator"]
    return _node(environment.kube.items("pods", *labels)[0])


def _is_ready(api: client.CoreV1Api, number: int) -> bool:
    conditions = api.read_node(f"node-{number}").status.conditions
    return any(c.type == "Ready" and c.status == "True" for c in conditions)


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
    environment: Environment,
    run: str,
    rank: int,
    kill: Callable[[Environment, dict[str, Any]], float],
    *,
    nodes: int = NODES,
) -> float:
    generation = _trains(environment, run, nodes)
    pod, custom = _of_rank(environment, run, rank), client.CustomObjectsApi(_api(environment))

    def recovered() -> dict[str, str] | None:
        body = custom.get_namespaced_custom_object("skywork.dev", "v1alpha1", RUN_NAMESPACE, "skyworkruns", run)
        record: dict[str, str] = body["status"].get("recovery", {})
        return record if int(record.get("generation", 0)) > generation and "firstStep" in record else None

    at = kill(environment, pod)
    # Looked at seldom, and by no process of its own: what is measured shares two cores with who measures.
    record = until(recovered, LIMIT_SECONDS, 1.0)
    took = seconds(record["failedTime"]) + float(record["total"]) - at
    parts = ", ".join(f"{name} {record[name]}" for name in runs.PARTS if name in record)
    say(f"ours: {record['reason']}: {took:.2f} s: {parts}")
    return took


def _api(environment: Environment) -> client.ApiClient:
    kube = environment.kube
    return config.new_client_from_config(str(kube.kubeconfig) if kube.kubeconfig else None, context=kube.context)


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


def _config(run: dict[str, Any]) -> RunConfig:
    metadata = run["metadata"] | {"uid": "u", "generation": 1, "creationTimestamp": "2026-01-01T00:00:00Z"}
    return run_config(parse_run(run | {"metadata": metadata}), "general")


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
