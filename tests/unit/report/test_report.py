"""A report opens from disk, needs nothing else, and says what the curve says."""

import json
import math
import random
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from skywork_trainer import cli
from skywork_trainer.config import EXIT_CONFIG
from skywork_trainer.curves.reading import read_curve
from skywork_trainer.curves.series import drawn, throughput
from skywork_trainer.curves.summary import summarize
from skywork_trainer.curves.thinning import smooth, thin
from skywork_trainer.report import Reported, labels
from skywork_trainer.report.page import page
from skywork_trainer.words import count, duration, signed

from tests.unit.curves.test_reading import Unsynced
from tests.unit.curves.writing import BATCH, STAGE_STEPS, Run

Captured = pytest.CaptureFixture[str]


def trained(folder: Path, name: str = "run", *, seed: int = 1, steps: int = 20) -> Run:
    """A run of some stages with validations, a crash and a rollback."""
    run = Run(Unsynced(folder / name), random.Random(seed)).started()
    run.validate()
    for at in range(1, steps + 1):
        run.train(1)
        if run.step % STAGE_STEPS == 0 or run.step % 3 == 0:
            run.validate()
        if at % 4 == 0:
            run.save()
        if at == steps // 2:
            run.crash(after="NodeLost")
    run.save()
    return run


class _Checked(HTMLParser):
    """Everything that could be fetched, and whether what was opened is closed."""

    def __init__(self) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.tags: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            local = (value or "").startswith("#")
            if name in ("src", "href", "xlink:href", "srcset", "data") and not local:
                self.fetched.append(f"{tag} {name}={value}")
            self.fetched += [url for url in re.findall(r"url\(([^)]*)\)", value or "") if not url.startswith("#")]

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def checked(html: str) -> _Checked:
    parser = _Checked()
    parser.feed(html)
    parser.close()
    return parser


def test_the_file_is_whole_and_fetches_nothing(tmp_path: Path) -> None:
    run = trained(tmp_path)
    assert cli.main(["report", run.store.uri, "-o", str(tmp_path / "r.html")]) == 0
    html = (tmp_path / "r.html").read_text()
    found = checked(html)
    assert found.fetched == []
    assert not {"script", "link", "img", "iframe", "object", "embed"} & set(found.tags)
    assert "default-src 'none'" in html
    assert not re.search(r"@import|url\(\s*['\"]?http", html)
    for title in (
        "Summary", "Held-out domains", "Validation loss", "Change in the newest stage", "Bits per byte",
        "Training loss", "Learning rate", "Gradient norm", "Throughput", "Where the time went", "What happened when",
    ):  # fmt: skip
        assert title in html, title
    words = " ".join(found.text)
    assert "NodeLost 1" in words, "faults are counted"
    assert "NodeLost (1)" in words, "and drawn where they were"
    assert "s0" in words and "s1" in words, "stages are named"
    assert found.tags.count("svg") >= 8


def test_several_runs_are_drawn_into_one_plot_and_told_apart(tmp_path: Path) -> None:
    uris = [trained(tmp_path, name, seed=at).store.uri for at, name in enumerate(("a", "b"))]
    assert cli.main(["report", *uris, "-o", str(tmp_path / "r.html")]) == 0
    words = checked((tmp_path / "r.html").read_text()).text
    for uri in uris:
        assert any(f"demo ({uri})" in text for text in words)


def test_the_same_curves_give_the_same_file(tmp_path: Path) -> None:
    curve = read_curve(trained(tmp_path).store)
    one = Reported("a", curve, summarize(curve))
    assert page([one], now=0) == page([one], now=0)


