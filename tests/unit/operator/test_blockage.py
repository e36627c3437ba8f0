"""Why pods do not run, out of their own states and out of Events."""

from typing import Any

import pytest
from skywork_operator.policies.blockage import blockage, job_blockage, mount_blockage, waits_for_volumes


def waiting(reason: str, message: str = "") -> dict[str, Any]:
    state = {"waiting": {"reason": reason, "message": message}}
    return {"status": {"phase": "Pending", "containerStatuses": [{"name": "trainer", "state": state}]}}


def unscheduled(reason: str, message: str = "") -> dict[str, Any]:
    condition = {"type": "PodScheduled", "status": "False", "reason": reason, "message": message}
    return {"status": {"phase": "Pending", "conditions": [condition]}}


@pytest.mark.parametrize(
    ("pod", "reason", "named"),
    [
        pytest.param(waiting("ImagePullBackOff", "Back-off pulling x:1"), "ImagePullBackOff", "x:1", id="no image"),
        pytest.param(waiting("ErrImagePull", "no such host x"), "ImagePullBackOff", "no such host", id="tried again"),
        pytest.param(
            waiting("CreateContainerConfigError", 'secret "keys" not found'), "SecretMissing", "keys", id="no Secret"
        ),
        pytest.param(
            waiting("CreateContainerConfigError", 'configmap "env" not found'), "ConfigMapMissing", "env", id="no map"
        ),
        pytest.param(
            waiting("CreateContainerConfigError", "couldn't find key A in Secret x/y"),
            "CreateContainerConfigError", "couldn't find key A", id="a Secret without the key",
        ),
        pytest.param(unscheduled("Unschedulable", "0/3 nodes"), "Unschedulable", "0/3 nodes", id="no node"),
    ],
)  # fmt: skip
def test_a_pod_s_own_state_names_the_cause(pod: dict[str, Any], reason: str, named: str) -> None:
    found = blockage(pod)
    assert found is not None
    assert found[0] == reason and named in found[1]


@pytest.mark.parametrize(
    "pod",
    [
        pytest.param(unscheduled("SchedulingGated"), id="it waits for our own gate"),
        pytest.param(waiting("ContainerCreating"), id="it is being made"),
        pytest.param({"status": {"phase": "Running"}}, id="it runs"),
    ],
)
def test_what_passes_by_itself_is_no_cause(pod: dict[str, Any]) -> None:
    assert blockage(pod) is None


def refused(message: str, at: str = "2026-11-24T10:00:00Z") -> dict[str, Any]:
    return {"reason": "FailedCreate", "message": message, "lastTimestamp": at}


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ('pods "x" is forbidden: exceeded quota: q, requested: pods=1', "QuotaExceeded"),
        ('pods "x" is forbidden: violates PodSecurity "restricted:latest": hostPath', "PodSecurity"),
        ('pods "x" is forbidden: error looking up service account n/s: serviceaccount "s" not found',
         "ServiceAccountMissing"),
        ('pods "x" is forbidden: no PriorityClass with name urgent was found', "PriorityClassMissing"),
        ('admission webhook "p.example" denied the request: no latest tag', "AdmissionDenied"),
        ("etcdserver: request timed out", "PodCreationFailed"),
    ],
)  # fmt: skip
def test_why_a_job_makes_no_pods_is_read_off_its_events(message: str, reason: str) -> None:
    found = job_blockage([{"reason": "SuccessfulCreate", "message": "made one"}, refused(message)])
    assert found is not None
    assert found[0] == reason and message in found[1]


def test_the_newest_event_counts() -> None:
    old = refused("exceeded quota", "2026-11-24T10:00:00Z")
    new = refused('violates PodSecurity "restricted"', "2026-11-24T10:05:00Z")
    found = job_blockage([new, old])
    assert found is not None and found[0] == "PodSecurity"
    assert job_blockage([]) is None


def test_a_volume_that_cannot_be_mounted_is_named_by_the_pod_s_events() -> None:
    pod = waiting("ContainerCreating")
    assert not waits_for_volumes(pod), "it has no node yet"
    pod["status"]["conditions"] = [{"type": "PodScheduled", "status": "True"}]
    assert waits_for_volumes(pod)
    event = {"reason": "FailedMount", "message": 'MountVolume.SetUp failed for volume "k" : secret "keys" not found'}
    assert mount_blockage([event]) is not None
    assert mount_blockage([event])[0] == "SecretMissing"  # type: ignore[index]
    assert mount_blockage([{"reason": "Pulled", "message": "x"}]) is None
