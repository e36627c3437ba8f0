"""Node 0's part: what the nodes report, as the world that the operator's `decide` looks at, and its plans as orders."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

from skywork_trainer.config import EXIT_CONFIG, EXIT_LEFT, Membership

from skywork_operator.decide import decide
from skywork_operator.policies.conditions import find
from skywork_operator.render import PHASE_LABEL, PREPARE_LABEL, STAGE_LABEL, Defaults, Reading
from skywork_operator.standalone.words import AgentState, Orders, Report
from skywork_operator.world import Job, Plan, Pod, PrepareJob, Run, World

SILENT_SECONDS = 30.0
"""A node that has said nothing for so long counts as lost."""
_PHASES = {AgentState.RUNNING: "Running", AgentState.SUCCEEDED: "Succeeded", AgentState.FAILED: "Failed"}


class Preparations(Protocol):
    """Who carries out preparations of sources."""

    def start(self, source: str, reading: Reading, config: str) -> None:
        """Begin one reading of a source's inputs."""

    def jobs(self) -> tuple[PrepareJob, ...]:
        """How the readings begun so far stand."""


@dataclass(frozen=True)
class _Member:
    """One agent, as last heard of."""

    report: Report
    address: str
    heard: float


class Authority:
    """Decides for all nodes; safe to call from many threads. Times are Unix seconds."""

    def __init__(
        self,
        run: Run,
        *,
        workers: int,
        environment: dict[str, str],
        preparations: Preparations,
        say: Callable[[str], None],
    ) -> None:
        self.run = run
        self.end: int | None = None
        """Exit code of the whole run, once it is known."""
        self.own_address = "127.0.0.1"
        """Where other nodes reach this one."""
        self._workers, self._environment = workers, environment
        self._preparations, self._say = preparations, say
        self._lock = threading.Lock()
        self._members: dict[int, dict[int, _Member]] = {}
        """By node, then by attempt."""
        self._configs: dict[str, dict[str, str]] = {}
        self._stages: dict[str, str] = {}
        """Configurations of the stages begun, in order."""
        self._words: dict[int, Membership] = {}
        """By attempt."""
        self._told: set[int] = set()

    def hear(self, report: Report, address: str, now: float) -> Orders:
        """Take a node's report and answer with what it shall do."""
        with self._lock:
            if report.attempt:
                mine = self._members.setdefault(report.node, {})
                mine[report.attempt] = _Member(report, address, now)
            if self.end is not None:
                self._told.add(report.node)
                return Orders(end=self.end)
            stage = next(reversed(self._stages), "")
            return Orders(
                stage=stage,
                config=self._stages.get(stage, ""),
                workers=self._workers,
                environment=self._environment,
                attempt=report.attempt,
                membership=self._words.get(report.attempt),
            )

    def advance(self, now: float) -> None:
        """One pass: see, decide, and keep what was decided for the nodes to fetch."""
        with self._lock:
            if self.end is not None:
                return
            self._apply(decide(self._world(now), now, Defaults(image="standalone")))
            self.end = self._outcome()

    def leave(self) -> None:
        """Have every node save and end."""
        with self._lock:
            if self.end is None:
                self.end = EXIT_LEFT

    def all_told(self, now: float) -> bool:
        """Whether every other node that still speaks knows that the run has ended."""
        with self._lock:
            speaking = {
                node
                for node, attempts in self._members.items()
                if node and now - max(member.heard for member in attempts.values()) < SILENT_SECONDS
            }
            return speaking <= self._told

    def _world(self, now: float) -> World:
        newest = next(reversed(self._stages), None)
        pods = [
            self._pod(node, attempts, attempt, now)
            for node, attempts in self._members.items()
            for attempt, member in attempts.items()
            if member.report.stage == newest
        ]
        return World(
            run=self.run,
            jobs={stage: self._job(stage) for stage in self._stages},
            prepare_jobs=self._preparations.jobs(),
            pods=tuple(sorted(pods, key=lambda pod: (pod.index, pod.name))),
        )

    def _pod(self, node: int, attempts: dict[int, _Member], attempt: int, now: float) -> Pod:
        member = attempts[attempt]
        report, phase = member.report, _PHASES.get(member.report.state, "Pending")
        if phase == "Running" and attempt != max(attempts):
            phase = "Failed"  # its node began anew and has forgotten it
        elif phase == "Running" and now - member.heard > SILENT_SECONDS:
            phase = "Unknown"
        return Pod(
            name=f"node {node}",
            uid=str(attempt),
            index=node,
            ip=member.address if node else self.own_address,
            phase=phase,
            ready=phase == "Running",
            terminating=report.leaving,
            membership=self._words.get(attempt),
            agent=report.agent if phase == "Running" else None,
            last_words=report.agent if phase in ("Succeeded", "Failed") else None,
        )

    def _job(self, stage: str) -> Job:
        reports = [
            m.report for attempts in self._members.values() for m in attempts.values() if m.report.stage == stage
        ]
        done = {report.node for report in reports if report.state is AgentState.SUCCEEDED}
        wrong = [report.node for report in reports if report.exit_code == EXIT_CONFIG]
        return Job(
            stage=stage,
            uid=stage,
            complete=len(done) == self.run.spec.trainer.nodes.max,
            failed=f"the agent of node {wrong[0]} exited with code {EXIT_CONFIG}" if wrong else None,
        )

    def _apply(self, plan: Plan) -> None:
        self.run = replace(self.run, status=plan.status)
        for manifest in plan.objects:
            self._create(manifest)
        self._words |= {int(pod.uid): word for pod, word in plan.memberships}
        for event in plan.events:
            self._say(f"{'' if event.kind == 'Normal' else 'WARNING '}{event.reason}: {event.message}")

    def _create(self, manifest: dict[str, Any]) -> None:
        metadata = manifest["metadata"]
        if manifest["kind"] == "ConfigMap":
            self._configs[metadata["name"]] = manifest["data"]
            return
        labels = metadata["labels"]
        volumes = manifest["spec"]["template"]["spec"]["volumes"]
        mounted = next(volume["configMap"]["name"] for volume in volumes if volume["name"] == "config")
        if STAGE_LABEL in labels:
            self._stages[labels[STAGE_LABEL]] = self._configs[mounted]["run.json"]
        else:
            text = self._configs[mounted]["prepare.json"]
            self._preparations.start(labels[PREPARE_LABEL], labels[PHASE_LABEL], text)

    def _outcome(self) -> int | None:
        conditions = self.run.status.conditions
        told = {name: find(conditions, name) for name in ("Accepted", "Succeeded", "Failed")}
        held = {name: condition.status for name, condition in told.items() if condition is not None}
        if held.get("Accepted") == "False":
            return EXIT_CONFIG
        if held.get("Failed") == "True":
            wrong = any(self._job(stage).failed for stage in self._stages)
            return EXIT_CONFIG if wrong else 1
        return 0 if held.get("Succeeded") == "True" else None
