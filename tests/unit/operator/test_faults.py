"""What the end of a generation is called, what it costs, and when the run gives up."""

from typing import Any

import pytest
from skywork_operator.api.status import Restarts
from skywork_operator.policies.failures import MOST_REASONS, Cost, Ended, backoff_seconds, classify, count, gives_up
from skywork_operator.policies.membership import Generation
from skywork_operator.world import Pod
from skywork_trainer.config import HANG, AgentPhase, AgentStatus, Failure

from tests.unit.operator.build import NOW, failed, plan, pod, run, world
from tests.unit.operator.test_decide import training


def ended(generation: int = 1, *, lost: tuple[Pod, ...] = (), told: tuple[tuple[Pod, Failure], ...] = ()) -> Ended:
    return classify(Generation(number=generation, nodes=3, intact=False, finished=False, failures=told, lost=lost))


def failure(reason: str, message: str = "said so", **changes: Any) -> Failure:
    return Failure(time=NOW, rank=1, reason=reason, message=message, **changes)


@pytest.mark.parametrize(
    ("lost", "reason", "cost"),
    [
        pytest.param({"terminating": True}, "PodLost", Cost.FREE, id="somebody deleted the pod"),
        pytest.param({"disruption": "PreemptionByScheduler"}, "Preempted", Cost.FREE, id="a more important pod came"),
        pytest.param({"disruption": "EvictionByEvictionAPI"}, "Evicted", Cost.FREE, id="its node is drained"),
        pytest.param({"disruption": "TerminationByKubelet"}, "KubeletEvicted", Cost.FREE, id="its node runs short"),
        pytest.param({"disruption": "DeletionByTaintManager"}, "NodeTainted", Cost.FREE, id="its node is tainted"),
        pytest.param({"lost": ("NodeLost", "node a is off")}, "NodeLost", Cost.FREE, id="its node is dead"),
        pytest.param({"out_of_memory": True}, "HostOutOfMemory", Cost.COUNTED, id="it used too much memory"),
    ],
)
def test_what_the_platform_does_is_free_and_what_the_run_does_is_counted(
    lost: dict[str, Any], reason: str, cost: Cost
) -> None:
    found = ended(lost=(pod(1, generation=1, **lost),))
    assert (found.reason, found.cost) == (reason, cost)


def test_a_pod_that_says_why_it_went_explains_its_peers_that_were_only_deleted() -> None:
    preempted = pod(2, generation=1, terminating=True, disruption="PreemptionByScheduler")
    assert ended(lost=(pod(1, generation=1, terminating=True), preempted)).reason == "Preempted"


@pytest.mark.parametrize(
    ("reason", "cost"),
    [
        ("AppError", Cost.COUNTED),
        ("Killed", Cost.COUNTED),
        ("Crashed", Cost.COUNTED),
        (HANG, Cost.COUNTED),
        ("PeerLost", Cost.COUNTED),
        ("HostOutOfMemory", Cost.COUNTED),
        ("OutOfMemory", Cost.FREE),
        ("LossSpike", Cost.FREE),
        ("StorageUnreachable", Cost.WAITS),
        ("ThroughputTooLow", Cost.WAITS),
    ],
)
def test_each_kind_of_failure_has_its_price(reason: str, cost: Cost) -> None:
    assert ended(told=((pod(1, generation=1), failure(reason)),)).cost is cost


@pytest.mark.parametrize(
    "text",
    [
        "RuntimeError: CUDA error: uncorrectable ECC error encountered",
        "NVRM: Xid (PCI:0000:3b:00): 79, GPU has fallen off the bus",
        "DistBackendError: NCCL error: unhandled system error (run with NCCL_DEBUG=INFO)",
        "OSError: [Errno 5] Input/output error: '/cache/main-00001.bin'",
    ],
)
def test_a_hardware_fault_is_told_by_its_words_and_blamed_on_its_node(text: str) -> None:
    found = ended(told=((pod(1, generation=1, node="gpu-7"), failure("AppError", text)),))
    assert (found.reason, found.cost, found.blamed) == ("HardwareFault", Cost.COUNTED, ("gpu-7",))


