"""Where things lie: binaries in a cache outside the tree, everything else in one state folder that `down` removes."""

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TOOLS = Path(__file__).parent / "tools"
STATE = Path(os.environ.get("SKYWORK_CLUSTER_STATE", "/var/lib/skywork-cluster"))
PREFIX = "skywork"
"""Start of the name of every namespace, link and cgroup that the cluster makes."""


def cache() -> Path:
    """Folder for what may be built or fetched again: never inside the checkout."""
    base = os.environ.get("XDG_CACHE_HOME", str(Path.home() / ".cache"))
    return Path(os.environ.get("SKYWORK_CACHE", f"{base}/skywork"))
