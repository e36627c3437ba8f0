"""The demo's whole path, as `make demo` goes it, on the cluster of this session."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from dev.demo.environment import Environment
from dev.demo.install import ROOT


def test_the_demo_trains_two_stages_through_two_faults_without_losing_a_sample(
    environment: Environment, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "dev.demo", "--keep", "--output", str(tmp_path)]
    ended = subprocess.run(command, cwd=ROOT, timeout=1500, check=False)
    assert ended.returncode == 0
    report = json.loads((tmp_path / "report.json").read_text())
    assert (report["samplesLost"], report["samplesRepeated"]) == (0, 0)
    general, stem = report["stages"]
    assert report["samplesConsumed"] == (general["tokens"] + stem["tokens"]) // 128
    assert {fault["kind"] for fault in report["faults"]} == {"worker killed with SIGKILL", "pod deleted"}
    falls = {d: loss["start"] - loss["end"] for d, loss in general["validationLoss"].items()}
    assert set(falls) == {"zh", "en", "code", "papers"}
    assert min(falls.values()) > 0.5, "every domain gets clearly better in the first stage"
    assert abs(stem["mixture"]["stem"] - 0.2) < 0.01, "10 % to 40 %, quadratic, is 20 % on average"
    papers = stem["validationLoss"]["papers"]
    assert papers["end"] < papers["start"]
    falls = report["fallPer100Steps"]["papers"]
    assert falls["stem"] > falls["generalEnd"], "more STEM text teaches STEM faster than the first stage did at its end"
    final = {d: round(loss["end"], 4) for d, loss in stem["validationLoss"].items()}
    assert report["prometheusValidationLoss"] == final
    assert report["domainsScrapedFromTrainers"] == {"general": sorted(final), "stem": sorted(final)}
    assert report["expressions"]["empty"] == [], "of all panels and rules, only what tells of trouble has no data"
    assert report["expressions"]["filled"] > 120
    # Times in a status are whole seconds.
    assert sum(report["timeSeconds"].values()) == pytest.approx(report["runSeconds"], rel=0.01, abs=2)
    assert report["timeSeconds"]["train"] > 0 < report["timeSeconds"]["idle"]
