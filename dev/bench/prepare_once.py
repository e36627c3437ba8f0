"""One preparation of a text in a fresh process, or the tokenizer alone: `python -m dev.bench.prepare_once WHAT ...`."""

import json
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
from skywork_trainer.config import Decontamination, Filters, NearDuplicates, Preparation
from skywork_trainer.data.shards import SourceIndex
from skywork_trainer.prepare.pipeline import prepare
from tokenizers import Tokenizer

_BATCH = 256


def main() -> None:
    """Do WHAT (bare, filters, all) to a short text and then to a long one; print how fast the second went.

    `bare` gets the documents that a preparation leaves over, as `what_stays` writes them.
    """
    what, short, text, tokenizer, evaluation, output = sys.argv[1:]

    def work(path: str, to: str) -> Callable[[], int]:
        if what == "bare":
            texts = documents(path)
            return lambda: _bare(texts, tokenizer)
        return lambda: prepare_text(path, tokenizer, evaluation, to, near=what == "all").tokens

    # Tables of Unicode and the like are made once in a process, which usually prepares gigabytes.
    work(short, f"{output}-short")()
    timed = work(text, output)
    cpu, wall = time.process_time(), time.monotonic()
    tokens = timed()
    print(json.dumps({"cpu_seconds": time.process_time() - cpu, "seconds": time.monotonic() - wall, "tokens": tokens}))


def prepare_text(text: str, tokenizer: str, evaluation: str, output: str, *, near: bool) -> SourceIndex:
    """Prepare a text with every filter in use, limits so wide that most of it stays, and one worker."""
    options = Preparation(
        inputs=(text,),
        output=Path(output).as_uri(),
        tokenizer_uri=Path(tokenizer).as_uri(),
        filters=Filters(
            min_characters=20,
            max_characters=10_000_000,
            max_symbol_share=0.9,
            remove_repeated_blocks=True,
            max_repeated_share=0.99,
            min_script_share={"Latin": 0.0},
        ),
        exact_duplicates=True,
        near_duplicates=NearDuplicates() if near else None,
        decontamination=Decontamination(uris=(evaluation,)),
    )
    index = prepare(options, workers=1, say=lambda line: None)
    assert index is not None
    return index


def what_stays(index: SourceIndex, output: Path, tokenizer: Path, to: Path) -> int:
    """Write the documents of a prepared source as JSON lines; return the bytes of their text."""
    library, size = Tokenizer.from_file(str(tokenizer / "tokenizer.json")), 0
    with to.open("w") as file:
        for shard in index.shards:
            tokens = np.fromfile(output / shard.file, dtype=index.numpy_dtype)
            offsets = np.fromfile(output / f"{shard.stem}.idx", dtype="<u8")
            for start, end in pairwise(offsets.tolist()):
                document = library.decode(tokens[start : end - 1].tolist(), skip_special_tokens=False)
                file.write(json.dumps({"text": document}) + "\n")
                size += len(document.encode())
    return size


def documents(path: str | Path) -> list[str]:
    """Return the texts of a file of JSON lines."""
    return [json.loads(line)["text"] for line in Path(path).read_text().splitlines()]


def _bare(texts: list[str], tokenizer: str) -> int:
    library, tokens = Tokenizer.from_file(f"{tokenizer}/tokenizer.json"), 0
    library.encode_special_tokens = True
    for start in range(0, len(texts), _BATCH):
        encoded = library.encode_batch_fast(texts[start : start + _BATCH], add_special_tokens=False)
        # Counted only: taking the numbers out would be work that a preparation has to do.
        tokens += sum(len(document) + 1 for document in encoded)
    return tokens


if __name__ == "__main__":
    main()
