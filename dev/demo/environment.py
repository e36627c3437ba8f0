"""The cluster that the demo runs on: our own, or one named by KUBECONTEXT."""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from dev.cluster import lifecycle
from dev.cluster.build import ensure_built
from dev.cluster.image import pod_overlay
from dev.cluster.paths import STATE, cache
from dev.demo.install import Overlay, Storage
from dev.demo.kube import Kube


@dataclass(frozen=True, kw_only=True)
class Environment:
    """A cluster, object storage, and how pods get the code."""

    kube: Kube
    storage: Storage
    overlay: Overlay
    cache: Path
    down: Callable[[], None]


def development_cluster(say: Callable[[str], None]) -> Environment:
    """Boot the development cluster (or find it up)."""
    lifecycle.up(3, say)
    binaries = ensure_built(say)
    kubeconfig = STATE / "kubeconfig"
    described = json.loads((STATE / "s3.json").read_text())
    storage = Storage(
        endpoint=described["endpoint"],
        access_key=described["accessKey"],
        secret_key=described["secretKey"],
        region=described["region"],
    )
    kube = Kube(kubectl=str(binaries / "kubectl"), helm=str(binaries / "helm"), kubeconfig=kubeconfig)
    return Environment(
        kube=kube,
        storage=storage,
        overlay=Overlay(**pod_overlay()),
        cache=cache(),
        down=lambda: lifecycle.down(say),
    )


def named_cluster(context: str) -> Environment:
    """The cluster of a kubeconfig context; images and object storage come from the environment.

    Raises RuntimeError naming the variables that are missing.
    """
    needed = ("SKYWORK_IMAGE", "AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
    missing = [name for name in needed if not os.environ.get(name)]
    if missing:
        raise RuntimeError(
            f"KUBECONTEXT={context} needs {', '.join(missing)} as well: an image with this package that the "
            "cluster can pull, and object storage that both its pods and this machine can reach"
        )
    storage = Storage(
        endpoint=os.environ["AWS_ENDPOINT_URL"],
        access_key=os.environ["AWS_ACCESS_KEY_ID"],
        secret_key=os.environ["AWS_SECRET_ACCESS_KEY"],
        region=os.environ.get("AWS_REGION", "us-east-1"),
    )
    return Environment(
        kube=Kube(context=context),
        storage=storage,
        overlay=Overlay(image=os.environ["SKYWORK_IMAGE"]),
        cache=cache(),
        down=lambda: None,
    )
