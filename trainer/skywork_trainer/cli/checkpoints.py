"""`skywork checkpoints`: what a run has saved, whether it can be relied on, and a way out of and into its format.

Exit codes: 0 done; 1 something is wrong with the checkpoint, or storage did not answer; 3 `audit` found samples lost or
trained twice on; 64 what was asked for cannot be (no such checkpoint, another tokenizer, an output that is taken).
"""

import argparse
import json
import math
from collections.abc import Callable
from datetime import UTC, datetime

from skywork_trainer.cli.model_folders import add_export, add_geometry
from skywork_trainer.cli.telling import Progress, guarded, table
from skywork_trainer.storage import open_store

_CODES = __doc__.partition("\n\n")[2]
_ID = "id, step number or `newest` (default)"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the subcommands."""
    parser.epilog = _CODES
    commands = parser.add_subparsers(dest="command", required=True)

    def command(name: str, run: Callable[[argparse.Namespace], int], help: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=help, description=help, epilog=_CODES)
        added.set_defaults(run=guarded(run))
        added.add_argument("uri", help="spec.checkpoints.uri of the run: s3://bucket/prefix or file:///folder")
        return added

    listing = command("list", _list, "list committed checkpoints, oldest first")
    auditing = command("audit", _audit, "count samples that were lost or trained twice on")
    showing = command("show", _show, "print what a checkpoint holds and how it came about")
    verifying = command("verify", _verify, "read every byte of a checkpoint and say whether it can be relied on")
    comparing = command("diff", _diff, "compare settings, weights and moments of two checkpoints of one run")
    for one in (showing, verifying):
        one.add_argument("id", nargs="?", default="newest", metavar="ID", help=_ID)
    for name in ("first", "second"):
        comparing.add_argument(name, metavar="ID", help=_ID.removesuffix(" (default)"))
    for one in (listing, auditing, showing, verifying, comparing):
        one.add_argument("--json", action="store_true", help="print JSON")
    add_export(command, _ID)
    add_geometry(commands, _CODES)


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
        print(f"{m.id:<33} {m.stage:<16} {m.step:>9} {m.tokens:>16} {m.world:>5} {size:>9}  {_time(m.created)}")
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


def _show(arguments: argparse.Namespace) -> int:
    from skywork_trainer.checkpoint.describe import ancestors, find, summary

    store = open_store(arguments.uri)
    m = find(store, arguments.id)
    told = summary(store, m)
    if arguments.json:
        print(json.dumps(told, indent=2))
        return 0
    chain = [link.id + ("" if link.present else " (removed)") for link in ancestors(store, m)]
    model = m.model.model_dump()
    rows = [
        ("checkpoint", m.id),
        ("created", _time(m.created)),
        ("stage", f"{m.stage}, step {m.step:,}, {m.tokens:,} tokens, {m.optimizer_step:,} updates"),
        ("written by", f"generation {m.generation}, {m.world} ranks, ZeRO stage {m.zero_stage}"),
        ("size", f"{told['size_bytes']:,} bytes in {len(m.files)} files, {told['parameters']:,} parameters"),
        ("model", ", ".join(f"{name} {value}" for name, value in model.items())),
        ("batch", f"{m.global_batch_sequences} sequences of {m.sequence_length} tokens, seed {m.seed}"),
        ("began with", m.counters.forked_from or m.counters.initial_weights_uri or "weights drawn at random"),
        ("train loss", "unknown" if m.counters.train_loss is None else f"{m.counters.train_loss:.4f}"),
        *(("validation", f"{d.domain} {d.loss:.4f} at step {d.step:,}") for d in m.counters.validation),
        *(("source", f"{name}, {n:,} sequences in this stage") for name, n in m.counters.source_sequences.items()),
        *(("shards", f"{name} {fingerprint}") for name, fingerprint in m.fingerprints.items()),
        ("tokenizer", m.tokenizer_sha256),
        ("versions", ", ".join(f"{name} {version}" for name, version in m.versions.items())),
        *(("behind it", link) for link in chain or ["nothing: it is the first"]),
    ]
    table(rows)
    return 0


def _verify(arguments: argparse.Namespace) -> int:
    from skywork_trainer.checkpoint.describe import find
    from skywork_trainer.checkpoint.notes import note_verified, reading
    from skywork_trainer.checkpoint.verify import verify

    store = open_store(arguments.uri)
    manifest = find(store, arguments.id)
    with reading(store, manifest.id):
        verdict = verify(store, manifest, Progress(f"verify {manifest.id}", "bytes"))
    if not verdict.problems:
        note_verified(store, manifest.id)
    if arguments.json:
        told = {"checkpoint": verdict.checkpoint, "bytesRead": verdict.bytes_read, "problems": verdict.problems}
        print(json.dumps(told, indent=2))
    else:
        for problem in verdict.problems:
            print(problem)
        state = f"{len(verdict.problems)} problems" if verdict.problems else "whole, as written, and finite"
        print(f"{verdict.checkpoint}: {verdict.bytes_read:,} bytes read: {state}")
    return 1 if verdict.problems else 0


def _diff(arguments: argparse.Namespace) -> int:
    from skywork_trainer.checkpoint.compare import compare, incomparable, settings
    from skywork_trainer.checkpoint.describe import find
    from skywork_trainer.checkpoint.notes import reading

    store = open_store(arguments.uri)
    one, two = find(store, arguments.first), find(store, arguments.second)
    changed, skipped = settings(one, two), incomparable(one, two)
    with reading(store, one.id), reading(store, two.id):
        arrays = list(compare(store, one, two, Progress(f"diff {one.id} {two.id}", "elements")))
    if arguments.json:
        told = {
            "first": one.id,
            "second": two.id,
            "settings": {name: list(values) for name, values in changed.items()},
            "notCompared": skipped,
            "arrays": [
                {
                    "parameter": array.parameter,
                    "array": array.kind,
                    "maxAbs": _number(array.max_abs),
                    "relative": _number(array.relative),
                }
                for array in arrays
            ],
        }
        print(json.dumps(told, indent=2))
        return 0
    print(f"{one.id} and {two.id}")
    table([(name, f"{first} -> {second}") for name, (first, second) in changed.items()])
    print(f"\n{'PARAMETER':<40} {'ARRAY':<11} {'MAX ABS':>11} {'RELATIVE':>11}")
    for array in arrays:
        print(f"{array.parameter:<40} {array.kind:<11} {array.max_abs:>11.4g} {array.relative:>11.4g}")
    if skipped:
        print(f"not compared, since their sizes differ: {', '.join(skipped)}")
    elif not any(array.max_abs for array in arrays):
        print("all arrays are equal")
    return 0


def _number(value: float) -> float | str:
    # JSON has no words for infinity and for what is not a number.
    return value if math.isfinite(value) else str(value)


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%SZ")
