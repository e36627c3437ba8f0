"""The development cluster with the product installed and the demo's data in its object storage."""

import subprocess
import sys
from collections.abc import Iterator

import pytest

from dev.cluster import lifecycle
from dev.demo import install
from dev.demo.environment import Environment, development_cluster
from dev.demo.install import ROOT


@pytest.fixture(scope="session")
def environment() -> Iterator[Environment]:
    """The cluster, booted unless it is up; taken down again, without leftovers, if this session booted it."""
    was_up = lifecycle.status()[1]
    found = development_cluster(print)
    corpus = found.cache / "corpus"
    subprocess.run([sys.executable, "-m", "dev.corpus", "--output", str(corpus)], check=True, cwd=ROOT)
    install.make_bucket(found.storage)
    install.prepare_data(found.storage, corpus)
    install.make_namespace(found.kube, install.RUN_NAMESPACE, found.storage, hostpath=True)
    install.install_chart(found.kube, found.overlay)
    yield found
    if not was_up:
        lifecycle.down(print)
        assert lifecycle.leftovers() == []
