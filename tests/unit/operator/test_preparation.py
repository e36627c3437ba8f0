"""Preparing sources before the stages that read them: order, phases, words and ends, as tables."""

import re
from collections.abc import Mapping
from typing import Any

import pytest
from skywork_operator.api.status import SkyworkRunStatus, SourceStatus, StageStatus
from skywork_operator.policies.preparation import advance, awaited
from skywork_operator.world import Job, Plan, PrepareJob, World
from skywork_trainer.config import Failure

from tests.unit.operator.build import NOW, SPEC, condition, plan, pod, progress, run, status_after, world

TWICE = {"inputs": ["s3://text/*.jsonl"], "pods": 4, "duplicates": {"exact": True}}
ONCE = {"inputs": ["s3://text/*.jsonl"], "pods": 4}


def sources(**prepare: dict[str, Any] | None) -> list[dict[str, Any]]:
    """Sources main and stem, and others that no stage reads, each with what it is prepared from."""
    found = []
    for name in dict.fromkeys(["main", "stem", *prepare]):
        entry: dict[str, Any] = {"name": name, "uri": f"s3://data/{name}"}
        if prepare.get(name):
            entry["prepare"] = prepare[name]
        found.append(entry)
    return found


def knowing(*names: str) -> dict[str, Any]:
    return {"inputs": ["s3://text/x"], "duplicates": {"known": list(names)}}


def records(**phases: str) -> SkyworkRunStatus:
    return SkyworkRunStatus.model_validate({"sources": [{"name": n, "phase": p} for n, p in phases.items()]})


def job(source: str = "main", reading: Any = "scan", **changes: Any) -> PrepareJob:
    fields = {"name": f"demo-prepare-{source}-{reading}", "parts": 4, "source": source, "reading": reading}
    return PrepareJob(**(fields | changes))


def seen(*jobs: PrepareJob, status: SkyworkRunStatus | None = None, **changes: Any) -> World:
    return World(run=run(status, **changes), prepare_jobs=jobs)


def names(decided: Plan) -> list[str]:
    return [m["metadata"]["name"] for m in decided.objects]


def phases(status: SkyworkRunStatus) -> Mapping[str, str | None]:
    return {record.name: record.phase for record in status.sources}


def said(decided: Plan, type: str) -> str:
    (found,) = [c.message for c in decided.status.conditions if c.type == type]
    return found


def test_a_stage_waits_for_its_source_s_scan_and_nothing_else_is_made() -> None:
    decided = plan(seen(sources=sources(main=TWICE)))
    assert names(decided) == ["demo-prepare-main", "demo-prepare-main-scan"]
    assert phases(decided.status) == {"main": "Scanning"}
    assert condition(decided.status, "Prepared") == ("False", "InProgress")
    assert condition(decided.status, "Running") == ("False", "Preparing")
    assert (decided.status.state, decided.status.stages) == ("Preparing", [])
    assert [e.reason for e in decided.events] == ["PrepareStarted"]


def test_how_far_a_preparation_is_can_be_read_in_its_condition() -> None:
    decided = plan(seen(job(succeeded=2), sources=sources(main=TWICE)))
    assert said(decided, "Prepared") == "source main: scanning, 2 of 4 parts done"
    assert decided.objects == ()


PHASES = [
    pytest.param(TWICE, None, [], "Scanning", "scan", id="nothing was done: scan"),
    pytest.param(TWICE, "Scanning", [], "Scanning", "scan", id="the scan's Job was deleted: scan again"),
    pytest.param(TWICE, "Scanning", [job()], "Scanning", None, id="a scan runs: leave it alone"),
    pytest.param(TWICE, "Scanning", [job(complete=True)], "Writing", "write", id="scanned: write"),
    pytest.param(
        TWICE, "Writing", [job(complete=True), job(reading="write")], "Writing", None, id="shards are written: leave it"
    ),
    pytest.param(TWICE, "Writing", [job(complete=True)], "Writing", "write", id="the writing Job was deleted: again"),
    pytest.param(TWICE, "Writing", [], "Writing", "write", id="both were deleted: what was scanned is not lost"),
    pytest.param(ONCE, None, [], "Writing", "write", id="no duplicates are looked for: write at once"),
    pytest.param(
        ONCE | {"duplicates": {"exact": False, "near": {}}}, None, [], "Scanning", "scan", id="near duplicates: scan"
    ),
]


