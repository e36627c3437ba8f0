"""What a first step imports lazily: found by taking one, and kept beside the packages for the processes that follow.

`python -m skywork_trainer.lazy_imports` finds and keeps them; run it when an image is built, and each pod's start is
shorter by the seconds that finding them takes. A list of other versions is not used.
"""

import contextlib
import importlib
import json
import os
import platform
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

PATH = Path(sys.prefix) / "share/skywork/lazy-imports.json"


def import_all(*, on_gpu: bool, kept: Path = PATH) -> None:
    """Import them into this process; takes one step in a child that then ends, unless it is known what that needs."""
    names = known(on_gpu=on_gpu, kept=kept)
    for name in found() if names is None else names:
        if name not in sys.modules:
            with contextlib.suppress(Exception):  # some only import as a part of another
                importlib.import_module(name)


def known(*, on_gpu: bool, kept: Path = PATH) -> list[str] | None:
    """Return the modules that were kept for exactly these versions; None when there are none."""
    try:
        said = json.loads(kept.read_text())
    except (OSError, ValueError):
        return None
    if not isinstance(said, dict) or said.get("versions") != _versions(on_gpu):
        return None
    modules = said.get("modules")
    return [str(name) for name in modules] if isinstance(modules, list) else None


def found() -> list[str]:
    """Return the modules that training a few steps imports beyond those that are here; forks."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        os.close(reader)
        _tell(writer)
    os.close(writer)
    with os.fdopen(reader) as names:
        told = names.read().split()
    os.waitpid(child, 0)
    return told


def keep(names: Sequence[str], *, on_gpu: bool, kept: Path = PATH) -> None:
    """Keep the list for later processes of this environment."""
    kept.parent.mkdir(parents=True, exist_ok=True)
    partial = kept.with_suffix(f".{os.getpid()}")
    partial.write_text(json.dumps({"versions": _versions(on_gpu), "modules": list(names)}, indent=0))
    partial.rename(kept)


def _versions(on_gpu: bool) -> dict[str, str]:
    packages = {name: version(name) for name in ("torch", "deepspeed", "skywork")}
    return {**packages, "python": platform.python_version(), "device": "cuda" if on_gpu else "cpu"}


def _tell(writer: int) -> None:
    """In the throw-away child: train, then write the names of the modules that came in."""
    try:
        before = set(sys.modules)
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(null, 2)
        from skywork_trainer.warmup import train_a_little

        with contextlib.suppress(Exception):
            train_a_little()
        with os.fdopen(writer, "w") as out:
            out.write("\n".join(name for name in list(sys.modules) if name not in before))
    finally:
        os._exit(0)


if __name__ == "__main__":
    from skywork_trainer import worker

    worker.preload(remember=True)
    print(f"{PATH}: {len(known(on_gpu=worker.has_gpu()) or [])} modules that a first step imports")
