"""Domains that are not measured are named, with the reason."""

import math

import pytest
from skywork_trainer.config import CurvePoint
from skywork_trainer.diagnosis.validation_incomplete import validation_incomplete

from tests.unit.diagnosis.curves import evidence, verdict

DOMAINS = ("code", "web", "papers")


def points(*measured: tuple[str, ...]) -> tuple[CurvePoint, ...]:
    return tuple(
        CurvePoint(step=100 * index, stage="first", losses=dict.fromkeys(names, 2.0))
        for index, names in enumerate(measured)
    )


def test_all_measured_is_complete() -> None:
    found = validation_incomplete(evidence(points(DOMAINS, DOMAINS), domains=DOMAINS))
    assert found is not None and not found.found and found.message == "All 3 domains were measured."


def test_before_the_first_validation_it_says_nothing() -> None:
    assert validation_incomplete(evidence(domains=DOMAINS)) is None


@pytest.mark.parametrize(
    ("changed", "reason", "words"),
    [
        ({"unmeasured": {"web": "NoSuchKey"}}, "DomainUnreadable", "web (NoSuchKey) cannot be measured. Put"),
        ({"cut": ("web", "code")}, "TimeBudget", "code, web were cut by validation.timeBudget. Raise"),
        ({"cut": ("web",), "unmeasured": {"code": "gone"}}, "DomainUnreadable", "web were cut"),
    ],
)
def test_the_reason_is_told_and_what_to_do(changed: dict[str, object], reason: str, words: str) -> None:
    found = validation_incomplete(evidence(points(DOMAINS), domains=DOMAINS, **changed))
    assert found is not None and found.found and found.reason == reason and words in found.message


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf, 1e300])
def test_a_loss_that_is_no_number_was_not_measured(loss: float) -> None:
    point = CurvePoint(step=1, stage="first", losses={"code": 1.0, "web": loss})
    found = validation_incomplete(evidence((point,), domains=("code", "web")))
    assert found is not None and found.reason == "NotFinite" and found.message.startswith("web have")


def test_it_ends_after_three_whole_validations() -> None:
    whole, part = DOMAINS, ("code", "papers")
    history = points(whole, part, whole, whole, whole, part)
    verdicts = [
        verdict(validation_incomplete(evidence(history[:n], domains=DOMAINS))) for n in range(1, len(history) + 1)
    ]
    assert verdicts == [False, True, True, True, False, True]


def test_an_unreadable_domain_is_told_before_anything_was_measured() -> None:
    assert verdict(validation_incomplete(evidence(domains=DOMAINS, unmeasured={"web": "gone"}))) is True
