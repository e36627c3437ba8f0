import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from skywork_trainer.config import Source
from skywork_trainer.data.errors import DataError
from skywork_trainer.data.shards import read_index
from skywork_trainer.data.stream import SequenceStream, ValidationSet, rank_sequences, step_sequences
from skywork_trainer.tokenizer import LoadedTokenizer, train_tokenizer

GENERAL = {"name": "general", "tokens": 16 * 12 * 20, "mixture": [{"source": "main"}]}
STEM = {
    "name": "stem",
    "tokens": 16 * 12 * 10,
    "mixture": [
        {"source": "stem", "share": {"start": 0.1, "end": 0.4, "shape": "Quadratic"}},
        {"source": "main"},
    ],
}


@pytest.fixture
def sources(prepare) -> dict[str, str]:
    return {
        "main": prepare("main"),
        "stem": prepare("stem", [f"数学 E = mc^2, theorem {n}. " * 5 for n in range(60)]),
    }


@given(world=st.integers(1, 40), step=st.integers(0, 10**9))
def test_the_ranks_of_any_world_share_out_exactly_the_sequences_of_a_step(world: int, step: int) -> None:
    class Config:
        global_batch_sequences = 24

    shares = [rank_sequences(step, rank, world, Config) for rank in range(world)]  # type: ignore[arg-type]
    assert sorted(n for share in shares for n in share) == list(range(step * 24, step * 24 + 24))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    assert list(step_sequences(step, Config)) == list(range(step * 24, step * 24 + 24))  # type: ignore[arg-type]


