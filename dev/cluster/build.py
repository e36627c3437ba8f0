"""Builds the cluster's programs from Go modules, once per content of their go.mod, go.sum and flags."""

import hashlib
import os
import shutil
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from dev.cluster.paths import TOOLS, cache

_KUBERNETES = "v1.36.3"
_VERSION = " ".join(
    f"-X {package}.git{key}={value}"
    for package in ("k8s.io/component-base/version", "k8s.io/client-go/pkg/version")
    for key, value in (("Version", _KUBERNETES), ("Major", "1"), ("Minor", "36"))
)


@dataclass(frozen=True, kw_only=True)
class Group:
    """Programs built from one go.mod."""

    name: str
    programs: tuple[str, ...]
    tags: str = ""
    cgo: bool = False
    ldflags: str = ""
    target: str = "tool"
    rename: tuple[str, str] | None = None
    # Where the module lies says nothing of what comes out: not in the repr, by which builds are cached.
    source: Path = field(default=TOOLS, repr=False)
    """Folder that holds the module's own, called `name`."""


GROUPS = (
    Group(
        name="kubernetes",
        programs=("kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy", "kubectl"),
        ldflags=_VERSION,
    ),
    Group(name="etcd", programs=("etcd",), rename=("server", "etcd")),
    Group(
        name="containerd",
        programs=("containerd", "containerd-shim-runc-v2", "ctr"),
        tags="no_btrfs no_zfs no_devmapper",
    ),
    # Without the seccomp tag every pod with a seccomp profile fails to start.
    Group(name="runc", programs=("runc",), tags="seccomp", cgo=True),
    Group(name="cni", programs=("ptp", "loopback", "host-local")),
    Group(name="helm", programs=("helm",)),
    Group(name="s3", programs=("versitygw",)),
    Group(name="pause", programs=("pause",), target="."),
)

KWOK = Group(name="kwok", programs=("kwok",))
"""Fake nodes, for benchmarks only."""

PACKAGES = {
    "nft": "nftables",
    "conntrack": "conntrack",
    "ip": "iproute2",
    "openssl": "openssl",
    "pkg-config": "pkg-config",
    "gcc": "gcc",
    "/usr/include/seccomp.h": "libseccomp-dev",
    "prometheus": "prometheus",
}


def ensure_built(say: Callable[[str], None]) -> Path:
    """Folder with links to every program, building what is missing; raises RuntimeError with the compiler's words."""
    _install_packages(say)
    if shutil.which("go") is None:
        raise RuntimeError(
            "Go 1.26 or newer is needed to build the development cluster; see https://go.dev/doc/install"
        )
    links = cache() / "bin" / "current"
    links.mkdir(parents=True, exist_ok=True)
    for group in GROUPS:
        folder = build(group, say)
        for program in group.programs:
            link = links / program
            if not link.is_symlink() or link.resolve() != folder / program:
                # By renaming, so that a cluster that is up never finds the link missing.
                fresh = links / f".{program}.{os.getpid()}"
                fresh.symlink_to(folder / program)
                fresh.rename(link)
    return links


def build(group: Group, say: Callable[[str], None]) -> Path:
    """Folder with the group's programs, built unless it is there; raises RuntimeError with the compiler's words."""
    source = group.source / group.name
    digest = hashlib.sha256(repr(group).encode())
    for path in sorted(source.iterdir()):
        digest.update(path.name.encode() + path.read_bytes())
    folder = cache() / "bin" / f"{group.name}-{digest.hexdigest()[:16]}"
    if folder.exists():
        return folder
    say(f"building {group.name} ({', '.join(group.programs)}); once, it is cached in {folder.parent}")
    started = time.monotonic()
    partial = folder.with_suffix(f".{os.getpid()}")
    partial.mkdir(parents=True)
    # A module cache in the project's own cache folder would be cold for people who have Go already.
    command = [
        "go",
        "build",
        "-trimpath",
        "-o",
        f"{partial}/",
        "-ldflags",
        f"-s -w {group.ldflags}",
        "-tags",
        group.tags,
    ]
    environment = {**os.environ, "CGO_ENABLED": "1" if group.cgo else "0"}
    ended = subprocess.run(
        [*command, group.target], cwd=source, env=environment, text=True, capture_output=True, check=False
    )
    if ended.returncode:
        shutil.rmtree(partial)
        raise RuntimeError(f"building {group.name} failed:\n{ended.stderr[-3000:]}")
    if group.rename:
        (partial / group.rename[0]).rename(partial / group.rename[1])
    try:
        partial.rename(folder)
    except OSError:
        # A build beside this one was first; what it made is the same.
        if not folder.exists():
            raise
        shutil.rmtree(partial)
    say(f"built {group.name} in {time.monotonic() - started:.0f} s")
    return folder


def _install_packages(say: Callable[[str], None]) -> None:
    missing = [
        package
        for probe, package in PACKAGES.items()
        if not (Path(probe).exists() if probe.startswith("/") else shutil.which(probe))
    ]
    if not missing:
        return
    if shutil.which("apt-get") is None or os.geteuid() != 0:
        raise RuntimeError(f"these Debian packages are missing, and only root can install them: {' '.join(missing)}")
    say(f"installing Debian packages: {' '.join(missing)}")
    # Some packages start a service when they are installed; exit code 101 of this file tells dpkg not to.
    guard = Path("/usr/sbin/policy-rc.d")
    guarded = not guard.exists()
    if guarded:
        guard.write_text("#!/bin/sh\nexit 101\n")
        guard.chmod(0o755)
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    try:
        subprocess.run(["apt-get", "-qq", "update"], check=True, env=environment, stdout=subprocess.DEVNULL)
        install = ["apt-get", "-qq", "install", "-y", "--no-install-recommends", *missing]
        subprocess.run(install, check=True, env=environment, stdout=subprocess.DEVNULL)
    finally:
        if guarded:
            guard.unlink()
