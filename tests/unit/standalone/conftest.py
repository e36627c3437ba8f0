import subprocess
import sys
from pathlib import Path

import pytest

from dev.cluster import paths
from tests.unit.standalone.runs import write_texts


@pytest.fixture(scope="session")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Text and a tokenizer, made once."""
    folder = tmp_path_factory.mktemp("texts")
    write_texts(folder)
    return folder


@pytest.fixture
def folder(texts: Path, tmp_path: Path) -> Path:
    """A folder of the test's own with text and a tokenizer."""
    for entry in texts.iterdir():
        (tmp_path / entry.name).symlink_to(entry)
    return tmp_path


@pytest.fixture(scope="session")
def torchx(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The real torchx in an environment of its own, as the README says: this package without extras beside it."""
    place = tmp_path_factory.mktemp("torchx") / "venv"
    uv = paths.cache() / "uv/bin/uv"
    subprocess.run([uv, "venv", "-q", "--python", sys.executable, place], check=True)
    install = [uv, "pip", "install", "-q", "--python", place / "bin/python"]
    subprocess.run([*install, "torchx==0.7.0", "-e", paths.ROOT], check=True)
    return place / "bin/torchx"