def test_an_epoch_reads_every_window_of_a_source_once(sources, configure, tmp_path: Path) -> None:
    windows = []
    index = read_index("main", sources["main"])
    for shard in index.shards:
        tokens = np.fromfile(tmp_path / "main" / shard.file, dtype=index.numpy_dtype)
        windows += [tuple(tokens[a : a + 17].tolist()) for a in range(0, len(tokens) - 16, 16)]
    whole = [GENERAL | {"tokens": 16 * 12 * (2 * len(windows) // 12 + 1)}]
    stream = SequenceStream(configure(sources, whole), tmp_path / "cache")
    epochs = [[tuple(stream.read(n + epoch * len(windows)).tolist()) for n in range(len(windows))] for epoch in (0, 1)]
    assert Counter(epochs[0]) == Counter(epochs[1]) == Counter(windows)
    assert epochs[0] != epochs[1] != windows
    stream.close()


def test_a_stage_boundary_repeats_nothing_and_the_mixture_is_the_plan(sources, configure, tmp_path: Path) -> None:
    stream = SequenceStream(configure(sources, [GENERAL, STEM]), tmp_path / "cache")
    drawn = Counter(stream.source_of(n) for n in range(240, 360))
    assert drawn == {"stem": 24, "main": 96}
    assert stream.drawn(360) == drawn
    assert stream.drawn(240) == {"stem": 0, "main": 0}
    assert stream.drawn(300) == Counter(stream.source_of(n) for n in range(240, 300))
    stream.close()


def test_prefetched_shards_read_the_same_and_prefetch_never_fails(sources, configure, tmp_path: Path) -> None:
    config = configure(sources, [GENERAL, STEM])
    plain = SequenceStream(config, tmp_path / "one")
    ahead = SequenceStream(config, tmp_path / "two")
    ahead.prefetch(range(340, 400))
    assert [ahead.read(n).tolist() for n in range(330, 360)] == [plain.read(n).tolist() for n in range(330, 360)]
    plain.close()
    ahead.close()


def test_only_an_edit_of_the_past_changes_its_hash(sources, configure, tmp_path: Path) -> None:
    def hashes(stages: list[dict[str, object]], **changes: object) -> tuple[str, str]:
        stream = SequenceStream(configure(sources, stages, **changes), tmp_path / "cache")
        stream.close()
        return stream.past_hash(240), stream.past_hash(241)

    general, stem = hashes([GENERAL, STEM])
    steeper = STEM | {
        "mixture": [{"source": "stem", "share": {"start": 0.2, "end": 0.4, "shape": "Linear"}}, {"source": "main"}]
    }
    assert hashes([GENERAL, steeper])[0] == general
    assert hashes([GENERAL, steeper])[1] != stem
    assert hashes([GENERAL, STEM, GENERAL | {"name": "more"}]) == (general, stem)
    assert hashes([GENERAL | {"tokens": 16 * 12 * 19}, STEM])[0] != general
    assert hashes([GENERAL, STEM], seed=5)[0] != general
    assert hashes([GENERAL | {"name": "renamed"}, STEM]) == (general, stem)


def test_a_source_of_a_later_stage_need_not_be_prepared_yet(sources, configure, tmp_path: Path) -> None:
    later = {"main": sources["main"], "stem": (tmp_path / "later").as_uri()}
    stream = SequenceStream(configure(later, [GENERAL, STEM], stage="general"), tmp_path / "cache")
    assert set(stream.fingerprints) == {"main"}
    stream.close()
    with pytest.raises(DataError, match=r"source 'stem': no index\.json below .* prepare it with") as refusal:
        SequenceStream(configure(later, [GENERAL, STEM]), tmp_path / "cache")
    assert (refusal.value.reason, refusal.value.retryable) == ("SourceMissing", False)


@pytest.mark.parametrize(
    "edit",
    [
        pytest.param(lambda index: index | {"vocab_size": 9}, id="edited"),
        pytest.param(lambda index: index | {"shards": index["shards"][1:]}, id="a shard taken out"),
        pytest.param(lambda index: index | {"version": 2}, id="of a later release"),
        pytest.param(lambda index: index | {"fingerprint": ""}, id="not sealed"),
    ],
)
def test_an_index_that_is_not_what_prepare_wrote_is_refused(edit, sources, configure, tmp_path: Path) -> None:
    path = tmp_path / "main" / "index.json"
    path.write_text(json.dumps(edit(json.loads(path.read_text()))))
    with pytest.raises(DataError, match=r"source 'main': .*prepare (it|the source) again") as refusal:
        SequenceStream(configure(sources, [GENERAL]), tmp_path / "cache")
    assert refusal.value.reason == "SourceInvalid"


def test_a_source_too_short_for_one_sequence_is_refused(sources, configure, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds a sequence of 100000 tokens") as refusal:
        SequenceStream(configure(sources, [GENERAL], sequence_length=100_000), tmp_path / "cache")
    assert refusal.value.reason == "SourceInvalid"


def test_a_source_of_another_tokenizer_is_refused(sources, configure, tmp_path: Path) -> None:
    other: LoadedTokenizer = train_tokenizer(iter(["something else entirely"]), 300)
    (tmp_path / "tokenizer" / "tokenizer.json").write_bytes(other.content)
    with pytest.raises(DataError, match="prepared with tokenizer") as refusal:
        SequenceStream(configure(sources, [GENERAL]), tmp_path / "cache")
    assert refusal.value.reason == "TokenizerMismatch"


def test_a_vocabulary_too_large_for_the_model_is_refused_with_both_sizes(
    sources, configure, tokenizer: LoadedTokenizer, tmp_path: Path
) -> None:
    model = {"layers": 1, "hidden": 8, "heads": 1, "kv_heads": 1, "ffn": 8, "vocab_size": 256}
    with pytest.raises(
        DataError, match=rf"has {tokenizer.vocab_size} tokens, model\.vocabSize is 256: raise"
    ) as refusal:
        SequenceStream(configure(sources, [GENERAL], model=model), tmp_path / "cache")
    assert refusal.value.reason == "VocabularyTooLarge"


def test_reading_goes_on_from_the_cache_when_the_store_is_gone(sources, configure, tmp_path: Path) -> None:
    stream = SequenceStream(configure(sources, [GENERAL]), tmp_path / "cache")
    before = [stream.read(n).tolist() for n in range(240)]
    shutil.rmtree(tmp_path / "main")
    assert [stream.read(n).tolist() for n in range(240)] == before
    stream.close()


def test_validation_windows_are_the_first_ones_with_short_ends_masked(prepare, configure, tmp_path: Path) -> None:
    texts = [f"held out {n}" for n in range(4)]
    domain = Source(name="held-out", uri=prepare("held-out", texts, shard_tokens=1))
    held = ValidationSet(domain, configure({"main": domain.uri}, [GENERAL]), tmp_path / "cache")
    index = read_index("held-out", domain.uri)
    assert len(index.shards) == 4
    assert len(held.tokens) <= 6
    assert held.tokens.shape[1:] == (17,)
    assert held.mask.shape == (len(held.tokens), 16)
    assert held.mask.sum() == sum(shard.tokens - 1 for shard in index.shards)
    first = np.fromfile(tmp_path / "held-out" / "shard-00000.bin", dtype=index.numpy_dtype)
    assert held.tokens[0][: len(first)].tolist() == first.tolist()
    assert held.tokens[0][len(first) :].sum() == 0
