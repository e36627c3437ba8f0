"""Pages of metrics, as promtool judges them."""

from pathlib import Path

import pytest

from tests.monitoring.exporters import OperatorPage, TrainerPod
from tests.monitoring.promtool import promtool


@pytest.fixture(params=["pod", "pod in trouble", "operator", "operator in trouble"])
def page(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param.startswith("operator"):
        return OperatorPage(trouble="trouble" in request.param).page()
    pod = TrainerPod(tmp_path)
    if "trouble" in request.param:
        pod.trouble()
    return pod.page()


def test_promtool_finds_nothing_wrong_with_a_page(page: str) -> None:
    ended = promtool("check", "metrics", text=page)
    assert (ended.returncode, ended.stdout + ended.stderr) == (0, "")


def test_promtool_would_find_something() -> None:
    ended = promtool("check", "metrics", text="# HELP a_count A.\n# TYPE a_count counter\na_count 1\n")
    assert ended.returncode != 0
