from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from skywork_trainer.config import Decontamination
from skywork_trainer.prepare.decontaminate import EvaluationSet
from skywork_trainer.prepare.ngrams import word_ngrams

OPTIONS = Decontamination(words=5)
QUESTION = "Natalia sold clips to forty-eight of her friends in April, and then 一半 in May."
RUN = " ".join(f"c{number}" for number in range(20))

words = st.lists(
    st.text(alphabet="abcdefgh", min_size=1, max_size=6) | st.sampled_from("数学题目"), min_size=5, max_size=9
)
spellings = st.sampled_from([str.upper, str.lower, str.title])
gaps = st.sampled_from([" ", "  \n", ", ", " — ", "...", "\t", "*|*", "」「"])
# Other letters than those of the words, so that nothing is shared by accident.
around = st.text(alphabet="xyzXYZ漢 .,\n字0123", max_size=40)


@given(run=words, data=st.data(), before=around, after=around)
@settings(max_examples=200)
def test_a_planted_run_is_found_whatever_its_case_punctuation_and_spacing(
    run: list[str], data: st.DataObject, before: str, after: str
) -> None:
    evaluation = EvaluationSet(OPTIONS, [{"question": " ".join(run)}])
    planted = run[: OPTIONS.words]
    text = before + "".join(data.draw(gaps) + data.draw(spellings)(word) for word in planted) + data.draw(gaps) + after
    assert evaluation.matches(text)


@given(run=words, before=around, after=around)
@settings(max_examples=200)
def test_one_word_less_is_not_enough(run: list[str], before: str, after: str) -> None:
    evaluation = EvaluationSet(OPTIONS, [{"question": " ".join(run)}])
    text = f"{before} x {' '.join(run[: OPTIONS.words - 1])} x {after}"
    assert not evaluation.matches(text)


@given(st.lists(st.sampled_from([QUESTION, QUESTION.upper(), "something else that nobody asks for", "short", ""])))
@settings(max_examples=50)
def test_a_batch_is_judged_as_its_texts_are_one_by_one(texts: list[str]) -> None:
    evaluation = EvaluationSet(OPTIONS, [{"question": QUESTION}])
    assert evaluation.matches_all(texts).tolist() == [evaluation.matches(text) for text in texts]
    assert evaluation.matches_all(texts).tolist() == [text.upper() == QUESTION.upper() for text in texts]


def test_a_run_across_two_texts_of_a_batch_or_two_strings_of_a_record_is_none() -> None:
    evaluation = EvaluationSet(OPTIONS, [{"a": "one two three four five"}, {"b": ["six seven eight", "nine ten"]}])
    assert not evaluation.matches_all(["one two three", "four five six"]).any()
    assert not evaluation.matches("six seven eight nine ten")


@pytest.mark.parametrize(
    "wrap",
    [
        lambda text: {"question": text},
        lambda text: {"id": 7, "choices": {"text": ["no", text], "label": None}},
        lambda text: {"turns": [[{"content": text}]]},
    ],
)
def test_every_string_of_a_record_counts_however_deep_it_lies(wrap: Callable[[str], dict[str, object]]) -> None:
    evaluation = EvaluationSet(OPTIONS, [wrap(QUESTION)])
    assert evaluation.matches(f"Somebody wrote: {QUESTION} And so on.")


def test_a_record_is_read_as_a_normalised_document_is() -> None:
    evaluation = EvaluationSet(OPTIONS, [{"question": "Cafe\u0301 so\u200bld \ufefffive big cakes"}])
    assert evaluation.matches("CAFÉ sold five big cakes")


def test_it_says_how_many_records_it_has_and_how_many_can_not_be_found() -> None:
    records = [
        {"question": "one two three four five six", "answer": "six"},
        {"question": "three words only", "answer": "and five more words here, different"},
        {"question": "four words, not more", "answer": "none of five words"},
        {"answer": 42},
        {"question": "One two three four FIVE!"},
    ]
    evaluation = EvaluationSet(OPTIONS, records)
    assert (evaluation.records, evaluation.too_short, evaluation.ngrams) == (5, 2, 4)


def test_more_records_than_a_batch_are_all_read() -> None:
    records = [{"q": f"item {number} of the long list", "short": "x"} for number in range(2500)]
    evaluation = EvaluationSet(OPTIONS, records)
    assert (evaluation.records, evaluation.too_short, evaluation.ngrams) == (2500, 0, 5000)
    assert evaluation.matches_all([record["q"] for record in records]).all()
    assert not evaluation.matches("item 2500 of the long tail")


@pytest.mark.parametrize("records", [[], [{}], [{"q": ""}], [{"q": "too short"}]])
def test_a_set_without_ngrams_matches_nothing(records: list[dict[str, object]]) -> None:
    evaluation = EvaluationSet(OPTIONS, records)
    assert evaluation.matches_all([QUESTION, "", "too short"]).tolist() == [False] * 3
    assert evaluation.matches_all([]).tolist() == []
    assert (evaluation.records, evaluation.too_short, evaluation.ngrams) == (len(records), len(records), 0)


def test_an_ngram_that_only_shares_the_bits_looked_up_first_is_no_match(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("skywork_trainer.prepare.decontaminate._BITS", 3)
    evaluation = EvaluationSet(OPTIONS, [{"q": RUN}])
    others = " ".join(f"b{number}" for number in range(1000))
    # Also beyond the last one, where a search ends outside the set.
    assert word_ngrams(others, OPTIONS.words).max() > word_ngrams(RUN, OPTIONS.words).max()
    assert not evaluation.matches(others)
    assert evaluation.matches("c15 c16 c17 c18 c19")
