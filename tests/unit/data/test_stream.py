import json
import shutil
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from skywork_trainer.batch import rank_sequences, step_sequences
from skywork_trainer.cli import main
from skywork_trainer.config import OnCorrupt, Source
from skywork_trainer.data.catalog import Catalog
from skywork_trainer.data.errors import DataError
from skywork_trainer.data.held_out import open_held_out
from skywork_trainer.data.shards import read_index
from skywork_trainer.data.stream import SequenceStream
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
    drawn = Counter(stream.trace(n).source for n in range(240, 360))
    assert drawn == {"stem": 24, "main": 96}
    assert stream.drawn(360) == drawn
    assert stream.drawn(240) == {"stem": 0, "main": 0}
    assert stream.drawn(300) == Counter(stream.trace(n).source for n in range(240, 300))
    stream.close()


def test_what_is_fetched_ahead_reads_the_same_and_never_fails(sources, configure, tmp_path: Path) -> None:
    config = configure(sources, [GENERAL, STEM])
    plain = SequenceStream(config, tmp_path / "one")
    ahead = SequenceStream(config, tmp_path / "two")
    ahead.advance(28, lambda step: range(step * 12, step * 12 + 12))
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
    config = configure({"main": domain.uri}, [GENERAL])
    validation = config.validation.model_copy(update={"domains": (domain,)})
    (held,), broken = open_held_out(config.model_copy(update={"validation": validation}), tmp_path / "cache")
    assert broken == {}
    index = read_index("held-out", domain.uri)
    assert len(index.shards) == 4
    assert len(held.tokens_WS) <= 6
    assert held.tokens_WS.shape[1:] == (17,)
    assert held.valid_WT.shape == (len(held.tokens_WS), 16)
    assert held.valid_WT.sum() == sum(shard.tokens - 1 for shard in index.shards)
    first = np.fromfile(tmp_path / "held-out" / index.shards[0].file, dtype=index.numpy_dtype)
    assert held.tokens_WS[0][: len(first)].tolist() == first.tolist()
    assert held.tokens_WS[0][len(first) :].sum() == 0


@given(
    lives=st.lists(st.tuples(st.integers(1, 9), st.integers(1, 8), st.integers(0, 3)), min_size=1, max_size=8),
    batch=st.integers(1, 24),
)
@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_sequence_of_worlds_with_kills_reads_exactly_the_planned_sequences(
    lives: list[tuple[int, int, int]], batch: int, sources, configure, tmp_path: Path
) -> None:
    """Each life: a world, the steps it trains, and how many of them are lost because it is killed before a save."""
    stages = [GENERAL | {"tokens": 16 * batch * 30}, STEM | {"tokens": 16 * batch * 40}]
    config = configure(sources, stages, global_batch_sequences=batch)
    alone = SequenceStream(config, tmp_path / "cache")
    saved, trained = 0, {}
    for world, steps, lost in lives:
        stream = SequenceStream(config, tmp_path / "cache")
        for step in range(saved, min(saved + steps, 70)):
            read = [
                (sequence, stream.read(sequence).tobytes())
                for rank in range(world)
                for sequence in rank_sequences(step, rank, world, config)
            ]
            trained[step] = read
        stream.close()
        saved = max(min(saved + steps, 70) - lost, saved)
    for step, read in trained.items():
        assert read == [(n, alone.read(n).tobytes()) for n in step_sequences(step, config)]
    alone.close()


def test_a_trace_names_what_is_read(sources, configure, tmp_path: Path) -> None:
    stream = SequenceStream(configure(sources, [GENERAL, STEM]), tmp_path / "cache")
    for sequence in (0, 17, 239, 240, 359):
        trace = stream.trace(sequence)
        index = read_index(trace.source, sources[trace.source])
        tokens = np.fromfile(tmp_path / trace.source / trace.shard, dtype=index.numpy_dtype)
        assert stream.read(sequence).tolist() == tokens[trace.first_token : trace.first_token + 17].tolist()
        assert trace.stage == ("general" if sequence < 240 else "stem")
    stream.close()


def test_the_order_command_prints_the_same_as_the_trainer_reads(
    sources, configure, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = configure(sources, [GENERAL, STEM])
    (tmp_path / "run.json").write_text(config.model_dump_json())
    command = ["data", "order", "--config", str(tmp_path / "run.json"), "--at", "19", "--count", "2"]
    assert main([*command, "--json"]) == 0
    printed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    catalog = Catalog(config)
    assert printed == [{"step": n // 12} | asdict(catalog.trace(n)) for n in range(228, 252)]
    assert main([*command, "--rank", "1/5"]) == 0
    lines = capsys.readouterr().out.splitlines()[1:]
    assert [int(line.split()[1]) for line in lines] == [
        *rank_sequences(19, 1, 5, config),
        *rank_sequences(20, 1, 5, config),
    ]
    assert main([*command[:-3], "30"]) == 64
    assert "ends before step 30" in capsys.readouterr().err


def test_a_corrupt_part_stops_the_run_by_name_unless_it_may_be_substituted(sources, configure, tmp_path: Path) -> None:
    config = configure(sources, [GENERAL])
    whole = SequenceStream(config, tmp_path / "whole")
    truth = {n: whole.read(n).tolist() for n in range(240)}
    trace = whole.trace(7)
    whole.close()
    path = tmp_path / "main" / trace.shard
    content = bytearray(path.read_bytes())
    content[trace.first_token * 2] ^= 1
    path.write_bytes(content)

    with pytest.raises(DataError, match=f"{trace.shard} bytes") as refusal:
        SequenceStream(config, tmp_path / "strict").read(7)
    assert refusal.value.reason == "ShardCorrupt"

    source = config.sources[0].model_copy(update={"on_corrupt": OnCorrupt.SUBSTITUTE})
    lenient = config.model_copy(update={"sources": (source, *config.sources[1:])})
    streams = [SequenceStream(lenient, tmp_path / name) for name in ("a", "b")]
    read = [{n: stream.read(n).tolist() for n in range(240)} for stream in streams]
    assert read[0] == read[1], "every node substitutes alike"
    assert 7 in streams[0].substituted
    assert streams[0].substituted == streams[1].substituted
    assert {n for n in truth if read[0][n] != truth[n]} == set(streams[0].substituted)
    for stream in streams:
        stream.close()
