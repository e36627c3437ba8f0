"""A run begins with imported weights on any number of ranks, once, and never reads them again."""

import json
import shutil
import signal
from pathlib import Path

import pytest
import torch
from skywork_trainer.checkpoint.files import FragmentReader
from skywork_trainer.checkpoint.manifest import committed, read_manifest
from skywork_trainer.config import EXIT_CONFIG, EXIT_DONE, EXIT_LEFT, Engine, Failure, RunConfig, Source, Validation
from skywork_trainer.engine import Span
from skywork_trainer.exchange.geometry import parameters
from skywork_trainer.storage import open_store
from skywork_trainer.tokenizer import LoadedTokenizer

from tests.unit.exchange.building import GQA, configured, llama
from tests.unit.train.world import Fault, done, place, start, train


def _save_as_begun(rank: int, size: int, port: int, config: RunConfig, folder: Path) -> None:
    """Begin with the weights, as a worker does, and save at once."""
    from skywork_trainer.batch import micro_batches
    from skywork_trainer.checkpoint.manifest import Counters
    from skywork_trainer.checkpoint.saver import DataIdentity, Saver, Snapshot
    from skywork_trainer.engine.deepspeed_engine import DeepSpeedEngine
    from skywork_trainer.exchange.start import load_initial_weights
    from skywork_trainer.model import Decoder
    from skywork_trainer.worker import process_group

    with process_group(place(folder, rank=rank, size=size, port=port, generation=1)) as world:
        module = Decoder(config.model)
        engine = DeepSpeedEngine(module, config, micro_batches=micro_batches(config, size))
        load_initial_weights(config, engine, world)
        saver = Saver(
            open_store(config.checkpoints.uri), config, world=world, generation=1, local=folder / f"local-{rank}"
        )
        saver.save(
            Snapshot(
                step=0,
                stage="s0",
                optimizer_step=engine.optimizer_step,
                fragments=engine.fragments(),
                data=DataIdentity(tokenizer_sha256="", fingerprints={}, past_hash=""),
                counters=Counters(),
                parent="",
                parent_step=0,
                consumed=(),
                losses=(),
            )
        )


@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
def test_three_ranks_begin_with_exactly_the_weights_of_the_folder(
    tmp_path: Path, tokenizer: LoadedTokenizer, zero_stage: int
) -> None:
    theirs = llama(GQA)
    theirs.save_pretrained(tmp_path / "llama", max_shard_size="60KB")
    config = configured(
        tmp_path,
        GQA,
        tokenizer,
        initial_weights_uri=(tmp_path / "llama").as_uri(),
        engine=Engine(zero_stage=zero_stage, micro_batch_sequences=2),
    )
    assert start(_save_as_begun, 3, config, tmp_path).codes() == done(3)
    store = open_store(config.checkpoints.uri)
    manifest = read_manifest(store, committed(store)[0])
    assert (manifest.world, manifest.optimizer_step) == (3, 0)
    reader = FragmentReader(store, manifest)
    for parameter in parameters(GQA):
        master, first, second = reader(Span(parameter.name, 0, parameter.numel))
        assert torch.equal(master, theirs.get_parameter(parameter.theirs).detach().flatten())
        assert not (first.any() or second.any())
    assert reader.corruption is None


def test_a_run_measures_the_imported_model_first_trains_on_from_it_and_needs_it_only_once(
    tmp_path: Path, tokenizer: LoadedTokenizer
) -> None:
    llama(GQA).save_pretrained(tmp_path / "llama")
    held_out = Validation(every_tokens=1 << 40, windows=6, domains=(Source(name="web", uri="file:///none"),))
    config = configured(tmp_path, GQA, tokenizer, validation=held_out)
    begun = config.model_copy(update={"initial_weights_uri": (tmp_path / "llama").as_uri()})
    assert train(begun, tmp_path, size=2, fault=Fault(rank=0, step=2, signal=signal.SIGTERM)) == [EXIT_LEFT] * 2
    store = open_store(config.checkpoints.uri)
    first = read_manifest(store, committed(store)[-1]).counters.stage_start_validation
    shutil.rmtree(tmp_path / "llama")
    assert train(begun, tmp_path, size=1, generation=2) == [EXIT_DONE]
    last = read_manifest(store, committed(store)[-1])
    assert last.counters.stage_start_validation == first
    assert last.counters.initial_weights_uri == (tmp_path / "llama").as_uri(), "told by every checkpoint that follows"
    elsewhere = configured(tmp_path / "random", GQA, tokenizer, validation=held_out)
    assert train(elsewhere, tmp_path / "random", size=1) == [EXIT_DONE]
    other = open_store(elsewhere.checkpoints.uri)
    assert read_manifest(other, committed(other)[-1]).counters.stage_start_validation != first


def test_weights_that_do_not_fit_end_the_run_for_good_before_a_step(tmp_path: Path, tokenizer: LoadedTokenizer) -> None:
    llama(GQA).save_pretrained(tmp_path / "llama")
    model = GQA.model_copy(update={"layers": 3})
    config = configured(tmp_path, model, tokenizer, initial_weights_uri=(tmp_path / "llama").as_uri())
    codes = train(config, tmp_path, size=2)
    assert codes[0] == EXIT_CONFIG
    failure = Failure.model_validate(json.loads((tmp_path / "state-1" / "failure-0.json").read_bytes()))
    assert (failure.reason, failure.retryable) == ("WeightsMismatch", False)
    assert "model.layers is 3, the weights have 2" in failure.message
    assert not committed(open_store(config.checkpoints.uri))
