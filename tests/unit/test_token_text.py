"""The text behind tokens has the lengths of the text they came from, however it is cut."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from skywork_trainer.token_text import TokenText, count_tokens
from skywork_trainer.tokenizer import LoadedTokenizer, train_tokenizer
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

_CORPUS = ["天地玄黄,宇宙洪荒。", "for i in range(10): print(i)", "naïve café — 42 😀", "the quick brown fox"] * 5
LOADED = train_tokenizer(iter(_CORPUS), 400)
TEXT = TokenText(LOADED)


def _encode(text: str) -> list[int]:
    return list(LOADED.tokenizer.encode(text, add_special_tokens=False).ids)


@given(text=st.text(alphabet=st.characters(exclude_categories=["Cs"])), cut=st.integers(0, 50))
@settings(max_examples=200)
def test_lengths_of_the_parts_add_up_to_those_of_the_text_wherever_it_is_cut(text: str, cut: int) -> None:
    tokens = np.array(_encode(text), dtype=np.int64)
    parts = (tokens[:cut], tokens[cut:])
    assert sum(TEXT.bytes(part) for part in parts) == len(text.encode())
    assert sum(TEXT.characters(part) for part in parts) == len(text)


def test_documents_are_the_text_between_ends_and_ends_stand_for_no_text() -> None:
    end = LOADED.end_of_text
    tokens = [end, *_encode("天地 one"), end, *_encode("two"), end, end]
    assert TEXT.documents(tokens) == ["天地 one", "two"]
    assert TEXT.bytes(np.array([end, end])) == TEXT.characters(np.array([end])) == 0


def test_a_character_cut_in_half_is_left_out_of_the_documents() -> None:
    bare = TokenText(train_tokenizer(iter([]), 257))
    tokens = LoadedTokenizer(train_tokenizer(iter([]), 257).content).tokenizer.encode("é天").ids
    assert len(tokens) == 5
    assert bare.documents(tokens[1:]) == ["天"]


def test_a_reference_tokenizer_counts_its_own_tokens_without_special_ones() -> None:
    reference = Tokenizer(models.WordLevel({"one": 0, "two": 1, "?": 2}, unk_token="?"))
    reference.pre_tokenizer = pre_tokenizers.Whitespace()
    assert count_tokens(reference, ["one two", "two three one"]) == 5
    assert count_tokens(reference, []) == 0


@pytest.mark.parametrize(("token", "length"), [("▁the", 4), ("<0xE5>", 1), ("天", 3)])
def test_pieces_of_sentencepiece_stand_for_spaces_bytes_and_themselves(token: str, length: int) -> None:
    tokenizer = Tokenizer(models.BPE({token: 0}, []))
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens([AddedToken("</s>", special=True)])
    loaded = LoadedTokenizer(tokenizer.to_str().encode())
    assert json.loads(loaded.content)["decoder"]["type"] == "Sequence"
    assert TokenText(loaded).bytes(np.array([0])) == length
