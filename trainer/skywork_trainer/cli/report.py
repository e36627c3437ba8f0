"""`skywork report`: what runs did so far, as one HTML file to open, print or send; or all of it as JSON.

A run is named by the URI of its checkpoints (spec.checkpoints.uri), which is read with the usual AWS variables of this
shell; or by its name in the cluster, which kubectl is asked for. Exit codes: 0 done; 1 storage or the cluster did not
answer; 64 what was asked for cannot be (no such run, nothing saved yet, an output that cannot be written).
"""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

from skywork_trainer import kubectl
from skywork_trainer.cli.telling import guarded, needing
from skywork_trainer.config import EXIT_CONFIG, EXIT_DONE
from skywork_trainer.storage import StorageError, open_store

_MODULES = frozenset(("matplotlib", "numpy", "boto3", "botocore"))
_FILE = Path("report.html")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the report."""
    parser.epilog = (__doc__ or "").partition("\n\n")[2]
    parser.add_argument("runs", nargs="+", metavar="RUN|URI", help="several are drawn into the same plots")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help=f"HTML file to write (default {_FILE})")
    parser.add_argument("--json", action="store_true", help="print all data instead; -o writes the HTML as well")
    kubectl.add_arguments(parser)
    parser.set_defaults(run=needing("report", _MODULES, guarded(run)))


def run(arguments: argparse.Namespace) -> int:
    """Read the runs, write the report; the exit code is the command's."""
    from skywork_trainer.curves.reading import NoCurve

    output: Path | None = arguments.output or (None if arguments.json else _FILE)
    if output is not None and not output.parent.is_dir():
        print(f"--output {output}: {output.parent} is no folder", file=sys.stderr)
        return EXIT_CONFIG
    if output is not None:
        import matplotlib  # missing, it should be missed before minutes of reading

        assert matplotlib
    try:
        text, html = _report(arguments, draw=output is not None)
    except NoCurve as error:
        print(error, file=sys.stderr)
        return EXIT_CONFIG
    except kubectl.ClusterError as error:
        print(f"{error.reason}: {error.message}", file=sys.stderr)
        return error.exit_code
    if output is not None:
        try:
            output.write_text(html, encoding="utf-8")
        except OSError as error:
            print(f"--output {output}: {error.strerror}", file=sys.stderr)
            return EXIT_CONFIG
        print(f"{output}: {len(html) / 2**20:.1f} MiB", file=sys.stderr)
    if arguments.json:
        print(text)
    return EXIT_DONE


def _report(arguments: argparse.Namespace, *, draw: bool) -> tuple[str, str]:
    from skywork_trainer.curves.reading import read_curve
    from skywork_trainer.curves.summary import summarize
    from skywork_trainer.report import Reported, labels
    from skywork_trainer.report.data import as_data

    cluster = kubectl.Kubectl(arguments.namespace, arguments.context)
    # All are looked up before any is read: a misspelt name shows at once.
    found = [_located(cluster, named) for named in arguments.runs]
    curves = []
    for named, (uri, _) in zip(arguments.runs, found, strict=True):
        try:
            curves.append(read_curve(open_store(uri)))
        except StorageError as error:
            advice = "" if named == uri else f" ({named}'s checkpoints, read from here with this shell's AWS variables)"
            raise StorageError(error.reason, error.message + advice, retryable=error.retryable) from error
    runs = [
        Reported(label, curve, summarize(curve), status)
        for label, curve, (_, status) in zip(labels(curves), curves, found, strict=True)
    ]
    for one in runs:
        for note in one.curve.notes:
            print(f"{one.label}: {note}", file=sys.stderr)
    text = json.dumps(as_data(runs), allow_nan=False) if arguments.json else ""
    if not draw:
        return text, ""
    from skywork_trainer.report.page import page

    return text, page(runs, now=time.time())


def _located(cluster: kubectl.Kubectl, named: str) -> tuple[str, dict[str, Any] | None]:
    if "://" in named:
        return named, None
    found = cluster.run(named)
    uri = found.get("spec", {}).get("checkpoints", {}).get("uri", "")
    if not uri:
        raise kubectl.ClusterError("InvalidName", f"run {named} says no spec.checkpoints.uri")
    return uri, found.get("status") or {}
