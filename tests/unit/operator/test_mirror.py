"""What is known of a run's objects between two lists: however lists and events cross, it ends up as the truth."""

from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from skywork_operator.mirror import Mirror

from tests.unit.operator.build import Clock

KEY = ("research", "demo")


def body(uid: str, version: int) -> dict[str, Any]:
    return {"metadata": {"uid": uid, "resourceVersion": str(version)}}


def text(body: Mapping[str, Any]) -> str:
    return f"{body['metadata']['uid']}@{body['metadata']['resourceVersion']}"


@pytest.fixture
def mirror(clock: Clock) -> Mirror[str]:
    return Mirror(text, clock)


def listed(mirror: Mirror[str], version: int, *bodies: dict[str, Any]) -> list[str]:
    return mirror.listed(KEY, bodies, version=version, began=mirror.begin(KEY))


def known(mirror: Mirror[str]) -> list[str] | None:
    found = mirror.known(KEY, within_seconds=5.0)
    return sorted(found) if found is not None else None


def test_nothing_is_known_of_a_run_that_was_never_listed(mirror: Mirror[str]) -> None:
    mirror.hear(KEY, body("a", 1))
    assert known(mirror) is None


def test_a_list_serves_until_it_is_too_old_even_while_events_come(mirror: Mirror[str], clock: Clock) -> None:
    listed(mirror, 1, body("a", 1))
    clock.now += 4.9
    mirror.hear(KEY, body("a", 2))
    assert known(mirror) == ["a@2"]
    clock.now += 0.2
    mirror.hear(KEY, body("a", 3))
    assert known(mirror) is None
    assert mirror.known(KEY, within_seconds=60) == ["a@3"], "where runs are many, lists serve longer"


def test_a_list_is_as_old_as_its_beginning(mirror: Mirror[str], clock: Clock) -> None:
    began = mirror.begin(KEY)
    clock.now += 5.0
    mirror.listed(KEY, [body("a", 1)], version=1, began=began)
    assert known(mirror) is None


def test_an_object_is_not_taken_back_by_an_older_event(mirror: Mirror[str]) -> None:
    listed(mirror, 9, body("a", 9))
    mirror.hear(KEY, body("a", 5))
    assert known(mirror) == ["a@9"]


def test_what_an_event_told_while_a_list_was_on_its_way_is_not_taken_back(mirror: Mirror[str]) -> None:
    began = mirror.begin(KEY)
    mirror.hear(KEY, body("new", 11))
    mirror.hear(KEY, body("gone", 12), gone=True)
    mirror.listed(KEY, [body("gone", 3), body("old", 4), body("new", 9)], version=10, began=began)
    assert known(mirror) == ["new@11", "old@4"]


def test_what_an_event_told_late_does_not_stand_against_a_list(mirror: Mirror[str]) -> None:
    began = mirror.begin(KEY)
    mirror.hear(KEY, body("changed", 5))
    mirror.hear(KEY, body("deleted", 6))
    mirror.listed(KEY, [body("changed", 9)], version=10, began=began)
    assert known(mirror) == ["changed@9"]


def test_an_answer_that_comes_behind_the_deletion_does_not_bring_an_object_back(mirror: Mirror[str]) -> None:
    listed(mirror, 5, body("a", 5))
    mirror.hear(KEY, body("a", 7), gone=True)
    mirror.hear(KEY, body("a", 6))
    assert known(mirror) == []


def test_a_deletion_that_no_event_told_of_is_seen_by_the_next_list(mirror: Mirror[str]) -> None:
    listed(mirror, 2, body("a", 1), body("b", 2))
    listed(mirror, 9, body("b", 2))
    assert known(mirror) == ["b@2"]


def test_after_the_server_was_restored_from_a_backup_the_next_list_holds(mirror: Mirror[str]) -> None:
    listed(mirror, 90, body("a", 80), body("b", 90))
    mirror.hear(KEY, body("b", 95))
    assert listed(mirror, 20, body("b", 15)) == ["b@15"]


def test_a_run_that_was_forgotten_has_to_be_listed(mirror: Mirror[str]) -> None:
    listed(mirror, 1, body("a", 1))
    mirror.forget(KEY)
    assert known(mirror) is None
    mirror.hear(KEY, body("a", 2))
    assert known(mirror) is None


class Truth:
    """A server: objects with versions, lists as of one moment, and events that arrive late, each object's in order."""

    def __init__(self) -> None:
        self.objects: dict[str, int] = {}
        self.version = 0
        self.coming: dict[str, list[tuple[dict[str, Any], bool]]] = {}

    def change(self, uid: str) -> None:
        self.version += 1
        self.objects[uid] = self.version
        self.coming.setdefault(uid, []).append((body(uid, self.version), False))

    def delete(self, uid: str) -> None:
        if uid in self.objects:
            del self.objects[uid]
            self.version += 1
            self.coming[uid].append((body(uid, self.version), True))


STEPS = st.lists(st.tuples(st.sampled_from(["change", "delete", "event", "lose", "ask", "answer"]), st.integers(0, 3)))


@given(STEPS)
def test_once_all_is_told_or_listed_again_the_truth_is_known(steps: list[tuple[str, int]]) -> None:
    mirror: Mirror[str] = Mirror(text, lambda: 0.0)
    truth, lives = Truth(), [0, 0, 0, 0]
    asked: tuple[float, int, list[dict[str, Any]]] | None = None
    lost = False
    listed(mirror, 0)
    for what, number in steps:
        uid = f"{number}-{lives[number]}"
        if what == "change":
            truth.change(uid)
        elif what == "delete":
            # What is made under that name again is another object.
            lives[number] += uid in truth.objects
            truth.delete(uid)
        elif what in ("event", "lose"):
            waiting = [events for events in truth.coming.values() if events]
            if waiting:
                told, gone = waiting[number % len(waiting)].pop(0)
                lost = lost or what == "lose"
                if what == "event":
                    mirror.hear(KEY, told, gone=gone)
        elif what == "ask" and asked is None:
            asked = mirror.begin(KEY), truth.version, [body(u, v) for u, v in truth.objects.items()]
            lost = False
        elif what == "answer" and asked is not None:
            mirror.listed(KEY, asked[2], version=asked[1], began=asked[0])
            asked = None
    if asked is not None:
        mirror.listed(KEY, asked[2], version=asked[1], began=asked[0])
    for events in truth.coming.values():
        for told, gone in events:
            mirror.hear(KEY, told, gone=gone)
    if lost:
        listed(mirror, truth.version, *(body(u, v) for u, v in truth.objects.items()))
    assert known(mirror) == sorted(f"{uid}@{version}" for uid, version in truth.objects.items())
