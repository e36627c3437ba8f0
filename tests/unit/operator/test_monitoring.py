"""Losses, estimates, diagnoses and validations on demand: what rank 0 says, as the run's status, conditions, events."""

import json
from dataclasses import replace
from typing import Any

import pytest
from skywork_operator.api.quantities import short_quantity
from skywork_operator.api.status import RequestedValidation, SkyworkRunStatus
from skywork_operator.parsing import parse_run
from skywork_operator.policies import diagnosis, losses, pace
from skywork_operator.policies.conditions import find
from skywork_operator.times import timestamp
from skywork_operator.world import Job, Plan, Pod, World
from skywork_trainer.config import AgentPhase, AgentStatus, Membership

from tests.unit.operator.build import NOW, SPEC, ago, condition, failed, plan, pod, progress, run, world
from tests.unit.operator.test_decide import training

DOMAINS = {"domains": [{"name": name, "uri": f"s3://data/{name}"} for name in ("zh", "en")]}


def domain(name: str, loss: float, step: int = 9, **counts: int) -> dict[str, Any]:
    return {"domain": name, "loss": loss, "tokens": 1000, "step": step, **counts}


def members(*, generation: int = 1, step: int = 9, **said: Any) -> list[Pod]:
    first = pod(0, generation=generation, agent=progress(step, generation, **said))
    return [first, pod(1, generation=generation), pod(2, generation=generation)]


def seen(
    *, status: SkyworkRunStatus | None = None, now: float = NOW, spec: dict[str, Any] | None = None, **said: Any
) -> Plan:
    """A pass over a run that trains, and whose rank 0 says this."""
    return plan(world(*members(**said), status=status or training(), **(spec or {})), now)


def told(decided: Plan) -> list[str]:
    return [event.reason for event in decided.events]


# -- losses ----------------------------------------------------------------------------------------------------------


def test_each_domain_has_its_loss_its_bits_per_byte_and_its_loss_by_the_reference_tokenizer() -> None:
    full = domain("zh", 2.0, bytes=4000, reference_tokens=800)
    status = seen(validation=(full, domain("en", 3.0))).status
    zh, en = status.validation_loss
    assert (zh.loss, zh.bits_per_byte, zh.reference_loss) == ("2.0000", "0.7213", "2.5000")
    assert (en.loss, en.bits_per_byte, en.reference_loss) == ("3.0000", None, None)
    assert (status.val_loss, status.average_perplexity) == ("2.5000", "12.18")


@pytest.mark.parametrize(
    ("given", "mean", "perplexity"),
    [
        pytest.param([], None, None, id="no domain"),
        pytest.param([2.0], "2.0000", "7.389", id="one"),
        pytest.param([1.0, 3.0], "2.0000", "7.389", id="exp of the mean, not the mean of exps"),
        pytest.param([2.0, float("nan")], None, None, id="no number"),
        pytest.param([float("inf")], None, None, id="without bound"),
        pytest.param([5000.0], "5000.0000", None, id="more than any perplexity can say"),
    ],
)
def test_domains_count_alike_in_the_average(given: list[float], mean: str | None, perplexity: str | None) -> None:
    assert losses.average(given) == (mean, perplexity)


def test_a_stage_s_end_is_told_of_with_how_it_moved_each_domain() -> None:
    status = seen(
        validation=(domain("zh", 2.5), domain("en", 3.0)), stage_start_validation=(domain("zh", 4.0, step=0),)
    ).status
    done = replace(run(status), status=status)
    decided = plan(World(run=done, jobs={"general": Job(stage="general", uid="j", complete=True)}))
    (message,) = [event.message for event in decided.events if event.reason == "StageCompleted"]
    assert (
        message
        == "stage general is trained: 9 steps, 9216 tokens; validation losses: en 3.0000, zh 2.5000 (was 4.0000)"
    )


