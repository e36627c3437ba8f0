"""A checkpoint is committed by its manifest, read by byte ranges, and verified."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from skywork_trainer import cli
from skywork_trainer.checkpoint import CheckpointCorrupt, CheckpointMismatch
from skywork_trainer.checkpoint.files import FragmentReader, write_rank_file
from skywork_trainer.checkpoint.history import History, audit, decode, encode, history_key
from skywork_trainer.checkpoint.manifest import Counters, Manifest, checkpoint_id, committed, prefix, read_manifest
from skywork_trainer.checkpoint.restore import check_compatible
from skywork_trainer.checkpoint.saver import DataIdentity, Saver, Snapshot
from skywork_trainer.collectives import World
from skywork_trainer.config import EXIT_CONFIG, Checkpoints, RunConfig
from skywork_trainer.engine import Fragment, Span
from skywork_trainer.engine.reference import ReferenceEngine
from skywork_trainer.model import Decoder, initialise
from skywork_trainer.storage import FileStore, Store, open_store

from tests.unit.train.world import BATCH, MODEL, run_config

DATA = DataIdentity(tokenizer_sha256="t" * 64, fingerprints={"main": "f"}, past_hash="p")


def fragment(name: str, start: int, values: list[float]) -> Fragment:
    one = torch.tensor(values)
    return Fragment(Span(name, start, len(values)), one, one + 100, one + 200)


def saved(config: RunConfig, *, step: int, generation: int = 1, parent: Manifest | None = None) -> Manifest:
    """Save one checkpoint of one rank that trained every sample since its parent."""
    store, first = open_store(config.checkpoints.uri), parent.step if parent else 0
    saver = Saver(store, config, world=World(), generation=generation, local=store_folder(config) / "local")
    return saver.save(
        Snapshot(
            step=step,
            stage="s0",
            optimizer_step=step,
            fragments=[fragment("w", 0, [1.0, 2.0, 3.0, 4.0])],
            data=DATA,
            counters=Counters(),
            parent=parent.id if parent else "",
            parent_step=first,
            consumed=encode(range(first * BATCH, step * BATCH)),
            losses=[float(s) for s in range(first, step)],
        )
    )


def store_folder(config: RunConfig) -> Path:
    return Path(config.checkpoints.uri.removeprefix("file://")).parent


class CountingStore(FileStore):
    """Notes which byte ranges are asked for."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.ranges: list[tuple[int, int]] = []

    def get_range(self, key: str, start: int, length: int) -> bytes:
        self.ranges.append((start, length))
        return super().get_range(key, start, length)


@pytest.fixture
def big(tmp_path: Path) -> tuple[CountingStore, Manifest]:
    """One file of 64-byte blocks that holds parameter w in two fragments."""
    store = CountingStore(tmp_path)
    template = saved(run_config(tmp_path), step=1)
    folder = tmp_path / prefix(template.id)
    folder.mkdir(parents=True)
    fragments = [fragment("w", 0, [float(i) for i in range(50)]), fragment("w", 50, [float(i) for i in range(50, 90)])]
    file, pieces = write_rank_file(folder / "rank-00000.safetensors", fragments, file_index=0, block_bytes=64)
    return store, template.model_copy(update={"files": (file,), "pieces": tuple(pieces)})


def test_any_span_is_put_together_from_fragments_of_any_other_layout(big: tuple[CountingStore, Manifest]) -> None:
    reader = FragmentReader(*big)
    for start, length in [(0, 90), (0, 1), (49, 2), (13, 60), (89, 1)]:
        master, first, second = reader(Span("w", start, length))
        expected = torch.arange(start, start + length, dtype=torch.float32)
        assert torch.equal(master, expected)
        assert torch.equal(first, expected + 100)
        assert torch.equal(second, expected + 200)
    assert reader.corruption is None


def test_a_reader_fetches_only_the_blocks_its_span_lies_in(big: tuple[CountingStore, Manifest]) -> None:
    store, manifest = big
    FragmentReader(store, manifest)(Span("w", 20, 4))
    assert len(store.ranges) <= 6
    assert sum(length for _, length in store.ranges) <= 6 * 64 < manifest.files[0].size


