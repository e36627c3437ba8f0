"""`skywork checkpoints`: what a run has saved, and whether it trained every sample exactly once."""

import argparse
import json
import sys
from collections.abc import Callable
from datetime import UTC, datetime

from skywork_trainer.storage import StorageError, open_store

Command = Callable[[argparse.Namespace], int]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the subcommands."""
    commands = parser.add_subparsers(dest="command", required=True)
    listing = commands.add_parser("list", help="list committed checkpoints, oldest first")
    listing.set_defaults(run=_guarded(_list))
    auditing = commands.add_parser("audit", help="count samples that were lost or trained twice on")
    auditing.set_defaults(run=_guarded(_audit))
    for command in (listing, auditing):
        command.add_argument("uri", help="spec.checkpoints.uri of the run: s3://bucket/prefix or file:///folder")
        command.add_argument("--json", action="store_true", help="print JSON")


def _guarded(command: Command) -> Command:
    def guarded(arguments: argparse.Namespace) -> int:
        try:
            return command(arguments)
        except StorageError as error:
            print(f"{error.reason}: {error.message}", file=sys.stderr)
            return 1

    return guarded


def _list(arguments: argparse.Namespace) -> int:
    from skywork_trainer.checkpoint.manifest import committed, read_manifest

    store = open_store(arguments.uri)
    manifests = [read_manifest(store, identity) for identity in committed(store)]
    if arguments.json:
        fields = {"id", "parent", "created", "generation", "stage", "step", "tokens", "world", "zero_stage", "counters"}
        print(json.dumps([manifest.model_dump(mode="json", include=fields) for manifest in manifests], indent=2))
        return 0
    print(f"{'CHECKPOINT':<33} {'STAGE':<16} {'STEP':>9} {'TOKENS':>16} {'WORLD':>5} {'SIZE':>9}  CREATED")
    for m in manifests:
        size = f"{sum(file.size for file in m.files) / 2**20:.1f} Mi"
        created = datetime.fromtimestamp(m.created, UTC).strftime("%Y-%m-%d %H:%M:%SZ")
        print(f"{m.id:<33} {m.stage:<16} {m.step:>9} {m.tokens:>16} {m.world:>5} {size:>9}  {created}")
    return 0


def _audit(arguments: argparse.Namespace) -> int:
    from skywork_trainer.checkpoint.history import audit

    result = audit(open_store(arguments.uri))
    if arguments.json:
        print(json.dumps(result.to_json()))
    else:
        print(f"checkpoint {result.checkpoint or '(none)'}: {result.steps} steps")
        print(f"samples consumed {result.samples_consumed}")
        print(f"samples lost {result.samples_lost}, samples repeated {result.samples_repeated}")
        print(f"samples substituted {result.samples_substituted}")
    return 0 if not (result.samples_lost or result.samples_repeated) else 3
