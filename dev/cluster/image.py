"""Container images without a registry: a pause image, and one of empty folders into which pods mount this checkout."""

import hashlib
import io
import json
import platform
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

from dev.cluster.paths import ROOT

PAUSE = "skywork.dev/pause:local"
DEVELOPMENT = "skywork.dev/dev:local"
_FOLDERS = ("usr", "etc", "proc", "sys", "dev", "tmp", "run", "var", "opt", "root", "home", "cache")
_ACCOUNTS = "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/tmp:/bin/sh\n"


def pause_image(program: Path) -> bytes:
    """The image that holds a pod's namespaces."""
    layer = _layer({"pause": program.read_bytes()}, (), {})
    return _archive(PAUSE, layer, ["/pause"])


def development_image() -> bytes:
    """Folders and links only: /usr, the interpreter and the packages are mounted from the machine, read-only."""
    files = {
        "etc/passwd": _ACCOUNTS.encode(),
        "etc/group": b"root:x:0:\nnogroup:x:65534:\n",
        "etc/nsswitch.conf": b"hosts: files dns\n",
    }
    links = {name: f"usr/{name}" for name in ("bin", "sbin", "lib", "lib64")}
    return _archive(DEVELOPMENT, _layer(files, _FOLDERS, links), [])


def import_image(archive: bytes, *, ctr: Path, socket: Path) -> None:
    """Load an image into one node's containerd."""
    ended = subprocess.run(
        [str(ctr), "--address", str(socket), "--namespace", "k8s.io", "images", "import", "-"],
        input=archive,
        capture_output=True,
        check=False,
    )
    if ended.returncode:
        raise RuntimeError(f"importing an image failed: {ended.stderr.decode().strip()}")


def _folders() -> list[str]:
    folders = ["/usr", sys.base_prefix, str(ROOT / ".venv"), str(ROOT / "operator"), str(ROOT / "trainer")]
    # A folder inside one that is mounted already (a system interpreter lies in /usr) needs no mount of its own.
    return [f for f in dict.fromkeys(folders) if not any(f != g and f.startswith(g + "/") for g in folders)]


def unreadable() -> list[Path]:
    """Mounted folders, and the interpreter, that an unprivileged pod could not read; those above do not matter."""
    interpreter = Path(sys.executable).resolve()
    looked_at = [*map(Path, _folders()), interpreter, interpreter.parent, ROOT / ".venv/bin"]
    return [path for path in looked_at if path.stat().st_mode & 0o005 != 0o005]


def pod_overlay() -> dict[str, Any]:
    """What a pod of the development image needs in order to run this checkout's code."""
    names = {folder: f"code-{index}" for index, folder in enumerate(_folders())}
    # The packages live in an editable install, which finds the sources by their path in this checkout.
    return {
        "image": DEVELOPMENT,
        "command_prefix": str(ROOT / ".venv/bin"),
        "volumes": [{"name": n, "hostPath": {"path": f, "type": "Directory"}} for f, n in names.items()],
        "mounts": [{"name": n, "mountPath": f, "readOnly": True} for f, n in names.items()],
        "env": [{"name": "HOME", "value": "/tmp"}, {"name": "PYTHONDONTWRITEBYTECODE", "value": "1"}],
    }


def _layer(files: dict[str, bytes], folders: tuple[str, ...], links: dict[str, str]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name in folders:
            entry = tarfile.TarInfo(name)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(entry)
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(content), 0o755
            tar.addfile(entry, io.BytesIO(content))
        for name, target in links.items():
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname = tarfile.SYMTYPE, target
            tar.addfile(entry)
    return out.getvalue()


def _archive(tag: str, layer: bytes, entrypoint: list[str]) -> bytes:
    architecture = {"x86_64": "amd64", "aarch64": "arm64"}[platform.machine()]
    settings = {"Entrypoint": entrypoint} if entrypoint else {}
    config = {
        "architecture": architecture,
        "os": "linux",
        "config": settings,
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(layer).hexdigest()}"]},
    }
    index = [{"Config": "config.json", "RepoTags": [tag], "Layers": ["layer.tar"]}]
    contents = {
        "config.json": json.dumps(config).encode(),
        "layer.tar": layer,
        "manifest.json": json.dumps(index).encode(),
    }
    return _layer(contents, (), {})
