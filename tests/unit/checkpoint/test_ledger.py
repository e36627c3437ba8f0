"""What a ledger keeps is what no committed checkpoint holds yet."""

from skywork_trainer.checkpoint.ledger import Ledger
from skywork_trainer.curve import EventRecord


def event(step: int) -> EventRecord:
    return EventRecord(step=step, time=0.0, reason="Spike", message="")


def test_records_are_kept_until_the_save_that_took_them_is_committed_and_later_ones_beyond() -> None:
    ledger = Ledger()
    for step in (1, 2):
        ledger.note(event(step))
    assert ledger.records(2) == [event(1), event(2)]
    # While that save is under way, at its very step and behind it.
    ledger.note(event(2))
    ledger.note(event(3))
    ledger.committed("id", 2)
    assert ledger.records(3) == [event(2), event(3)]


def test_a_save_that_came_to_nothing_leaves_its_records_to_the_next() -> None:
    ledger = Ledger()
    ledger.note(event(1))
    assert ledger.records(1) == [event(1)]
    ledger.note(event(2))
    assert ledger.records(2) == [event(1), event(2)]
    ledger.committed("id", 2)
    assert ledger.records(3) == []