def test_damage_is_found_only_by_who_reads_it_and_names_the_bytes(big: tuple[CountingStore, Manifest]) -> None:
    store, manifest = big
    key = prefix(manifest.id) + "rank-00000.safetensors"
    content = bytearray(store.get(key))
    content[-1] ^= 1
    store.put(key, bytes(content))
    untouched, hit = FragmentReader(store, manifest), FragmentReader(store, manifest)
    untouched(Span("w", 0, 4))
    hit(Span("w", 80, 10))
    assert untouched.corruption is None
    assert hit.corruption is not None
    assert "differs from what was written" in hit.corruption


@pytest.mark.parametrize("damage", ["truncated", "gone", "missing parameter"])
def test_a_file_that_is_not_whole_is_corrupt(big: tuple[CountingStore, Manifest], damage: str) -> None:
    store, manifest = big
    key = prefix(manifest.id) + "rank-00000.safetensors"
    if damage == "truncated":
        store.put(key, store.get(key)[:-8])
    elif damage == "gone":
        store.delete(key)
    reader = FragmentReader(store, manifest)
    reader(Span("other" if damage == "missing parameter" else "w", 0, 90))
    assert reader.corruption is not None


def test_rank_files_are_plain_safetensors(big: tuple[CountingStore, Manifest]) -> None:
    store, manifest = big
    with safe_open(store.root / prefix(manifest.id) / "rank-00000.safetensors", framework="pt") as file:
        assert torch.equal(file.get_tensor("w@50.exp_avg"), torch.arange(150.0, 190.0))


def test_the_newest_generation_comes_before_a_superseded_ones_later_step() -> None:
    names = [
        checkpoint_id(incarnation=i, generation=g, step=s)
        for i, g, s in [(1, 9, 900), (2, 1, 7), (2, 2, 5), (2, 10, 6)]
    ]
    assert sorted(names) == names


def test_a_checkpoint_without_its_manifest_is_none(tmp_path: Path) -> None:
    config = run_config(tmp_path)
    store, manifest = open_store(config.checkpoints.uri), saved(config, step=1)
    store.delete(f"checkpoints/{manifest.id}/manifest.json")
    assert committed(store) == []
    with pytest.raises(CheckpointCorrupt, match="is gone"):
        read_manifest(store, manifest.id)


def test_retention_keeps_the_newest_and_every_history(tmp_path: Path) -> None:
    config = run_config(tmp_path, checkpoints=Checkpoints(uri=(tmp_path / "store").as_uri(), keep_last=2))
    store, chain = open_store(config.checkpoints.uri), [saved(config, step=1)]
    for step in (2, 3, 4):
        chain.append(saved(config, step=step, parent=chain[-1]))
    assert committed(store) == [chain[2].id, chain[3].id]
    assert {key.split("/")[1] for key in store.list("checkpoints/")} == {chain[2].id, chain[3].id}
    assert len(store.list("history/")) == 4


def test_the_manifest_is_written_last_and_deleted_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    for name in ("put", "delete", "upload"):
        real = getattr(FileStore, name)

        def noted(self: Store, *args: object, _real: object = real, _name: str = name, **kwargs: object) -> object:
            calls.append(f"{_name} {str(args[1] if _name == 'upload' else args[0]).split('/')[-1]}")
            return _real(self, *args, **kwargs)  # type: ignore[operator]

        monkeypatch.setattr(FileStore, name, noted)
    config = run_config(tmp_path, checkpoints=Checkpoints(uri=(tmp_path / "store").as_uri(), keep_last=1))
    first = saved(config, step=1)
    records = [f"put {first.id}.json", f"put {first.id}.jsonl"]
    assert calls == ["upload rank-00000.safetensors", *records, "put manifest.json"]
    calls.clear()
    saved(config, step=2, parent=first)
    assert calls[4:] == ["delete manifest.json", "delete rank-00000.safetensors"]


