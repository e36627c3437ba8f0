"""Nodes without machines: kubelets and agents that only answer, for control planes without nodes.

Every pod that is scheduled turns Running at an address of its own in 127.0.0.0/8; one HTTP server answers for all of
them as their agents would, by the membership that the operator gave each. With `kubelets=False` others play the
kubelets.
"""

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from kubernetes import client, config
from skywork_operator.render import RUN_LABEL
from skywork_trainer.config import (
    AGENT_PORT,
    MEMBERSHIP_ANNOTATION,
    AgentPhase,
    AgentStatus,
    Failure,
    Membership,
    Progress,
    Role,
)

STEPS_PER_SECOND = 10.0
ENDING_SECONDS = 1.0
"""From the deletion of a pod to the end of its containers, unless a test says otherwise."""


@dataclass
class SimulatedPod:
    """One pod as its kubelet and its agent know it."""

    namespace: str
    name: str
    uid: str
    node: str
    address: str
    membership: Membership | None = None
    since: float = 0.0
    """When it was given its membership."""
    failure: tuple[int, Failure] | None = None
    """Generation that failed here, and why."""
    ending: bool = False
    deaf: bool = False
    """Its kubelet passes over the next change of its annotations."""
    passed_over: str = ""
    """The word that was."""
    says: dict[str, Any] = field(default_factory=dict)
    """Fields of its progress besides the steps, where it holds rank 0."""

    def status(self, now: float, steps_per_second: float) -> AgentStatus:
        """What its agent says."""
        word = self.membership
        if word is None or word.role is not Role.TRAIN:
            return AgentStatus(phase=AgentPhase.STANDBY, heard=word.generation if word else 0)
        failed = self.failure is not None and self.failure[0] == word.generation
        steps = 1 + int((now - self.since) * steps_per_second)
        # As of the newest step: a worker in the middle of one says nothing new.
        trained = (steps - 1) / steps_per_second if steps_per_second else 0.1
        fields: dict[str, Any] = {
            "time": now,
            "section": "step",
            "step": steps,
            "first_step_time": self.since,
            "initialized_time": self.since,
            "restored_time": self.since,
            "spent": {"train": trained},
            "validate_request": word.validate_request,
        }
        progress = Progress.model_validate(fields | self.says)
        return AgentStatus(
            phase=AgentPhase.FAILED if failed else AgentPhase.TRAINING,
            generation=word.generation,
            heard=word.generation,
            rank=word.rank,
            read_time=self.since,
            start_time=self.since,
            failure=self.failure[1] if failed and self.failure else None,
            progress=progress if word.rank == 0 else None,
        )