@pytest.mark.parametrize(("prepare", "known", "jobs", "phase", "made"), PHASES)
def test_a_source_is_scanned_if_need_be_and_then_written(
    prepare: dict[str, Any], known: str | None, jobs: list[PrepareJob], phase: str, made: str | None
) -> None:
    decided = plan(seen(*jobs, status=records(main=known) if known else None, sources=sources(main=prepare)))
    assert phases(decided.status) == {"main": phase}
    expected = [f"demo-prepare-main-{made}"] if made else []
    assert [name for name in names(decided) if name != "demo-prepare-main"] == expected


def test_the_config_map_comes_with_a_source_s_first_job_only() -> None:
    written = plan(seen(job(complete=True), status=records(main="Scanning"), sources=sources(main=TWICE)))
    assert names(written) == ["demo-prepare-main-write"]


def test_a_stage_starts_in_the_pass_that_sees_its_last_source_written() -> None:
    done = job(reading="write", complete=True)
    decided = plan(seen(done, status=records(main="Writing"), sources=sources(main=ONCE)))
    assert names(decided) == ["demo-general", "demo-general"]
    assert phases(decided.status) == {"main": "Prepared"}
    assert condition(decided.status, "Prepared") == ("True", "SourcesPrepared")
    assert [e.reason for e in decided.events] == ["SourcePrepared", "StageStarted"]


def test_what_is_prepared_is_not_prepared_again_when_its_jobs_are_gone() -> None:
    decided = plan(seen(status=records(main="Prepared"), sources=sources(main=TWICE)))
    assert names(decided) == ["demo-general", "demo-general"]
    assert [e.reason for e in decided.events] == ["StageStarted"]


def test_a_run_that_prepares_nothing_says_nothing_of_it() -> None:
    status = status_after(seen())
    assert status.sources == [] and "Prepared" not in [c.type for c in status.conditions]


def test_a_pass_over_an_unchanged_preparation_changes_nothing() -> None:
    once = plan(seen(job(), sources=sources(main=TWICE)))
    again = plan(seen(job(), status=once.status, sources=sources(main=TWICE)), NOW + 300)
    assert again.status == once.status and again.events == () and again.objects == ()


MIXTURES = [
    pytest.param("general", [], {"main": ONCE, "stem": ONCE}, ["main", "d"], id="the first stage: source and domain"),
    pytest.param("stem", ["general"], {"main": ONCE, "stem": ONCE}, ["stem"], id="a later one: what it adds"),
    pytest.param("general", ["general"], {"main": ONCE}, [], id="one that has started: nothing at all"),
    pytest.param("general", [], {"main": knowing("stem"), "stem": ONCE}, ["stem", "main", "d"], id="known ones first"),
    pytest.param("general", [], {"main": knowing("stem")}, ["main", "d"], id="known, and not prepared by this run"),
    pytest.param("general", [], {"main": knowing("far"), "far": ONCE}, ["far", "main", "d"], id="known, never trained"),
    pytest.param("stem", ["general"], {"main": ONCE, "stem": knowing("main")}, ["stem"], id="known, and trained on"),
]


@pytest.mark.parametrize(("stage", "started", "prepare", "wanted"), MIXTURES)
def test_a_stage_waits_for_what_it_reads_and_for_what_that_knows(
    stage: str, started: list[str], prepare: dict[str, Any], wanted: list[str]
) -> None:
    domain = {"name": "d", "uri": "s3://data/d", "prepare": ONCE}
    spec = run(sources=sources(**prepare), validation={"domains": [domain]}).spec
    status = SkyworkRunStatus(stages=[StageStatus(name=name) for name in started])
    assert awaited(spec, status, stage) == wanted


