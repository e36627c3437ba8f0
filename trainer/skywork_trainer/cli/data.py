"""`skywork data`: token shards from text, and what any step of a run reads."""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from pydantic import ValidationError

from skywork_trainer.config import (
    CONFIG_PATH,
    EXIT_CONFIG,
    EXIT_DONE,
    Decontamination,
    Failure,
    Filters,
    NearDuplicates,
    Preparation,
    load,
)
from skywork_trainer.data.errors import DataError
from skywork_trainer.storage import StorageError

_TERMINATION_LOG = "/dev/termination-log"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the subcommands of `skywork data`."""
    commands = parser.add_subparsers(dest="command", required=True)
    _add_prepare(commands.add_parser("prepare", help="clean, filter and tokenize text into token shards"))
    _add_order(commands.add_parser("order", help="print what any step of a run reads"))


def _add_prepare(prepare: argparse.ArgumentParser) -> None:
    prepare.description = (
        "Makes a source of token shards. Killed half-way, the same command goes on; done, it does nothing. The "
        "shards are the same for any number of workers. Beside them lie report.json and report.html."
    )
    defaults, filters = Preparation.model_fields, Filters.model_fields
    what = prepare.add_argument_group("what to prepare")
    what.add_argument("--config", metavar="FILE", help="all of this as JSON, as the operator writes it")
    what.add_argument(
        "--input",
        nargs="+",
        metavar="PATH|URI",
        help="JSON lines (.jsonl, .gz, .zst) or Parquet: files, folders, patterns; local, file:// or s3://",
    )
    what.add_argument("--tokenizer", metavar="URI", help="folder of tokenizer.json, or the file")
    what.add_argument("--output", metavar="URI", help="the source's folder: s3:// or file://")
    what.add_argument("--text-field", default="text", metavar="NAME", help="key or column of the text (text)")
    what.add_argument("--limit", type=_positive, metavar="N", help="read only the first N lines of every chunk")
    clean = prepare.add_argument_group("filters (off unless given)")
    clean.add_argument("--no-normalise", action="store_true", help="keep the text as it is")
    clean.add_argument("--min-characters", type=_positive, default=filters["min_characters"].default, metavar="N")
    clean.add_argument("--max-characters", type=_positive, metavar="N")
    clean.add_argument("--max-symbol-share", type=_share, default=1.0, metavar="SHARE")
    clean.add_argument("--remove-repeated-blocks", action="store_true", help="keep only the first of equal lines")
    clean.add_argument("--max-repeated-share", type=_share, default=1.0, metavar="SHARE")
    clean.add_argument("--min-script-share", nargs="+", type=_script, default=[], metavar="SCRIPT=SHARE")
    clean.add_argument("--max-bad-share", type=_share, default=defaults["max_bad_share"].default, metavar="SHARE")
    twice = prepare.add_argument_group("duplicates and contamination")
    twice.add_argument("--exact-duplicates", action="store_true", help="drop documents that occurred before")
    twice.add_argument("--known", nargs="+", default=[], metavar="URI", help="sources whose documents count as seen")
    twice.add_argument("--near-duplicates", type=_share, metavar="THRESHOLD", help="Jaccard similarity, e.g. 0.8")
    twice.add_argument("--decontaminate", nargs="+", default=[], metavar="URI", help="evaluation sets, JSON lines")
    twice.add_argument("--contamination-words", type=_positive, default=13, metavar="N")
    shape = prepare.add_argument_group("shards and work")
    shape.add_argument("--shard-tokens", type=_positive, default=defaults["shard_tokens"].default, metavar="N")
    shape.add_argument("--chunk-bytes", type=_positive, default=defaults["chunk_bytes"].default, metavar="N")
    shape.add_argument("--workers", type=_positive, default=os.cpu_count() or 1, metavar="N")
    shape.add_argument("--phase", choices=["all", "scan", "write"], default="all", help="scan looks for duplicates")
    shape.add_argument("--part", type=_part, default=(0, 1), metavar="I/N", help="work on every N-th chunk from I on")
    shape.add_argument("--termination-log", type=Path, metavar="FILE", help="where to leave why it failed, as JSON")
    prepare.set_defaults(run=_prepare)


def _add_order(order: argparse.ArgumentParser) -> None:
    order.description = "Prints source, epoch, shard and place of every sequence that the steps read; fetches no shard."
    order.add_argument("--config", default=CONFIG_PATH, metavar="FILE", help=f"run.json of the run ({CONFIG_PATH})")
    order.add_argument("--at", type=int, required=True, metavar="STEP", help="first step, counted from 0")
    order.add_argument("--count", type=_positive, default=1, metavar="K", help="how many steps (1)")
    order.add_argument("--rank", type=_part, metavar="I/N", help="only what rank I of N reads")
    order.add_argument("--json", action="store_true", help="one JSON object a line")
    order.set_defaults(run=_order)


def _positive(value: str) -> int:
    number = int(value)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{value} is less than 1")
    return number


def _share(value: str) -> float:
    number = float(value)
    if not 0 <= number <= 1:
        raise argparse.ArgumentTypeError(f"{value} is not between 0 and 1")
    return number


def _script(value: str) -> tuple[str, float]:
    script, _, share = value.partition("=")
    return script, _share(share)


def _part(value: str) -> tuple[int, int]:
    part, _, parts = value.partition("/")
    if not (part.isdecimal() and parts.isdecimal() and int(part) < int(parts)):
        raise argparse.ArgumentTypeError(f"{value!r} is not I/N with I from 0 to N - 1")
    return int(part), int(parts)


def _preparation(parsed: argparse.Namespace) -> Preparation:
    if parsed.config:
        return Preparation.model_validate_json(Path(parsed.config).read_bytes())
    missing = [name for name in ("input", "tokenizer", "output") if not getattr(parsed, name)]
    if missing:
        raise DataError("InvalidConfig", f"--{' and --'.join(missing)} are required without --config")
    return Preparation(
        inputs=tuple(parsed.input),
        output=parsed.output,
        tokenizer_uri=parsed.tokenizer,
        text_field=parsed.text_field,
        filters=Filters(
            normalise=not parsed.no_normalise,
            min_characters=parsed.min_characters,
            max_characters=parsed.max_characters,
            max_symbol_share=parsed.max_symbol_share,
            remove_repeated_blocks=parsed.remove_repeated_blocks,
            max_repeated_share=parsed.max_repeated_share,
            min_script_share=dict(parsed.min_script_share),
        ),
        exact_duplicates=parsed.exact_duplicates,
        known=tuple(parsed.known),
        near_duplicates=NearDuplicates(threshold=parsed.near_duplicates) if parsed.near_duplicates else None,
        decontamination=Decontamination(uris=tuple(parsed.decontaminate), words=parsed.contamination_words),
        max_bad_share=parsed.max_bad_share,
        shard_tokens=parsed.shard_tokens,
        chunk_bytes=parsed.chunk_bytes,
        limit=parsed.limit,
    )


def _prepare(parsed: argparse.Namespace) -> int:
    from skywork_trainer.prepare.pipeline import Phase, Share, prepare

    def work() -> int:
        begun = time.monotonic()
        options = _preparation(parsed)
        index = prepare(
            options,
            phase=Phase(parsed.phase),
            share=Share(part=parsed.part[0], parts=parsed.part[1]),
            workers=parsed.workers,
            say=lambda line: print(line, flush=True),
        )
        if index is not None:
            megabytes = sum(shard.text_bytes for shard in index.shards) / 1e6
            print(
                f"{options.output}: {index.tokens:,} tokens, {index.documents:,} documents, {len(index.shards)} "
                f"shards, {index.bad_lines:,} bad lines, {megabytes:.1f} MB of text, "
                f"{time.monotonic() - begun:.1f} s"
            )
        return EXIT_DONE

    in_pod = Path(_TERMINATION_LOG) if parsed.config and Path(_TERMINATION_LOG).exists() else None
    return _guarded("prepare", work, last_words=parsed.termination_log or in_pod)


def _order(parsed: argparse.Namespace) -> int:
    from skywork_trainer.batch import rank_sequences
    from skywork_trainer.data.catalog import Catalog

    def work() -> int:
        config = load(parsed.config)
        catalog = Catalog(config)
        rank, world = parsed.rank or (0, 1)
        last = config.stage_steps(config.stage_index).stop
        if not 0 <= parsed.at < last:
            raise DataError("InvalidConfig", f"--at {parsed.at}: stage {config.stage!r} ends before step {last}")
        if not parsed.json:
            print(f"{'STEP':>8} {'SEQUENCE':>12} {'STAGE':<16} {'SOURCE':<16} {'EPOCH':>5} {'SHARD':<24} {'TOKEN':>12}")
        for step in range(parsed.at, min(parsed.at + parsed.count, last)):
            for sequence in rank_sequences(step, rank, world, config):
                t = catalog.trace(sequence)
                if parsed.json:
                    print(json.dumps({"step": step} | asdict(t)))
                else:
                    print(
                        f"{step:>8} {t.sequence:>12} {t.stage:<16} {t.source:<16} {t.epoch:>5} {t.shard:<24} "
                        f"{t.first_token:>12}"
                    )
        return EXIT_DONE

    return _guarded("order", work)


def _guarded(command: str, work: Callable[[], int], *, last_words: Path | None = None) -> int:
    try:
        return work()
    except (DataError, StorageError) as error:
        failure = Failure(
            time=time.time(), rank=-1, reason=error.reason, message=error.message, retryable=error.retryable
        )
    except (ValidationError, FileNotFoundError) as error:
        failure = Failure(time=time.time(), rank=-1, reason="InvalidConfig", message=str(error), retryable=False)
    print(f"skywork data {command}: {failure.reason}: {failure.message}", file=sys.stderr)
    if last_words is not None:
        with suppress(OSError):
            short = failure.model_copy(update={"message": failure.message[:1500]})
            last_words.write_text(short.model_dump_json())
    return 1 if failure.retryable else EXIT_CONFIG