# -- numbers for people ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0"), (999, "999"), (1000, "1k"), (61440, "61.4k"), (999_949, "1M"), (1_250_000_000_000, "1.25T"),
     (3_200_000_000_000, "3.2T"), (5 * 10**15, "5P"), (5 * 10**18, "5e+03P")],
)  # fmt: skip
def test_tokens_are_written_so_that_they_can_be_read(number: int, text: str) -> None:
    assert short_quantity(number) == text


def test_the_columns_of_kubectl_have_their_words() -> None:
    status = seen(step=50, validation=(domain("zh", 2.5),), mfu=0.4123).status
    assert (status.tokens, status.tokens_summary, status.target_tokens) == (51200, "51.2k", 153600)
    assert (status.progress, status.val_loss, status.nodes.summary) == ("33%", "2.5000", "3/3")
    assert status.model_flops_utilization == "0.412"
    short = plan(world(*members()[:2], status=status, trainer={"nodes": {"min": 2, "max": 3}})).status
    assert short.nodes.summary == "0/3"


@pytest.mark.parametrize(
    ("left", "text"),
    [(0, "<1m"), (59, "<1m"), (60, "1m"), (719, "11m"), (3600, "1h0m"), (18720, "5h12m"), (273_600, "3d4h"),
     (-5, "<1m"), (400 * 86400, "400d0h")],
)  # fmt: skip
def test_a_duration_is_said_by_its_two_largest_units(left: float, text: str) -> None:
    assert pace.for_people(left) == text


# -- when training ends ----------------------------------------------------------------------------------------------


def test_the_estimate_is_that_of_the_generation_s_own_pace_with_its_stops() -> None:
    """150 steps in all, 41 done, 40 of them in 400 s behind the first: 109 steps of 10 s are left."""
    status = seen(step=41, time=NOW, first_step_time=NOW - 400, tokens_per_second=1e6).status
    assert (status.eta, status.estimated_completion) == ("18m", timestamp(NOW + 1090))


def test_a_generation_that_has_just_begun_is_estimated_by_its_newest_step() -> None:
    status = seen(step=1, tokens_per_second=1024.0, first_step_time=NOW).status
    assert status.estimated_completion == timestamp(NOW + 149)


def test_the_estimate_stays_while_it_has_not_clearly_changed() -> None:
    first = seen(step=41, time=NOW, first_step_time=NOW - 400).status
    near = seen(status=first, now=NOW + 10, step=42, time=NOW + 10, first_step_time=NOW - 395).status
    assert near.estimated_completion == first.estimated_completion
    assert near.eta == "18m"
    slower = seen(status=first, now=NOW + 400, step=43, time=NOW + 400, first_step_time=NOW - 400).status
    assert slower.estimated_completion != first.estimated_completion


def test_nothing_is_written_while_the_step_stands_still() -> None:
    first = seen(step=41, first_step_time=NOW - 400).status
    for later in (5, 60, 600):
        assert seen(status=first, now=NOW + later, step=41, first_step_time=NOW - 400).status == first


def test_a_run_that_does_not_train_has_no_estimate() -> None:
    first = seen(step=41, first_step_time=NOW - 400).status
    assert first.eta is not None
    assert plan(World(run=run(first, suspend=True))).status.eta is None
    held = replace(world(status=first), jobs={"general": Job(stage="general", uid="j", suspended=True)})
    assert plan(held).status.estimated_completion is None
    done = {name: Job(stage=name, uid=name, complete=True) for name in ("general", "stem")}
    assert plan(World(run=run(first), jobs=done)).status.eta is None


# -- diagnoses -------------------------------------------------------------------------------------------------------


def found(type: str, *, found: bool = True, reason: str = "OneRises", message: str = "en rises") -> dict[str, Any]:
    return {"type": type, "found": found, "reason": reason, "message": message}


def test_a_diagnosis_is_a_condition_told_of_once_when_it_becomes_true() -> None:
    first = seen(diagnoses=(found("DomainsDiverging"),))
    assert condition(first.status, "DomainsDiverging") == ("True", "OneRises")
    assert [(e.kind, e.reason, e.message) for e in first.events if e.kind == "Warning"] == [
        ("Warning", "DomainsDiverging", "en rises")
    ]
    again = seen(status=first.status, now=NOW + 60, diagnoses=(found("DomainsDiverging", message="en rises more"),))
    assert again.events == ()
    said = find(again.status.conditions, "DomainsDiverging")
    before = find(first.status.conditions, "DomainsDiverging")
    assert said is not None and before is not None
    assert (said.message, said.last_transition_time) == ("en rises more", before.last_transition_time)


