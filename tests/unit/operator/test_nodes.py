"""Dead nodes: whose pods are gone, when their Job is told so, which nodes are avoided, and how ranks lie on them."""

from dataclasses import replace
from typing import Any

import pytest
from skywork_operator.api.faults import AvoidNodes
from skywork_operator.api.status import NodeStrikes
from skywork_operator.cluster import without_nodes
from skywork_operator.policies.membership import in_topology_order
from skywork_operator.policies.nodes import OVERDUE_SECONDS, SILENT_SECONDS, judged, to_forget, to_untrack
from skywork_operator.policies.strikes import avoided, forgiven, struck
from skywork_operator.world import Node, Plan, Pod, World
from skywork_trainer.config import NODE_CHECK_FAILED, PEER_LOST

from tests.unit.operator.build import NOW, ago, condition, failed, plan, pod, run, status_after, world
from tests.unit.operator.test_decide import training

NODES = {name: Node(name=name) for name in ("a", "b", "c", "d")}


def silent(index: int, node: str, **changes: Any) -> Pod:
    return pod(index, generation=1, node=node, agent=None, **changes)


def without(node: str, *, for_seconds: float = 10, **changes: Any) -> dict[str, Node]:
    return NODES | {node: Node(name=node, ready=False, unready_since=NOW - for_seconds, **changes)}


@pytest.mark.parametrize(
    ("seen", "nodes", "reason"),
    [
        pytest.param(silent(1, "b"), NODES, None, id="an agent that does not answer for a moment"),
        pytest.param(silent(1, "b"), without("b"), "NodeLost", id="a node that is not ready"),
        pytest.param(
            pod(1, generation=1, node="b"), without("b"), None, id="a dead kubelet under an agent that trains on"
        ),
        pytest.param(silent(1, "b"), {k: v for k, v in NODES.items() if k != "b"}, "NodeLost", id="a node deleted"),
        pytest.param(
            silent(1, "b"), NODES | {"b": Node(name="b", out_of_service=True)}, "NodeLost", id="a node out of service"
        ),
        pytest.param(
            silent(1, "b", terminating=True, ends_by=NOW - OVERDUE_SECONDS - 1), None, "NodeSilent",
            id="a pod that never ends, where nodes may not be read",
        ),
        pytest.param(silent(1, "b", terminating=True, ends_by=NOW - 1), None, None, id="a pod that is about to end"),
        pytest.param(
            silent(1, "b", unready_since=NOW - SILENT_SECONDS - 1), NODES, "AgentUnreachable", id="a network cut"
        ),
        pytest.param(replace(silent(1, "b"), phase="Failed"), without("b"), None, id="a pod that has ended anyway"),
        pytest.param(replace(silent(1, ""), phase="Pending"), NODES, None, id="a pod without a node"),
    ],
)  # fmt: skip
def test_a_pod_is_lost_only_when_its_agent_is_silent_and_its_node_explains_it(
    seen: Pod, nodes: dict[str, Node] | None, reason: str | None
) -> None:
    (found,) = judged((seen,), nodes, NOW)
    assert (found.lost[0] if found.lost else None) == reason


@pytest.mark.parametrize(
    ("nodes", "declared"),
    [
        pytest.param(without("b", for_seconds=1), False, id="it may come back"),
        pytest.param(without("b", for_seconds=3), True, id="it has had its time"),
        pytest.param(without("b", for_seconds=0, out_of_service=True), True, id="it is certain to be off"),
        pytest.param({}, True, id="it is gone"),
    ],
)
def test_a_lost_pod_is_given_up_after_a_bound(nodes: dict[str, Node], declared: bool) -> None:
    pods = judged((silent(1, "b"),), nodes, NOW)
    assert bool(to_forget(pods, nodes, NOW, after_seconds=3)) is declared


def test_a_pod_whose_agent_alone_is_silent_is_never_given_up() -> None:
    pods = judged((silent(1, "b", unready_since=NOW - 1000),), NODES, NOW)
    assert pods[0].lost is not None
    assert to_forget(pods, NODES, NOW, after_seconds=3) == ()