def test_names_of_others_are_text_and_nothing_else(tmp_path: Path) -> None:
    curve = read_curve(trained(tmp_path).store)
    evil = "\"><script>alert(1)</script>'&$x_1$"
    status = {"state": evil, "restarts": {"total": 1, "last": {"reason": evil, "message": evil}}}
    html = page([Reported(evil, curve, summarize(curve), status), Reported("b", curve, summarize(curve))], now=0)
    found = checked(html)
    assert "script" not in found.tags
    assert any(evil in text for text in found.text)


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_a_run_that_has_hardly_begun_has_a_report(tmp_path: Path, steps: int) -> None:
    run = Run(Unsynced(tmp_path / "run"), random.Random(1)).started()
    run.train(steps)
    run.save()
    assert cli.main(["report", run.store.uri, "-o", str(tmp_path / "r.html")]) == 0


def test_json_is_strict_and_has_every_step_and_validation(tmp_path: Path, capsys: Captured) -> None:
    run = trained(tmp_path)
    assert cli.main(["report", run.store.uri, "--json"]) == 0

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    (told,) = json.loads(capsys.readouterr().out, parse_constant=refuse)["runs"]
    curve = read_curve(run.store)
    assert told["steps"]["step"] == curve.steps.step.tolist()
    assert [math.nan if x is None else x for x in told["steps"]["loss"]] == pytest.approx(
        curve.steps.loss.tolist(), nan_ok=True
    )
    assert {len(column) for column in told["steps"].values()} == {curve.step}
    assert [one["step"] for one in told["validations"]] == [one.step for one in curve.validations]
    assert sum(told["summary"]["seconds"].values()) == pytest.approx(told["summary"]["wallSeconds"])
    losses = [one["loss"] for one in told["summary"]["domains"]]
    assert told["summary"]["averagePerplexity"] == pytest.approx(math.exp(sum(losses) / len(losses)))
    perplexities = [one["perplexity"] for one in told["summary"]["domains"]]
    assert told["summary"]["averagePerplexity"] == pytest.approx(math.prod(perplexities) ** (1 / len(losses)))
    for one in told["summary"]["domains"]:
        assert one["bitsPerByte"] == pytest.approx(one["loss"] * 10 / 40 / math.log(2))
    assert told["tokens"] == curve.step * BATCH
    assert not (tmp_path / "report.html").exists()


class TestRefusals:
    def test_a_folder_without_a_run(self, tmp_path: Path, capsys: Captured) -> None:
        assert cli.main(["report", tmp_path.as_uri(), "-o", str(tmp_path / "r.html")]) == EXIT_CONFIG
        assert "holds no checkpoint and no curve" in capsys.readouterr().err
        assert not (tmp_path / "r.html").exists()

    def test_a_uri_that_is_none(self, capsys: Captured) -> None:
        assert cli.main(["report", "gs://bucket/run", "--json"]) == EXIT_CONFIG
        assert "InvalidUri" in capsys.readouterr().err

    def test_an_output_that_cannot_be_written(self, tmp_path: Path, capsys: Captured) -> None:
        assert cli.main(["report", tmp_path.as_uri(), "-o", str(tmp_path / "no/r.html")]) == EXIT_CONFIG
        assert "is no folder" in capsys.readouterr().err

    def test_storage_that_cannot_be_read(self, tmp_path: Path, capsys: Captured) -> None:
        run = trained(tmp_path)
        (tmp_path / "run/checkpoints").rename(tmp_path / "other")
        (tmp_path / "run/checkpoints").symlink_to(tmp_path / "other")
        for path in (tmp_path / "run/curves").iterdir():
            path.unlink()
            path.symlink_to(path.name)  # a loop: opening it is an error that is not NotFound
        assert cli.main(["report", run.store.uri, "--json"]) == 1
        assert "StorageUnreachable" in capsys.readouterr().err

    @pytest.mark.parametrize("missing", ["matplotlib", "numpy"])
    def test_a_missing_library_is_named_with_its_extra(self, tmp_path: Path, missing: str) -> None:
        code = f"import sys; sys.modules[{missing!r}] = None; from skywork_trainer import cli; sys.exit(cli.main())"
        command = [sys.executable, "-c", code, "report", tmp_path.as_uri(), "-o", str(tmp_path / "r.html")]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert done.returncode == EXIT_CONFIG
        assert "pip install 'skywork[report]'" in done.stderr and "Traceback" not in done.stderr


