"""State that ZeRO stage a holds on n ranks is what stage b holds on m ranks; training goes on as if nothing were."""

import json
from pathlib import Path

import pytest
from skywork_trainer.config import RunConfig

from tests.unit.engine.ranks import Rank, config_of, joined
from tests.unit.train.world import done, start

Layout = tuple[int, int]
"""ZeRO stage and number of ranks."""
BEFORE, AFTER = range(3), range(3, 13)
TOLERANCE = 2e-5
"""Relative: sums over other numbers of ranks are rounded in another order, and Adam carries that on for ten steps."""
SAMPLE = ([(0, 2), (1, 3), (2, 2), (3, 1), (3, 3)], [(0, 1), (1, 2), (2, 3), (3, 2), (3, 5)])
ALL = [(stage, size) for stage in range(4) for size in range(1, 6)]


def _name(layout: Layout) -> str:
    return f"zero{layout[0]}-on-{layout[1]}"


def _train(rank: int, size: int, port: int, config: RunConfig, folder: Path, name: str, bf16: bool) -> None:
    """Train three steps, keep the state, train ten more and keep their losses."""
    import torch
    from skywork_trainer.model import InitialWeights

    with joined(folder, rank, size, port) as world:
        trained = Rank(config, world, bf16=bf16)
        initial = InitialWeights(config.model, config.seed)
        for fragment in trained.engine.fragments():
            span = fragment.span
            assert torch.equal(fragment.master, initial.draw(span.name, span.start, span.length)), span
        trained.train(BEFORE)
        state = [(f.span, [array.clone() for array in f.arrays()]) for f in trained.engine.fragments()]
        torch.save(state, folder / f"{name}.{rank}.pt")
        losses = trained.train(AFTER)
        (folder / f"{name}.json").write_text(json.dumps(losses))


def _go_on(
    rank: int, size: int, port: int, config: RunConfig, folder: Path, sources: list[Layout], own: str, bf16: bool
) -> None:
    """Take over the state of each source in turn, compare it bit by bit, and train the ten steps."""
    import torch
    from skywork_trainer.engine import Span

    with joined(folder, rank, size, port) as world:
        taking = Rank(config, world, bf16=bf16)
        told = {}
        for source in sources:
            whole = _whole(folder, source)

            def read(span: Span, whole: dict[str, list[torch.Tensor]] = whole) -> tuple[torch.Tensor, ...]:
                return tuple(array[span.start : span.start + span.length] for array in whole[span.name])

            taking.engine.load_fragments(read, optimizer_step=len(BEFORE))  # type: ignore[arg-type]
            fragments = taking.engine.fragments()
            for fragment in fragments:
                for ours, theirs in zip(fragment.arrays(), read(fragment.span), strict=True):
                    assert torch.equal(ours, theirs), (source, fragment.span)
            assert taking.engine.optimizer_step == len(BEFORE)
            spans = [(f.span.name, f.span.start, f.span.length) for f in fragments]
            told[_name(source)] = {"losses": taking.train(AFTER), "spans": spans}
        (folder / f"{own}.{rank}.told.json").write_text(json.dumps(told))


def _whole(folder: Path, source: Layout) -> dict:  # type: ignore[type-arg]
    """Put a source's state together from its ranks' files, each element exactly once."""
    import torch

    parts = [
        part
        for rank in range(source[1])
        for part in torch.load(folder / f"{_name(source)}.{rank}.pt", weights_only=False)
    ]
    whole: dict[str, list[torch.Tensor]] = {}
    for span, arrays in sorted(parts, key=lambda part: (part[0].name, part[0].start)):
        known = whole.setdefault(span.name, [torch.empty(0)] * 3)
        assert len(known[0]) == span.start, f"{span} is not where the one before it ends"
        whole[span.name] = [torch.cat(pair) for pair in zip(known, arrays, strict=True)]
    return whole


def reshard(folder: Path, sources: list[Layout], targets: list[Layout], *, bf16: bool = False) -> None:
    """Train in every source's world, go on from each of them in every target's; each world starts once."""
    for stage, size in sources:
        ranks = start(_train, size, config_of(folder, stage), folder, _name((stage, size)), bf16)
        assert ranks.codes() == done(size), (stage, size)
    for target in targets:
        stage, size = target
        own = f"to-{_name(target)}"
        ranks = start(_go_on, size, config_of(folder, stage), folder, sources, own, bf16)
        assert ranks.codes() == done(size), target
        told = [json.loads((folder / f"{own}.{rank}.told.json").read_text()) for rank in range(size)]
        for source in map(_name, sources):
            uninterrupted = json.loads((folder / f"{source}.json").read_text())
            tolerance = TOLERANCE if not bf16 else 5e-3
            assert told[0][source]["losses"] == pytest.approx(uninterrupted, rel=tolerance), (source, target)
            _covered_once([span for rank in told for span in rank[source]["spans"]])


def _covered_once(spans: list[tuple[str, int, int]]) -> None:
    from skywork_trainer.model import Decoder

    from tests.unit.train.world import MODEL

    lengths = {name: parameter.numel() for name, parameter in Decoder(MODEL).named_parameters()}
    ends = dict.fromkeys(lengths, 0)
    for name, begin, length in sorted(spans):
        assert ends[name] == begin, name
        ends[name] += length
    assert ends == lengths


def test_state_moves_between_stages_and_worlds_bit_for_bit_and_the_losses_go_on(tmp_path: Path) -> None:
    reshard(tmp_path, *SAMPLE)


def test_bf16_worlds_hand_their_fp32_masters_on(tmp_path: Path) -> None:
    reshard(tmp_path, [(1, 2), (3, 2)], [(2, 1), (3, 3)], bf16=True)


@pytest.mark.full
@pytest.mark.parametrize("bf16", [False, True])
def test_state_moves_from_every_stage_on_one_to_five_ranks_to_every_other(tmp_path: Path, bf16: bool) -> None:
    layouts = [layout for layout in ALL if layout[0] or not bf16]
    reshard(tmp_path, layouts, layouts, bf16=bf16)