def test_sources_are_prepared_one_after_another() -> None:
    stages = [dict(SPEC["stages"][1], learningRate=SPEC["stages"][0]["learningRate"])]
    both = run(sources=sources(main=ONCE, stem=ONCE), stages=stages)
    first = advance(both, SkyworkRunStatus(), [], "stem")
    assert (first.phases, first.begun) == ({"main": "Writing", "stem": "Pending"}, ("main",))
    done = job("main", "write", complete=True)
    second = advance(both, records(main="Writing", stem="Pending"), [done], "stem")
    assert (second.phases, second.begun, second.finished) == (
        {"main": "Prepared", "stem": "Writing"},
        ("stem",),
        ("main",),
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        pytest.param(
            {"sources": sources(main=knowing("stem"), stem=knowing("far"), far=knowing("stem"))},
            "duplicates.known goes in a circle: stem -> far -> stem",
            id="a circle",
        ),
        pytest.param(
            {"sources": [{"name": n, "uri": u, "prepare": ONCE} for n, u in (("main", "s3://x/y"), ("stem", "s3://x/y/"))]},
            "main and stem are both prepared into s3://x/y",
            id="two into one place",
        ),
        pytest.param(
            {"sources": sources(main={"inputs": ["s3://x"], "duplicates": {"near": {"threshold": "1"}}}, stem=None)},
            "prepare of main: threshold",
            id="a value that the trainer refuses",
        ),
    ],
)  # fmt: skip
def test_a_preparation_that_cannot_be_is_refused_with_the_source_s_name(changes: dict[str, Any], message: str) -> None:
    decided = plan(seen(**changes))
    assert condition(decided.status, "Accepted") == ("False", "InvalidSpec")
    assert re.search(message, said(decided, "Accepted"))
    assert decided.objects == ()


def test_a_refused_run_is_accepted_once_it_is_mended() -> None:
    refused = status_after(seen(sources=sources(main=knowing("stem"), stem=knowing("main"))))
    assert condition(status_after(seen(status=refused)), "Accepted") == ("True", "Valid")


def test_a_failed_preparation_fails_the_run_with_its_pod_s_last_words() -> None:
    words = [
        Failure(time=NOW, rank=0, reason="Killed", message="out of memory"),
        Failure(time=NOW + 1, rank=1, reason="TextFieldMissing", message="no field body", retryable=False),
    ]
    broken = job(failed="Pod failed with exit code 64", failures=tuple(words))
    decided = plan(seen(broken, status=records(main="Scanning"), sources=sources(main=TWICE)))
    assert condition(decided.status, "Failed") == ("True", "TextFieldMissing")
    assert condition(decided.status, "Prepared") == ("False", "TextFieldMissing")
    assert said(decided, "Failed") == "source main: no field body"
    assert (decided.status.state, decided.objects) == ("Failed", ())
    again = plan(seen(broken, status=decided.status, sources=sources(main=TWICE)), NOW + 60)
    assert again.status == decided.status and again.events == () and again.suspend == ()


def test_a_failed_preparation_without_last_words_has_the_job_s() -> None:
    decided = plan(seen(job(failed="Job has failed indexes"), sources=sources(main=TWICE)))
    assert condition(decided.status, "Failed") == ("True", "PrepareFailed")
    assert said(decided, "Failed") == "source main: Job has failed indexes"


def test_a_failed_run_releases_the_preparations_that_still_run() -> None:
    failed = plan(seen(job(failed="broken"), sources=sources(main=TWICE))).status
    jobs = (job(failed="broken"), job("stem"), job("stem", "write", complete=True), job("far", suspended=True))
    assert plan(seen(*jobs, status=failed, sources=sources(main=TWICE))).suspend == ("demo-prepare-stem-scan",)


def test_why_a_preparation_s_pod_cannot_run_is_said_once() -> None:
    blocked = job(blocked=("Unschedulable", "0/3 nodes are available"))
    decided = plan(seen(blocked, sources=sources(main=TWICE)))
    assert condition(decided.status, "Prepared") == ("False", "Unschedulable")
    assert [e.reason for e in decided.events] == ["PrepareStarted", "Unschedulable"]
    assert plan(seen(blocked, status=decided.status, sources=sources(main=TWICE))).events == ()


def test_the_time_of_a_preparation_does_not_count_as_waiting_for_nodes() -> None:
    preparing = plan(seen(sources=sources(main=ONCE))).status
    done = job(reading="write", complete=True)
    started = plan(seen(done, status=preparing, sources=sources(main=ONCE)), NOW + 9999).status
    fewer = world(pod(0), pod(1), status=started, sources=sources(main=ONCE))
    assert plan(fewer, NOW + 9999 + 119).memberships == ()
    assert len(plan(fewer, NOW + 9999 + 120).memberships) == 2