def test_a_diagnosis_is_kept_while_nothing_is_said_and_taken_back_by_the_newest_generation_only() -> None:
    first = seen(diagnoses=(found("Plateau"),)).status
    silent = seen(status=first, now=NOW + 5, step=10).status
    assert condition(silent, "Plateau") == ("True", "OneRises")
    old = first.model_copy(update={"generation": 2})
    assert condition(seen(status=old, diagnoses=(found("Plateau", found=False),)).status, "Plateau")[0] == "True"
    over = seen(status=silent, now=NOW + 90, diagnoses=(found("Plateau", found=False, reason="Falling"),))
    assert condition(over.status, "Plateau") == ("False", "Falling")
    assert over.events == ()
    back = seen(status=over.status, now=NOW + 180, diagnoses=(found("Plateau"),))
    assert told(back) == ["Plateau"]
    said = find(back.status.conditions, "Plateau")
    assert said is not None and said.last_transition_time == timestamp(NOW + 180)


@pytest.mark.parametrize("type", ["Failed", "Accepted", "Running", "Succeeded", "Suspended", "CheckpointStale"])
def test_a_trainer_cannot_say_what_is_the_operator_s_to_say(type: str) -> None:
    decided = seen(diagnoses=(found(type),))
    assert condition(decided.status, "Running") == ("True", "Training")
    said = find(decided.status.conditions, type)
    assert said is None or said.reason != "OneRises"


@pytest.mark.parametrize("type", ["", "lower", "Has Space", "A" * 64, "Ä", "Emoji🙂", "A\n"])
def test_what_is_no_type_of_a_condition_is_passed_over(type: str) -> None:
    assert diagnosis.accepted(progress(1, diagnoses=(found(type),)).progress.diagnoses, []) == []  # type: ignore[union-attr]


def test_kinds_of_a_newer_trainer_are_taken_over_but_not_without_bound() -> None:
    status = training()
    for number in range(60):
        status = seen(status=status, step=number, diagnoses=(found(f"Unheard{number}"), found("Plateau"))).status
    unheard = [c for c in status.conditions if c.type.startswith("Unheard")]
    assert len(unheard) == diagnosis.MOST_UNKNOWN
    assert condition(status, "Plateau")[0] == "True"
    ended = seen(status=status, step=99, diagnoses=(found("Unheard3", found=False),)).status
    assert condition(ended, "Unheard3")[0] == "False"


def test_words_without_bound_or_case_become_words_with() -> None:
    decided = seen(diagnoses=(found("Plateau", reason="no camel case", message="x" * 5000),))
    said = find(decided.status.conditions, "Plateau")
    assert said is not None and (said.reason, len(said.message)) == ("Found", 1000)


def test_what_holds_of_training_only_ends_with_it() -> None:
    first = seen(diagnoses=(found("DataStarved"), found("Forgetting"))).status
    suspended = plan(world(*members(diagnoses=(found("DataStarved"),)), status=first, suspend=True))
    assert condition(suspended.status, "DataStarved") == ("False", "NotTraining")
    assert condition(suspended.status, "Forgetting")[0] == "True"
    again = plan(world(*members(diagnoses=(found("DataStarved"),)), status=suspended.status, suspend=True), NOW + 2)
    assert again.events == ()


# -- checkpoints that are too old ------------------------------------------------------------------------------------


def checkpointing(age: float, **checkpoints: Any) -> Plan:
    """A pass over a run whose newest checkpoint is so old, by default one that is to be taken every 10 minutes."""
    saved = {"checkpoint": "c", "checkpoint_step": 5, "checkpoint_uri": "s3://runs/demo/c"}
    given = {"checkpoints": {"uri": "s3://runs/demo"} | checkpoints}
    status = training().model_copy(update={"generation_start_time": ago(9000)})
    return seen(status=status, spec=given, checkpoint_time=NOW - age, first_step_time=NOW - 8000, step=7802, **saved)


