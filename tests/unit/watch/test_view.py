"""What a person is told of a run, whatever its operator knows to tell."""

import io
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from skywork_trainer.kubectl import ClusterError
from skywork_trainer.watch.asking import Snapshot, leading_pod
from skywork_trainer.watch.following import follow
from skywork_trainer.watch.frame import printed
from skywork_trainer.watch.lines import lines
from skywork_trainer.watch.view import View, sparkline, view

from tests.unit.watch.objects import EVENTS, NOW, PROGRESS, run


def seen(**status: Any) -> View:
    return view(Snapshot(run(**status), EVENTS, PROGRESS), now=NOW)


def condition(type: str, status: str, reason: str, message: str = "") -> dict[str, str]:
    return {"type": type, "status": status, "reason": reason, "message": message}


def drawn(told: View, width: int = 110) -> str:
    out = io.StringIO()
    printed(told, Console(file=out, width=width, force_terminal=False))
    return out.getvalue()


def test_a_run_that_trains_is_told_whole() -> None:
    told = seen()
    assert (told.name, told.state, told.why, told.ended) == ("research/skywork-13b", "Training", "", "")
    assert [(bar.label, bar.text) for bar in told.bars] == [
        ("stage stem (2 of 2)", "38.5%  50.0 G of 130 G tokens"),
        ("run", "97.4%  3.05 T of 3.13 T tokens"),
    ]
    facts = dict(told.facts)
    assert facts["throughput"] == "951 k tokens/s"
    assert (facts["MFU"], facts["goodput"]) == ("55.9%", "97.3%")
    assert facts["done in"].startswith("23 h 30 min (2025-11-25 ")
    assert facts["validation loss"] == "1.2932"
    assert facts["time"] == "train 97.3%, validate 1.7%, idle 1.0%"
    assert facts["nodes"] == "63 training, 63 ready, 64 asked for"
    assert facts["stragglers"] == "gpu-17 (1.31x)"
    assert facts["avoided nodes"] == "gpu-40"
    assert facts["restarts"] == "34 (NodeLost 8, Hang 3)"
    assert facts["last failure"] == "NodeLost 2 h ago: gpu-40 is gone"
    assert facts["last checkpoint"] == "step 181,980, 6 min ago"
    assert facts["gradient norm"] == "0.284"
    english, code = told.domains
    assert (english.loss, english.change, english.bits_per_byte) == ("1.7542", "+0.0291", "0.6172")
    assert (code.change, code.reference_loss) == ("−0.1213", "")
    assert english.curve == "▁▂▂▃▄▄▅▅▆▇▇█" and code.curve == english.curve[::-1]
    assert [kind for kind, _ in told.diagnoses] == ["Forgetting (GeneralDomainsRise)"]
    assert [(event.age, event.reason, event.warning) for event in told.events] == [
        ("2 h", "NodeLost", True),
        ("1 h 59 min", "Resumed", False),
    ]


@pytest.mark.parametrize(
    ("conditions", "why", "ended"),
    [
        ([condition("Running", "False", "Unschedulable", "0/3 nodes")], "Unschedulable: 0/3 nodes", ""),
        ([condition("Running", "False", "WaitingForQuota")], "WaitingForQuota", ""),
        (
            [condition("Accepted", "False", "InvalidSpec", "shares"), condition("Running", "False", "X")],
            "InvalidSpec: shares",
            "",
        ),
        (
            [condition("Running", "False", "Hang", "h"), condition("Failed", "True", "Hang", "for ever")],
            "Hang: for ever",
            "Failed",
        ),
        ([condition("Prepared", "False", "InProgress", "stem: 3 of 8")], "InProgress: stem: 3 of 8", ""),
        ([condition("Succeeded", "True", "AllStagesTrained", "")], "AllStagesTrained", "Succeeded"),
        ([condition("Suspended", "True", "Suspended", "spec.suspend")], "Suspended: spec.suspend", ""),
        ([condition("Failed", "False", "X"), condition("Running", "Unknown", "Y")], "", ""),
    ],
)
def test_the_condition_that_says_why_is_told(conditions: list[dict[str, str]], why: str, ended: str) -> None:
    told = seen(conditions=conditions)
    assert (told.why, told.ended) == (why, ended)


def test_a_condition_of_a_newer_operator_is_something_to_look_at() -> None:
    told = seen(conditions=[condition("Overheating", "True", "TooHot", "open a window")])
    assert told.diagnoses == (("Overheating (TooHot)", "open a window"),)


@pytest.mark.parametrize(
    ("fields", "left"),
    [
        ({"estimatedCompletion": None}, "23h30m"),
        ({"estimatedCompletion": None, "eta": None}, "about 23 h 22 min at this pace"),
        ({"estimatedCompletion": "soon", "eta": None, "tokensPerSecond": None}, None),
    ],
)
def test_the_end_is_told_as_well_as_it_is_known(fields: dict[str, Any], left: str | None) -> None:
    assert dict(seen(**fields).facts).get("done in") == left


def test_a_run_that_no_operator_has_seen_yet_has_a_frame() -> None:
    told = view(Snapshot({"metadata": {"name": "a"}, "spec": {}}), now=NOW)
    assert told.state == "Pending"
    assert "Pending" in drawn(told)