def test_a_later_stage_s_sources_are_prepared_when_its_turn_has_come() -> None:
    status = SkyworkRunStatus(stages=[StageStatus(name="general")], sources=[SourceStatus(name="main", epochs="0.5")])
    complete = {"general": Job(stage="general", uid="j", complete=True)}
    decided = plan(World(run=run(status, sources=sources(stem=ONCE)), jobs=complete))
    assert names(decided) == ["demo-prepare-stem", "demo-prepare-stem-write"]
    assert condition(decided.status, "Running") == ("False", "Preparing")
    assert phases(decided.status) == {"main": None, "stem": "Writing"}


TRAINING = {"general": Job(stage="general", uid="j")}
BEGUN = SkyworkRunStatus(stages=[StageStatus(name="general")])


def ahead(*jobs: PrepareJob, status: SkyworkRunStatus = BEGUN, **prepare: dict[str, Any]) -> World:
    """A world in which stage general trains and later stages read what is prepared."""
    prepare = prepare or {"stem": TWICE}
    members = (pod(0, generation=1), pod(1, generation=1), pod(2, generation=1))
    return World(run=run(status, sources=sources(**prepare)), jobs=TRAINING, pods=members, prepare_jobs=jobs)


def test_later_stages_sources_are_prepared_while_a_stage_trains() -> None:
    decided = plan(ahead())
    assert names(decided) == ["demo-prepare-stem", "demo-prepare-stem-scan"]
    assert condition(decided.status, "Running") == ("True", "Training")
    assert condition(decided.status, "Prepared") == ("False", "InProgress")
    seen_again = plan(ahead(job("stem"), status=decided.status))
    assert (seen_again.objects, seen_again.events) == ((), ())
    assert plan(ahead(job("stem"), status=seen_again.status), NOW + 300).status == seen_again.status


def test_what_was_prepared_ahead_lets_the_next_stage_start_at_once() -> None:
    done = (job("stem", complete=True), job("stem", "write", complete=True))
    prepared = plan(ahead(*done)).status
    assert condition(prepared, "Prepared") == ("True", "SourcesPrepared")
    complete = {"general": Job(stage="general", uid="j", complete=True)}
    decided = plan(World(run=run(prepared, sources=sources(stem=TWICE)), jobs=complete, prepare_jobs=done))
    assert names(decided) == ["demo-stem", "demo-stem"]


def test_a_preparation_that_fails_ahead_fails_the_run_only_when_its_stage_is_due() -> None:
    broken = job("stem", failed="Job has failed indexes")
    decided = plan(ahead(broken))
    assert condition(decided.status, "Prepared") == ("False", "PrepareFailed")
    assert condition(decided.status, "Running") == ("True", "Training")
    assert "PrepareFailed" in [e.reason for e in decided.events]
    assert plan(ahead(broken, status=decided.status)).events == ()
    complete = {"general": Job(stage="general", uid="j", complete=True)}
    due = plan(World(run=run(decided.status, sources=sources(stem=TWICE)), jobs=complete, prepare_jobs=(broken,)))
    assert condition(due.status, "Failed") == ("True", "PrepareFailed")


def test_a_repeated_source_is_told_of_once_and_stays_in_the_status() -> None:
    warned = progress(9, source_epochs={"main": 1.25}, warnings=("source main is read 1.3 times", "so is stem"))
    members = (pod(0, generation=1, agent=warned), pod(1, generation=1), pod(2, generation=1))
    decided = plan(world(*members, status=status_after(world(pod(0), pod(1), pod(2)))))
    assert [e.reason for e in decided.events if e.kind == "Warning"] == ["SourceRepeated"]
    assert condition(decided.status, "DataRepeated") == ("True", "SourceRepeated")
    assert said(decided, "DataRepeated") == "source main is read 1.3 times; so is stem"
    assert [(s.name, s.epochs, s.phase) for s in decided.status.sources] == [("main", "1.250", None)]
    assert plan(world(*members, status=decided.status)).events == ()
    quiet = (pod(0, generation=1, agent=progress(10)), *members[1:])
    assert condition(status_after(world(*quiet, status=decided.status)), "DataRepeated")[0] == "True"