@pytest.mark.parametrize(
    ("given", "age", "stale"),
    [
        pytest.param({}, 1209, None, id="the default, young"),
        pytest.param({}, 1211, "True", id="the default, old"),
        pytest.param({"every": "1m"}, 129, None, id="a minute, young"),
        pytest.param({"every": "1m"}, 131, "True", id="a minute, old"),
        pytest.param({"every": "Auto"}, 7100, None, id="the trainer's choice, an hour at most"),
        pytest.param({"every": "Auto"}, 7300, "True", id="older than it would choose"),
        pytest.param({"every": "3s"}, 15, None, id="as short as a save takes, which is heard of later"),
        # 7801 steps of 1024 tokens behind the first in 8000 s.
        pytest.param({"everySteps": 100}, 210, None, id="100 steps take 102.6 s"),
        pytest.param({"everySteps": 100}, 220, "True", id="they do not take so long"),
        pytest.param({"everyTokens": "50k"}, 109, None, id="50,000 tokens take 50.1 s"),
        pytest.param({"everyTokens": "50k"}, 112, "True", id="they do not take that long"),
    ],
)
def test_a_checkpoint_is_stale_ten_seconds_behind_twice_the_interval(
    given: dict[str, Any], age: float, stale: str | None
) -> None:
    decided = checkpointing(age, **given)
    said = find(decided.status.conditions, "CheckpointStale")
    assert (said.status if said else None) == stale
    assert ("CheckpointStale" in told(decided)) == (stale is not None)


def test_a_stale_checkpoint_is_told_of_once_and_taken_back_by_the_next() -> None:
    first = checkpointing(1500)
    said = find(first.status.conditions, "CheckpointStale")
    assert said is not None and said.message.startswith(
        "the newest checkpoint is 25m old, and one is due every 10m: a crash now costs all that was trained since"
    )
    still = plan(world(*members(step=10, first_step_time=NOW - 8000), status=first.status), NOW + 60)
    assert "CheckpointStale" not in told(still)
    fresh = members(step=11, first_step_time=NOW - 8000, checkpoint="d", checkpoint_step=11, checkpoint_time=NOW + 100)
    saved = plan(world(*fresh, status=still.status), NOW + 110)
    assert condition(saved.status, "CheckpointStale") == ("False", "Saved")


def test_a_run_that_has_just_gone_on_is_given_the_time_to_save() -> None:
    """Its checkpoint is a week old because it was suspended for a week."""
    saved = {"checkpoint": "c", "checkpoint_step": 5, "checkpoint_time": NOW - 7 * 86400}
    assert find(seen(**saved, first_step_time=NOW - 1100).status.conditions, "CheckpointStale") is None
    assert condition(seen(**saved, first_step_time=NOW - 1300).status, "CheckpointStale")[0] == "True"


def test_a_run_without_any_checkpoint_is_stale_by_its_first_step() -> None:
    decided = seen(first_step_time=NOW - 1300)
    said = find(decided.status.conditions, "CheckpointStale")
    assert said is not None and "does not exist yet" in said.message


def test_the_pass_that_would_notice_a_stale_checkpoint_comes_when_it_is_due() -> None:
    assert checkpointing(1208).requeue_after_seconds == pytest.approx(2.0)
    assert checkpointing(10).requeue_after_seconds == 5.0


def test_a_single_fast_step_does_not_make_a_checkpoint_stale() -> None:
    """Steps of 10 s on average, the newest 100 times faster: 20 of them take 200 s, and the first was 300 s ago."""
    given = {"checkpoints": {"uri": "s3://runs/demo", "everySteps": 20}}
    decided = seen(spec=given, step=31, first_step_time=NOW - 300, tokens_per_second=10240.0)
    assert find(decided.status.conditions, "CheckpointStale") is None


