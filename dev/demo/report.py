"""The demo's result: a table for people, and the same figures as JSON."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from rich.console import Console
from rich.table import Table

from dev.demo.faults import Fault


class Curves:
    """Validation losses by domain and step, as the run's status showed them while it was watched."""

    def __init__(self) -> None:
        self._losses: dict[str, dict[int, float]] = {}

    def note(self, run: dict[str, Any]) -> None:
        """Take in the newest losses of a status."""
        for said in run.get("status", {}).get("validationLoss", []):
            self._losses.setdefault(said["domain"], {})[said["step"]] = float(said["loss"])

    def fall_per_100_steps(self, domain: str, first: int, last: int) -> float | None:
        """Fall of a domain's loss from the first to the last validation in [first, last]; None with fewer than two."""
        inside = sorted((s, v) for s, v in self._losses.get(domain, {}).items() if first <= s <= last)
        if len(inside) < 2:
            return None
        (start, high), (end, low) = inside[0], inside[-1]
        return round(100 * (high - low) / (end - start), 4)


def build_report(
    run: dict[str, Any],
    faults: Sequence[Fault],
    audit: dict[str, Any],
    prometheus: dict[str, float],
    curves: Curves,
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
        "timeSeconds": {state: float(took) for state, took in status["time"].items() if state != "heard"},
        "runSeconds": _seconds(status["startTime"], status["completionTime"]),
        "prometheusValidationLoss": prometheus,
        "fallPer100Steps": _falls(status["stages"], curves),
        "wallSeconds": round(wall_seconds, 1),
    }


def _seconds(start: str, end: str) -> float:
    return (datetime.fromisoformat(end) - datetime.fromisoformat(start)).total_seconds()


def _falls(stages: list[dict[str, Any]], curves: Curves) -> dict[str, dict[str, float | None]]:
    """How fast each domain fell in the last third of the first stage, and over the second."""
    first, second = stages[0]["steps"], stages[1]["steps"]
    domains = [entry["domain"] for entry in stages[0].get("validationLoss", [])]
    return {
        domain: {
            stages[0]["name"] + "End": curves.fall_per_100_steps(domain, first - first // 3 - 1, first),
            stages[1]["name"]: curves.fall_per_100_steps(domain, first, first + second),
        }
        for domain in domains
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
    rates = Table(title="Fall of the validation loss per 100 steps")
    rates.add_column("domain")
    for heading in next(iter(report["fallPer100Steps"].values()), {}):
        rates.add_column(heading, justify="right")
    for domain, falls in report["fallPer100Steps"].items():
        rates.add_row(domain, *("-" if fall is None else f"{fall:.3f}" for fall in falls.values()))
    console.print(rates)
    faults = Table(title="Faults")
    for heading in ("what was done", "stage", "at step", "seconds until the next step"):
        faults.add_column(heading, justify="left" if heading == "what was done" else "right")
    for fault in report["faults"]:
        faults.add_row(fault["kind"], fault["stage"], str(fault["step"]), f"{fault['secondsToNextStep']:.2f}")
    console.print(faults)
    spent = Table(title="Where the time went (seconds)")
    for state in report["timeSeconds"]:
        spent.add_column(state, justify="right")
    spent.add_row(*(f"{took:.1f}" for took in report["timeSeconds"].values()))
    console.print(spent)
    console.print(
        f"sequences consumed {report['samplesConsumed']:,}, lost {report['samplesLost']}, "
        f"repeated {report['samplesRepeated']}; {report['wallSeconds']:.0f} s in all"
    )
