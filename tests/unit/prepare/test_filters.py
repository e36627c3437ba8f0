import unicodedata
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from skywork_trainer.config import Filters
from skywork_trainer.prepare.characters import Kind, Script, alone, kinds, profile
from skywork_trainer.prepare.filters import Removal, Verdict, cleaned, examine, normalise, without_repeated_blocks

# Everything that normalising is about, often enough for neighbours to meet.
texts = st.one_of(
    st.text(),
    st.text(
        alphabet="a\u0301e\u0308\u200b\ufeff\r\n\n\n \t\u3000\x00\x0c\u2028\u200d\ufffdÅ\u212bが\u304b\u3099한",
        max_size=30,
    ),
    st.text(alphabet=st.characters(categories=["Cc", "Cf", "Zs", "Mn", "Ll"]), max_size=20),
)
filters = st.builds(
    Filters,
    normalise=st.booleans(),
    min_characters=st.integers(1, 5),
    max_characters=st.none() | st.integers(1, 30),
    max_symbol_share=st.floats(0, 1),
    remove_repeated_blocks=st.booleans(),
    max_repeated_share=st.floats(0, 1),
    min_script_share=st.dictionaries(st.sampled_from([str(script) for script in Script]), st.floats(0, 1), max_size=1),
)
# Of the ideographs and syllables, which Unicode numbers in long rows, only some.
SAMPLE = [*range(0x3400), *range(0x3400, 0xD7A4, 13), *range(0xD7A4, 0x20000, 3), *range(0x20000, 0x30000, 97)]
LINE = "Sign up for our newsletter today"


def judge(text: str, **limits: Any) -> Verdict:
    filters = Filters(**limits)
    return examine(cleaned(text, filters), filters)


@given(texts)
@settings(max_examples=400)
def test_normalising_twice_is_normalising_once(text: str) -> None:
    once = normalise(text)
    assert normalise(once) == once
    assert unicodedata.is_normalized("NFC", once)
    assert once == once.strip() and "\r" not in once and "\n\n\n" not in once


@given(text=texts, filters=filters)
@settings(max_examples=200)
def test_a_verdict_is_the_same_every_time_and_never_adds_to_a_text(text: str, filters: Filters) -> None:
    clean = cleaned(text, filters)
    verdict = examine(clean, filters)
    assert examine(clean, filters) == verdict
    assert (verdict.text is None) == (verdict.reason is not None)
    if verdict.text is not None:
        assert 0 < len(verdict.text) <= max(len(unicodedata.normalize("NFC", text)), len(text))


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("e\u0301", "é"),
        ("e\u200b\u0301", "é"),
        ("a\r\nb\rc\x0cd\u2028e", "a\nb\nc\nd\ne"),
        ("\ufeffa\x00b\u200b c\u00add", "ab cd"),
        ("a\tb", "a\tb"),
        ("a  \t\nb\u3000\n", "a\nb"),
        ("a\n\n\n\n\n\nb", "a\n\nb"),
        ("a\n \n\t\n \nb", "a\n\nb"),
        ("\n\n  a\n", "a"),
        ("a\ufffdb", "a\ufffdb"),
        ("می\u200cخواهم 👩\u200d🔬", "می\u200cخواهم 👩\u200d🔬"),
        (" \u200b\n", ""),
    ],
)
def test_normalising_makes_one_spelling_of_many(raw: str, clean: str) -> None:
    assert normalise(raw) == clean


def test_a_text_stays_as_it_is_where_nothing_is_asked_for() -> None:
    raw = " e\u0301\r\n\r\n\r\n\x00 $$$ "
    assert judge(raw, normalise=False) == Verdict(raw, None, 0)


@pytest.mark.parametrize("text", ["", " \n\t", "\u200b\n\x00"])
def test_a_document_of_nothing_is_empty(text: str) -> None:
    assert judge(text) == Verdict(None, Removal.EMPTY, 0)


@pytest.mark.parametrize(("length", "reason"), [(9, Removal.TOO_SHORT), (10, None), (20, None), (21, Removal.TOO_LONG)])
def test_both_limits_of_length_belong_to_what_is_allowed(length: int, reason: Removal | None) -> None:
    assert judge("x" * length, min_characters=10, max_characters=20).reason is reason


def test_length_is_that_of_the_text_that_would_be_trained_on() -> None:
    text = f"{LINE}\n{LINE}\n{LINE}"
    assert judge(text, remove_repeated_blocks=True, max_characters=len(LINE)) == Verdict(LINE, None, 2 * len(LINE))
    assert judge(text, remove_repeated_blocks=True, min_characters=len(LINE) + 1).reason is Removal.TOO_SHORT
    assert judge("  x  \n", min_characters=2).reason is Removal.TOO_SHORT


def test_symbols_are_what_is_neither_word_nor_everyday_punctuation() -> None:
    assert profile("Hi, “you”… (3rd)! 你好。— e\u0301\n\t").symbols == 0
    assert profile("{} $ ♥ | _ \ufffd").symbols == 7
    assert judge("ab$$", max_symbol_share=0.5).reason is None
    assert judge("ab$$ $", max_symbol_share=0.5).reason is Removal.SYMBOLS
    # 0.29 * 100 is a little less than 29.
    assert judge("a" * 71 + "$" * 29, max_symbol_share=0.29).reason is None