def test_steps_say_nothing_of_time_before_there_is_a_mean() -> None:
    given = {"checkpoints": {"uri": "s3://runs/demo", "everySteps": 1}}
    decided = seen(spec=given, step=1, first_step_time=NOW - 8000)
    assert find(decided.status.conditions, "CheckpointStale") is None


@pytest.mark.parametrize(
    ("given", "asked"), [({}, 600), ({"every": "90s"}, 90), ({"every": "Auto"}, None), ({"everySteps": 9}, None)]
)
def test_the_interval_is_in_the_status_where_it_is_a_time(given: dict[str, Any], asked: int | None) -> None:
    assert checkpointing(5, **given).status.checkpoint_interval_seconds == asked


# -- validation on demand --------------------------------------------------------------------------------------------


def asking(value: str, *pods: Pod, status: SkyworkRunStatus, now: float = NOW, **spec: Any) -> Plan:
    given = world(*pods, status=status, validation=DOMAINS, **spec)
    return plan(replace(given, run=replace(given.run, validate_request=value)), now)


def test_an_asked_validation_reaches_rank_0_of_the_same_generation_and_nobody_else() -> None:
    decided = asking("now", *members(), status=training())
    ((asked, word),) = decided.memberships
    assert (asked.index, word) == (0, asked.membership.model_copy(update={"validate_request": "now"}))  # type: ignore[union-attr]
    assert decided.status.generation == 1
    assert decided.status.requested_validation is None
    placed = [replace(p, membership=word) if p.index == 0 else p for p in members()]
    again = asking("now", *placed, status=decided.status)
    assert again.memberships == ()
    assert condition(again.status, "Running") == ("True", "Training")


def told_rank_0(value: str, **said: Any) -> list[Pod]:
    first, *others = members(**said)
    word = first.membership.model_copy(update={"validate_request": value})  # type: ignore[union-attr]
    return [replace(first, membership=word), *others]


def test_its_end_is_told_of_and_noted_so_that_it_is_done_once() -> None:
    said = {
        "validate_request": "now",
        "validation": (domain("zh", 2.5, step=12), domain("en", 3.0, step=12)),
        "step": 12,
    }
    decided = asking("now", *told_rank_0("now", **said), status=training())
    (event,) = [e for e in decided.events if e.reason == "Validated"]
    assert (event.kind, event.message) == ("Normal", "as asked, at step 12: zh 2.5000, en 3.0000")
    done = decided.status.requested_validation
    assert done is not None and (done.request, done.step, done.time) == ("now", 12, ago(0))
    again = asking("now", *told_rank_0("now", **said), status=decided.status, now=NOW + 5)
    assert (again.events, again.memberships) == ((), ())
    another = asking("later", *told_rank_0("now", **said), status=decided.status)
    assert [word.validate_request for _, word in another.memberships] == ["later"]
    assert "Validated" not in told(another)


def test_a_validation_cut_short_by_a_failure_is_asked_of_the_next_generation() -> None:
    first, _, third = told_rank_0("now")
    decided = asking("now", first, failed(1, 1), third, status=training())
    assert {word.rank: word.validate_request for _, word in decided.memberships} == {0: "now", 1: "", 2: ""}
    done = RequestedValidation(request="now", step=1, time=ago(0))
    status = training().model_copy(update={"requested_validation": done})
    again = asking("now", first, failed(1, 1), third, status=status)
    assert {word.validate_request for _, word in again.memberships} == {""}


def test_a_run_that_is_over_says_that_nothing_is_measured_once() -> None:
    done = {name: Job(stage=name, uid=name, complete=True) for name in ("general", "stem")}
    given = run(training(), validation=DOMAINS)
    succeeded = World(run=given, jobs=done)
    gave_up = world(*members()[:1], failed(1, 1), status=training(), validation=DOMAINS,
                    failurePolicy={"restartsWithoutProgress": 0})  # fmt: skip
    for ending, why in ((succeeded, "all stages are trained"), (gave_up, "the run has failed")):
        ended = replace(ending.run, status=plan(ending).status, validate_request="x")
        first = plan(replace(ending, run=ended))
        (event,) = first.events
        assert (event.kind, event.reason) == ("Warning", "NotValidated")
        assert why in event.message
        assert plan(replace(ending, run=replace(ended, status=first.status))).events == ()


