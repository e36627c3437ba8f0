"""How fast text becomes shards on one core, against the bare tokenizer library on the same text."""

import json
import subprocess
import sys
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from dev.bench.environment import ours
from dev.bench.figures import Figure, Goal, Peer, say
from dev.bench.prepare_once import documents, prepare_text, what_stays
from dev.cluster import paths

_VOCABULARY = 32768
_ONE_THREAD = {"RAYON_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}
_SHORT_BYTES = 500_000
_EVALUATION_RECORDS = 1000


def measure(folder: Path, *, quick: bool) -> Iterator[Figure]:
    """Yield MB of text a second of one core's time: all but near duplicates, and all, beside the tokenizer alone.

    MB are of the text that stays, and the tokenizer alone gets that text: what is left out costs only us.
    """
    corpus = paths.cache() / "corpus"
    say("reading the corpus")
    subprocess.run([sys.executable, "-m", "dev.corpus", "--output", str(corpus)], check=True, stdout=subprocess.DEVNULL)
    text, short, evaluation = folder / "text.jsonl", folder / "short.jsonl", folder / "evaluation.jsonl"
    _mixed(corpus, text, 3_000_000 if quick else 12_000_000)
    _mixed(corpus, short, _SHORT_BYTES)
    _evaluation(corpus, evaluation)
    tokenizer = _tokenizer(corpus)
    files = (short, text, tokenizer, evaluation)
    stays = {what: _Text(folder / f"{what}.jsonl", files, near=what == "all") for what in ("filters", "all")}
    turns = 3 if quick else 5
    for turn in range(turns):
        for what, staying in stays.items():
            say(f"preparing {text.stat().st_size / 1e6:.0f} MB of text on one core, {turn + 1} of {turns}, {what}")
            staying.turn(what, folder / f"{what}-{turn}")
    yield stays["filters"].figure("prepare.filters_exact_duplicates_decontamination", goal=0.85)
    yield stays["filters"].figure("prepare.filters_exact_duplicates_decontamination.by_the_clock", of="seconds")
    yield stays["all"].figure("prepare.with_near_duplicates")
    share = stays["filters"].size / sum(len(document.encode()) for document in documents(text))
    yield Figure(figure="prepare.share_of_the_text_that_stays", unit="1", values=[share])


class _Text:
    """A text, what a preparation leaves of it, and the seconds that it and the bare tokenizer took."""

    def __init__(self, stays: Path, files: tuple[Path, Path, Path, Path], *, near: bool) -> None:
        self._stays, self._files = stays, files
        _, text, tokenizer, evaluation = files
        output = stays.with_suffix("")
        index = prepare_text(str(text), str(tokenizer), str(evaluation), str(output), near=near)
        self.size = what_stays(index, output, tokenizer, stays)
        self._mine: list[dict[str, float]] = []
        self._bare: list[dict[str, float]] = []

    def turn(self, what: str, output: Path) -> None:
        """Measure ours, then the tokenizer alone."""
        short, text, tokenizer, evaluation = self._files

        def once(what: str, text: Path) -> dict[str, float]:
            arguments = (what, short, text, tokenizer, evaluation, output)
            return ours("prepare_once", *arguments, prefix=("taskset", "-c", "0"), **_ONE_THREAD)

        self._mine.append(once(what, text))
        self._bare.append(once("bare", self._stays))
        if self._mine[-1]["tokens"] != self._bare[-1]["tokens"]:
            raise RuntimeError(f"not the same tokens: {self._mine[-1]}, {self._bare[-1]}")

    def figure(self, name: str, *, of: str = "cpu_seconds", goal: float | None = None) -> Figure:
        """Return text a second; of the processor's time, which is what a core gives while others use it, too."""
        return Figure(
            figure=name,
            unit="MB/s a core",
            values=[self.size / 1e6 / seen[of] for seen in self._mine],
            less_is_better=False,
            peer=Peer(
                name="tokenizers encode_batch_fast, alone", values=[self.size / 1e6 / seen[of] for seen in self._bare]
            ),
            goal=None if goal is None else Goal(of="ratio", at_least=goal),
        )


def _mixed(corpus: Path, output: Path, most_bytes: int) -> None:
    """Write text of all kinds in turn."""
    written = 0
    with (corpus / "main.jsonl").open() as main, (corpus / "stem.jsonl").open() as stem, output.open("w") as out:
        for line in chain.from_iterable(zip(main, stem, strict=False)):
            out.write(line)
            written += len(line.encode())
            if written >= most_bytes:
                return


def _evaluation(corpus: Path, output: Path) -> None:
    """Write short questions out of text that is held out: of the kind that is prepared, but not in it."""
    records: list[str] = []
    for name in ("en", "code"):
        for line in (corpus / f"{name}.jsonl").open():
            text = json.loads(line)["text"]
            records += (json.dumps({"question": text[at : at + 400]}) for at in range(0, len(text), 400))
    output.write_text("\n".join(records[:: max(len(records) // _EVALUATION_RECORDS, 1)]) + "\n")


def _tokenizer(corpus: Path) -> Path:
    folder = paths.cache() / "bench" / f"tokenizer-{_VOCABULARY}"
    if not (folder / "tokenizer.json").exists():
        say(f"training a tokenizer of {_VOCABULARY:,} tokens, once")
        texts = [str(corpus / "main.jsonl"), str(corpus / "stem.jsonl")]
        command = ["tokenizer", "train", "--vocab-size", str(_VOCABULARY), "--output", folder.as_uri(), "--input"]
        skywork = str(Path(sys.executable).parent / "skywork")
        subprocess.run([skywork, *command, *texts], check=True, stdout=subprocess.DEVNULL)
    return folder
