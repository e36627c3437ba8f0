"""State saved by one world is bit for bit what another world restores."""

import signal
from pathlib import Path

import pytest
import torch
from skywork_trainer.checkpoint.files import FragmentReader
from skywork_trainer.checkpoint.manifest import committed, read_manifest
from skywork_trainer.config import EXIT_LEFT, Engine, RunConfig
from skywork_trainer.engine import Span
from skywork_trainer.storage import open_store

from tests.unit.train.world import Fault, done, run_config, start, train


def _resave(rank: int, size: int, port: int, config: RunConfig, folder: Path, generation: int) -> None:
    """Restore the newest checkpoint and save it again as it is, in this world's layout."""
    from skywork_trainer.batch import micro_batches
    from skywork_trainer.checkpoint.manifest import Counters
    from skywork_trainer.checkpoint.restore import Candidates
    from skywork_trainer.checkpoint.saver import DataIdentity, Saver, Snapshot
    from skywork_trainer.engine.deepspeed_engine import DeepSpeedEngine
    from skywork_trainer.model import Decoder
    from skywork_trainer.worker import process_group

    from tests.unit.train.world import place

    store = open_store(config.checkpoints.uri)
    with process_group(place(folder, rank=rank, size=size, port=port, generation=generation)) as world:
        module = Decoder(config.model)
        engine = DeepSpeedEngine(module, config, micro_batches=micro_batches(config, size))
        candidates = Candidates(store, world)
        manifest = candidates.next()
        assert manifest is not None
        assert candidates.load(manifest, engine)
        reader = FragmentReader(store, manifest)
        for name, parameter in module.named_parameters():
            # The model's own weights, not only the masters: those are what the next forward pass uses.
            assert torch.equal(parameter.detach().flatten(), reader(Span(name, 0, parameter.numel()))[0])
        saver = Saver(store, config, world=world, generation=generation, local=folder / "local")
        saver.save(
            Snapshot(
                step=manifest.step,
                stage=manifest.stage,
                optimizer_step=engine.optimizer_step,
                fragments=engine.fragments(),
                data=DataIdentity(tokenizer_sha256="", fingerprints={}, past_hash=""),
                counters=Counters(),
                parent=manifest.id,
                parent_step=manifest.step,
                consumed=(),
                losses=(),
            )
        )


@pytest.mark.parametrize("zero_stages", [(1, 1, 1), (0, 1, 2)])
def test_one_rank_to_two_to_three_keeps_every_bit(tmp_path: Path, zero_stages: tuple[int, int, int]) -> None:
    configs = [run_config(tmp_path, engine=Engine(zero_stage=z, micro_batch_sequences=2)) for z in zero_stages]
    left = train(configs[0], tmp_path, size=1, fault=Fault(rank=0, step=2, signal=signal.SIGTERM))
    assert left == [EXIT_LEFT]
    for generation, size in ((2, 2), (3, 3)):
        resaved = start(_resave, size, configs[generation - 1], tmp_path, generation)
        assert resaved.codes() == done(size)
    store = open_store(configs[0].checkpoints.uri)
    manifests = [read_manifest(store, identity) for identity in committed(store)]
    assert [manifest.world for manifest in manifests] == [1, 2, 3]
    assert [manifest.optimizer_step for manifest in manifests] == [3, 3, 3]
    readers = [FragmentReader(store, manifest) for manifest in manifests]
    spans = {p.name: 0 for p in manifests[0].pieces}
    for piece in manifests[0].pieces:
        spans[piece.name] = max(spans[piece.name], piece.start + piece.length)
    for name, length in spans.items():
        one, two, three = (reader(Span(name, 0, length)) for reader in readers)
        for arrays in zip(one, two, three, strict=True):
            assert torch.equal(arrays[0], arrays[1])
            assert torch.equal(arrays[0], arrays[2])
    assert [reader.corruption for reader in readers] == [None, None, None]
