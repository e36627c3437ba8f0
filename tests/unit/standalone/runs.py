"""A small run on files, and the command that trains it without Kubernetes."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

STEPS, CONTINUED_STEPS, BATCH_TOKENS = 120, 40, 1024


def manifest(folder: Path, **changes: Any) -> dict[str, Any]:
    """Two stages, the sources of both and the held-out domain still to be prepared from text below `folder`."""

    def prepared(name: str, **more: Any) -> dict[str, Any]:
        inputs = {"inputs": [(folder / f"{name}.jsonl").as_uri()]}
        return {"name": name, "uri": (folder / "data" / name).as_uri(), "prepare": inputs | more}

    known = {"exact": True, "known": ["main"]}
    spec: dict[str, Any] = {
        "model": {"layers": 1, "hidden": 32, "heads": 2, "ffn": 64, "vocabSize": 512},
        "tokenizer": {"uri": (folder / "tokenizer").as_uri()},
        "trainer": {"nodes": {"min": 1, "max": 4, "shrinkAfter": "1s"}, "gpusPerNode": 8},
        "engine": {"zeroStage": 1, "microBatchSequences": 4},
        "batch": {"sequenceLength": 64, "globalTokens": str(BATCH_TOKENS)},
        "sources": [prepared("main"), prepared("stem", duplicates=known)],
        "validation": {"everyTokens": "40960", "windows": 8, "domains": [prepared("en")]},
        "checkpoints": {"uri": (folder / "checkpoints").as_uri(), "everySteps": 20, "keepLast": 100},
        "stages": [
            {
                "name": "general",
                "tokens": str(STEPS * BATCH_TOKENS),
                "learningRate": {"schedule": "Cosine", "peak": "3e-3", "final": "1e-3"},
                "mixture": [{"source": "main", "share": {"from": "1"}}],
            },
            {
                "name": "stem",
                "tokens": str(CONTINUED_STEPS * BATCH_TOKENS),
                "learningRate": {"schedule": "Constant"},
                "mixture": [
                    {"source": "stem", "share": {"from": "0.1", "to": "0.4", "shape": "Quadratic"}},
                    {"source": "main"},
                ],
            },
        ],
    }
    metadata = {"name": "laptop", "namespace": "default"}
    return {"apiVersion": "skywork.dev/v1alpha1", "kind": "SkyworkRun", "metadata": metadata, "spec": spec | changes}


def write_texts(folder: Path) -> None:
    """Text for the sources and the domain, and a tokenizer made from it."""
    chance = random.Random(1)
    words = ["".join(chance.choices("abcdefghijklmnop", k=chance.randint(2, 8))) for _ in range(300)]
    for name, count in (("main", 1000), ("stem", 300), ("en", 40)):
        lines = (json.dumps({"text": " ".join(chance.choices(words, k=100))}) for _ in range(count))
        (folder / f"{name}.jsonl").write_text("\n".join(lines))
    text, target = (folder / "main.jsonl").as_uri(), (folder / "tokenizer").as_uri()
    command = ["tokenizer", "train", "--input", text, "--vocab-size", "512", "--output", target]
    subprocess.run([sys.executable, "-m", "skywork_trainer", *command], check=True, capture_output=True)


def write_manifest(folder: Path, **changes: Any) -> Path:
    """The manifest as a file."""
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(manifest(folder, **changes)))
    return path


def start(folder: Path, *options: str) -> subprocess.Popen[str]:
    """Begin to train; all that is said goes to `folder`/node-K.log."""
    number = options[options.index("--node") + 1] if "--node" in options else "0"
    command = [sys.executable, "-m", "skywork_operator.standalone", *options]
    folders = ["--state-dir", str(folder / "state"), "--cache-dir", str(folder / "cache")]
    log = (folder / f"node-{number}.log").open("a")
    # What an earlier test compiled would make a compilation too short to be interrupted.
    environment = {**os.environ, "TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1"}
    return subprocess.Popen([*command, *folders], stderr=log, stdout=log, text=True, env=environment)


def log(folder: Path, node: int = 0) -> str:
    """What a node has said so far."""
    path = folder / f"node-{node}.log"
    return path.read_text() if path.exists() else ""
