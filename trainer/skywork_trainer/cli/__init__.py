"""The `skywork` command; each group of subcommands lives in a module of its own and is imported only when called."""

import argparse
import importlib
import signal
import sys

_GROUPS = {
    "agent": "run the agent: PID 1 of a training pod",
    "data": "prepare token shards from text; print what a step reads",
    "tokenizer": "train a tokenizer",
    "checkpoints": "list and audit the checkpoints of a run",
}


def main(argv: list[str] | None = None) -> int:
    """Run one subcommand and return its exit code; argparse ends the process on bad usage with code 2."""
    parser = argparse.ArgumentParser(prog="skywork", description=__doc__)
    groups = parser.add_subparsers(dest="group", required=True)
    arguments = sys.argv[1:] if argv is None else argv
    for name, summary in _GROUPS.items():
        group = groups.add_parser(name, help=summary, description=summary)
        if arguments[:1] == [name]:
            # Imported late: the agent must not import boto3 and the data tools must not import torch.
            importlib.import_module(f"skywork_trainer.cli.{name}").add_arguments(group)
    parsed = parser.parse_args(arguments)
    if parsed.group != "agent":
        # `skywork ... | head` ends quietly, as other commands do.
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    code: int = parsed.run(parsed)
    return code