@pytest.mark.parametrize(
    ("seen", "reason"),
    [
        pytest.param({"ready_since": NOW - SILENT_SECONDS - 1}, "AgentUnreachable", id="ready, and cut off from us"),
        pytest.param({"unready_since": NOW - SILENT_SECONDS - 1}, "AgentUnreachable", id="cut off from everybody"),
        pytest.param({"ready_since": NOW - 1}, "WaitingForPods", id="just become ready"),
    ],
)
def test_a_first_world_that_waits_for_agents_that_do_not_answer_says_so_once(seen: dict[str, Any], reason: str) -> None:
    cut_off = pod(0, node="a", agent=None, **seen)
    waiting = world(cut_off, pod(1, node="b"), trainer={"nodes": {"min": 2, "max": 2}})
    first = plan(waiting)
    assert condition(first.status, "Running") == ("False", reason)
    later = plan(replace(waiting, run=replace(waiting.run, status=first.status)), NOW + 0.5)
    assert later.status == first.status
    assert later.events == ()


def three(nodes: dict[str, Node], **changes: Any) -> World:
    members = (pod(0, generation=1, node="a"), silent(1, "b"), pod(2, generation=1, node="c"))
    return replace(world(*members, status=training(), **changes), nodes=nodes)


def test_a_dead_node_ends_its_world_at_once_and_its_pod_is_given_up_soon_after() -> None:
    early = plan(three(without("b", for_seconds=1)))
    assert condition(early.status, "Running") == ("False", "NodeLost")
    assert early.forget == ()
    assert early.requeue_after_seconds is not None and early.requeue_after_seconds <= 2
    assert early.status.restarts.without_progress == 0
    late = plan(replace(three(without("b", for_seconds=3)), run=run(early.status)))
    assert [p.index for p in late.forget] == [1]
    (event,) = late.events
    assert (event.reason, "node b is not ready" in event.message) == ("NodeLost", True)


@pytest.mark.parametrize(
    ("seen", "untracked"),
    [
        pytest.param(pod(1, tracked=True), False, id="it trains"),
        pytest.param(pod(1, tracked=True, terminating=True), True, id="somebody deleted it: its Job shall not mind"),
        pytest.param(pod(1, terminating=True), False, id="that was said already"),
        pytest.param(
            replace(pod(1, tracked=True, terminating=True), phase="Failed"), False, id="it ended: its Job counts it"
        ),
        pytest.param(replace(pod(1, tracked=True, terminating=True), phase="Succeeded"), False, id="it succeeded"),
    ],
)
def test_the_end_of_a_deleted_pod_is_no_failure_that_would_delay_its_replacement(seen: Pod, untracked: bool) -> None:
    assert bool(to_untrack((seen,))) is untracked


def test_the_nodes_that_are_left_train_on_once_shrinking_is_allowed() -> None:
    nodes = {"min": 2, "max": 3, "shrinkAfter": "0s"}
    decided = plan(three(without("b"), trainer={"nodes": nodes}))
    assert [(p.index, w.rank, w.nodes) for p, w in decided.memberships] == [(0, 0, 2), (2, 1, 2)]


@pytest.mark.parametrize(
    ("nodes", "pod_since", "failed"),
    [
        pytest.param(without("b", for_seconds=7), None, 7, id="as its node went"),
        pytest.param(without("b", for_seconds=7), NOW - 4, 7, id="whichever came first: the node"),
        pytest.param(without("b", for_seconds=7), NOW - 9, 9, id="whichever came first: the pod"),
        pytest.param({name: node for name, node in NODES.items() if name != "b"}, None, 0, id="nobody knows when"),
    ],
)
def test_a_recovery_from_a_dead_node_is_counted_from_when_it_died(
    nodes: dict[str, Node], pod_since: float | None, failed: float
) -> None:
    seen = three(nodes)
    pods = tuple(replace(p, unready_since=pod_since) if p.node == "b" else p for p in seen.pods)
    recovery = plan(replace(seen, pods=pods)).status.recovery
    assert recovery is not None
    assert float(recovery.detected or -1) == failed


def test_a_spare_takes_the_place_of_a_lost_node_at_once() -> None:
    spare = pod(3, node="d")
    seen = three(without("b"), trainer={"nodes": {"min": 3, "max": 3, "spares": 1}})
    decided = plan(replace(seen, pods=(*seen.pods, spare)))
    assert [(p.index, w.rank) for p, w in decided.memberships] == [(0, 0), (2, 1), (3, 2)]
    assert decided.status.nodes.training == 3


