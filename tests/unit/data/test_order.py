from hypothesis import given, settings
from hypothesis import strategies as st
from skywork_trainer.data.order import BLOCK_SEQUENCES, Order, permute

keys = st.integers(0, 2**64 - 1)


@given(size=st.integers(1, 700), key=keys)
@settings(max_examples=60)
def test_a_key_permutes_any_number_of_things(size: int, key: int) -> None:
    assert sorted(permute(i, size, key) for i in range(size)) == list(range(size))


@given(size=st.integers(1, 1300), seed=st.integers(0, 99))
@settings(max_examples=25)
def test_every_epoch_draws_every_sequence_once(size: int, seed: int) -> None:
    order = Order(seed=seed, source="main", size=size)
    for epoch in range(2):
        located = [order.locate(epoch * size + i) for i in range(size)]
        assert {found for found, _ in located} == {epoch}
        assert sorted(sequence for _, sequence in located) == list(range(size))


def test_epochs_seeds_and_sources_have_orders_of_their_own() -> None:
    def first(seed: int, source: str, epoch: int) -> tuple[int, ...]:
        order = Order(seed=seed, source=source, size=1000)
        return tuple(order.locate(epoch * 1000 + i)[1] for i in range(1000))

    assert len({first(0, "a", 0), first(0, "a", 1), first(1, "a", 0), first(0, "b", 0)}) == 4
    assert first(0, "a", 1) == first(0, "a", 1)


def test_neighbouring_draws_of_a_large_source_stay_in_one_block_so_that_a_fetched_shard_is_used() -> None:
    order = Order(seed=3, source="main", size=BLOCK_SEQUENCES * 4096)
    blocks = [order.locate(i)[1] // BLOCK_SEQUENCES for i in range(BLOCK_SEQUENCES * 2)]
    assert len(set(blocks[:BLOCK_SEQUENCES])) == 1
    assert len(set(blocks)) == 2


def test_neighbouring_draws_of_a_small_source_come_from_all_over_it_so_that_a_batch_is_mixed() -> None:
    order = Order(seed=3, source="main", size=20_000)
    tenths = {order.locate(i)[1] // 2000 for i in range(100)}
    assert len(tenths) == 10


def test_the_order_of_a_seed_never_changes_between_releases() -> None:
    order = Order(seed=0, source="main", size=1000)
    assert [order.locate(i)[1] for i in range(6)] == [243, 53, 938, 746, 930, 527]
