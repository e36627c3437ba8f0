"""How fast text becomes shards on one core, against the bare tokenizer library on the same text."""

import json
import subprocess
import sys
from pathlib import Path

from dev.bench.environment import measured
from dev.bench.figures import Figure, Goal, say, tell
from dev.cluster import paths

VOCABULARY = 32768
ONE_CORE = {"RAYON_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}


def measure(folder: Path, *, quick: bool) -> None:
    """Print MB of text a second and core: the tokenizer alone, everything but near duplicates, and all."""
    corpus = paths.cache() / "corpus"
    subprocess.run([sys.executable, "-m", "dev.corpus", "--output", str(corpus)], check=True, stdout=subprocess.DEVNULL)
    text = folder / "text.jsonl"
    limit = 3_000_000 if quick else 25_000_000
    _mixed(corpus, text, limit)
    tokenizer = _tokenizer(corpus)
    evaluation = folder / "evaluation.jsonl"
    evaluation.write_text("".join(json.dumps({"question": f"question {n} " * 20}) + "\n" for n in range(1000)))
    rates: dict[str, list[float]] = {"bare": [], "bare encode_batch": [], "filters": [], "all": []}
    for repeat in range(2 if quick else 3):
        say(f"preparing {limit / 1e6:.0f} MB of text on one core, {repeat + 1}")
        for name, seen in rates.items():
            command = ["taskset", "-c", "0", sys.executable, "-m", "dev.bench.prepare_once", name]
            arguments = [str(text), str(tokenizer), str(evaluation), str(folder / f"out-{name}-{repeat}")]
            seen.append(measured([*command, *arguments], environment=ONE_CORE)["megabytes_per_second"])
    peer = "tokenizers encode_batch_fast, alone"
    tell(
        Figure(
            figure="prepare.filters_exact_duplicates_decontamination", unit="MB/s a core", values=rates["filters"],
            less_is_better=False, peer=peer, peer_values=rates["bare"], goal=Goal(of="ratio", at_least=0.85),
        )
    )  # fmt: skip
    tell(
        Figure(
            figure="prepare.same_beside_encode_batch", unit="MB/s a core", values=rates["filters"],
            less_is_better=False, peer="tokenizers encode_batch, alone", peer_values=rates["bare encode_batch"],
        )
    )  # fmt: skip
    tell(
        Figure(
            figure="prepare.with_near_duplicates", unit="MB/s a core", values=rates["all"], less_is_better=False,
            peer=peer, peer_values=rates["bare"],
        )
    )  # fmt: skip


def _mixed(corpus: Path, output: Path, limit: int) -> None:
    """Write text of all kinds in turn, up to so many bytes."""
    files = [(corpus / f"{name}.jsonl").open() for name in ("main", "stem")]
    written = 0
    with output.open("w") as out:
        for lines in zip(*files, strict=False):
            for line in lines:
                out.write(line)
                written += len(line.encode())
            if written >= limit:
                break
    for file in files:
        file.close()


def _tokenizer(corpus: Path) -> Path:
    folder = paths.cache() / "bench" / f"tokenizer-{VOCABULARY}"
    if not (folder / "tokenizer.json").exists():
        say(f"training a tokenizer of {VOCABULARY:,} tokens, once")
        skywork = str(Path(sys.executable).parent / "skywork")
        texts = [str(corpus / "main.jsonl"), str(corpus / "stem.jsonl")]
        command = [skywork, "tokenizer", "train", "--vocab-size", str(VOCABULARY), "--output", folder.as_uri()]
        subprocess.run([*command, "--input", *texts], check=True, stdout=subprocess.DEVNULL)
    return folder
