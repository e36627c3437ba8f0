"""The operator's metrics of itself, and of runs out of their statuses."""

import warnings
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from skywork_operator.api.status import SkyworkRunStatus
from skywork_operator.metrics import OperatorCollector, PassMetrics, queue_seconds
from skywork_operator.queue import WorkQueue
from skywork_operator.times import seconds
from skywork_operator.world import Job, Key, World

from tests.unit.operator.build import NOW, SPEC, ago, failed, plan, pod, progress, run, status_after, world

RUN: Key = ("research", "demo")
STATES = {"train", "initialize", "restore", "checkpoint", "dataWait", "validate", "idle", "lost"}


class Scraped:
    """What one operator exposes, scrape after scrape."""

    def __init__(self, *, leads: bool = True) -> None:
        self.runs: dict[Key, SkyworkRunStatus] = {}
        self.now, self.registry, self.clock = NOW, CollectorRegistry(), 0.0
        self.queue: WorkQueue[Key] = WorkQueue(lambda: self.clock, waited=queue_seconds(self.registry).observe)
        self.registry.register(
            OperatorCollector(
                self.queue, self.runs, watch_age_seconds=lambda: 1.5, leads=lambda: leads, wall=lambda: self.now
            )
        )

    def text(self) -> str:
        return generate_latest(self.registry).decode()

    def samples(self, name: str) -> dict[tuple[str, ...], float]:
        """The samples of one name, by the values of their labels other than namespace and run."""
        found = {}
        for family in text_string_to_metric_families(self.text()):
            for sample in family.samples:
                if sample.name == name:
                    labels = [v for k, v in sorted(sample.labels.items()) if k not in ("namespace", "run")]
                    found[tuple(labels)] = sample.value
        return found

    def value(self, name: str) -> float | None:
        return self.samples(name).get(())


def exposed(runs: dict[Key, SkyworkRunStatus]) -> str:
    scraped = Scraped()
    scraped.runs |= runs
    return scraped.text()


def test_validation_losses_conditions_and_restarts_of_a_run_are_exported() -> None:
    said = progress(40, validation=({"domain": "zh", "loss": 3.25, "tokens": 10, "step": 40},))
    status = status_after(world(pod(0), pod(1), pod(2)))
    status = plan(world(pod(0, generation=1, agent=said), failed(1, 1), pod(2, generation=1), status=status)).status
    text = exposed({("research", "demo"): status})
    assert 'skywork_run_validation_loss{domain="zh",namespace="research",run="demo"} 3.25' in text
    assert 'skywork_run_restarts_total{namespace="research",reason="Killed",run="demo"} 1.0' in text
    assert 'skywork_run_condition{namespace="research",run="demo",status="True",type="Accepted"} 1.0' in text
    assert 'skywork_run_generation{namespace="research",run="demo"} 2.0' in text
    assert 'skywork_run_step{namespace="research",run="demo"} 40.0' in text


def trained(**said: Any) -> SkyworkRunStatus:
    """Status of a run that has trained for 100 s and validated two domains."""
    fields: dict[str, Any] = {
        "validation": (
            {"domain": "zh", "loss": 2.0, "tokens": 1000, "step": 40, "bytes": 4000, "reference_tokens": 800},
            {"domain": "en", "loss": 4.0, "tokens": 1000, "step": 39},
        ),
        "stage_start_validation": ({"domain": "zh", "loss": 5.5, "tokens": 1000, "step": 0},),
        "mfu": 0.4, "learning_rate": 1e-3, "spent": {"train": 80.0, "initialize": 5.0}, "restored_time": NOW,
        "source_sequences": {"main": 30, "stem": 10}, "source_epochs": {"main": 0.5},
        "checkpoint": "c", "checkpoint_step": 38, "checkpoint_time": NOW - 30, "first_step_time": NOW - 82,
    }  # fmt: skip
    begun = status_after(world(pod(0), pod(1), pod(2))).model_copy(update={"start_time": ago(100)})
    agent = progress(41, **(fields | said))
    return plan(
        world(pod(0, generation=1, agent=agent), pod(1, generation=1), pod(2, generation=1), status=begun)
    ).status


