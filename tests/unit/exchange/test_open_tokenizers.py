"""Text for continued pre-training is prepared with the model's own tokenizer, whatever it calls its end of text."""

import pytest
from skywork_trainer.data.errors import DataError
from skywork_trainer.tokenizer import LoadedTokenizer
from tokenizers import AddedToken, Tokenizer, models


def loaded(*added: AddedToken, words: tuple[str, ...] = ()) -> LoadedTokenizer:
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(("a", *words))}, unk_token="a"))
    tokenizer.add_tokens(list(added))
    return LoadedTokenizer(tokenizer.to_str().encode())


@pytest.mark.parametrize("name", ["<|end_of_text|>", "</s>", "<｜end▁of▁sentence｜>", "<|endoftext|>"])
def test_the_end_of_text_of_an_open_model_ends_documents(name: str) -> None:
    tokenizer = loaded(AddedToken("<s>", special=True), AddedToken(name, special=True))
    assert tokenizer.end_of_text == tokenizer.tokenizer.token_to_id(name) == 2


def test_our_own_name_comes_first() -> None:
    tokenizer = loaded(AddedToken("</s>", special=True), AddedToken("<|endoftext|>", special=True))
    assert tokenizer.end_of_text == tokenizer.tokenizer.token_to_id("<|endoftext|>")


def test_a_piece_of_text_never_ends_a_document() -> None:
    for tokenizer in (loaded(words=("</s>",)), loaded(AddedToken("</s>", special=False))):
        with pytest.raises(DataError, match="no token that ends a document"):
            assert tokenizer.end_of_text
