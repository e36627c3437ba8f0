"""The run of the Skywork-13B report, replayed validation by validation: what is said, and when."""

import math
from collections.abc import Callable

import pytest
from skywork_trainer.diagnosis import CURVE_DETECTORS, STEP_DETECTORS, Detector

from tests.unit.diagnosis.curves import changes
from tests.unit.diagnosis.paper import (
    END,
    SPIKES,
    STAGE_2,
    SWITCH,
    TOKENS_PER_STEP,
    Replay,
    held_out,
    power_law,
)

TEXTBOOKS = 0.25


def told(replay: Replay, detectors: tuple[Detector, ...]) -> dict[str, list[float]]:
    """Return at how many T tokens each condition held."""
    at: dict[str, list[float]] = {}
    for evidence, said in replay.said(detectors):
        for diagnosis in said:
            if diagnosis.found:
                at.setdefault(diagnosis.type, []).append(evidence.step * TOKENS_PER_STEP / 1e12)
    return at


def unsaturated(trained: float) -> dict[str, float]:
    """A run that goes on as it does between 0.5 and 2 T, and forgets nothing in stage 2."""
    at = min(trained, STAGE_2)
    en, zh = power_law(at, 1.86, 1.765), power_law(at, 2.08, 1.935)
    stem = TEXTBOOKS * (1 - math.exp(-max(trained - STAGE_2, 0.0) / 0.04))
    return {
        "en-web": en,
        "zh-web": zh,
        "code": 0.55 * en,
        "papers": en + 0.08,
        "social": zh + 0.4,
        "textbooks": 0.5 * (en + zh) - 0.3 - stem,
    }


def beside(losses: Callable[[float], dict[str, float]]) -> Callable[[float], float]:
    return lambda trained: (losses(trained)["en-web"] + losses(trained)["zh-web"]) / 2 - 0.17


def test_the_curves_are_those_of_the_report() -> None:
    ends = {0.5: (1.86, 2.08), SWITCH: (1.765, 1.935), STAGE_2: (1.72, 1.88)}
    for trained, (en, zh) in ends.items():
        losses = held_out(trained)
        assert (losses["en-web"], losses["zh-web"]) == pytest.approx((en, zh), abs=1e-3)
    replay = Replay()
    assert replay.train(SWITCH) == pytest.approx(1.68, abs=1e-3) and replay.train(STAGE_2) == pytest.approx(1.62)


@pytest.fixture(scope="module")
def paper() -> dict[str, list[float]]:
    return told(Replay(), CURVE_DETECTORS)


def test_only_what_the_report_saw_is_said(paper: dict[str, list[float]]) -> None:
    assert paper.keys() == {"Plateau", "GapGrowing"}


def test_each_spike_is_told_and_the_jump_at_the_switch_is_not() -> None:
    seen = told(Replay(with_steps=True, every=0.02), STEP_DETECTORS)
    assert seen.keys() == {"LossSpiking"} and len(seen["LossSpiking"]) == len(SPIKES)
    assert seen["LossSpiking"] == pytest.approx(SPIKES, abs=0.022)


def test_levelling_after_the_first_part_of_stage_1b_is_a_plateau_that_stays(paper: dict[str, list[float]]) -> None:
    assert 2.3 < paper["Plateau"][0] < 2.8
    assert paper["Plateau"][-1] == pytest.approx(STAGE_2, abs=0.012)
    assert len(paper["Plateau"]) >= (STAGE_2 - paper["Plateau"][0]) / 0.01


def test_the_gap_is_told_to_grow_late_in_stage_1(paper: dict[str, list[float]]) -> None:
    assert 2.3 < paper["GapGrowing"][0] < 2.9
    assert paper["GapGrowing"][-1] == pytest.approx(STAGE_2, abs=0.012)
    assert len(paper["GapGrowing"]) >= (STAGE_2 - paper["GapGrowing"][0]) / 0.01


@pytest.mark.parametrize("seed", [0, 3])
def test_a_run_that_does_not_saturate_raises_no_alarm_over_its_whole_length(seed: int) -> None:
    replay = Replay(seed=seed, losses=unsaturated, train=beside(unsaturated))
    assert told(replay, CURVE_DETECTORS) == {}


@pytest.mark.parametrize("seed", [1, 5])
def test_what_is_said_of_stage_1b_does_not_come_and_go(seed: int) -> None:
    said: dict[str, list[bool | None]] = {"Plateau": [], "GapGrowing": []}
    for evidence, diagnoses in Replay(seed=seed).said(CURVE_DETECTORS, first=SWITCH):
        if evidence.stage == "1b":
            for name, verdicts in said.items():
                verdicts.append(next((each.found for each in diagnoses if each.type == name), None))
    assert [changes(verdicts) for verdicts in said.values()] == [1, 1]


def test_stage_2_that_forgets_as_in_table_7_is_told_soon() -> None:
    def forgets(trained: float) -> dict[str, float]:
        losses = held_out(trained)
        rise = min(max(trained - STAGE_2, 0.0) / 0.05, 1.0)
        return losses | {
            "en-web": losses["en-web"] + rise * (2.09 - 1.86),
            "zh-web": losses["zh-web"] + rise * (2.21 - 2.08),
        }

    at: dict[str, list[float]] = {}
    for evidence, said in Replay(losses=forgets).said(CURVE_DETECTORS, first=STAGE_2 - 0.01):
        for diagnosis in said:
            if diagnosis.found and evidence.stage == "2":
                at.setdefault(diagnosis.type, []).append(evidence.step * TOKENS_PER_STEP / 1e12)
    assert STAGE_2 < at["Forgetting"][0] < STAGE_2 + 0.035 and at["Forgetting"][-1] == pytest.approx(END, abs=5e-3)
    assert STAGE_2 < at["DomainsDiverging"][0] < STAGE_2 + 0.08
    assert at.keys() == {"Forgetting", "DomainsDiverging"}


@pytest.mark.full
@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(("noise", "common"), [(0.003, 0.002), (0.006, 0.004), (0.01, 0.006)])
def test_noise_of_any_seed_makes_no_false_alarm(noise: float, common: float, seed: int) -> None:
    every = 0.008
    healthy = Replay(
        seed=seed, noise=noise, common_noise=common, losses=unsaturated, train=beside(unsaturated), every=every
    )
    assert told(healthy, CURVE_DETECTORS) == {}
    seen = told(Replay(seed=seed, noise=noise, common_noise=common, every=every), CURVE_DETECTORS)
    assert seen.keys() <= {"Plateau", "GapGrowing"} and min(min(at) for at in seen.values()) > 2.2


@pytest.mark.full
def test_validating_every_2_g_tokens_tells_the_same() -> None:
    seen = told(Replay(every=0.002), CURVE_DETECTORS)
    assert seen.keys() == {"Plateau", "GapGrowing"}
    assert all(2.3 < at[0] < 2.9 and at[-1] == pytest.approx(STAGE_2, abs=0.012) for at in seen.values())
