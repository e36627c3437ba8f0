"""Killed workers, operators and runs, on real kubelets."""

from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from dev.bench.recovering import kill_pod
from dev.demo import faults, install
from dev.demo.environment import Environment
from dev.demo.install import RUN_NAMESPACE
from tests.cluster import runs
from tests.waiting import until

STEPS = 60


@pytest.fixture(scope="module")
def undisturbed(environment: Environment) -> list[float]:
    """Loss of every step of a run that nobody disturbs."""
    runs.start(environment, runs.manifest("undisturbed", steps=STEPS))
    runs.finished(environment, "undisturbed")
    counted = runs.audit(environment, "undisturbed")
    runs.remove(environment, "undisturbed")
    losses: list[float] = counted["losses"]
    assert len(losses) == STEPS
    return losses


def test_a_killed_worker_costs_no_sample_and_the_losses_are_those_of_the_undisturbed_run(
    environment: Environment, undisturbed: list[float]
) -> None:
    runs.start(environment, runs.manifest("killed", steps=STEPS))
    before = runs.at_step(environment, "killed", STEPS // 3)
    members = runs.pods(environment, "killed")
    faults.kill_worker(environment.kube, RUN_NAMESPACE, members[1])
    after = until(lambda: (s := runs.get(environment, "killed")).get("generation", 0) > before["generation"] and s)
    assert [p["metadata"]["uid"] for p in runs.pods(environment, "killed")] == [p["metadata"]["uid"] for p in members]
    assert {r["reason"] for r in after["restarts"]["byReason"]} == {"Killed"}
    runs.finished(environment, "killed")
    counted = runs.audit(environment, "killed")
    assert (counted["steps"], counted["samplesLost"], counted["samplesRepeated"]) == (STEPS, 0, 0)
    # Same world size, same order of every sum, one thread a worker: no rounding differs, so neither does any bit.
    assert counted["losses"] == undisturbed


def test_rank_0_s_pod_may_be_deleted_and_the_run_goes_on_by_itself_as_if_nothing_had_been(
    environment: Environment, undisturbed: list[float]
) -> None:
    runs.start(environment, runs.manifest("headless", steps=STEPS))
    before = runs.at_step(environment, "headless", STEPS // 3)
    said = {p["metadata"]["uid"]: faults.agent_status(environment.kube, RUN_NAMESPACE, p) for p in _pods(environment)}
    (leader,) = [p for p in _pods(environment) if (own := said.get(p["metadata"]["uid"])) and own.rank == 0]
    faults.delete_pod(environment.kube, RUN_NAMESPACE, leader)
    after = until(lambda: (s := runs.get(environment, "headless")).get("generation", 0) > before["generation"] and s)
    assert {r["reason"] for r in after["restarts"]["byReason"]} == {"PodLost"}
    assert leader["metadata"]["uid"] not in {p["metadata"]["uid"] for p in _pods(environment)}
    runs.finished(environment, "headless")
    counted = runs.audit(environment, "headless")
    assert (counted["steps"], counted["samplesLost"], counted["samplesRepeated"]) == (STEPS, 0, 0)
    assert counted["losses"] == undisturbed


def _pods(environment: Environment) -> list[dict[str, Any]]:
    return runs.pods(environment, "headless")


def test_a_pod_out_of_memory_is_named_with_what_to_raise_although_its_peers_notice_first(
    environment: Environment,
) -> None:
    run = runs.manifest("starved", steps=2 * STEPS)
    run["spec"]["trainer"]["template"]["spec"]["containers"][0]["resources"] = {"limits": {"memory": "2Gi"}}
    runs.start(environment, run)
    runs.at_step(environment, "starved", 10)
    victim = runs.pods(environment, "starved")[1]
    python = victim["spec"]["containers"][0]["command"][0].rsplit("/", 1)[0] + "/python"
    # With cgroups of version 2 the kernel takes all of a container at once, with version 1 only who asked for too much.
    with suppress(RuntimeError):
        eat = ["--", python, "-c", "b'x' * (3 << 30)"]
        environment.kube.run("exec", "-n", RUN_NAMESPACE, victim["metadata"]["name"], *eat)
    kill_pod(environment, victim)
    runs.finished(environment, "starved")
    restarts = runs.get(environment, "starved")["restarts"]
    assert [(entry["reason"], entry["count"]) for entry in restarts["byReason"]] == [("HostOutOfMemory", 1)]
    assert victim["metadata"]["name"] in restarts["last"]["message"]
    assert "raise resources.limits.memory" in restarts["last"]["message"]
    runs.remove(environment, "starved")


def test_a_killed_operator_is_not_noticed_by_training_and_its_successor_touches_no_pod(
    environment: Environment,
) -> None:
    kube = environment.kube
    runs.start(environment, runs.manifest("orphaned", steps=2 * STEPS))
    before = runs.at_step(environment, "orphaned", 10)
    members = {p["metadata"]["uid"]: p["metadata"]["annotations"] for p in runs.pods(environment, "orphaned")}
    operators = ["pods", "-n", install.OPERATOR_NAMESPACE, "-l", "app.kubernetes.io/name=skywork-operator"]
    old = {p["metadata"]["uid"] for p in kube.items(*operators)}
    kube.run("delete", *operators, "--force", "--grace-period=0")
    until(
        lambda: [
            p
            for p in kube.items(*operators)
            if p["metadata"]["uid"] not in old
            and all(c["ready"] for c in p["status"].get("containerStatuses", [{"ready": False}]))
        ]
    )
    after = until(lambda: (s := runs.get(environment, "orphaned")).get("step", 0) > before["step"] + 10 and s)
    assert after["generation"] == before["generation"]
    assert after["restarts"]["total"] == 0
    assert {p["metadata"]["uid"]: p["metadata"]["annotations"] for p in runs.pods(environment, "orphaned")} == members
    runs.remove(environment, "orphaned")


def test_a_run_deleted_and_applied_again_goes_on_from_its_checkpoints(
    environment: Environment, undisturbed: list[float]
) -> None:
    run = runs.manifest("again", steps=STEPS)
    runs.start(environment, run)
    until(lambda: runs.get(environment, "again").get("lastCheckpoint", {}).get("step", 0) >= STEPS // 4)
    runs.remove(environment, "again")
    runs.start(environment, run, fresh=False)
    runs.finished(environment, "again")
    counted = runs.audit(environment, "again")
    assert (counted["steps"], counted["samplesLost"], counted["samplesRepeated"]) == (STEPS, 0, 0)
    assert counted["losses"] == undisturbed
    runs.remove(environment, "again")


def test_a_run_begun_without_kubernetes_goes_on_in_the_cluster_from_the_same_checkpoints(
    environment: Environment, undisturbed: list[float], tmp_path: Path
) -> None:
    run = runs.manifest("moved", steps=STEPS)
    runs.remove(environment, "moved")
    install.forget_run(environment.storage, "runs/moved/")
    reached = runs.train_here(environment, run, tmp_path, steps=STEPS // 4)
    runs.start(environment, run, fresh=False)
    runs.finished(environment, "moved")
    counted = runs.audit(environment, "moved")
    assert (counted["steps"], counted["samplesLost"], counted["samplesRepeated"]) == (STEPS, 0, 0)
    # One node summed there what three nodes sum in the cluster, in another order.
    assert counted["losses"][reached:] == pytest.approx(undisturbed[reached:], abs=0.05)
    runs.remove(environment, "moved")


def test_a_run_starts_with_fewer_nodes_when_one_cannot_be_had_and_still_finishes(environment: Environment) -> None:
    run = runs.manifest("crowded", steps=30)
    trainer = run["spec"]["trainer"]
    trainer["nodes"] = {"min": 1, "max": 4, "shrinkAfter": "5s"}
    # More than half of a node each: three nodes hold three pods, and the fourth has nowhere to go.
    cpus = int(environment.kube.items("nodes")[0]["status"]["allocatable"]["cpu"])
    trainer["template"]["spec"]["containers"][0]["resources"] = {"requests": {"cpu": f"{cpus * 600}m"}}
    runs.start(environment, run)
    status = runs.at_step(environment, "crowded", 1)
    assert (status["nodes"]["training"], status["nodes"]["desired"]) == (3, 4)
    runs.finished(environment, "crowded")
    counted = runs.audit(environment, "crowded")
    assert (counted["steps"], counted["samplesLost"], counted["samplesRepeated"]) == (30, 0, 0)
    assert runs.get(environment, "crowded")["restarts"]["total"] == 0
    runs.remove(environment, "crowded")


def test_pods_are_hardened_and_hostpath_is_all_that_pod_security_objects_to(environment: Environment) -> None:
    kube = environment.kube
    runs.start(environment, runs.manifest("hardened", steps=500, nodes=1))
    pod = until(lambda: [p for p in runs.pods(environment, "hardened") if p["status"]["phase"] == "Running"])[0]
    name = pod["metadata"]["name"]
    # The worker container has no shell of its own kind to rely on; python is what it is sure to have.
    python = pod["spec"]["containers"][0]["command"][0].rsplit("/", 1)[0] + "/python"
    script = (
        "import pathlib, os\n"
        "print(pathlib.Path('/proc/1/status').read_text())\n"
        "print('token', os.path.exists('/var/run/secrets/kubernetes.io/serviceaccount'))\n"
        "print('writable', os.access('/', os.W_OK), os.access('/usr', os.W_OK))\n"
    )
    said = kube.run("exec", "-n", RUN_NAMESPACE, name, "-c", "trainer", "--", python, "-c", script)
    facts = dict(line.split(None, 1) for line in said.splitlines() if line.strip())
    assert facts["Uid:"].split() == ["65534"] * 4
    assert int(facts["CapEff:"], 16) == 0
    assert facts["NoNewPrivs:"] == "1"
    assert facts["Seccomp:"] == "2"
    assert facts["token"] == "False"
    assert facts["writable"] == "False False"
    pod["metadata"] = {"name": "probe", "namespace": RUN_NAMESPACE}
    template = {k: v for k, v in pod["spec"].items() if k not in ("nodeName", "serviceAccount", "serviceAccountName")}
    template["volumes"] = [v for v in template["volumes"] if "hostPath" not in v]
    kept = {v["name"] for v in template["volumes"]}
    for container in template["containers"]:
        container["volumeMounts"] = [m for m in container["volumeMounts"] if m["name"] in kept]
    strict = "restricted-probe"
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    kube.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": strict, "labels": labels}})
    bare = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "probe", "namespace": strict}, "spec": template}
    kube.apply(bare)
    kube.run("delete", "namespace", strict, "--wait=false")
    runs.remove(environment, "hardened")