def test_a_run_without_domains_says_so() -> None:
    bare = world(*members(), status=training())
    decided = plan(replace(bare, run=replace(bare.run, validate_request="x")))
    assert "NotValidated" in told(decided)
    assert decided.memberships == ()


@pytest.mark.parametrize(
    ("annotations", "asked"),
    [(None, 0), ({}, 0), ({"skywork.dev/validate": ""}, 0), ({"skywork.dev/validate": "1732550000"}, 10),
     ({"skywork.dev/validate": "x" * 64}, 64), ({"skywork.dev/validate": "x" * 200_000}, 64)],
)  # fmt: skip
def test_the_annotation_asks_and_a_long_one_is_shortened(annotations: dict[str, str] | None, asked: int) -> None:
    body = {
        "metadata": {"name": "demo", "namespace": "n", "uid": "u", "generation": 1, "creationTimestamp": ago(9)}
        | ({"annotations": annotations} if annotations is not None else {}),
        "spec": SPEC,
    }
    assert len(parse_run(body).validate_request) == asked


def test_long_requests_that_differ_at_their_end_are_two() -> None:
    def request(value: str) -> str:
        metadata = {"name": "d", "namespace": "n", "uid": "u", "generation": 1, "creationTimestamp": ago(9)}
        return parse_run(
            {"metadata": metadata | {"annotations": {"skywork.dev/validate": value}}, "spec": SPEC}
        ).validate_request

    assert request("x" * 100 + "1") != request("x" * 100 + "2")


# -- why the generation before ended ---------------------------------------------------------------------------------


def words_of(decided: Plan) -> list[Membership]:
    return [word for _, word in decided.memberships]


def test_a_run_s_first_generation_follows_nothing() -> None:
    assert {word.after for word in words_of(plan(world(pod(0), pod(1), pod(2))))} == {""}


def test_every_generation_knows_why_the_one_before_ended() -> None:
    died = plan(world(members()[0], failed(1, 1), members()[2], status=training()))
    assert {word.after for word in words_of(died)} == {"Killed"}
    gone = [replace(p, terminating=True) if p.index == 1 else p for p in members()]
    waiting = plan(world(*gone, status=training())).status
    back = pod(1, name="demo-general-1-fghij", uid="pod-new")
    formed = plan(world(members()[0], back, members()[2], status=waiting), NOW + 30)
    assert {word.after for word in words_of(formed)} == {"PodLost"}


def test_a_generation_of_another_size_follows_a_resize() -> None:
    two = [replace(p, membership=p.membership.model_copy(update={"nodes": 2})) for p in members()[:2]]  # type: ignore[union-attr]
    status = training().model_copy(update={"generation_start_time": ago(9000)})
    grown = plan(world(*two, pod(2), status=status))
    assert {(word.nodes, word.after) for word in words_of(grown)} == {(3, "Resized")}


def test_a_generation_after_a_suspension_and_one_of_the_next_stage_say_so() -> None:
    suspended = plan(world(*members(), status=training(), suspend=True)).status
    resumed = plan(World(run=run(suspended))).status
    formed = plan(world(pod(0), pod(1), pod(2), status=resumed))
    assert {word.after for word in words_of(formed)} == {"Suspended"}
    over = World(run=run(training()), jobs={"general": Job(stage="general", uid="j", complete=True)})
    started = plan(over).status
    next_stage = plan(world(pod(0), pod(1), pod(2), status=started, stage="stem"))
    assert {word.after for word in words_of(next_stage)} == {"StageCompleted"}


# -- the story in events ---------------------------------------------------------------------------------------------


