"""The check before a generation finds the broken node, on tables of reports and on real ranks."""

import json
from pathlib import Path

import pytest
from skywork_trainer.config import EXIT_DONE, NODE_CHECK_FAILED, PEER_LOST, Failure
from skywork_trainer.node_check import Exchange, Report, partners, verdict

from tests.unit.train.world import place, start


@pytest.mark.parametrize("nodes", range(1, 14))
def test_in_both_rounds_pairs_are_pairs_and_neighbours_change(nodes: int) -> None:
    met = [partners(node, nodes) for node in range(nodes)]
    for number in (0, 1):
        for node in range(nodes):
            partner = met[node][number]
            assert partner is None or (partner != node and met[partner][number] == node)
    lonely = [sum(partner is None for partner in both) for both in met]
    assert all(first is None or first != second for first, second in met)
    assert max(lonely) <= (1 if nodes > 1 else 2), "every node meets somebody"
    assert sum(lonely) <= 2


def reports(size: int, broken: set[int], *, links: set[frozenset[int]] | None = None) -> dict[int, Report]:
    """What ranks of one a node find when some cannot be talked to, and some links do not work."""

    def exchange(rank: int, partner: int) -> Exchange:
        fails = {rank, partner} & broken or frozenset((rank, partner)) in (links or set())
        return Exchange(partner, None if fails else 0.01)

    return {
        rank: Report("cpu", 0.01, 42.0, tuple(exchange(rank, p) for p in partners(rank, size) if p is not None))
        for rank in range(size)
    }


@pytest.mark.parametrize("size", [3, 4, 5, 8, 9])
def test_any_one_broken_node_is_found_and_no_other(size: int) -> None:
    for broken in range(size):
        found = verdict(reports(size, {broken}), size)
        assert set(found) == {broken}, (size, broken)
        assert "could not exchange with rank" in found[broken]


def test_two_broken_nodes_far_from_each_other_are_both_found() -> None:
    assert set(verdict(reports(9, {1, 6}), 9)) == {1, 6}


def test_a_broken_link_is_nobodys_fault() -> None:
    assert verdict(reports(6, set(), links={frozenset((2, 3))}), 6) == {}


def test_of_two_nodes_nobody_can_tell_which_is_broken() -> None:
    assert verdict(reports(2, {0}), 2) == {}


def test_all_well_is_nobody() -> None:
    assert verdict(reports(7, set()), 7) == {}


def changed(size: int, rank: int, **fields: object) -> dict[int, Report]:
    found = reports(size, set())
    return {**found, rank: Report(**{**found[rank].__dict__, **fields})}  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        pytest.param({"checksum": 43.0}, "computes wrongly: a product's sum is 43.0, the others' is 42.0", id="wrong"),
        pytest.param({"product_seconds": 0.05}, "computes slowly: a product takes 0.05 s", id="slow"),
        pytest.param({"exchanges": (Exchange(0, 9.0), Exchange(2, 9.0))}, "could not exchange", id="slow links"),
        pytest.param(
            {"exchanges": (Exchange(0, 0.01, False), Exchange(2, 0.01, False))}, "could not exchange", id="wrong sums"
        ),
        pytest.param({"device": "other", "product_seconds": 9.0, "checksum": 1.0}, "", id="another kind of machine"),
    ],
)
def test_what_a_node_does_itself_is_compared_with_the_others_of_its_kind(fields: dict[str, object], said: str) -> None:
    found = verdict(changed(6, 1, **fields), 6)
    assert set(found) == ({1} if said else set())
    assert found.get(1, "").startswith(said)


def test_a_node_that_says_nothing_is_broken_and_its_neighbours_are_not() -> None:
    found = reports(5, {3})
    del found[3]
    assert verdict(found, 5) == {3: "said nothing"}


def check(rank: int, size: int, port: int, folder: Path, fault: str) -> int:
    """One rank joins its group with a check, rank 2 with a fault."""
    from skywork_trainer import node_check, worker

    node_check.LIMIT_SECONDS = 8.0
    if rank == 2 and fault == "wrong":
        multiply = node_check._multiply
        node_check._multiply = lambda device: (multiply(device)[0], 1.0)
    if rank == 2 and fault == "deaf":
        node_check._exchange = lambda world, partner, store, until: Exchange(partner, None)
    own = place(folder, rank=rank, size=size, port=port, generation=1).model_copy(
        update={"check": True, "local_rank": 0, "local_world_size": 1, "state_dir": folder / str(rank)}
    )
    try:
        with worker.process_group(own):
            return EXIT_DONE
    except Exception as error:
        return worker._fail(error, own)


def failures(folder: Path, size: int) -> list[Failure]:
    return [Failure.model_validate(json.loads((folder / str(r) / "failure-0.json").read_bytes())) for r in range(size)]


def test_ranks_that_are_well_go_on_to_train(tmp_path: Path) -> None:
    assert start(check, 5, tmp_path, "").codes() == [EXIT_DONE] * 5


def test_a_rank_that_computes_wrongly_fails_by_name_and_the_others_only_for_its_sake(tmp_path: Path) -> None:
    assert start(check, 4, tmp_path, "wrong").codes() == [1] * 4
    said = failures(tmp_path, 4)
    assert [failure.reason for failure in said] == [PEER_LOST, PEER_LOST, NODE_CHECK_FAILED, PEER_LOST]
    assert said[2].message.startswith("node check: rank 2 computes wrongly")
    assert all("rank 2 computes wrongly" in failure.message for failure in said)


def test_a_rank_that_nobody_can_talk_to_is_found_within_the_limits(tmp_path: Path) -> None:
    assert start(check, 4, tmp_path, "deaf").codes() == [1] * 4
    said = failures(tmp_path, 4)
    assert [failure.reason for failure in said] == [PEER_LOST, PEER_LOST, NODE_CHECK_FAILED, PEER_LOST]
