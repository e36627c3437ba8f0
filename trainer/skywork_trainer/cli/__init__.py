"""The `skywork` command; each group of subcommands lives in a module of its own and is imported only when called."""

import argparse
import importlib
import signal
import sys
from pathlib import Path
from typing import NoReturn

from skywork_trainer.config import EXIT_CONFIG

_GROUPS = {
    "agent": "run the agent: PID 1 of a training pod",
    "data": "prepare token shards from text; print what a step reads",
    "tokenizer": "train a tokenizer",
    "checkpoints": "list, verify, compare and export the checkpoints of a run; read open models",
    "report": "draw the curves of one or several runs into one HTML file",
    "watch": "follow a run of the cluster in the terminal",
}


class _Parser(argparse.ArgumentParser):
    """Ends with the exit code that Jobs do not retry: the same words are wrong in the next pod, too."""

    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        self.exit(EXIT_CONFIG, f"{self.prog}: {message}\n")


def main(argv: list[str] | None = None) -> int:
    """Run one subcommand and return its exit code; bad usage ends the process with code 64."""
    # kubectl finds the command under its second name, as a plugin.
    plugin = Path(sys.argv[0]).name.startswith("kubectl-")
    parser = _Parser(prog="kubectl skywork" if plugin else "skywork", description=__doc__)
    groups = parser.add_subparsers(dest="group", required=True)
    arguments = sys.argv[1:] if argv is None else argv
    for name, summary in _GROUPS.items():
        group = groups.add_parser(name, help=summary, description=summary)
        if arguments[:1] == [name]:
            # Imported late: the agent must not import boto3 and the data tools must not import torch.
            importlib.import_module(f"skywork_trainer.cli.{name}").add_arguments(group)
    parsed = parser.parse_args(arguments)
    if argv is None and parsed.group != "agent":
        # `skywork ... | head` ends quietly, as other commands do; not whoever calls this as a function.
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    code: int = parsed.run(parsed)
    return code
