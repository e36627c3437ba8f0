"""What the product's own registries expose: a pod that trains, and an operator that knows one run."""

import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families
from skywork_operator.api.status import SkyworkRunStatus
from skywork_operator.metrics import OperatorCollector, PassMetrics, queue_seconds
from skywork_operator.queue import WorkQueue
from skywork_operator.times import timestamp
from skywork_operator.world import Key
from skywork_trainer.agent.exposition import merged
from skywork_trainer.agent.node_metrics import NodeMetrics
from skywork_trainer.config import DomainLoss, Place, Section
from skywork_trainer.metrics import Reporter
from skywork_trainer.traffic import Traffic

from tests.unit.train_config import run_config

NAMESPACE, RUN, STAGE, NODE, POD = "research", "demo", "general", "node-1", "demo-general-0"
_LABELS = {"namespace": NAMESPACE, "run": RUN, "stage": STAGE}
_DOMAINS = {"zh": 3.0, "en": 2.5, "code": 2.0}


class TrainerPod:
    """The page of a pod whose worker is rank 0."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        place = Place(
            generation=2,
            rank=0,
            world_size=1,
            local_rank=0,
            local_world_size=1,
            master_address="127.0.0.1",
            master_port=1,
            state_dir=folder,
            cache_dir=folder,
        )
        config = run_config(folder, namespace=NAMESPACE, run=RUN, stage=STAGE)
        self._worker, self._agent = Reporter(config, place), NodeMetrics(folder)
        with pytest.MonkeyPatch.context() as environment:
            environment.setenv("NODE_NAME", NODE)
            self._agent.label(_LABELS)
        self._step = 100
        self._begin()

    def _begin(self) -> None:
        for name, value in (
            ("generation", 2),
            ("workers", 1),
            ("longest_silence_seconds", 0.2),
            ("last_start_seconds", 1.2),
            ("fork_server_warm_seconds", 9.0),
        ):
            self._agent.set(name, value)
        worker = self._worker
        worker.section(Section.RESTORE)
        worker.restored(step=100, checkpoint="c", durable=True, created=time.time(), corrupt={}, totals={})
        worker.on_device("cpu", micro_batch=2)
        worker.section(Section.STEP)
        losses = tuple(
            DomainLoss(domain=domain, loss=loss, tokens=1000, step=100, characters=3000, bytes=4000)
            for domain, loss in _DOMAINS.items()
        )
        worker.validated(losses, stage_start=losses)
        worker.measured(seconds=2.0)
        worker.save_begun(stall_seconds=0.01)
        worker.saved(checkpoint="d", step=100, created=time.time(), seconds=1.0, size_bytes=10_000)
        worker.save_begun(stall_seconds=0.02)
        worker.save_skipped()
        worker.kept_locally()

    def trouble(self) -> None:
        """Let come to pass what a healthy run does not know."""
        self._worker.spiked("Skip")
        self._worker.save_failed("StorageUnreachable")
        self._agent.exited("Killed")
        self._agent.hung("step")

    def page(self) -> str:
        """Train one more step and return what is exposed."""
        self._step += 1
        worker = self._worker
        worker.read(
            waited_seconds=0.01,
            traffic=Traffic(
                fetched_parts=self._step,
                fetched_bytes=self._step * 4096,
                cache_hits=self._step,
                cache_misses=1,
                requests={("GetObject", "200"): self._step},
            ),
        )
        worker.computed(0.1)
        worker.drawn({"main": 4 * self._step}, epochs={"main": 0.5})
        worker.stepped(step=self._step, loss=2.7, rate=1e-3, norm=1.0, seconds=0.2)
        worker.flush()
        pages = [self._agent.exposition({})]
        pages += [(self._folder / name).read_text() for name in ("worker-0.prom", "metrics.prom")]
        return merged(pages)


class OperatorPage:
    """The page of an operator; its run has everything that a status can say."""

    def __init__(self, *, trouble: bool = False) -> None:
        self._registry = CollectorRegistry()
        self._started = time.time() - 600
        self._trouble = trouble
        self._pages = 0
        self._runs: dict[Key, SkyworkRunStatus] = {}
        queue: WorkQueue[Key] = WorkQueue(time.monotonic)
        passes, waited = PassMetrics(self._registry), queue_seconds(self._registry)
        for result in ("ok", "conflict", "error"):
            passes.passes.labels(result).inc()
        passes.seconds.observe(0.05)
        waited.observe(0.001)
        self._registry.register(
            OperatorCollector(queue, self._runs, watch_age_seconds=lambda: 1.5, leads=lambda: True, wall=time.time)
        )

    def page(self) -> str:
        """Return what is exposed, a little later in the run's life each time."""
        self._pages += 1
        self._runs[NAMESPACE, RUN] = SkyworkRunStatus.model_validate(self._status())
        return generate_latest(self._registry).decode()

    def _status(self) -> dict[str, Any]:
        now = timestamp(time.time())
        status: dict[str, Any] = {
            "state": "Training",
            "stage": STAGE,
            "step": 100 + self._pages,
            "tokens": 6400 + 64 * self._pages,
            "targetTokens": 640_000,
            "trainLoss": "2.7000",
            "learningRate": "0.001",
            "tokensPerSecond": 320,
            "goodput": "90%",
            "valLoss": "2.5000",
            "averagePerplexity": "12.1825",
            "validationLoss": [
                {"domain": domain, "loss": f"{loss}", "bitsPerByte": "1.1", "step": 100}
                for domain, loss in _DOMAINS.items()
            ],
            "nodes": {"desired": 3, "ready": 3, "training": 3},
            # Another generation begins while Prometheus looks.
            "generation": 2 + min(self._pages // 8, 1),
            "startTime": timestamp(self._started),
            "time": dict.fromkeys(("train", "initialize", "restore", "checkpoint"), f"{10.0 + self._pages}")
            | dict.fromkeys(("dataWait", "validate", "lost", "idle"), f"{1.0 + self._pages}")
            | {"heard": {"generation": 2}},
            "lastCheckpoint": {"step": 100, "uri": "s3://runs/demo/checkpoints/d", "time": now},
            "checkpointIntervalSeconds": 600,
            "conditions": [_condition("Accepted", now), _condition("Running", now)],
            "sources": [{"name": "main", "epochs": "0.5"}],
            "stages": [
                {
                    "name": STAGE,
                    "mixture": [{"source": "main", "sequences": 400, "share": "1.0000"}],
                    "validationLoss": [{"domain": domain, "start": "4.0", "end": "2.5"} for domain in _DOMAINS],
                }
            ],
        }
        return status | (self._everything(now) if self._trouble else {})

    def _everything(self, now: str) -> dict[str, Any]:
        parts = ("detected", "decided", "delivered", "started", "initialized", "restored", "firstStep", "total")
        return {
            "estimatedCompletion": timestamp(time.time() + 3600),
            "modelFlopsUtilization": "0.4",
            "validationLoss": [
                {"domain": domain, "loss": f"{loss}", "bitsPerByte": "1.1", "referenceLoss": "2.2", "step": 100}
                for domain, loss in _DOMAINS.items()
            ],
            "restarts": {"total": 2, "byReason": [{"reason": "Killed", "count": 2}]},
            "recovery": {"generation": 2, "reason": "Killed", "failedTime": now} | dict.fromkeys(parts, "1.0"),
            "stragglers": [{"node": NODE, "pod": POD, "slowdown": "1.6", "time": now}],
            "nodeStrikes": [{"node": NODE, "strikes": 3, "reason": "Hang", "time": now, "avoided": True}],
            "conditions": [_condition(type, now) for type in ("Accepted", "Running", "Straggling", "Forgetting")],
        }


def _condition(type: str, now: str) -> dict[str, Any]:
    return {"type": type, "status": "True", "reason": type, "lastTransitionTime": now}


def families(pages: Iterable[Callable[[], str]]) -> list[Metric]:
    """All families of some pages, those without a sample among them."""
    return [family for page in pages for family in text_string_to_metric_families(page())]


def exported(folder: Path) -> dict[str, str]:
    """Type of everything that the product exports, by the name that it is scraped as; of histograms, the family's."""
    found = families((TrainerPod(folder).page, OperatorPage().page))
    return {family.name + ("_total" if family.type == "counter" else ""): family.type for family in found}
