"""The average over domains is the report's, and odd losses are no errors."""

import math

import pytest
from skywork_trainer.perplexity import average_loss, average_perplexity, perplexity

# Skywork-13B report, Table 6: technology, movies, government, games, finance, general; the average it prints.
SKYWORK_13B = ((11.58, 21.84, 4.76, 17.28, 4.92, 6.82), 9.42)


def test_the_average_perplexity_is_the_one_that_the_report_prints() -> None:
    perplexities, printed = SKYWORK_13B
    losses = [math.log(value) for value in perplexities]
    assert average_perplexity(losses) == pytest.approx(printed, abs=0.005)
    assert perplexity(average_loss(losses)) == average_perplexity(losses)


def test_it_is_not_the_mean_of_the_perplexities() -> None:
    perplexities, printed = SKYWORK_13B
    assert sum(perplexities) / len(perplexities) > printed + 1


def test_domains_weigh_the_same_in_any_order() -> None:
    assert average_loss([1.0, 2.0, 6.0]) == average_loss([6.0, 1.0, 2.0]) == 3.0
    assert average_perplexity([1.5]) == perplexity(1.5)


@pytest.mark.parametrize(
    ("loss", "expected"), [(0.0, 1.0), (math.inf, math.inf), (1e9, math.inf), (-math.inf, 0.0), (math.log(2), 2.0)]
)
def test_the_perplexity_of_any_loss_is_a_number(loss: float, expected: float) -> None:
    assert perplexity(loss) == pytest.approx(expected)


def test_without_a_domain_or_with_one_that_diverged_there_is_no_average() -> None:
    assert math.isnan(average_loss([]))
    assert math.isnan(average_perplexity([]))
    assert math.isnan(average_perplexity([1.0, math.nan]))