@pytest.mark.parametrize("text", ["ValueError: bad shape", "KeyError: 'Xide'", "RuntimeError: CUDA out of memory"])
def test_an_ordinary_error_is_no_hardware_fault(text: str) -> None:
    found = ended(told=((pod(1, generation=1, node="gpu-7"), failure("AppError", text)),))
    assert (found.reason, found.blamed) == ("AppError", ())


def test_a_hang_names_first_who_does_not_wait_for_others_and_blames_its_node_alone() -> None:
    waits = failure(HANG, "rank 0 waits in all_reduce", waits=True).model_copy(update={"rank": 0, "time": NOW - 1})
    stands = failure(HANG, "rank 1 stands in sleep")
    found = ended(told=((pod(0, generation=1, node="a"), waits), (pod(1, generation=1, node="b"), stands)))
    assert found.message == "rank 1 stands in sleep; rank 0 waits in all_reduce"
    assert found.blamed == ("b",)
    all_wait = ended(told=((pod(0, generation=1, node="a"), waits), (pod(1, generation=1, node="b"), waits)))
    assert all_wait.blamed == ()


def counted(restarts: Restarts, end: Ended, *, now: float = NOW, checkpoint: int = 0, step: int = 0) -> Restarts:
    return count(restarts, end, checkpoint_step=checkpoint, step=step, now=now, window_seconds=3600)


KILLED = Ended(reason="Killed", message="worker rank 1 was killed by SIGKILL", cost=Cost.COUNTED)


def test_failures_older_than_the_window_count_no_more() -> None:
    restarts = Restarts()
    for hour in range(20):
        restarts = counted(restarts, KILLED, now=NOW + 3601 * hour)
    assert (restarts.total, restarts.without_progress) == (20, 1)
    assert gives_up(restarts, budget=1) is None


def test_the_budget_is_used_up_by_failures_within_the_window() -> None:
    restarts = Restarts()
    for _ in range(3):
        assert gives_up(restarts, budget=2) is None
        restarts = counted(restarts, KILLED)
    assert "3 generations in a row failed without a new checkpoint" in str(gives_up(restarts, budget=2))


@pytest.mark.parametrize("reason", ["PodLost", "Preempted", "NodeLost", "StorageUnreachable"])
def test_a_thousand_losses_that_are_not_the_run_s_fault_never_end_it(reason: str) -> None:
    restarts = Restarts()
    cost = Cost.WAITS if reason == "StorageUnreachable" else Cost.FREE
    for _ in range(1000):
        restarts = counted(restarts, Ended(reason=reason, message="again", cost=cost))
    assert (restarts.total, restarts.without_progress) == (1000, 0)
    assert gives_up(restarts, budget=0) is None


def test_storage_that_cannot_be_reached_is_asked_less_and_less_often() -> None:
    restarts, pauses = Restarts(), []
    for _ in range(9):
        restarts = counted(restarts, Ended(reason="StorageUnreachable", message="no answer", cost=Cost.WAITS))
        pauses.append(backoff_seconds(restarts, first_seconds=1, most_seconds=60))
    assert pauses == [0, 1, 2, 4, 8, 16, 32, 60, 60]
    assert backoff_seconds(counted(restarts, KILLED), first_seconds=1, most_seconds=60) == 0


def error(step: int | None = 7, text: str = "ValueError: token 5 of rank 1") -> Ended:
    return Ended(reason="AppError", message=text, cost=Cost.COUNTED, step=step)


