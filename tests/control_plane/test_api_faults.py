"""The operator through a proxy that fails its requests: whatever breaks, a run ends up as if nothing had."""

import signal
import time
from collections import Counter
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from dev.cluster.flows import counted, flow_schemas
from dev.demo.kube import Kube
from dev.simulation import Simulation
from tests.control_plane.proxy import Cut, Fault, Proxy, Seen
from tests.control_plane.running import SYSTEM, Operator
from tests.control_plane.simulated import member, passes, remove, run_manifest, trains
from tests.waiting import until

pytestmark = pytest.mark.usefixtures("untainted")
LEASE = "skywork-operator-leader"


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
    kube.apply(run_manifest(namespace))
    forming = _killed_behind_each_write(kube, namespace, between, started, tmp_path)
    assert len(forming) >= 4, forming
    assert_as_undisturbed(kube, namespace)
    # And once more, where there is something to count: one failure is one, however often it was half dealt with.
    simulation.fail(member(simulation, namespace, 1), "Killed", "worker rank 1 was killed by SIGKILL")
    recovering = _killed_behind_each_write(kube, namespace, between, started, tmp_path)
    assert len(recovering) >= 2, recovering
    said = trains(kube, namespace, after=1)
    assert [(r["reason"], r["count"]) for r in said["restarts"]["byReason"]] == [("Killed", 1)]
    assert kinds(kube, namespace) == WHOLE
    between.after, between.fault = lambda seen: None, lambda seen: None
    remove(kube, namespace)


def _killed_behind_each_write(
    kube: Kube, namespace: str, between: Proxy, started: list[Operator], folder: Path
) -> list[str]:
    """What operators wrote last that were killed behind one write, behind two, and so on, until one need not be."""
    behind: list[str] = []
    for allowed in range(1, 12):
        left = [allowed]
        operator = Operator(between.kubeconfig, folder / "operator.log")
        started.append(operator)

        def count(seen: Seen, left: list[int] = left, operator: Operator = operator) -> None:
            if seen.writes:
                left[0] -= 1
                if left[0] == 0:
                    behind.append(seen.path.rpartition("/")[2])
                    operator.process.kill()

        def none_beyond(seen: Seen, left: list[int] = left) -> Fault:
            return Cut.BEFORE if seen.writes and left[0] <= 0 else None

        between.after, between.fault = count, none_beyond
        until(lambda o=operator: o.process.poll() is not None or _settled(kube, namespace, o), 120)  # type: ignore[misc]
        if operator.process.poll() is None:
            operator.kill()
            break
    return behind


def _settled(kube: Kube, namespace: str, operator: Operator) -> bool:
    said: dict[str, Any] = kube.get("skyworkrun", "-n", namespace, "demo").get("status", {})
    return said.get("state") == "Training" and passes(operator) >= 3