@pytest.mark.parametrize(
    ("name", "samples"),
    [
        ("state_info", {("Training",): 1}),
        ("stage_info", {("general",): 1}),
        ("progress_ratio", {(): pytest.approx(41 / 150)}),
        ("tokens_target", {(): 153600}),
        ("start_timestamp_seconds", {(): NOW - 100}),
        ("estimated_completion_timestamp_seconds", {(): pytest.approx(NOW + 223, abs=1)}),
        ("model_flops_utilization_ratio", {(): 0.4}),
        ("validation_loss", {("zh",): 2.0, ("en",): 4.0}),
        ("validation_bpb", {("zh",): 0.7213}),
        ("validation_reference_loss", {("zh",): 2.5}),
        ("validation_average_loss", {(): 3.0}),
        ("validation_average_perplexity", {(): 20.09}),
        ("validation_step", {(): 40}),
        ("stage_start_validation_loss", {("zh",): 5.5}),
        ("goodput_ratio", {(): 0.8}),
        ("last_checkpoint_step", {(): 38}),
        ("last_checkpoint_timestamp_seconds", {(): NOW - 30}),
        ("checkpoint_interval_seconds", {(): 600}),
        ("source_share", {("main",): 0.75, ("stem",): 0.25}),
        ("source_epochs", {("main",): 0.5}),
        ("nodes", {("desired",): 3, ("ready",): 3, ("training",): 3}),
    ],
)
def test_what_a_run_says_is_exported(name: str, samples: dict[tuple[str, ...], Any]) -> None:
    scraped = Scraped()
    scraped.runs[RUN] = trained()
    assert scraped.samples(f"skywork_run_{name}") == samples


def test_a_status_is_written_in_the_types_of_the_crd() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trained().model_dump(mode="json", by_alias=True, exclude_none=True)


def test_what_is_not_known_is_absent_and_not_0() -> None:
    scraped = Scraped()
    scraped.runs[RUN] = plan(World(run=run(checkpoints={"uri": "s3://runs/demo", "every": "Auto"}))).status
    text = scraped.text()
    for name in ("validation_", "goodput_ratio{", "estimated_completion", "train_loss", "last_checkpoint",
                 "checkpoint_interval", "model_flops", "source_", "stage_start"):  # fmt: skip
        assert not [line for line in text.splitlines() if line.startswith(f"skywork_run_{name}")], name


def test_a_finished_run_s_values_stay_until_it_is_deleted() -> None:
    scraped = Scraped()
    only = run(trained(), stages=SPEC["stages"][:1])
    done = World(run=only, jobs={"general": Job(stage="general", uid="j", complete=True)})
    scraped.runs[RUN] = plan(done, NOW + 50).status
    for scraped.now in (NOW + 50, NOW + 90_000):
        assert scraped.samples("skywork_run_validation_loss") == {("zh",): 2.0, ("en",): 4.0}
        assert scraped.samples("skywork_run_stage_start_validation_loss") == {("zh",): 5.5}
        assert scraped.samples("skywork_run_state_info") == {("Succeeded",): 1}
        assert sum(scraped.samples("skywork_run_time_seconds_total").values()) == pytest.approx(150)
        assert scraped.value("skywork_run_goodput_ratio") == pytest.approx(80 / 150)
    del scraped.runs[RUN]
    assert "demo" not in scraped.text()


def test_a_deleted_run_leaves_no_series_behind() -> None:
    assert "demo" not in exposed({})
    assert "skywork_operator_queue_depth 0.0" in exposed({})


# -- time as counters ------------------------------------------------------------------------------------------------


def spent(scraped: Scraped) -> dict[str, float]:
    return {labels[0]: value for labels, value in scraped.samples("skywork_run_time_seconds_total").items()}


def test_a_run_s_time_has_every_state_and_adds_up_to_what_has_gone_by() -> None:
    scraped = Scraped()
    scraped.runs[RUN] = trained()
    assert spent(scraped) == dict.fromkeys(STATES, 0.0) | {"train": 80.0, "initialize": 5.0, "idle": 15.0}


def test_idle_time_goes_on_at_scrape_time_though_no_status_is_written() -> None:
    scraped = Scraped()
    gone = replace(pod(1, generation=1), terminating=True)
    lost = world(pod(0, generation=1, agent=progress(41)), gone, pod(2, generation=1), status=trained())
    scraped.runs[RUN] = plan(lost).status
    scraped.now = NOW + 500
    assert spent(scraped)["idle"] == pytest.approx(515)
    assert scraped.value("skywork_run_goodput_ratio") == pytest.approx(80 / 600)


