"""What is read of a pod as the API server shows it."""

from typing import Any

import pytest
from skywork_operator.parsing import parse_pod


@pytest.mark.parametrize(
    ("spec", "limited"),
    [
        pytest.param({}, False, id="nothing is said"),
        pytest.param({"containers": [{"name": "trainer"}]}, False, id="a container without resources"),
        pytest.param(
            {"containers": [{"name": "trainer", "resources": {"requests": {"memory": "1Gi"}}}]}, False, id="a request"
        ),
        pytest.param(
            {"containers": [{"name": "trainer", "resources": {"limits": {"nvidia.com/gpu": 8}}}]}, False, id="of GPUs"
        ),
        pytest.param(
            {"containers": [{"name": "a"}, {"name": "trainer", "resources": {"limits": {"memory": "1Gi"}}}]}, True,
            id="a container's limit",
        ),
        pytest.param({"resources": {"limits": {"memory": "1Gi"}}, "containers": []}, True, id="the whole pod's limit"),
    ],
)  # fmt: skip
def test_memory_is_limited_where_the_pod_or_a_container_says_so(spec: dict[str, Any], limited: bool) -> None:
    assert parse_pod({"metadata": {"name": "p", "uid": "u"}, "spec": spec}).limited is limited


def test_a_container_that_the_kernel_killed_for_memory_is_known_by_its_kubelet_s_word() -> None:
    def pod(reason: str) -> bool:
        ended = {"name": "trainer", "state": {"terminated": {"reason": reason, "exitCode": 137}}}
        body = {"metadata": {"name": "p", "uid": "u"}, "status": {"phase": "Failed", "containerStatuses": [ended]}}
        return parse_pod(body).out_of_memory

    assert pod("OOMKilled")
    assert not pod("Error")
