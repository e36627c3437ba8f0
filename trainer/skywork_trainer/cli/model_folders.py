"""`skywork checkpoints export` and `geometry`: folders of models in Hugging Face's format."""

import argparse
from collections.abc import Callable
from pathlib import Path

from skywork_trainer.cli.telling import Progress, guarded
from skywork_trainer.storage import open_store

AddCommand = Callable[[str, Callable[[argparse.Namespace], int], str], argparse.ArgumentParser]
_FOLDER = "FOLDER or s3://bucket/prefix"


def add_export(command: AddCommand, id_help: str) -> None:
    """Add `export`."""
    parser = command("export", _export, "write a checkpoint as a Llama that `transformers` loads (safetensors)")
    parser.add_argument("id", nargs="?", default="newest", metavar="ID", help=id_help)
    parser.add_argument("--output", required=True, metavar="FOLDER|URI", help=f"{_FOLDER}; empty, or this same export")
    parser.add_argument("--tokenizer", required=True, metavar="URI", help="spec.tokenizer.uri of the run")
    parser.add_argument("--dtype", choices=("bf16", "fp32"), default="bf16", help="of the weights (default bf16)")
    parser.add_argument(
        "--shard-bytes",
        type=_positive,
        default=5_000_000_000,
        metavar="N",
        help="largest file of weights, and the disk space that is needed on the way (default 5,000,000,000)",
    )
    parser.add_argument(
        "--tied", action="store_true", help="leave the head out; refused unless it is the embedding bit for bit"
    )
    parser.add_argument("--scratch", type=Path, metavar="FOLDER", help="where a file is put together (default TMPDIR)")


def add_geometry(commands: "argparse._SubParsersAction[argparse.ArgumentParser]", epilog: str) -> None:
    """Add `geometry`."""
    summary = "check a folder of a Llama's weights and print the part of a manifest that starts a run with them"
    parser = commands.add_parser("geometry", help=summary, description=summary, epilog=epilog)
    parser.add_argument("folder", metavar="FOLDER|URI", help=_FOLDER)
    parser.set_defaults(run=guarded(_geometry))


def _export(arguments: argparse.Namespace) -> int:
    from skywork_trainer.checkpoint.describe import find
    from skywork_trainer.checkpoint.notes import reading
    from skywork_trainer.exchange.export import Export, export
    from skywork_trainer.tokenizer import load_tokenizer

    source, target = open_store(arguments.uri), open_store(_uri(arguments.output))
    manifest = find(source, arguments.id)
    plan = Export(
        manifest=manifest,
        tokenizer=load_tokenizer(_uri(arguments.tokenizer)),
        dtype=arguments.dtype,
        shard_bytes=arguments.shard_bytes,
        tied=arguments.tied,
    )
    progress = Progress(f"export {manifest.id}", "bytes")
    # The run goes on meanwhile, and would otherwise remove what is being read.
    with reading(source, manifest.id):
        written = export(plan, source, target, scratch=arguments.scratch, progress=progress)
    print(f"{target.uri}: {manifest.id} in {arguments.dtype}" + ("" if written else ", already there"))
    return 0


def _geometry(arguments: argparse.Namespace) -> int:
    from skywork_trainer.exchange.geometry import spec_fields
    from skywork_trainer.exchange.weights import open_weights
    from skywork_trainer.tokenizer import TOKENIZER_FILE

    folder = open_weights(_uri(arguments.folder))
    print("model:")
    for name, value in spec_fields(folder.model).items():
        print(f"  {name}: {value}")
    if open_store(folder.uri).exists(TOKENIZER_FILE):
        print(f"tokenizer:\n  uri: {folder.uri}")
    print(f"initialWeights:\n  uri: {folder.uri}")
    if folder.tied:
        print("# Its head is its embedding; in the run they begin alike and are trained apart.")
    return 0


def _uri(text: str) -> str:
    return text if "://" in text else Path(text).resolve().as_uri()


def _positive(text: str) -> int:
    number = int(text.replace("_", "").replace(",", ""))
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not positive")
    return number
