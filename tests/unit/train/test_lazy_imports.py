"""The list of what a first step imports is kept for exactly the versions it was found with."""

import json
import sys
from pathlib import Path

import pytest
from skywork_trainer import lazy_imports


def test_what_was_kept_is_imported_without_a_step_being_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = tmp_path / "share" / "list.json"
    lazy_imports.keep(["no.such.module", "colorsys"], on_gpu=False, kept=kept)
    monkeypatch.delitem(sys.modules, "colorsys", raising=False)
    monkeypatch.setattr(lazy_imports, "found", lambda: pytest.fail("a step was taken"))
    lazy_imports.import_all(on_gpu=False, kept=kept)
    assert "colorsys" in sys.modules


@pytest.mark.parametrize("text", [None, "{", "[]", '{"versions": {"torch": "1.0"}, "modules": ["colorsys"]}'])
def test_without_a_list_of_these_versions_a_step_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str | None
) -> None:
    kept = tmp_path / "list.json"
    if text is not None:
        kept.write_text(text)
    asked = []
    monkeypatch.setattr(lazy_imports, "found", lambda: asked.append(1) or [])
    lazy_imports.import_all(on_gpu=False, kept=kept)
    assert asked == [1]


def test_a_list_found_on_cpus_is_none_for_gpus_and_a_new_one_replaces_it(tmp_path: Path) -> None:
    kept = tmp_path / "list.json"
    lazy_imports.keep(["a"], on_gpu=False, kept=kept)
    assert lazy_imports.known(on_gpu=True, kept=kept) is None
    lazy_imports.keep(["b"], on_gpu=False, kept=kept)
    assert lazy_imports.known(on_gpu=False, kept=kept) == ["b"]
    assert [path.name for path in tmp_path.iterdir()] == ["list.json"]
    assert json.loads(kept.read_text())["versions"]["device"] == "cpu"
