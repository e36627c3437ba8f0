"""The demo's result: a table for people, and the same figures as JSON."""

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from dev.demo.faults import Fault


def build_report(
    run: dict[str, Any],
    faults: Sequence[Fault],
    audit: dict[str, Any],
    prometheus: dict[str, float],
    wall_seconds: float,
) -> dict[str, Any]:
    """The figures of a finished run, from its status, the audit of its consumed sequences, and Prometheus."""
    status = run["status"]
    return {
        "state": status["state"],
        "stages": [_stage(stage) for stage in status["stages"]],
        "faults": [fault.to_json() for fault in faults],
        "restarts": status["restarts"],
        "samplesLost": audit["samplesLost"],
        "samplesRepeated": audit["samplesRepeated"],
        "samplesConsumed": audit["samplesConsumed"],
        "prometheusValidationLoss": prometheus,
        "wallSeconds": round(wall_seconds, 1),
    }


def _stage(stage: dict[str, Any]) -> dict[str, Any]:
    return {
        "name": stage["name"],
        "steps": stage["steps"],
        "tokens": stage["tokens"],
        "mixture": {entry["source"]: float(entry["share"]) for entry in stage.get("mixture", [])},
        "validationLoss": {
            entry["domain"]: {"start": float(entry["start"]), "end": float(entry["end"])}
            for entry in stage.get("validationLoss", [])
        },
    }


def print_report(report: dict[str, Any]) -> None:
    """The report as tables."""
    console = Console(width=110)
    table = Table(title="Validation loss by domain (nats per token)")
    domains = sorted({d for stage in report["stages"] for d in stage["validationLoss"]})
    for heading in ("stage", "steps", "tokens", "mixture", *domains):
        table.add_column(heading, justify="left" if heading in ("stage", "mixture") else "right")
    for stage in report["stages"]:
        mixture = " ".join(f"{source} {share:.1%}" for source, share in stage["mixture"].items())
        losses = [stage["validationLoss"][d] for d in domains]
        cells = [f"{loss['start']:.3f} → {loss['end']:.3f}" for loss in losses]
        table.add_row(stage["name"], str(stage["steps"]), f"{stage['tokens']:,}", mixture, *cells)
    console.print(table)
    faults = Table(title="Faults")
    for heading in ("what was done", "stage", "at step", "seconds until the next step"):
        faults.add_column(heading, justify="left" if heading == "what was done" else "right")
    for fault in report["faults"]:
        faults.add_row(fault["kind"], fault["stage"], str(fault["step"]), f"{fault['secondsToNextStep']:.2f}")
    console.print(faults)
    console.print(
        f"sequences consumed {report['samplesConsumed']:,}, lost {report['samplesLost']}, "
        f"repeated {report['samplesRepeated']}; {report['wallSeconds']:.0f} s in all"
    )