@pytest.mark.parametrize(
    ("numbers", "runs"),
    [
        ([], ()),
        ([5], ((5, 1, 1),)),
        (list(range(3, 600, 2)), ((3, 2, 299),)),
        ([0, 2, 4, 5, 7, 9], ((0, 2, 3), (5, 2, 3))),
    ],
)
def test_consumed_numbers_are_kept_as_runs(numbers: list[int], runs: object) -> None:
    assert encode(numbers) == runs
    assert decode(encode(numbers)) == numbers


def test_the_audit_follows_parents_past_removed_checkpoints_and_ignores_superseded_ones(tmp_path: Path) -> None:
    config = run_config(tmp_path, checkpoints=Checkpoints(uri=(tmp_path / "store").as_uri(), keep_last=1))
    first = saved(config, step=2)
    saved(config, step=5, parent=first)  # by a generation that the next one never saw
    last = saved(config, step=4, parent=first, generation=2)
    result = audit(open_store(config.checkpoints.uri))
    assert (result.checkpoint, result.steps) == (last.id, 4)
    assert (result.samples_lost, result.samples_repeated) == (0, 0)
    assert result.losses == [0.0, 1.0, 2.0, 3.0]


def test_the_audit_counts_lost_and_repeated_samples(tmp_path: Path) -> None:
    config = run_config(tmp_path)
    first = saved(config, step=2)
    second = saved(config, step=4, parent=first)
    store = open_store(config.checkpoints.uri)
    history = History.model_validate_json(store.get(history_key(second.id)))
    numbers = [n for n in range(2 * BATCH, 4 * BATCH) if n != 20] + [13, 13, 1]
    wrong = history.model_copy(update={"ranks": (encode(numbers),)})
    store.put(history_key(second.id), wrong.model_dump_json().encode())
    result = audit(store)
    assert (result.samples_lost, result.samples_repeated) == (1, 3)


def test_the_command_lists_and_audits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = run_config(tmp_path)
    manifest = saved(config, step=3)
    assert cli.main(["checkpoints", "list", config.checkpoints.uri]) == 0
    assert manifest.id in capsys.readouterr().out
    assert cli.main(["checkpoints", "audit", config.checkpoints.uri, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["steps"], told["samplesLost"], told["samplesRepeated"], len(told["losses"])) == (3, 0, 0, 3)
    assert cli.main(["checkpoints", "list", "nowhere"]) == EXIT_CONFIG


@pytest.mark.parametrize(
    ("config_change", "data", "says"),
    [
        ({"model": MODEL.model_copy(update={"layers": 3})}, DATA, "layers was 2, is 3"),
        ({}, DataIdentity(tokenizer_sha256="u" * 64, fingerprints={}, past_hash="p"), "the tokenizer"),
        ({}, DataIdentity(tokenizer_sha256="t" * 64, fingerprints={"main": "g"}, past_hash="p"), "source 'main'"),
        ({}, DataIdentity(tokenizer_sha256="t" * 64, fingerprints={}, past_hash="q"), "mixtures trained so far"),
        ({"global_batch_sequences": 7}, DATA, "global_batch_sequences .was 6, is 7"),
    ],
)
def test_a_mismatch_names_what_differs(
    tmp_path: Path, config_change: dict[str, object], data: DataIdentity, says: str
) -> None:
    config = run_config(tmp_path)
    manifest = saved(config, step=1)
    check_compatible(manifest, config, DATA)
    with pytest.raises(CheckpointMismatch, match=says) as raised:
        check_compatible(manifest, config.model_copy(update=config_change), data)
    assert not raised.value.retryable


def test_the_reference_engine_restores_what_it_saved(tmp_path: Path) -> None:
    config = run_config(tmp_path)
    one, two = Decoder(MODEL), Decoder(MODEL)
    initialise(one, 1)
    initialise(two, 2)
    source, target = ReferenceEngine(one, config.optimizer), ReferenceEngine(two, config.optimizer)
    held = {f.span: f.arrays() for f in source.fragments()}
    target.load_fragments(lambda span: held[span], optimizer_step=3)
    assert target.optimizer_step == 3
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
