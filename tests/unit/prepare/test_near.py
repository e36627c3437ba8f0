import random

import numpy as np
import pytest
from datasketch import MinHash
from hypothesis import given, settings
from hypothesis import strategies as st
from skywork_trainer.config import NearDuplicates
from skywork_trainer.prepare.near import NearDuplicateFilter, _modulo_prime, signature
from skywork_trainer.prepare.ngrams import word_ngrams

OPTIONS = NearDuplicates()


def words(seed: int, count: int) -> list[str]:
    draw = random.Random(seed)
    return [f"w{draw.randrange(50_000)}" for _ in range(count)]


def changed(text: list[str], every: int) -> list[str]:
    return [f"{word}x" if at % every == every // 2 else word for at, word in enumerate(text)]


def jaccard(one: list[str], other: list[str]) -> float:
    first, second = (set(word_ngrams(" ".join(text), OPTIONS.words).tolist()) for text in (one, other))
    return len(first & second) / len(first | second)


@given(text=st.text(max_size=300), options=st.sampled_from([OPTIONS, NearDuplicates(threshold=0.99, permutations=16)]))
@settings(max_examples=100)
def test_a_text_with_words_is_seen_the_second_time(text: str, options: NearDuplicates) -> None:
    near = NearDuplicateFilter(options)
    of_text = signature(text, options)
    assert not near.seen(of_text)
    assert near.seen(signature(text, options)) == (len(word_ngrams(text, 1)) > 0)


@pytest.mark.parametrize("options", [OPTIONS, NearDuplicates(threshold=0.3), NearDuplicates(threshold=0.5, words=1)])
def test_texts_that_have_nothing_to_do_with_each_other_all_stay(options: NearDuplicates) -> None:
    near = NearDuplicateFilter(options)
    signatures = [signature(" ".join(words(seed, 5 + seed)), options) for seed in range(1500)]
    assert not any(near.seen(document) for document in signatures)
    assert all(near.seen(document) for document in signatures)


def test_short_texts_are_compared_by_all_their_words() -> None:
    near = NearDuplicateFilter(OPTIONS)
    texts = ["one", "two", "one two", "two one", "One!", "漢字", "漢"]
    assert [near.seen(signature(text, OPTIONS)) for text in texts] == [False, False, False, False, True, False, False]


def test_nearly_the_same_is_seen_and_half_the_same_is_not() -> None:
    near = NearDuplicateFilter(OPTIONS)
    original = words(1, 2000)
    almost, partly = changed(original, every=100), changed(original, every=12)
    assert jaccard(original, almost) > 0.9 and 0.3 < jaccard(original, partly) < 0.6
    assert not near.seen(signature(" ".join(original), OPTIONS))
    assert near.seen(signature(" ".join(almost), OPTIONS))
    assert not near.seen(signature(" ".join(partly), OPTIONS))


def test_a_document_that_was_dropped_is_not_compared_with() -> None:
    near = NearDuplicateFilter(NearDuplicates(threshold=0.8))
    kept = np.arange(128, dtype=np.uint32)
    dropped, later = kept.copy(), kept.copy()
    dropped[-20:] += 1000
    later[-40:] += 1000
    assert [near.seen(document) for document in (kept, dropped, later)] == [False, True, False]


def test_the_estimate_decides_and_not_that_the_index_found_a_document() -> None:
    near = NearDuplicateFilter(OPTIONS)
    document = np.arange(128, dtype=np.uint32)
    most, least = document.copy(), document.copy()
    most[103:] += 1000
    least[102:] += 1000
    assert not near.seen(document)
    assert near._index.query(MinHash(hashvalues=least))
    assert not near.seen(least)
    assert NearDuplicateFilter(OPTIONS).seen(most) is False and near.seen(most)


@given(st.integers(0, 999), st.sampled_from([16, 128, 130]))
@settings(max_examples=30)
def test_a_signature_is_the_librarys(seed: int, permutations: int) -> None:
    options = NearDuplicates(permutations=permutations, words=3)
    text = " ".join(words(seed, seed + 3))
    expected = MinHash(permutations, hashfunc=int)
    expected.update_batch((word_ngrams(text, 3) >> np.uint64(32)).tolist())
    assert signature(text, options).tolist() == expected.hashvalues.tolist()


@given(st.integers(0, 2**64 - 1) | st.sampled_from([k * (2**61 - 1) + d for k in range(9) for d in range(-7, 8)]))
@settings(max_examples=200)
def test_the_remainder_is_exact_for_every_value(value: int) -> None:
    values = np.array([value % 2**64], np.uint64)
    _modulo_prime(values)
    assert values[0] == value % 2**64 % (2**61 - 1)


def test_the_share_of_equal_values_estimates_how_alike_two_texts_are() -> None:
    original = words(2, 3000)
    for every in (200, 40, 15):
        other = changed(original, every)
        pair = [signature(" ".join(text), NearDuplicates(permutations=1024)) for text in (original, other)]
        assert abs((pair[0] == pair[1]).mean() - jaccard(original, other)) < 0.06
