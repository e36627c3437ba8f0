"""A real S3 server behind a proxy that spoils requests; the store's waits are short, its attempts as ever."""

import itertools
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import suppress

import pytest
from skywork_trainer.storage import S3Store, client, s3
from skywork_trainer.storage.body import LeastRate
from skywork_trainer.storage.retry import Retry

from dev.cluster import processes
from dev.cluster.build import ensure_built
from dev.cluster.storage import start_storage
from tests.s3.proxy import Proxy
from tests.waiting import until

BUCKET = "data"
QUICK = Retry(backoff_seconds=0.002, backoff_cap_seconds=0.01)
LEAST_RATE = LeastRate(window_bytes=1 << 13, window_seconds=0.5)
_numbers = itertools.count(1)


def settle(proxy: Proxy) -> None:
    """End what is planned and what stalls, and wait for overtaken readers: their requests would be counted."""
    proxy.heal()
    until(lambda: not any(thread.name == "fetch" for thread in threading.enumerate()), 60, 0.01)
    proxy.plan()


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """versitygw on a free port: where it is, and what opens it."""
    folder = tmp_path_factory.mktemp("s3-server")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    yield start_storage(folder, ensure_built(print), address="127.0.0.1", port=port)
    for number in processes.pids(folder).values():
        processes.kill([number])
        with suppress(ChildProcessError):
            os.waitpid(number, 0)


@pytest.fixture(scope="session")
def listening(server: dict[str, str]) -> Iterator[Proxy]:
    host, port = server["endpoint"].removeprefix("http://").split(":")
    proxy = Proxy((host, int(port)))
    yield proxy
    proxy.close()


# Not of the session: the tests of other folders must not get these.
@pytest.fixture(scope="package", autouse=True)
def environment(server: dict[str, str], listening: Proxy, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The variables a pod has, and nothing of whoever runs the tests."""
    folder = tmp_path_factory.mktemp("configuration")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("AWS_ENDPOINT_URL_S3", "AWS_DEFAULT_REGION", "AWS_SESSION_TOKEN", "AWS_PROFILE"):
            patch.delenv(name, raising=False)
        patch.setenv("AWS_ENDPOINT_URL", listening.endpoint)
        patch.setenv("AWS_REGION", server["region"])
        patch.setenv("AWS_ACCESS_KEY_ID", server["accessKey"])
        patch.setenv("AWS_SECRET_ACCESS_KEY", server["secretKey"])
        patch.setenv("AWS_CONFIG_FILE", str(folder / "no-config"))
        patch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(folder / "no-credentials"))
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        patch.setattr(client, "READ_TIMEOUT_SECONDS", 0.8)
        patch.setattr(s3, "configured", lambda environment: QUICK)
        patch.setattr(s3, "LeastRate", lambda: LEAST_RATE)
        client._open.cache_clear()
        yield
    client._open.cache_clear()


@pytest.fixture
def other_client(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """Change variables through this, and the next call has a client that read them; those of later tests do not."""
    client._open.cache_clear()
    yield monkeypatch
    monkeypatch.undo()
    client._open.cache_clear()


@pytest.fixture
def proxy(listening: Proxy) -> Iterator[Proxy]:
    yield listening
    settle(listening)


@pytest.fixture
def store(proxy: Proxy) -> S3Store:
    """An empty prefix of a bucket that is there."""
    found = {bucket["Name"] for bucket in client.current().client.list_buckets()["Buckets"]}
    if BUCKET not in found:
        client.current().client.create_bucket(Bucket=BUCKET)
    store = S3Store(BUCKET, f"test-{next(_numbers)}")
    client.requests.clear()
    proxy.plan()
    return store