def test_a_world_at_work_is_not_idle_between_two_words() -> None:
    scraped = Scraped()
    scraped.runs[RUN] = trained()
    scraped.now = NOW + 60
    assert spent(scraped)["idle"] == 15.0


def test_idle_time_that_is_then_heard_to_have_been_work_never_takes_a_counter_back() -> None:
    """A world that ends still saves, and says so when idle time is counted already."""
    scraped = Scraped()
    gone = replace(pod(0, generation=1, agent=progress(41)), terminating=True)
    status = plan(world(gone, pod(1, generation=1), pod(2, generation=1), status=trained())).status
    scraped.runs[RUN] = status
    scraped.now = NOW + 20
    before = spent(scraped)
    saved = progress(41, spent={"train": 80.0, "initialize": 5.0, "checkpoint": 18.0}, restored_time=NOW)
    late = replace(gone, agent=saved)
    scraped.runs[RUN] = plan(world(late, pod(1, generation=1), pod(2, generation=1), status=status), NOW + 21).status
    after = spent(scraped)
    assert after["checkpoint"] == 18.0
    assert all(after[state] >= before[state] for state in STATES)


@settings(max_examples=30)
@given(st.lists(st.tuples(st.integers(0, 400), st.sampled_from(["train", "validate", "none", "die"])), max_size=15))
def test_no_counter_of_time_ever_falls(deeds: list[tuple[int, str]]) -> None:
    scraped, status, now = Scraped(), trained(), NOW
    said = {"train": 80.0, "initialize": 5.0}
    before = dict.fromkeys(STATES, 0.0)
    for took, deed in deeds:
        now += took
        if deed == "die":
            said = {}
            seen = world(failed(0, status.generation), pod(1, generation=status.generation),
                         pod(2, generation=status.generation), status=status)  # fmt: skip
            status = plan(seen, now).status
        elif deed != "none":
            said[deed] = said.get(deed, 0.0) + took
            agent = progress(41, status.generation, spent=dict(said), restored_time=NOW, first_step=20)
            members = [pod(index, generation=status.generation) for index in range(3)]
            status = plan(world(replace(members[0], agent=agent), *members[1:], status=status), now).status
        scraped.runs[RUN], scraped.now = status, now
        after = spent(scraped)
        assert all(after[state] >= before[state] - 0.002 for state in STATES), (before, after)
        before = after


def test_a_run_that_is_deleted_and_applied_again_begins_at_0() -> None:
    scraped = Scraped()
    scraped.runs[RUN] = trained()
    assert spent(scraped)["idle"] == 15.0
    scraped.now = NOW + 1000
    fresh = plan(World(run=run()), NOW + 1000).status
    scraped.runs[RUN] = fresh
    assert seconds(fresh.start_time or "") == NOW + 1000
    assert spent(scraped)["idle"] == 0.0


# -- the operator itself ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("leads", "value"), [(True, 1.0), (False, 0.0)])
def test_an_operator_says_whether_it_leads(leads: bool, value: float) -> None:
    assert Scraped(leads=leads).value("skywork_operator_is_leader") == value


async def test_what_runs_wait_and_how_long_passes_take_is_exported() -> None:
    scraped = Scraped()
    scraped.queue.add(RUN)
    scraped.clock = 0.3
    await scraped.queue.get()
    scraped.clock = 40.3
    assert scraped.value("skywork_operator_longest_pass_seconds") == pytest.approx(40.0)
    buckets = scraped.samples("skywork_operator_queue_duration_seconds_bucket")
    assert (buckets["0.25",], buckets["0.5",]) == (0.0, 1.0)
    assert scraped.value("skywork_operator_queue_duration_seconds_sum") == pytest.approx(0.3)


def test_every_family_has_a_description_and_counters_end_in_total() -> None:
    scraped = Scraped()
    PassMetrics(scraped.registry)
    scraped.runs[RUN] = trained()
    for family in text_string_to_metric_families(scraped.text()):
        assert family.documentation.endswith("."), family.name
        names = {sample.name for sample in family.samples}
        assert all(name.endswith(("_total", "_created")) for name in names) or family.type != "counter", family.name
