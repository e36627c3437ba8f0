"""What the engine costs: tokens/s, memory and MFU of the product beside bare torch and FSDP2 on the same module."""

import importlib.util
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from skywork_trainer.worker import has_gpu

from dev.bench.environment import measured
from dev.bench.figures import Figure, Goal, Peer, say

_CONTENDERS = ("ours", "torch", "fsdp2")
_LOSS_TOLERANCE = 0.02


@dataclass(frozen=True, kw_only=True)
class _Case:
    """One model as it is trained; the shapes are the Skywork report's, scaled down."""

    name: str
    model: dict[str, int]
    sequence_length: int
    micro_batch: int
    micro_batches: int
    steps: int
    repeats: int

    def asked(self, contender: str, **options: Any) -> dict[str, Any]:
        return {
            "contender": contender, "model": self.model, "sequence_length": self.sequence_length,
            "micro_batch": self.micro_batch, "micro_batches": self.micro_batches, "steps": self.steps, "zero_stage": 1,
        } | options  # fmt: skip


def _shape(layers: int, hidden: int, ffn: int, *, head: int = 128, vocabulary: int = 65536) -> dict[str, int]:
    heads = hidden // head
    return {
        "layers": layers, "hidden": hidden, "heads": heads, "kv_heads": heads, "ffn": ffn, "vocab_size": vocabulary,
    }  # fmt: skip


_ON_GPU = (
    _Case(
        name="1b",
        model=_shape(16, 2048, 5504),
        sequence_length=4096,
        micro_batch=4,
        micro_batches=4,
        steps=8,
        repeats=3,
    ),
    _Case(
        name="3b",
        model=_shape(22, 3072, 8192),
        sequence_length=4096,
        micro_batch=2,
        micro_batches=4,
        steps=6,
        repeats=3,
    ),
)
_ON_CPU = (
    _Case(
        name="10m", model=_shape(4, 256, 704, head=64, vocabulary=8192), sequence_length=256, micro_batch=2,
        micro_batches=4, steps=6, repeats=3,
    ),
)  # fmt: skip


def measure(folder: Path, *, quick: bool) -> Iterator[Figure]:
    """Yield the figures of every model; without a GPU those of a small one, on which no goal is set."""
    gpu = has_gpu()
    if not gpu:
        say("no GPU here: a small model in fp32 on the CPU shows that it runs, and what the engine costs there")
    for case in _ON_GPU if gpu else _ON_CPU:
        yield from _beside_others(case, gpu=gpu, repeats=1 if quick else case.repeats)
        yield from _variants(case, gpu=gpu)


def _beside_others(case: _Case, *, gpu: bool, repeats: int) -> Iterator[Figure]:
    told: dict[str, list[dict[str, float]]] = {name: [] for name in _CONTENDERS}
    missing: dict[str, str] = {}
    for turn in range(repeats):
        for name in _CONTENDERS:
            say(f"{case.name}: {name}, turn {turn + 1} of {repeats}")
            if name not in missing:
                numbers = _run(case.asked(name))
                if isinstance(numbers, str):
                    missing[name] = numbers
                else:
                    told[name].append(numbers)
    if missing.get("ours"):
        raise RuntimeError(f"{case.name}: ours did not run: {missing['ours']}")
    _require_equal_work(case, told)
    ours, where = told["ours"], f"train.{case.name}"

    def peer(name: str, told_name: str, key: str) -> Peer:
        return Peer(name=told_name, values=[numbers[key] for numbers in told[name]], missing=missing.get(name))

    yield Figure(
        figure=f"{where}.tokens_per_second", unit="tokens/s", values=[n["tokens_per_second"] for n in ours],
        less_is_better=False, peer=peer("torch", "bare torch", "tokens_per_second"),
        goal=Goal(of="ratio", at_least=0.97) if gpu else None,
    )  # fmt: skip
    yield Figure(
        figure=f"{where}.tokens_per_second_beside_fsdp2", unit="tokens/s", less_is_better=False,
        values=[n["tokens_per_second"] for n in ours], peer=peer("fsdp2", "FSDP2", "tokens_per_second"),
    )  # fmt: skip
    yield Figure(
        figure=f"{where}.peak_memory", unit="GiB", values=[n["peak_gib"] for n in ours],
        peer=peer("torch", "bare torch", "peak_gib"),
    )  # fmt: skip
    yield Figure(
        figure=f"{where}.save_stall", unit=f"s at {ours[0]['save_gigabytes']:.2f} GB",
        values=[n["save_stall_seconds"] for n in ours], goal=Goal(of="value", at_most=1.0) if gpu else None,
    )  # fmt: skip
    if all("mfu" in numbers for numbers in ours):
        yield Figure(
            figure=f"{where}.mfu", unit="share of the device's peak", values=[n["mfu"] for n in ours],
            less_is_better=False, goal=Goal(of="value", at_least=0.5),
        )  # fmt: skip


def _variants(case: _Case, *, gpu: bool) -> Iterator[Figure]:
    """Ours with one option changed, beside ours as it is by default."""
    variants: dict[str, dict[str, Any]] = {
        "selective_recomputation": {"activation_checkpointing": "Selective"},
        "full_recomputation": {"activation_checkpointing": "Full"},
        "compile": {"compile": True},
    }
    if gpu and importlib.util.find_spec("liger_kernel"):
        variants["liger"] = {"kernels": "Liger"}
    base = _run(case.asked("ours"))
    for name, options in variants.items():
        say(f"{case.name}: ours with {name}")
        numbers = _run(case.asked("ours", **options))
        figure = f"train.{case.name}.{name}"
        if isinstance(base, str) or isinstance(numbers, str):
            line = {"figure": figure, "value": None, "why": numbers if isinstance(numbers, str) else base}
            print(json.dumps(line), flush=True)
            continue
        for key, unit, less in (("tokens_per_second", "tokens/s", False), ("peak_gib", "GiB", True)):
            yield Figure(
                figure=f"{figure}.{key}", unit=unit, values=[numbers[key]], less_is_better=less,
                peer=Peer(name="ours without", values=[base[key]]),
            )  # fmt: skip


def _run(asked: dict[str, Any]) -> dict[str, float] | str:
    """Train in a process of its own, whose peak of memory is its own; a sentence says why it did not."""
    try:
        return measured([sys.executable, "-m", "dev.bench.train_once", json.dumps(asked)])
    except (RuntimeError, subprocess.SubprocessError) as error:
        return " ".join(str(error).split())[-300:]


def _require_equal_work(case: _Case, told: dict[str, list[dict[str, float]]]) -> None:
    """Refuse to compare contenders whose losses differ: then they did not do the same work."""
    for key in ("first_loss", "last_loss"):
        losses = {name: numbers[0][key] for name, numbers in told.items() if numbers}
        if max(losses.values()) - min(losses.values()) > _LOSS_TOLERANCE:
            raise RuntimeError(f"{case.name}: the contenders' losses differ ({key}): {losses}")