def test_the_same_error_at_the_same_step_twice_ends_the_run_with_the_error_s_own_words() -> None:
    once = counted(Restarts(), error(text="ValueError: token 5 of rank 1 at 0x7f3a"))
    assert gives_up(once, budget=5) is None
    twice = counted(once, error(text="ValueError: token 9 of rank 2 at 0x55aa"))
    why = gives_up(twice, budget=5)
    assert why is not None and "step 7 failed 2 times in the same way: ValueError: token 9" in why


@pytest.mark.parametrize(
    "second",
    [
        pytest.param(error(step=8), id="at another step"),
        pytest.param(error(text="KeyError: 'x'"), id="another error"),
        pytest.param(error(step=None), id="before its first step, where only the surroundings matter"),
        pytest.param(KILLED, id="somebody killed it"),
    ],
)
def test_what_is_not_the_same_is_tried_again(second: Ended) -> None:
    assert gives_up(counted(counted(Restarts(), error()), second), budget=5) is None


def test_a_crash_at_the_same_step_after_a_restore_tries_the_checkpoint_before_and_then_gives_up() -> None:
    crash = Ended(reason="Crashed", message="worker rank 1 was killed by SIGSEGV", cost=Cost.COUNTED, step=45)
    first = counted(Restarts(checkpoint_step=40), crash, checkpoint=40)
    assert (first.before_step, gives_up(first, budget=5)) == (None, None)
    second = counted(first, crash, checkpoint=40)
    assert (second.before_step, gives_up(second, budget=5)) == (40, None)
    third = counted(second, crash, checkpoint=40)
    assert "step 45 failed 3 times" in str(gives_up(third, budget=5))
    survived = counted(second, KILLED, checkpoint=60)
    assert (survived.before_step, survived.without_progress) == (None, 1)


def test_the_next_world_is_told_to_restore_an_older_checkpoint() -> None:
    status = training()
    held = status.restarts.model_copy(update={"before_step": 40})
    status = status.model_copy(update={"restarts": held})
    decided = plan(world(pod(0, generation=1), failed(1, 1), pod(2, generation=1), status=status))
    assert {word.before_step for _, word in decided.memberships} == {40}


def test_a_deterministic_error_fails_the_run_at_the_second_time_and_frees_its_nodes() -> None:
    status, decided = training(), None
    for generation in (1, 2):
        said = Failure(time=NOW, rank=1, reason="AppError", message="ValueError: bad token", step=12)
        agent = AgentStatus(phase=AgentPhase.FAILED, generation=generation, rank=1, failure=said)
        broken = pod(1, generation=generation, agent=agent)
        decided = plan(world(pod(0, generation=generation), broken, pod(2, generation=generation), status=status))
        status = decided.status
    assert decided is not None
    said_last = next(c for c in status.conditions if c.type == "Failed")
    assert (said_last.status, said_last.reason) == ("True", "AppError")
    assert "ValueError: bad token" in said_last.message
    assert decided.suspend == ("demo-general",)


def test_the_status_tells_what_failed_last_and_how_often_each_kind_did() -> None:
    decided = plan(world(pod(0, generation=1), failed(1, 1), pod(2, generation=1), status=training()))
    last = decided.status.restarts.last
    assert last is not None and (last.reason, last.repeats) == ("Killed", 1)
    assert "SIGKILL" in last.message
    assert run(decided.status).status.restarts.total == 1


def test_failures_before_the_first_step_are_never_taken_for_the_same_step_failing() -> None:
    restarts = Restarts()
    for _ in range(4):
        restarts = counted(restarts, error(step=None, text="RuntimeError: could not connect"), step=30)
        assert gives_up(restarts, budget=5) is None


def test_reasons_without_end_are_counted_together() -> None:
    restarts = Restarts()
    for number in range(MOST_REASONS + 20):
        restarts = counted(restarts, Ended(reason=f"Novel{number}", message="", cost=Cost.FREE))
    tally = {entry.reason: entry.count for entry in restarts.by_reason}
    assert (len(tally), tally["Other"], tally["Novel0"]) == (MOST_REASONS + 1, 20, 1)
