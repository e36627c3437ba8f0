"""`skywork data prepare`: token shards from text."""

import argparse
import os
import sys
import time

from skywork_trainer.config import EXIT_CONFIG, EXIT_DONE
from skywork_trainer.data.errors import DataError
from skywork_trainer.data.prepare import DEFAULT_SHARD_TOKENS, Preparation
from skywork_trainer.data.texts import find_texts
from skywork_trainer.storage import StorageError
from skywork_trainer.tokenizer import load_tokenizer


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the subcommands of `skywork data`."""
    commands = parser.add_subparsers(dest="command", required=True)
    prepare = commands.add_parser("prepare", help="tokenize JSON lines into token shards")
    prepare.add_argument(
        "--input",
        nargs="+",
        required=True,
        metavar="PATH|URI",
        help="JSON lines with a `text` key, .jsonl, .gz or .zst: files, folders, patterns; local, file:// or s3://",
    )
    prepare.add_argument("--tokenizer", required=True, metavar="URI", help="folder of tokenizer.json, or the file")
    prepare.add_argument("--output", required=True, metavar="URI", help="the source's folder: s3:// or file://")
    prepare.add_argument("--shard-tokens", type=_positive, default=DEFAULT_SHARD_TOKENS, metavar="N")
    prepare.add_argument("--workers", type=_positive, default=os.cpu_count() or 1, metavar="N")
    prepare.add_argument("--limit", type=_positive, metavar="N", help="read only the first N lines")
    prepare.set_defaults(run=_prepare)


def _positive(value: str) -> int:
    number = int(value)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{value} is less than 1")
    return number


def _prepare(parsed: argparse.Namespace) -> int:
    begun = time.monotonic()
    try:
        index, made = Preparation(
            inputs=find_texts(parsed.input),
            tokenizer=load_tokenizer(parsed.tokenizer),
            output=parsed.output,
            shard_tokens=parsed.shard_tokens,
            workers=parsed.workers,
            limit=parsed.limit,
            report=lambda line: print(line, flush=True),
        ).run()
    except (DataError, StorageError) as error:
        print(f"skywork data prepare: {error.reason}: {error.message}", file=sys.stderr)
        return 1 if error.retryable else EXIT_CONFIG
    seconds = time.monotonic() - begun
    megabytes = sum(shard.text_bytes for shard in index.shards) / 1e6
    print(
        f"{parsed.output}: {index.tokens:,} tokens, {index.documents:,} documents, {len(index.shards)} shards, "
        f"{index.bad_lines:,} bad lines, {megabytes:.1f} MB of text"
        + (f", {megabytes / seconds:.1f} MB/s" if made else ": nothing to do")
    )
    return EXIT_DONE
