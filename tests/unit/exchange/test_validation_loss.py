"""The loss of a held-out domain is the one that anybody would compute: by hand, and by transformers on the export.

The script that the Skywork report published had three bugs that shifted it: the mask was off by one, so that padding
leaked in; tokens were counted one too many a row; and padding lay on the wrong side.
"""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from skywork_trainer import cli
from skywork_trainer.collectives import World
from skywork_trainer.config import DomainLoss
from skywork_trainer.model import Decoder
from skywork_trainer.tokenizer import LoadedTokenizer
from skywork_trainer.validation import validate
from skywork_trainer.windows import Windows
from transformers import AutoModelForCausalLM

from tests.unit.exchange.building import MHA, VOCABULARY, configured, saved, trained

LENGTH = 16


def windows(lengths: list[int], *, filler: int = 0, seed: int = 3) -> Windows:
    """Windows with so many targets each, short ones filled up on the right."""
    generator = np.random.default_rng(seed)
    tokens = np.full((len(lengths), LENGTH + 1), filler, dtype=np.int64)
    valid = np.zeros((len(lengths), LENGTH), dtype=np.bool_)
    for row, length in enumerate(lengths):
        tokens[row, : length + 1] = generator.integers(0, VOCABULARY, length + 1)
        valid[row, :length] = True
    return Windows("web", tokens, valid)


def measured(module: Decoder, domain: Windows) -> DomainLoss:
    losses = validate(module, [domain], step=7, world=World())
    assert losses is not None
    return losses[0]


def by_hand(logits: "npt.NDArray[np.float64]", domain: Windows) -> tuple[float, int]:
    """Total negative log-likelihood and count, target by target."""
    total, count = 0.0, 0
    for row, (tokens, valid) in enumerate(zip(domain.tokens_WS, domain.valid_WT, strict=True)):
        for place in range(LENGTH):
            if valid[place]:
                scores = logits[row, place]
                total += float(np.log(np.exp(scores - scores.max()).sum()) + scores.max() - scores[tokens[place + 1]])
                count += 1
    return total, count


@pytest.fixture(scope="module")
def module(tokenizer: LoadedTokenizer, tmp_path_factory: pytest.TempPathFactory) -> Decoder:
    return trained(configured(tmp_path_factory.mktemp("run"), MHA, tokenizer)).module


def _logits(model: object, domain: Windows) -> "npt.NDArray[np.float64]":
    tokens = torch.from_numpy(domain.tokens_WS[:, :-1])
    with torch.no_grad():
        return model(tokens).logits.double().numpy()  # type: ignore[operator, no-any-return]


@pytest.mark.parametrize("lengths", [[16, 16], [16, 3, 1], [1], [16, 9, 16, 2, 16, 16]])
def test_transformers_on_the_exported_checkpoint_has_the_same_loss(
    tmp_path: Path, tokenizer: LoadedTokenizer, lengths: list[int]
) -> None:
    config = configured(tmp_path, MHA, tokenizer)
    engine = trained(config)
    saved(config, engine, tokenizer)
    arguments = ["checkpoints", "export", config.checkpoints.uri, "--tokenizer", config.tokenizer_uri]
    assert cli.main([*arguments, "--output", str(tmp_path / "out"), "--dtype", "fp32"]) == 0
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    domain = windows(lengths)
    total, count = by_hand(_logits(theirs, domain), domain)
    ours = measured(engine.module, domain)
    assert ours.tokens == count == sum(lengths)
    assert ours.loss == pytest.approx(total / count, abs=1e-3)
    assert ours.nll == pytest.approx(total, rel=1e-4)


def test_what_a_short_window_is_filled_up_with_does_not_matter(module: Decoder) -> None:
    lengths = [16, 5, 1]
    assert measured(module, windows(lengths, filler=0)) == measured(module, windows(lengths, filler=VOCABULARY - 1))


def test_the_first_token_of_a_window_is_predicted_by_nothing_and_the_last_one_is_a_target(module: Decoder) -> None:
    domain = windows([16])
    first, last = domain.tokens_WS.copy(), domain.tokens_WS.copy()
    last[0, -1] = (last[0, -1] + 1) % VOCABULARY
    changed = measured(module, Windows("web", last, domain.valid_WT))
    whole = measured(module, domain)
    assert changed.tokens == whole.tokens == 16
    assert changed.loss != whole.loss
    # All but the last target's loss is the same, so the difference is that of one target alone.
    without = domain.valid_WT.copy()
    without[0, -1] = False
    rest = measured(module, Windows("web", first, without))
    assert rest.tokens == 15
    assert rest.nll < whole.nll


def test_every_target_counts_once_however_windows_are_dealt_into_batches(module: Decoder) -> None:
    domain = windows([16, 2, 7, 16, 1, 3, 16])
    alone = [
        measured(module, Windows("web", domain.tokens_WS[row : row + 1], domain.valid_WT[row : row + 1]))
        for row in range(7)
    ]
    together = measured(module, domain)
    assert together.tokens == sum(one.tokens for one in alone)
    assert together.nll == pytest.approx(sum(one.nll for one in alone), rel=1e-6)