def test_letters_are_counted_by_script() -> None:
    text = "Wörter カナかな々〇漢字 한국 ไทย Слово λόγος عرب עברית हिन्दी ⁂ 12²"
    counts = profile(text)
    assert {script: counts.letters_in(script) for script in Script} == {
        **{Script.LATIN: 6, Script.KANA: 4, Script.HAN: 4, Script.HANGUL: 2, Script.THAI: 3},
        **{Script.CYRILLIC: 5, Script.GREEK: 5, Script.ARABIC: 3, Script.HEBREW: 5, Script.DEVANAGARI: 3},
    }
    assert (counts.letters, counts.digits, counts.symbols) == (40, 3, 1)
    assert counts.visible == sum(not sign.isspace() for sign in text)


@pytest.mark.parametrize(
    ("text", "reason"),
    [("漢字ab", None), ("漢abc", Removal.LANGUAGE), ("漢字 12345", None), ("12345", Removal.LANGUAGE)],
)
def test_the_share_of_a_script_is_a_share_of_the_letters(text: str, reason: Removal | None) -> None:
    assert judge(text, min_script_share={"Han": 0.5}).reason is reason


def test_a_script_nobody_knows_is_an_error_and_not_a_reason() -> None:
    with pytest.raises(ValueError, match="Klingon"):
        judge("text", min_script_share={"Klingon": 0.5})


def test_only_the_first_of_equal_lines_stays_and_the_order_is_kept() -> None:
    text = f"one\n{LINE}\ntwo\n{LINE}\n\n{LINE}\n\nthree\n{LINE} "
    kept = judge(text, remove_repeated_blocks=True)
    assert kept == Verdict(f"one\n{LINE}\ntwo\n\nthree", None, 3 * len(LINE))


def test_only_the_first_of_equal_paragraphs_stays_however_short_their_lines() -> None:
    assert without_repeated_blocks("Home\nNews\n\ntext\n\nHome\nNews\n\nend") == ("Home\nNews\n\ntext\n\nend", 9)


def test_short_lines_may_repeat() -> None:
    text = "}\n\n***\n\n}\n\n***\n- no -               -\n- no -               -"
    assert judge(text, remove_repeated_blocks=True, max_repeated_share=0) == Verdict(text, None, 0)


def test_the_share_of_repeated_blocks_is_one_of_the_document_before_removal() -> None:
    text = f"{LINE}\n{LINE}\n" + "x" * (2 * len(LINE) - 2)
    assert len(text) == 4 * len(LINE)
    for remove in (True, False):
        assert judge(text, remove_repeated_blocks=remove, max_repeated_share=0.25).reason is None
        assert judge(text, remove_repeated_blocks=remove, max_repeated_share=0.24).reason is Removal.REPEATED


@given(st.lists(st.sampled_from([LINE, f"{LINE}!", "", "a", "b", "\t"]), max_size=12))
@settings(max_examples=300)
def test_taking_out_repeated_blocks_leaves_no_long_line_twice_and_loses_none(lines: list[str]) -> None:
    text = normalise("\n".join(lines))
    shorter, repeated = without_repeated_blocks(text)
    long = [line for line in shorter.split("\n") if len(line) >= 20]
    assert long == list(dict.fromkeys(line for line in text.split("\n") if len(line) >= 20))
    assert repeated <= len(text) - len(shorter) and (repeated > 0) == (shorter != text)


def test_every_code_point_is_of_the_kind_that_unicode_says() -> None:
    table = kinds()
    for code in [*SAMPLE, *range(0xE0000, 0xE0200)]:
        category, kind = unicodedata.category(chr(code))[0], table[code]
        assert (kind >= Kind.LETTER) == (category == "L") or code == 0x3007
        assert (kind == Kind.DIGIT) == (category == "N") or code == 0x3007
        assert (kind in (Kind.MARK, Kind.MARK_ALONE)) == (category == "M")
        assert (kind == Kind.INVISIBLE) == (chr(code).isspace() or unicodedata.category(chr(code)) in ("Cc", "Cf"))


def test_a_script_has_the_letters_that_are_named_after_it() -> None:
    names = {"CYRILLIC": Script.CYRILLIC, "HEBREW": Script.HEBREW, "ARABIC": Script.ARABIC, "THAI": Script.THAI}
    names |= {"DEVANAGARI": Script.DEVANAGARI, "HIRAGANA": Script.KANA, "KATAKANA": Script.KANA}
    names |= {"HANGUL": Script.HANGUL, "CJK": Script.HAN}
    table, scripts = kinds(), tuple(Script)
    for code in SAMPLE:
        if table[code] < Kind.LETTER:
            continue
        script = names.get(unicodedata.name(chr(code), "nameless").split()[0])
        found = scripts[table[code] - Kind.LETTER - 1] if table[code] > Kind.LETTER else None
        assert script is None or found is script, hex(code)
        assert not alone()[table[code]] or found in (Script.HAN, Script.KANA, Script.HANGUL, Script.THAI)