json_like = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@given(field=st.sampled_from(sorted(run()["status"])), value=json_like, at=st.sampled_from(["status", "inside"]))
def test_whatever_a_field_says_there_is_a_frame(field: str, value: Any, at: str) -> None:
    status = run()["status"]
    if at == "inside" and isinstance(status[field], list) and isinstance(status[field][0], dict):
        value = [dict.fromkeys(status[field][0], value)]
    assert drawn(seen(**{field: value}))


def test_no_message_moves_the_cursor() -> None:
    told = seen(conditions=[condition("Running", "False", "AppError", "bad \x1b[2J\x07 line\nnext")])
    assert told.why == "AppError: bad [2J line next"
    assert "[bold]" in drawn(seen(conditions=[condition("Running", "False", "X", "[bold]loud[/bold]")]))


def test_a_frame_fits_the_columns_it_is_given() -> None:
    for width in (60, 80, 120, 200):
        assert max(len(line) for line in drawn(seen(), width).splitlines()) <= width


@pytest.mark.parametrize(
    ("values", "bars"),
    [([], ""), ([1.0], ""), ([1.0, 1.0], "▁▁"), ([3.0, 2.0, 1.0], "█▅▁"), ([float("nan"), 1.0, 2.0], "▁█")],
)
def test_a_sparkline_shows_the_newest_values_between_their_extremes(values: list[float], bars: str) -> None:
    assert sparkline(values) == bars
    assert len(sparkline([*range(100)])) == 24


class TestLines:
    def test_the_first_look_tells_all(self) -> None:
        told = lines(None, seen())
        assert told[0] == "research/skywork-13b: Training"
        assert any("en-web 1.7542 (+0.0291)" in line for line in told)
        assert any(line.startswith("Forgetting") for line in told)

    def test_nothing_new_is_no_line(self) -> None:
        assert lines(seen(), seen(), progress=False) == []

    @pytest.mark.parametrize(
        ("change", "line"),
        [
            ({"state": "Degraded"}, "research/skywork-13b: Degraded"),
            ({"conditions": [condition("Plateau", "True", "Flat", "look")]}, "Plateau (Flat): look"),
            ({"validationLoss": [{"domain": "code", "loss": "0.7"}]}, "validation: code 0.7000 (−0.2535)"),
        ],
    )
    def test_what_changed_is_a_line(self, change: dict[str, Any], line: str) -> None:
        assert lines(seen(), seen(**change), progress=False) == [line]

    def test_a_new_event_is_a_line(self) -> None:
        event = {"reason": "Hang", "message": "rank 3", "lastTimestamp": "2025-11-24T15:59:00Z"}
        after = view(Snapshot(run(), (*EVENTS, event), PROGRESS), now=NOW)
        assert lines(seen(), after, progress=False) == ["Hang: rank 3"]


def pod(name: str, annotation: Any) -> dict[str, Any]:
    text = annotation if isinstance(annotation, str) else json.dumps(annotation)
    return {"metadata": {"name": name, "namespace": "n", "annotations": {"skywork.dev/membership": text}}}


def test_the_pod_that_leads_is_rank_0_of_the_newest_generation() -> None:
    pods = [
        pod("old", {"generation": 6, "role": "train", "rank": 0}),
        pod("other", {"generation": 7, "role": "train", "rank": 1}),
        # As the operator writes it: without what is so by default.
        pod("leads", {"generation": 7, "role": "train"}),
        pod("spare", {"generation": 8, "role": "standby", "rank": 0}),
        pod("damaged", "{"),
        pod("list", [1]),
        {"metadata": {"name": "bare", "namespace": "n"}},
    ]
    assert leading_pod(pods) == ("n", "leads")
    assert leading_pod([]) is None


class TestFollowing:
    def followed(self, *answers: Any, once: bool = False) -> tuple[tuple[int, str], list[View]]:
        told: list[View] = []
        left = iter(answers)

        def ask() -> Snapshot:
            answer = next(left)
            if isinstance(answer, ClusterError):
                raise answer
            return Snapshot(answer)

        return follow(ask, told.append, wait=lambda: None, now=lambda: NOW, once=once), told

    @pytest.mark.parametrize(("word", "code"), [("Succeeded", 0), ("Failed", 1)])
    def test_it_ends_with_the_run(self, word: str, code: int) -> None:
        over = run(state=word, conditions=[condition(word, "True", "X")])
        (ended, _), told = self.followed(run(), run(), over)
        assert (ended, len(told)) == (code, 3)

    def test_one_look_ends_by_itself(self) -> None:
        assert self.followed(run(), once=True)[0] == (0, "")
        assert self.followed(run(conditions=[condition("Failed", "True", "X")]), once=True)[0] == (1, "")

    def test_a_cluster_that_does_not_answer_for_a_while_is_told_of(self) -> None:
        gone = ClusterError("Unreachable", "connection refused")
        over = run(conditions=[condition("Succeeded", "True", "X")])
        (code, _), told = self.followed(run(), gone, over)
        assert code == 0
        assert [one.problem for one in told] == ["", "Unreachable: connection refused", ""]

    def test_a_run_that_is_deleted_is_told_of(self) -> None:
        (code, word), _ = self.followed(run(), ClusterError("NotFound", "gone"))
        assert code == 1 and "deleted" in word

    def test_a_run_that_never_was_is_an_error(self) -> None:
        with pytest.raises(ClusterError):
            self.followed(ClusterError("NotFound", "no such run"))
