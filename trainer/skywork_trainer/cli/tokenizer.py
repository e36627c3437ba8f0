"""`skywork tokenizer train`: a tokenizer from text."""

import argparse
import sys
from collections.abc import Iterator, Sequence

from skywork_trainer.config import EXIT_CONFIG, EXIT_DONE
from skywork_trainer.data.errors import DataError
from skywork_trainer.prepare.chunks import cut
from skywork_trainer.prepare.texts import TextFile, find_texts
from skywork_trainer.storage import StorageError
from skywork_trainer.tokenizer import MIN_VOCAB_SIZE, locate_tokenizer, train_tokenizer


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the subcommands of `skywork tokenizer`."""
    commands = parser.add_subparsers(dest="command", required=True)
    train = commands.add_parser("train", help="train byte-level BPE on JSON lines")
    train.add_argument("--input", nargs="+", required=True, metavar="PATH|URI", help="JSON lines with a `text` key")
    train.add_argument("--vocab-size", type=int, required=True, metavar="N", help=f"{MIN_VOCAB_SIZE} or more")
    train.add_argument("--output", required=True, metavar="URI", help="folder for tokenizer.json, or the file's name")
    train.set_defaults(run=_train)


def _train(parsed: argparse.Namespace) -> int:
    try:
        if parsed.vocab_size < MIN_VOCAB_SIZE:
            raise DataError("TokenizerInvalid", f"--vocab-size must be at least {MIN_VOCAB_SIZE}: one for every byte")
        store, key = locate_tokenizer(parsed.output)
        tokenizer = train_tokenizer(_texts(find_texts(parsed.input)), parsed.vocab_size)
        store.put(key, tokenizer.content)
    except (DataError, StorageError) as error:
        print(f"skywork tokenizer train: {error.reason}: {error.message}", file=sys.stderr)
        return 1 if error.retryable else EXIT_CONFIG
    print(f"{store.uri}/{key}: {tokenizer.vocab_size:,} tokens, sha256 {tokenizer.sha256}")
    return EXIT_DONE


def _texts(files: Sequence[TextFile]) -> Iterator[str]:
    for chunk in cut(files, 1 << 62):
        yield from (text for _, text in chunk.documents("text") if text)