def test_spares_stand_by_and_are_asked_for_by_the_job() -> None:
    started = plan(World(run=run(trainer={"nodes": {"min": 3, "max": 3, "spares": 2}})))
    job = started.objects[1]
    assert (job["spec"]["completions"], job["spec"]["parallelism"]) == (5, 5)
    formed = plan(world(*[pod(i) for i in range(5)], trainer={"nodes": {"min": 3, "max": 3, "spares": 2}}))
    assert [p.index for p, _ in formed.memberships] == [0, 1, 2]


POLICY = AvoidNodes(strikes=3, max=2, forgive_after="1h")


def blame(
    strikes: list[NodeStrikes], *names: str, reason: str = "NodeLost", nodes: int = 4, now: float = NOW
) -> list[NodeStrikes]:
    return struck(strikes, names, reason=reason, policy=POLICY, nodes=nodes, now=now)


def test_a_node_is_avoided_after_its_strikes_and_forgiven_after_a_time() -> None:
    strikes: list[NodeStrikes] = []
    for _ in range(2):
        strikes = blame(strikes, "a")
    assert avoided(strikes) == ()
    strikes = blame(strikes, "a")
    assert avoided(strikes) == ("a",)
    assert forgiven(strikes, policy=POLICY, nodes=4, now=NOW + 3599) == strikes
    assert forgiven(strikes, policy=POLICY, nodes=4, now=NOW + 3600) == []


def test_a_hardware_fault_needs_no_second_time() -> None:
    assert avoided(blame([], "a", reason="HardwareFault")) == ("a",)


@pytest.mark.parametrize(
    ("policy", "first", "behind_a_failure"),
    [("Never", False, False), ("AfterFailure", False, True), ("Always", True, True)],
)
def test_nodes_are_checked_when_the_policy_says(policy: str, first: bool, behind_a_failure: bool) -> None:
    changes: dict[str, Any] = {"failurePolicy": {"nodeCheck": policy}}
    formed = plan(world(*[pod(i) for i in range(3)], **changes))
    assert {word.check for _, word in formed.memberships} == {first}
    after = plan(world(pod(0, generation=1), failed(1, 1), pod(2, generation=1), status=training(), **changes))
    assert {word.check for _, word in after.memberships} == {behind_a_failure}


def test_a_node_that_the_check_finds_broken_is_blamed_alone_left_at_once_and_named() -> None:
    found = failed(1, 1, reason=NODE_CHECK_FAILED)
    echoes = [failed(rank, 1, reason=PEER_LOST, time=NOW - 5) for rank in (0, 2)]
    members = [replace(p, node=name) for p, name in zip((echoes[0], found, echoes[1]), "abc", strict=True)]
    decided = plan(world(*members, status=training(), trainer={"nodes": {"min": 2, "max": 3, "shrinkAfter": "0s"}}))
    assert [(s.node, s.avoided) for s in decided.status.node_strikes] == [("b", True)]
    assert [p.index for p in decided.delete_pods] == [1]
    assert [(p.index, word.nodes) for p, word in decided.memberships] == [(0, 2), (2, 2)]
    assert any(event.reason == "NodeAvoided" and "node b" in event.message for event in decided.events)


def test_no_more_nodes_are_avoided_than_the_policy_says_and_the_longest_avoided_comes_back() -> None:
    strikes: list[NodeStrikes] = []
    for number, name in enumerate("abc"):
        strikes = blame(strikes, name, reason="HardwareFault", now=NOW + number)
    assert avoided(strikes) == ("b", "c")


@pytest.mark.parametrize(
    ("nodes", "reasons", "left_out"),
    [
        pytest.param(3, {"a": "Killed", "b": "Hang", "c": "NodeLost"}, ("c",), id="half of three is one, the newest"),
        pytest.param(4, {"a": "Killed", "b": "Hang", "c": "NodeLost"}, ("b", "c"), id="half of four are two"),
        pytest.param(1, {"a": "Killed"}, ("a",), id="a run of one node moves"),
        pytest.param(2, {"a": "HardwareFault", "b": "HardwareFault"}, ("a", "b"), id="broken nodes are no chance"),
        pytest.param(2, {"a": "HardwareFault", "b": "Killed", "c": "Hang"}, ("a", "c"), id="broken, and by chance"),
    ],
)
def test_what_strikes_all_nodes_is_none_s_fault_and_takes_no_more_than_half_of_them(
    nodes: int, reasons: dict[str, str], left_out: tuple[str, ...]
) -> None:
    policy = AvoidNodes(strikes=2, max=8)
    strikes: list[NodeStrikes] = []
    for turn in range(2):
        for number, (name, reason) in enumerate(reasons.items()):
            at = NOW + 10 * turn + number
            strikes = struck(strikes, [name], reason=reason, policy=policy, nodes=nodes, now=at)
    assert avoided(strikes) == left_out


