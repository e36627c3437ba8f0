"""One preparation of a text in a process of its own, or the tokenizer alone: `python -m dev.bench.prepare_once`."""

import json
import sys
import time
from pathlib import Path

_BATCH = 256


def main() -> None:
    """Print MB of text a second."""
    what, text, tokenizer, evaluation, output = sys.argv[1:]
    documents = [json.loads(line)["text"] for line in Path(text).read_text().splitlines()]
    megabytes = sum(len(document.encode()) for document in documents) / 1e6
    seconds = (
        _bare(documents, tokenizer, what)
        if what.startswith("bare")
        else _prepared(text, tokenizer, evaluation, output, what)
    )
    print(json.dumps({"megabytes_per_second": megabytes / seconds}))


def _bare(documents: list[str], tokenizer: str, what: str) -> float:
    from tokenizers import Tokenizer

    library = Tokenizer.from_file(f"{tokenizer}/tokenizer.json")
    encode = library.encode_batch if what.endswith("encode_batch") else library.encode_batch_fast
    begun = time.monotonic()
    for start in range(0, len(documents), _BATCH):
        encode(documents[start : start + _BATCH], add_special_tokens=False)
    return time.monotonic() - begun


def _prepared(text: str, tokenizer: str, evaluation: str, output: str, what: str) -> float:
    from skywork_trainer.config import Decontamination, Filters, NearDuplicates, Preparation
    from skywork_trainer.prepare.pipeline import prepare

    options = Preparation(
        inputs=(text,),
        output=Path(output).as_uri(),
        tokenizer_uri=Path(tokenizer).as_uri(),
        filters=Filters(
            min_characters=20,
            max_characters=10_000_000,
            max_symbol_share=0.9,
            remove_repeated_blocks=True,
            max_repeated_share=0.9,
            min_script_share={"Latin": 0.0},
        ),
        exact_duplicates=True,
        near_duplicates=NearDuplicates() if what == "all" else None,
        decontamination=Decontamination(uris=(evaluation,)),
    )
    begun = time.monotonic()
    prepare(options, workers=1, say=lambda line: None)
    return time.monotonic() - begun


if __name__ == "__main__":
    main()