def test_a_report_needs_no_torch(tmp_path: Path) -> None:
    run = trained(tmp_path)
    code = "import sys; sys.modules['torch'] = None; from skywork_trainer import cli; sys.exit(cli.main())"
    command = [sys.executable, "-c", code, "report", run.store.uri, "-o", str(tmp_path / "r.html")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_runs_that_are_called_alike_are_told_apart(tmp_path: Path) -> None:
    curves = [read_curve(trained(tmp_path, name).store) for name in ("a", "b")]
    assert labels(curves[:1]) == ["demo"]
    assert len(set(labels([*curves, curves[0]]))) == 3


def test_a_stage_s_mixture_is_what_was_drawn_in_each_stretch(tmp_path: Path) -> None:
    run = trained(tmp_path)
    found = drawn(read_curve(run.store), "s0")
    assert found is not None
    assert found.edges[0] == 0 and np.all(np.diff(found.edges) > 0)
    assert sum(found.shares.values()) == pytest.approx(1.0)


def test_throughput_has_a_gap_where_nothing_was_trained(tmp_path: Path) -> None:
    run = Run(Unsynced(tmp_path / "run"), random.Random(1)).started()
    run.train(5)
    run.clock += 3600
    run.train(5)
    run.save()
    _, rates = throughput(read_curve(run.store))
    assert np.isnan(rates).sum() == 1 and np.isnan(rates[5])


numbers = st.lists(st.floats(-1e6, 1e6) | st.just(math.nan), min_size=1, max_size=400)


@given(values=numbers, most=st.integers(4, 60))
def test_a_thinned_line_keeps_its_extremes_and_its_ends(values: list[float], most: int) -> None:
    x, y = np.arange(len(values), dtype=float), np.array(values)
    thin_x, thin_y = thin(x, y, most)
    assert len(thin_x) <= max(most + 4, 4)
    assert np.all(np.diff(thin_x) > 0)
    np.testing.assert_array_equal(thin_y, y[thin_x.astype(int)])
    if np.isfinite(y).any():
        assert np.nanmax(thin_y) == np.nanmax(y) and np.nanmin(thin_y) == np.nanmin(y)


@given(values=numbers, window=st.integers(1, 30))
def test_a_smoothed_line_is_the_mean_of_what_is_near(values: list[float], window: int) -> None:
    y = np.array(values)
    for at, mean in enumerate(smooth(y, window)):
        near = y[max(at - window // 2, 0) : at + (window + 1) // 2]
        if window < 2 or not np.isfinite(near).any():
            continue
        assert mean == pytest.approx(np.nanmean(near), abs=1e-3)


@pytest.mark.parametrize(
    ("function", "value", "text"),
    [
        (count, 0, "0"), (count, 999, "999"), (count, 958_976, "959 k"), (count, 3.13e12, "3.13 T"),
        (count, 16_777_216, "16.8 M"), (count, None, "–"), (count, math.nan, "–"), (count, 999_900, "1.00 M"),
        (duration, 0, "0 s"), (duration, 4.2, "4.2 s"), (duration, 41, "41 s"), (duration, 125, "2 min 5 s"),
        (duration, 7500, "2 h 5 min"), (duration, 86400 * 38 + 3600 * 4, "38 d 4 h"), (duration, 3600, "1 h"),
        (duration, None, "–"), (signed, 0.1, "+0.1000"), (signed, -0.1, "−0.1000"), (signed, None, "–"),
    ],
)  # fmt: skip
def test_numbers_are_written_as_people_read_them(function: Any, value: Any, text: str) -> None:
    assert function(value) == text


def test_what_nothing_broke_is_no_fault(tmp_path: Path) -> None:
    run = trained(tmp_path)
    for planned in ("StageCompleted", "Resized", "Suspended"):
        run.crash(after=planned)
        run.train(1)
        run.save()
    assert summarize(read_curve(run.store)).faults == {"NodeLost": 1}