def test_strikes_of_zero_avoid_nothing() -> None:
    policy = AvoidNodes(strikes=0)
    assert avoided(struck([], ["a"], reason="HardwareFault", policy=policy, nodes=4, now=NOW)) == ()


def struck_out(*names: str) -> list[NodeStrikes]:
    return [NodeStrikes(node=n, strikes=3, reason="HardwareFault", time=ago(5), avoided=True) for n in names]


def test_pods_are_let_onto_nodes_one_by_one_and_told_which_to_stay_away_from() -> None:
    status = training().model_copy(update={"node_strikes": struck_out("b")})
    gated = replace(pod(1), phase="Pending", agent=None, ip="", gated=True)
    decided = plan(world(pod(0), gated, pod(2), status=status))
    assert [(p.index, nodes) for p, nodes in decided.admit] == [(1, ("b",))]


def test_a_pod_on_an_avoided_node_moves_when_the_next_world_forms_and_not_before() -> None:
    status = training().model_copy(update={"node_strikes": struck_out("b")})
    members = [pod(i, generation=1, node=node) for i, node in enumerate("abc")]
    assert plan(world(*members, status=status)).delete_pods == ()
    broken = replace(members[2], phase="Failed", agent=None)
    decided = plan(world(*members[:2], broken, status=status))
    assert [p.index for p in decided.delete_pods] == [1]
    assert decided.memberships == ()


def test_a_run_that_cannot_do_without_its_avoided_nodes_forgives_them() -> None:
    first = status_after(world(pod(0, node="a")))
    status = first.model_copy(update={"node_strikes": struck_out("b")})
    stuck = replace(pod(1), phase="Pending", agent=None, blocked=("Unschedulable", "0/2 nodes are available"))
    seen = world(pod(0, node="a"), stuck, status=status)
    assert plan(seen, NOW + 60).delete_pods == ()
    late = plan(seen, NOW + 121)
    assert [p.index for p in late.delete_pods] == [1]
    assert late.status.node_strikes == []
    assert [event.reason for event in late.events] == ["NodesForgiven"]


def test_staying_away_from_nodes_only_ever_narrows_a_pod_s_own_affinity() -> None:
    own = {"matchExpressions": [{"key": "gpu", "operator": "In", "values": ["h100"]}]}
    required = "requiredDuringSchedulingIgnoredDuringExecution"
    given = {"nodeAffinity": {required: {"nodeSelectorTerms": [own]}}, "podAffinity": {"x": 1}}
    narrowed = without_nodes(given, ["a", "b"])
    (term,) = narrowed["nodeAffinity"][required]["nodeSelectorTerms"]
    assert term["matchExpressions"] == own["matchExpressions"]
    assert [(f["operator"], f["values"]) for f in term["matchFields"]] == [("NotIn", ["a"]), ("NotIn", ["b"])]
    assert narrowed["podAffinity"] == {"x": 1}
    assert without_nodes({}, ["a"])["nodeAffinity"][required]["nodeSelectorTerms"] == [
        {"matchFields": [{"key": "metadata.name", "operator": "NotIn", "values": ["a"]}]}
    ]


def test_ranks_lie_so_that_nodes_of_one_rack_are_neighbours() -> None:
    zones = {"a": "z1", "b": "z2", "c": "z1", "d": "z2"}
    racks = {"a": "r2", "b": "r1", "c": "r1", "d": "r1"}
    nodes = {n: Node(name=n, labels={"zone": zones[n], "rack": racks[n]}) for n in zones}
    pods = [pod(i, node=name) for i, name in enumerate("abcd")]
    assert [p.node for p in in_topology_order(pods, nodes, ["zone", "rack"])] == ["c", "a", "b", "d"]
    assert [p.node for p in in_topology_order(pods, None, ["zone", "rack"])] == ["a", "b", "c", "d"]
    assert isinstance(plan(replace(world(*pods), nodes=nodes)), Plan)