@pytest.mark.parametrize("fault", [409, 429, 500, Cut.BEFORE, Cut.AFTER], ids=str)
def test_every_request_that_fails_once_is_made_good(
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
        # Lists of one path with other selectors are other requests. Only a write can meet a conflict.
        call = (seen.method, seen.path if seen.watching else f"{seen.path}?{seen.query}")
        if call in failed or seen.path.endswith("/events") or (fault == 409 and not seen.writes):
            return None
        failed.add(call)
        return fault

    between.fault = once
    started.append(Operator(between.kubeconfig, tmp_path / "operator.log"))
    kube.apply(run_manifest(namespace))
    assert_as_undisturbed(kube, namespace)
    writes = [call for call in failed if call[0] != "GET"]
    assert len(writes) >= 6, failed
    assert fault == 409 or len(failed) - len(writes) >= 6, failed
    remove(kube, namespace)


def test_a_request_that_is_never_answered_is_given_up_and_made_again(
    kube: Kube, namespace: str, simulation: Simulation, between: Proxy, started: list[Operator], tmp_path: Path
) -> None:
    assert simulation
    unanswered: set[str] = set()

    def once(seen: Seen) -> Fault:
        kind = "status" if seen.path.endswith("/status") else "pod" if "/pods/" in seen.path else ""
        if not seen.writes or not kind or kind in unanswered:
            return None
        unanswered.add(kind)
        return Cut.NEVER

    between.fault = once
    started.append(Operator(between.kubeconfig, tmp_path / "operator.log"))
    kube.apply(run_manifest(namespace))
    trains(kube, namespace, within_seconds=240)
    assert_as_undisturbed(kube, namespace)
    assert unanswered == {"status", "pod"}
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


def test_watches_that_stay_open_and_say_nothing_stop_neither_recovery_nor_new_runs(
    kube: Kube, namespace: str, simulation: Simulation, between: Proxy, started: list[Operator], tmp_path: Path
) -> None:
    operator = Operator(between.kubeconfig, tmp_path / "operator.log")
    started.append(operator)
    kube.apply(run_manifest(namespace))
    before = trains(kube, namespace)
    between.freeze_watches()
    simulation.fail(member(simulation, namespace, 1), "Killed", "worker rank 1 was killed by SIGKILL")
    after = trains(kube, namespace, after=before["generation"])
    assert after["restarts"]["total"] == 1
    later = f"{namespace}-later"
    kube.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": later}})
    kube.apply(run_manifest(later))
    # A stream that is silent for 70 s is given up, and the next one begins where it stood.
    trains(kube, later, within_seconds=240)
    assert operator.page(operator.health, "/healthz")
    for name in (namespace, later):
        remove(kube, name)


def test_an_operator_whose_watches_bring_nothing_back_says_that_it_is_ill_and_works_on(
    kube: Kube, namespace: str, simulation: Simulation, between: Proxy, started: list[Operator], tmp_path: Path
) -> None:
    operator = Operator(between.kubeconfig, tmp_path / "operator.log")
    started.append(operator)
    kube.apply(run_manifest(namespace))
    before = trains(kube, namespace)
    assert until(lambda: operator.page(operator.health, "/healthz"), 30)
    between.mute = True
    until(lambda: not operator.page(operator.health, "/healthz"), 240, 1.0)
    assert operator.process.poll() is None
    simulation.fail(member(simulation, namespace, 1), "Killed", "worker rank 1 was killed by SIGKILL")
    assert trains(kube, namespace, after=before["generation"])["restarts"]["total"] == 1
    between.mute = False
    until(lambda: operator.page(operator.health, "/healthz"), 240, 1.0)
    remove(kube, namespace)


def test_an_operator_that_cannot_renew_its_lease_has_stopped_writing_when_that_runs_out(
    kube: Kube, namespace: str, simulation: Simulation, between: Proxy, started: list[Operator], tmp_path: Path
) -> None:
    assert simulation
    operator = Operator(between.kubeconfig, tmp_path / "operator.log", "--leader-election")
    started.append(operator)
    kube.apply(run_manifest(namespace))
    trains(kube, namespace)
    began = time.time()
    between.fault = lambda seen: 503 if seen.path.endswith(LEASE) else None

    def works_until_it_ends() -> bool:
        kube.run("annotate", "skyworkrun", "demo", "-n", namespace, f"test/look={time.time()}", "--overwrite")
        return operator.process.poll() is not None

    until(works_until_it_ends, 120)
    assert operator.process.wait() == 1, "it ends, and whoever restarts it makes it a follower"
    lease = kube.get("lease", LEASE, "-n", SYSTEM)["spec"]
    ends = datetime.fromisoformat(lease["renewTime"]).timestamp() + lease["leaseDurationSeconds"]
    writes = [seen.at for seen in between.passed if seen.writes and seen.at > began]
    assert writes, "it writes as long as it is sure to lead"
    assert max(writes) < ends
    remove(kube, namespace)


def test_an_operator_that_wakes_behind_its_lease_s_end_writes_nothing_more(
    kube: Kube,
    account: Path,
    namespace: str,
    simulation: Simulation,
    between: Proxy,
    started: list[Operator],
    tmp_path: Path,
) -> None:
    log = tmp_path / "operator.log"
    first = Operator(between.kubeconfig, log, "--leader-election")
    started.append(first)
    kube.apply(run_manifest(namespace))
    before = trains(kube, namespace)
    first.process.send_signal(signal.SIGSTOP)
    second = Operator(account, log, "--leader-election")
    started.append(second)
    until(lambda: log.read_text().count("leads now") == 2, 120)
    simulation.fail(member(simulation, namespace, 1), "Killed", "worker rank 1 was killed by SIGKILL")
    after = trains(kube, namespace, after=before["generation"])
    woken = time.time()
    first.process.send_signal(signal.SIGCONT)
    assert first.process.wait(120) == 1, "it ends, and whoever restarts it makes it a follower"
    assert [seen for seen in between.passed if seen.writes and seen.at > woken] == []
    assert second.process.poll() is None
    assert trains(kube, namespace)["generation"] == after["generation"]
    remove(kube, namespace)


def test_looking_again_and_again_at_a_run_of_which_nothing_changes_writes_nothing(
    kube: Kube, namespace: str, simulation: Simulation, between: Proxy, started: list[Operator], tmp_path: Path
) -> None:
    count_on_the_server(kube)
    simulation.steps_per_second = 0.0
    try:
        operator = Operator(between.kubeconfig, tmp_path / "operator.log")
        started.append(operator)
        kube.apply(run_manifest(namespace))
        trains(kube, namespace)
        quiet = passes(operator)
        until(lambda: passes(operator) >= quiet + 2, 60)
        written, before, seen = _writes(between), writes_on_the_server(kube), passes(operator)
        assert before > 0, "what it wrote when it began is counted there"
        for number in range(15):
            kube.run("annotate", "skyworkrun", "demo", "-n", namespace, f"test/look={number}", "--overwrite")
        until(lambda: passes(operator) >= seen + 10, 60)
        assert _writes(between) == written
        assert writes_on_the_server(kube) == before
    finally:
        simulation.steps_per_second = 10.0
    remove(kube, namespace)


def count_on_the_server(kube: Kube) -> None:
    """Have the API server count what the operator writes, and apart from that its signs of life."""
    account = {"name": "skywork", "namespace": SYSTEM}
    kube.apply(*flow_schemas("operator", {"kind": "ServiceAccount", "serviceAccount": account}))


def writes_on_the_server(kube: Kube) -> int:
    return counted("operator", kube.run("get", "--raw", "/metrics")).writes


def _writes(between: Proxy) -> list[str]:
    return [f"{seen.method} {seen.path}" for seen in between.passed if seen.writes]