def test_a_recovery_is_told_of_with_its_parts_once() -> None:
    died = plan(world(members()[0], failed(1, 1, time=NOW - 2), members()[2], status=training())).status
    agent = progress(9, 2, initialized_time=NOW + 4, restored_time=NOW + 5, first_step_time=NOW + 6)
    told_again = [
        replace(
            pod(i, generation=2),
            agent=(agent if i == 0 else AgentStatus(phase=AgentPhase.TRAINING, generation=2)).model_copy(
                update={"read_time": NOW + 1, "start_time": NOW + 3}
            ),
        )
        for i in range(3)
    ]
    decided = plan(world(*told_again, status=died), NOW + 7)
    (event,) = [e for e in decided.events if e.reason == "Recovered"]
    assert event.message == (
        "generation 2 trains again 8.0 s after Killed: detected 2.0, decided 0.0, delivered 1.0, started 2.0, "
        "initialized 1.0, restored 1.0, first step 1.0"
    )
    assert "Recovered" not in told(plan(world(*told_again, status=decided.status), NOW + 12))


def test_the_first_step_of_a_generation_is_told_of_once_and_a_recovery_tells_of_its_own() -> None:
    status = training().model_copy(update={"generation_start_time": ago(14)})
    first = seen(status=status, first_step_time=NOW - 2)
    assert [e.message for e in first.events if e.reason == "Training"] == ["generation 1 trains: first step after 12 s"]
    assert "Training" not in told(seen(status=first.status, now=NOW + 5, first_step_time=NOW - 2))


def test_a_run_s_end_is_told_of_with_what_it_took() -> None:
    status = seen(step=150).status.model_copy(update={"start_time": ago(7300)})
    done = {name: Job(stage=name, uid=name, complete=True) for name in ("general", "stem")}
    (event,) = [e for e in plan(World(run=run(status), jobs=done)).events if e.reason == "Succeeded"]
    assert event.message == "all 2 stages are trained: 150 steps, 153600 tokens in 2h1m, 0 restarts"


# -- statuses of other versions --------------------------------------------------------------------------------------

OLD: dict[str, Any] = {
    "observedGeneration": 1,
    "conditions": [
        {"type": "Accepted", "status": "True", "reason": "Valid", "message": "the spec is complete and consistent",
         "observedGeneration": 1, "lastTransitionTime": ago(500)},
        {"type": "Running", "status": "True", "reason": "Training", "message": "generation 1 trains on 3 nodes",
         "observedGeneration": 1, "lastTransitionTime": ago(490)},
    ],
    "state": "Training", "stage": "general", "step": 7, "tokens": 7168, "progress": "4%", "trainLoss": "5.0000",
    "tokensPerSecond": 1000, "validationLoss": [{"domain": "zh", "loss": "3.2500", "step": 0}],
    "nodes": {"desired": 3, "ready": 3, "training": 3}, "generation": 1, "generationStartTime": ago(490),
    "restarts": {"total": 0, "withoutProgress": 0, "checkpointStep": 0, "recent": [], "waiting": 0, "byReason": []},
    "nodeStrikes": [], "stragglers": [], "startTime": ago(500), "selector": "skywork.dev/run=demo", "sources": [],
    "stages": [{"name": "general", "startTime": ago(500), "steps": 7, "tokens": 7168, "mixture": [],
                "validationLoss": []}],
}  # fmt: skip


def test_a_status_that_an_older_operator_wrote_is_read_and_counted_on_from() -> None:
    status = SkyworkRunStatus.model_validate(json.loads(json.dumps(OLD)))
    assert status.validation_loss[0].bits_per_byte is None
    decided = seen(status=status, step=8, restored_time=NOW - 400, spent={"train": 300.0}, checkpoint="c",
                   checkpoint_time=NOW - 5)  # fmt: skip
    assert decided.memberships == ()
    assert decided.status.time is not None
    assert (decided.status.time.train, decided.status.time.idle) == ("300.000", "200.000")


def test_a_status_of_a_newer_operator_is_read_without_what_it_added() -> None:
    newer = OLD | {"weather": "fair", "time": {"train": "5.000", "napping": "3.0"}}
    status = SkyworkRunStatus.model_validate(newer)
    assert status.time is not None and status.time.train == "5.000"
