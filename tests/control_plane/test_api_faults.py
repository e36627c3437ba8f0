"""The operator through a proxy that fails its requests: whatever breaks, a run ends up as if nothing had."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dev.demo.kube import Kube
from dev.simulation import Simulation
from tests.control_plane.proxy import Cut, Fault, Proxy, Seen, proxy
from tests.control_plane.running import Operator
from tests.control_plane.simulated import passes, remove, run_manifest, trains
from tests.waiting import until

pytestmark = pytest.mark.usefixtures("untainted")


@pytest.fixture
def between(account: Path, tmp_path: Path) -> Iterator[Proxy]:
    """What the operators of a test speak with."""
    with proxy(account, tmp_path) as made:
        yield made


@pytest.fixture
def started(between: Proxy, tmp_path: Path) -> Iterator[list[Operator]]:
    """The operators of a test, which end with it."""
    operators: list[Operator] = []
    yield operators
    for operator in operators:
        operator.kill()
    if (tmp_path / "operator.log").exists():
        print((tmp_path / "operator.log").read_text()[-3000:])


def kinds(kube: Kube, namespace: str) -> Counter[str]:
    return Counter(
        item["kind"] for item in kube.items("jobs,pods,configmaps", "-n", namespace, "-l", "skywork.dev/run")
    )


WHOLE = {"Job": 1, "Pod": 3, "ConfigMap": 1}


def assert_as_undisturbed(kube: Kube, namespace: str) -> None:
    said = trains(kube, namespace)
    assert said["generation"] == 1, "one world was formed, and none on top of it"
    assert said["restarts"].get("total", 0) == 0
    assert kinds(kube, namespace) == WHOLE


def test_an_operator_that_is_killed_behind_any_of_its_writes_is_gone_on_from(
    kube: Kube, namespace: str, simulation: Simulation, between: Proxy, started: list[Operator], tmp_path: Path
) -> None:
    assert simulation
    kube.apply(run_manifest(namespace))
    killed_behind = []
    for allowed in range(1, 12):
        left = [allowed]
        operator = Operator(between.kubeconfig, tmp_path / "operator.log")
        started.append(operator)

        def count(seen: Seen, left: list[int] = left, operator: Operator = operator) -> None:
            if seen.writes:
                left[0] -= 1
                if left[0] == 0:
                    killed_behind.append(seen.path.rpartition("/")[2])
                    operator.process.kill()

        def none_beyond(seen: Seen, left: list[int] = left) -> Fault:
            return Cut.BEFORE if seen.writes and left[0] <= 0 else None

        between.after, between.fault = count, none_beyond
        until(lambda o=operator: o.process.poll() is not None or _settled(kube, namespace, o), 60)  # type: ignore[misc]
        if operator.process.poll() is None:
            break
    assert len(killed_behind) >= 4, killed_behind
    assert_as_undisturbed(kube, namespace)
    remove(kube, namespace)


def _settled(kube: Kube, namespace: str, operator: Operator) -> bool:
    said: dict[str, Any] = kube.get("skyworkrun", "-n", namespace, "demo").get("status", {})
    return said.get("state") == "Training" and passes(operator) >= 3


@pytest.mark.parametrize("fault", [409, 429, 500, Cut.BEFORE, Cut.AFTER], ids=str)
def test_every_write_that_fails_once_is_made_good(
    kube: Kube,
    namespace: str,
    simulation: Simulation,
    between: Proxy,
    started: list[Operator],
    tmp_path: Path,
    fault: Fault,
) -> None:
    assert simulation
    failed: set[tuple[str, str]] = set()

    def once(seen: Seen) -> Fault:
        call = (seen.method, seen.path)
        if not seen.writes or call in failed or seen.path.endswith("/events"):
            return None
        failed.add(call)
        return fault

    between.fault = once
    started.append(Operator(between.kubeconfig, tmp_path / "operator.log"))
    kube.apply(run_manifest(namespace))
    assert_as_undisturbed(kube, namespace)
    assert len(failed) >= 6, failed
    remove(kube, namespace)


def test_what_happens_while_all_watches_are_broken_is_noticed_when_they_are_back(
    kube: Kube, namespace: str, simulation: Simulation, between: Proxy, started: list[Operator], tmp_path: Path
) -> None:
    operator = Operator(between.kubeconfig, tmp_path / "operator.log")
    started.append(operator)
    kube.apply(run_manifest(namespace))
    before = trains(kube, namespace)
    between.fault = lambda seen: 503
    between.break_watches()
    uid = kube.get("job", "demo-general", "-n", namespace)["metadata"]["uid"]
    kube.run("delete", "job", "demo-general", "-n", namespace)
    until(lambda: not simulation.of(namespace), 60)
    refused = len(between.passed)
    expired: set[str] = set()

    def once_expired(seen: Seen) -> Fault:
        if not seen.watching or seen.path in expired:
            return None
        expired.add(seen.path)
        return 410

    between.fault = once_expired
    after = trains(kube, namespace, after=before["generation"])
    assert len(between.passed) > refused
    assert len(expired) >= 3, expired
    assert kube.get("job", "demo-general", "-n", namespace)["metadata"]["uid"] != uid
    assert kinds(kube, namespace) == WHOLE
    assert after["restarts"].get("withoutProgress", 0) == 0
    assert operator.process.poll() is None
    remove(kube, namespace)


def test_looking_again_and_again_at_a_run_of_which_nothing_changes_writes_nothing(
    kube: Kube, namespace: str, simulation: Simulation, between: Proxy, started: list[Operator], tmp_path: Path
) -> None:
    simulation.steps_per_second = 0.0
    try:
        operator = Operator(between.kubeconfig, tmp_path / "operator.log")
        started.append(operator)
        kube.apply(run_manifest(namespace))
        trains(kube, namespace)
        quiet = passes(operator)
        until(lambda: passes(operator) >= quiet + 2, 60)
        written, seen = _writes(between), passes(operator)
        for number in range(15):
            kube.run("annotate", "skyworkrun", "demo", "-n", namespace, f"test/look={number}", "--overwrite")
        until(lambda: passes(operator) >= seen + 10, 60)
        assert _writes(between) == written
    finally:
        simulation.steps_per_second = 10.0
    remove(kube, namespace)


def _writes(between: Proxy) -> list[str]:
    return [f"{seen.method} {seen.path}" for seen in between.passed if seen.writes]