class Simulation:
    """Plays all kubelets and agents of one control plane; use as a context manager."""

    def __init__(self, kubeconfig: Path, *, kubelets: bool = True, steps_per_second: float = STEPS_PER_SECOND) -> None:
        self.api = client.CoreV1Api(config.new_client_from_config(str(kubeconfig)))
        self._beating: set[str] = set()
        self.pods: dict[str, SimulatedPod] = {}
        """By UID."""
        self.dead: set[str] = set()
        """Nodes whose kubelets and agents are silent."""
        self.cut_off: set[str] = set()
        """Namespaces whose pods are well, but whose agents nobody can reach."""
        self.ending_seconds = ENDING_SECONDS
        self._kubelets, self.steps_per_second = kubelets, steps_per_second
        self._by_address: dict[str, SimulatedPod] = {}
        self._numbers = 0
        self._ended = threading.Event()

    def __enter__(self) -> "Simulation":
        self._server = _serve(self._answer, AGENT_PORT)
        self._thread = threading.Thread(target=self._follow, name="kubelets", daemon=True)
        self._thread.start()
        threading.Thread(target=self._beat, name="leases", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._server.shutdown()
        self._server.server_close()

    def add_node(self, name: str, labels: Mapping[str, str] | None = None, *, pods: int = 110) -> None:
        """Register a node that is ready."""
        room = {"cpu": "1000", "memory": "1000Gi", "pods": str(pods), "nvidia.com/gpu": "64"}
        metadata = {"name": name, "labels": {"kubernetes.io/hostname": name, **(labels or {})}}
        self.api.create_node({"metadata": metadata})
        self.api.patch_node_status(name, {"status": {"allocatable": room, "capacity": room}})
        self.set_ready(name, "True")

    def _beat(self) -> None:
        """Say what tells the control plane that a kubelet lives; a node without it turns Unknown by itself."""
        while not self._ended.wait(2.0):
            beat = {"status": {"conditions": [{"type": "Ready", "status": "True", "lastHeartbeatTime": _now()}]}}
            for name in list(self._beating):
                with suppress(client.ApiException):
                    self.api.patch_node_status(name, beat)

    def set_ready(self, name: str, ready: str) -> None:
        """Say what the control plane says of a node: True, False, or Unknown for one that is silent."""
        self._beating.discard(name)
        if ready == "True":
            self._beating.add(name)
        now = _now()
        condition = {"type": "Ready", "status": ready, "reason": "Simulated", "message": "",
                     "lastTransitionTime": now, "lastHeartbeatTime": now}  # fmt: skip
        self.api.patch_node_status(name, {"status": {"conditions": [condition]}})

    def untainted(self) -> bool:
        """Whether every node may be scheduled onto."""
        return all(not node.spec.taints for node in self.api.list_node().items)

    def of(self, namespace: str) -> list[SimulatedPod]:
        """Pods of a namespace that run, by name."""
        return sorted((p for p in list(self.pods.values()) if p.namespace == namespace), key=lambda p: p.name)

    def fail(self, pod: SimulatedPod, reason: str, message: str, **changes: Any) -> None:
        """Have a pod's worker fail in its present generation."""
        assert pod.membership is not None
        generation = pod.membership.generation
        failure = Failure(time=time.time(), rank=pod.membership.rank, reason=reason, message=message, **changes)
        pod.failure = (generation, failure)
        self._say(pod, {"conditions": [_ready(False)]})

    def _follow(self) -> None:
        while not self._ended.is_set():
            try:
                for kind, body in self._pods_as_they_change():
                    if self._ended.is_set():
                        return
                    self._see(kind, body)
            except Exception as error:
                if not self._ended.is_set():
                    print(f"simulation: {error}")
                    time.sleep(0.5)

    def _pods_as_they_change(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Events of a watch as plain data: objects made of them would cost more than all else that happens here."""
        answer = self.api.list_pod_for_all_namespaces(
            label_selector=RUN_LABEL, watch=True, timeout_seconds=3600, _preload_content=False
        )
        pending = b""
        for chunk in answer.stream(amt=1 << 16, decode_content=False):
            *lines, pending = (pending + chunk).split(b"\n")
            for line in lines:
                event = json.loads(line)
                yield event["type"], event["object"]

    def _see(self, kind: str, body: dict[str, Any]) -> None:
        metadata, uid = body["metadata"], body["metadata"]["uid"]
        if kind == "DELETED" or body["status"].get("phase") in ("Succeeded", "Failed"):
            gone = self.pods.pop(uid, None)
            if gone is not None:
                self._by_address.pop(gone.address, None)
            return
        node = body["spec"].get("nodeName", "")
        if not node or node in self.dead:
            return
        pod = self.pods.get(uid)
        if pod is None and not self._kubelets and not body["status"].get("podIP"):
            return
        if pod is None:
            pod = self._start(body, node)
        if self._kubelets and "deletionTimestamp" in metadata:
            if not pod.ending:
                pod.ending = True
                threading.Timer(self.ending_seconds, self._end, (pod, 75)).start()
            return
        text = (metadata.get("annotations") or {}).get(MEMBERSHIP_ANNOTATION)
        word = Membership.model_validate_json(text) if text else None
        if word == pod.membership or text == pod.passed_over:
            return
        if pod.deaf and text:
            pod.deaf, pod.passed_over = False, text
            return
        before, pod.membership = pod.membership, word
        if before is not None and word is not None and before.generation == word.generation:
            return  # nothing but a request: its workers train on
        pod.since = time.time()
        if word is not None and word.role is Role.DONE:
            self._end(pod, 0)
        elif pod.failure is not None:
            self._say(pod, {"conditions": [_ready(True)]})

    def _start(self, body: dict[str, Any], node: str) -> SimulatedPod:
        metadata = body["metadata"]
        self._numbers += 1
        high, low = divmod(self._numbers + 256, 256)
        address = body["status"].get("podIP") or f"127.{high // 256 + 1}.{high % 256}.{low}"
        pod = SimulatedPod(metadata["namespace"], metadata["name"], metadata["uid"], node, address)
        self.pods[pod.uid] = pod
        self._by_address[address] = pod
        if self._kubelets:
            state = {"running": {"startedAt": _now()}}
            said = {"phase": "Running", "podIP": address, "podIPs": [{"ip": address}], "conditions": [_ready(True)],
                    "containerStatuses": [_container(state, ready=True)]}  # fmt: skip
            self._say(pod, said)
        return pod

    def _end(self, pod: SimulatedPod, code: int) -> None:
        state = {"terminated": {"exitCode": code, "finishedAt": _now()}}
        said = {"phase": "Failed" if code else "Succeeded", "conditions": [_ready(False)],
                "containerStatuses": [_container(state, ready=False)]}  # fmt: skip
        self._say(pod, said)
        if code:
            self._quietly(lambda: self.api.delete_namespaced_pod(pod.name, pod.namespace, grace_period_seconds=0))

    def _say(self, pod: SimulatedPod, status: dict[str, Any]) -> None:
        body = {"metadata": {"uid": pod.uid}, "status": status}
        self._quietly(lambda: self.api.patch_namespaced_pod_status(pod.name, pod.namespace, body))

    def _quietly(self, call: Callable[[], Any]) -> None:
        try:
            call()
        except client.ApiException as error:
            if error.status not in (404, 409):
                raise

    def _answer(self, address: str) -> str | None:
        pod = self._by_address.get(address)
        if pod is None or pod.node in self.dead or pod.namespace in self.cut_off:
            return None
        return pod.status(time.time(), self.steps_per_second).model_dump_json()


def _ready(ready: bool) -> dict[str, str]:
    return {"type": "Ready", "status": "True" if ready else "False", "lastTransitionTime": _now()}


def _container(state: dict[str, Any], *, ready: bool) -> dict[str, Any]:
    return {"name": "trainer", "image": "x", "imageID": "x", "ready": ready, "restartCount": 0, "state": state}


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def _serve(answer: Callable[[str], str | None], port: int) -> ThreadingHTTPServer:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            # Whom the question is for is told by the address it was sent to.
            known = self.path == "/status"
            text = answer(self.connection.getsockname()[0]) if known else None
            body = (text or json.dumps({"error": "silent"})).encode()
            self.send_response(200 if text else 503 if known else 404)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Nobody reads these."""

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 1024
        allow_reuse_address = True

        def handle_error(self, request: object, client_address: object) -> None:
            """An operator that was killed is no news."""

    server = Server(("127.0.0.1" if port == 0 else "0.0.0.0", port), Handler)
    threading.Thread(target=server.serve_forever, args=(0.05,), name="agents", daemon=True).start()
    return server
