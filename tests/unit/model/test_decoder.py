"""The decoder is causal, drawn alike everywhere, and counts its loss right."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from skywork_trainer.config import ActivationCheckpointing, Model
from skywork_trainer.engine import decay_groups, shares
from skywork_trainer.model import Decoder, decoder, initialise
from skywork_trainer.model.documents import positions
from torch.utils._python_dispatch import TorchDispatchMode

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


@given(st.lists(st.integers(1, 7), min_size=1, max_size=5), st.integers(0, 5))
def test_documents_that_attend_within_themselves_lose_as_much_packed_as_alone(lengths: list[int], rest: int) -> None:
    end = 255
    made = Decoder(MODEL, end_of_text=end)
    initialise(made, 0)
    generator = torch.Generator().manual_seed(rest)
    documents = [torch.randint(0, end, (length,), generator=generator) for length in lengths]
    # Every document after the end-of-text token of the one before; `rest` tokens of a cut one lead.
    alone = [torch.cat((torch.tensor([end]), document, torch.tensor([end]))) for document in documents]
    cut = torch.randint(0, end, (rest,), generator=generator)
    packed = torch.cat([cut, *(document[:-1] for document in alone), torch.tensor([end])])

    def nll(tokens_S: torch.Tensor) -> torch.Tensor:
        return made(tokens_S.unsqueeze(0), torch.ones(1, len(tokens_S) - 1))[0]

    expected = sum(nll(document) for document in alone) + (nll(torch.cat((cut, torch.tensor([end])))) if rest else 0)
    assert torch.allclose(nll(packed), torch.as_tensor(expected), rtol=1e-5)


def test_positions_start_anew_with_every_end_of_text_token() -> None:
    tokens_BT = torch.tensor([[5, 9, 6, 7, 9, 9, 8], [9, 5, 6, 7, 8, 5, 6]])
    assert positions(tokens_BT, 9).tolist() == [[0, 0, 1, 2, 0, 0, 1], [0, 1, 2, 3, 4, 5, 6]]


def test_without_the_option_documents_see_those_before_them(model: Decoder) -> None:
    within = Decoder(MODEL, end_of_text=7)
    initialise(within, 0)
    tokens_BT = torch.tensor([[5, 6, 7, 8, 9]])
    other_BT = torch.tensor([[4, 3, 7, 8, 9]])
    assert torch.allclose(within.hidden(tokens_BT)[:, 2:], within.hidden(other_BT)[:, 2:], atol=1e-6)
    assert not torch.allclose(model.hidden(tokens_BT)[:, 2:], model.hidden(other_BT)[:, 2:], atol=1e-6)


class Products(TorchDispatchMode):
    """Counts matrix products."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten.mm.default
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("recompute", [ActivationCheckpointing.SELECTIVE, ActivationCheckpointing.FULL])
@pytest.mark.parametrize("end_of_text", [None, 7])
def test_what_is_computed_again_changes_no_bit_of_loss_or_gradient(
    recompute: ActivationCheckpointing, end_of_text: int | None
) -> None:
    def gradients(kind: ActivationCheckpointing) -> tuple[list[torch.Tensor], int]:
        made = Decoder(MODEL, end_of_text=end_of_text, recompute=kind)
        initialise(made, 0)
        with Products() as products:
            loss = made(tokens(), torch.ones(3, 16)).sum()
            loss.backward()
        return [loss, *(p.grad for p in made.parameters() if p.grad is not None)], products.count

    plain, products = gradients(ActivationCheckpointing.NONE)
    again, more_products = gradients(recompute)
    assert len(plain) == len(again)
    assert all(torch.equal(a, b) for a, b in zip(plain, again, strict=True))
    # Attention has four matrices, the feed-forward three; what the last one gives nobody needs again.
    assert more_products - products == (6 * MODEL.layers if recompute is ActivationCheckpointing.FULL else 0)
