"""The decoder is causal, drawn alike everywhere, and counts its loss right."""

import pytest
import torch
import torch.nn.functional as F
from skywork_trainer.config import Model
from skywork_trainer.engine import decay_groups, shares
from skywork_trainer.model import Decoder, decoder, initialise

MODEL = Model(layers=2, hidden=32, heads=4, kv_heads=2, ffn=48, vocab_size=256, init_std=0.02)


@pytest.fixture
def model() -> Decoder:
    made = Decoder(MODEL)
    initialise(made, 0)
    return made


def tokens(count: int = 3) -> torch.Tensor:
    return torch.randint(0, 256, (count, 17), generator=torch.Generator().manual_seed(1))


def test_a_position_sees_nothing_that_comes_after_it(model: Decoder) -> None:
    one_BT = tokens(1)
    two_BT = one_BT.clone()
    two_BT[:, 9:] = 0
    assert torch.equal(model.hidden(one_BT)[:, :9], model.hidden(two_BT)[:, :9])
    assert not torch.equal(model.hidden(one_BT)[:, 9:], model.hidden(two_BT)[:, 9:])


def test_order_matters_to_attention(model: Decoder) -> None:
    # Only the rotary angles tell positions apart: without them a set of earlier tokens would do.
    one_BT = torch.tensor([[5, 6, 7, 8]])
    two_BT = torch.tensor([[7, 5, 6, 8]])
    assert not torch.allclose(model.hidden(one_BT)[:, -1], model.hidden(two_BT)[:, -1], atol=1e-6)


def test_the_loss_is_the_sum_over_valid_targets_of_each_sequence(model: Decoder) -> None:
    tokens_BS, valid_BT = tokens(), torch.ones(3, 16)
    valid_BT[1, 5:] = 0
    valid_BT[2] = 0
    logits_BTV = model.head(model.hidden(tokens_BS[:, :-1]))
    nll_BT = F.cross_entropy(logits_BTV.transpose(1, 2), tokens_BS[:, 1:], reduction="none")
    expected = torch.stack([nll_BT[0].sum(), nll_BT[1, :5].sum(), torch.tensor(0.0)])
    assert torch.allclose(model(tokens_BS, valid_BT), expected, rtol=1e-5)


def test_chunks_of_positions_change_neither_loss_nor_gradient(model: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    def gradients() -> list[torch.Tensor]:
        model.zero_grad()
        loss = model(tokens(), torch.ones(3, 16)).sum()
        loss.backward()
        return [loss.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]

    whole = gradients()
    monkeypatch.setattr(decoder, "_LOSS_CHUNK_POSITIONS", 7)
    for a, b in zip(whole, gradients(), strict=True):
        assert torch.allclose(a, b, atol=1e-5)


def test_the_same_seed_draws_the_same_weights_and_gains_are_one(model: Decoder) -> None:
    again, other = Decoder(MODEL), Decoder(MODEL)
    torch.rand(3)  # the global generator takes no part
    initialise(again, 0)
    initialise(other, 1)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    assert not torch.equal(model.head.weight, other.head.weight)
    assert float(model.head.weight.detach().std()) == pytest.approx(MODEL.init_std, rel=0.05)
    assert torch.equal(model.norm.weight, torch.ones(32))


def test_the_head_is_not_tied_to_the_embedding(model: Decoder) -> None:
    assert model.head.weight is not model.embedding.weight
    assert not torch.equal(model.head.weight, model.embedding.weight)


def test_only_matrices_decay(model: Decoder) -> None:
    matrices, gains = decay_groups(model, 0.1)
    assert matrices["weight_decay"] == 0.1
    assert gains["weight_decay"] == 0.0
    assert len(gains["params"]) == 2 * MODEL.layers + 1  # type: ignore[arg-type]


@pytest.mark.parametrize("world", [1, 2, 3, 7])
def test_shares_cover_every_element_once(model: Decoder, world: int) -> None:
    spans = sorted((s.name, s.start, s.length) for rank in range(world) for s in shares(model, rank=rank, world=world))
    for name, parameter in model.named_parameters():
        position = 0
        for _, start, length in (s for s in spans if s[0] == name):
            assert start == position
            position += length
        assert position == parameter.numel()
