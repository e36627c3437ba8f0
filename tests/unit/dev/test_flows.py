"""The API server's own count of one user's requests."""

from dev.cluster.flows import Counted, counted, flow_schemas

METRICS = """# TYPE apiserver_flowcontrol_dispatched_requests_total counter
apiserver_flowcontrol_dispatched_requests_total{flow_schema="me-leases",priority_level="exempt"} 100
apiserver_flowcontrol_dispatched_requests_total{flow_schema="me-reads",priority_level="exempt"} 40
apiserver_flowcontrol_dispatched_requests_total{flow_schema="me-writes",priority_level="exempt"} 7
apiserver_flowcontrol_dispatched_requests_total{flow_schema="you-writes",priority_level="exempt"} 9
"""


def test_reads_and_writes_are_counted_apart_and_leases_and_others_requests_not_at_all() -> None:
    assert counted("me", METRICS) == Counted(reads=40, writes=7)
    assert counted("nobody", METRICS) == Counted(reads=0, writes=0)


def test_leases_come_before_writes_and_writes_before_the_rest() -> None:
    flows = flow_schemas("me", {"kind": "User", "user": {"name": "me"}})
    order = sorted(flows, key=lambda flow: flow["spec"]["matchingPrecedence"])
    assert [flow["metadata"]["name"] for flow in order] == ["me-leases", "me-writes", "me-reads"]
