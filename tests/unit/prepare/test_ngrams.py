import re
import unicodedata

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from skywork_trainer.prepare import ngrams
from skywork_trainer.prepare.ngrams import CHARACTER_BASE, WORD_BASE, Words, word_ngrams

texts = st.one_of(
    st.text(max_size=60),
    st.text(alphabet="aBcÀİΣß1²_-., \n\u0301漢字かカ\u3099ー한ก\u0e34क\u093f𠀀😀", max_size=60),
    st.lists(st.sampled_from(["the", "The", "cat", "sat", "、", "…", "漢字"]), max_size=30).map(" ".join),
)
ALONE = re.compile(
    "(HALFWIDTH )?(CJK UNIFIED|CJK COMPAT|(COMBINING )?KATAKANA|HIRAGANA|HENTAIGANA|HANGUL|THAI (?!DIGIT))"
    "|IDEOGRAPHIC (ITERATION MARK|CLOSING MARK|NUMBER ZERO)"
)


def split(text: str) -> list[str]:
    """Words, one character after the other."""
    words, growing = [], False
    for sign in text.lower():
        letter = unicodedata.category(sign)[0] in "LNM"
        lone = ALONE.match(unicodedata.name(sign, "")) is not None
        if letter and growing and not lone:
            words[-1] += sign
        elif letter:
            words.append(sign)
        growing = letter and not lone
    return words


def mix(value: int) -> int:
    value %= 1 << 64
    value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 % (1 << 64)
    value = (value ^ value >> 27) * 0x94D049BB133111EB % (1 << 64)
    return value ^ value >> 31


def slow(text: str, words: int) -> list[int]:
    found = split(text)
    hashes = [mix(sum(ord(sign) * CHARACTER_BASE**at for at, sign in enumerate(word))) for word in found]
    runs = [hashes[at : at + words] for at in range(len(found) - words + 1)]
    return [mix(sum(hash * WORD_BASE**at for at, hash in enumerate(run))) for run in runs]


@given(text=texts, words=st.integers(1, 6))
@settings(max_examples=400)
def test_the_ngrams_of_a_text_are_those_of_an_obvious_implementation(text: str, words: int) -> None:
    assert word_ngrams(text, words).tolist() == slow(text, words)


@given(batch=st.lists(texts, max_size=6), words=st.integers(1, 4))
@settings(max_examples=200)
def test_a_batch_has_the_ngrams_of_each_of_its_texts_and_none_across_two(batch: list[str], words: int) -> None:
    hashes, owners = Words(batch).ngrams(words)
    assert [hashes[owners == number].tolist() for number in range(len(batch))] == [slow(text, words) for text in batch]
    assert Words(batch).counts.tolist() == [len(split(text)) for text in batch]


def test_every_code_point_is_a_word_of_its_own_or_part_of_one_by_its_name_and_category() -> None:
    rows = [range(0x3400), range(0x3400, 0xD7A4, 7), range(0xD7A4, 0xD800), range(0xE000, 0x20000)]
    signs = [chr(code) for row in rows for code in row if chr(code).lower() == chr(code)]
    assert Words([f"{sign}{sign}" for sign in signs]).counts.tolist() == [len(split(sign * 2)) for sign in signs]


@pytest.mark.parametrize("other", ["THE quick,brown\tFox", "the—quick... (brown) *fox*", "\nThe Quick Brown Fox!"])
def test_case_punctuation_and_spacing_do_not_matter(other: str) -> None:
    assert word_ngrams(other, 4).tolist() == word_ngrams("the quick brown fox", 4).tolist()


@pytest.mark.parametrize(
    ("one", "other"), [("ab c", "a bc"), ("a b", "b a"), ("a a b", "a b b"), ("abc", "ab c"), ("漢 a", "漢a b")]
)
def test_where_words_end_and_in_which_order_they_come_matters(one: str, other: str) -> None:
    words = min(len(split(one)), len(split(other)))
    assert word_ngrams(one, words).tolist() != word_ngrams(other, words).tolist()


def test_every_character_of_a_script_without_spaces_is_a_word() -> None:
    assert split("GPT4是一个model、かな") == ["gpt4", "是", "一", "个", "model", "か", "な"]
    assert len(word_ngrams("GPT4是一个model、かな", 1)) == 7


def test_a_text_with_fewer_words_has_no_ngrams() -> None:
    assert [len(word_ngrams(text, 3)) for text in ("", " . ", "one two", "one two three", "漢字")] == [0, 0, 0, 1, 0]


def test_ngrams_do_not_change_between_releases_and_machines() -> None:
    assert word_ngrams("The cat sat on 漢字.", 3).tolist() == [
        0x4F6F_A8F5_720E_CC20,
        0x38F7_565C_57AD_F744,
        0x8723_AC8E_A045_B89D,
        0x1CF1_9468_7EA6_39C6,
    ]


def test_words_are_hashed_alike_wherever_they_stand_in_a_long_text(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = word_ngrams("a planted run of words", 5)[0]
    monkeypatch.setattr(ngrams, "_TABLE_POWERS", 8)
    ngrams._power_table.cache_clear()
    try:
        found = word_ngrams("x1 " * 50 + "a planted run of words" + " y" * 50, 5)
    finally:
        ngrams._power_table.cache_clear()
    assert np.flatnonzero(found == expected).tolist() == [50]


def test_different_runs_have_different_hashes() -> None:
    text = " ".join(f"{a}{b}" for a in range(300) for b in "abcdefgh")
    assert len(np.unique(word_ngrams(text, 1))) == 2400
    assert len(np.unique(word_ngrams(text, 2) & np.uint64(0xFFFFFFFF))) == 2399
