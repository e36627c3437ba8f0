"""An export appears whole or not at all, is the same twice, and harms nothing that is there."""

import json
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from skywork_trainer.checkpoint import CheckpointCorrupt
from skywork_trainer.checkpoint.manifest import Manifest, prefix
from skywork_trainer.config import RunConfig
from skywork_trainer.engine.reference import ReferenceEngine
from skywork_trainer.exchange import ExportRefused
from skywork_trainer.exchange.export import Export, export, shards
from skywork_trainer.storage import FileStore, StorageError, open_store
from skywork_trainer.tokenizer import LoadedTokenizer, train_tokenizer

from tests.unit.exchange.building import GQA, configured, contents, relaid, saved, trained

SHARD_BYTES, BLOCK_BYTES = 60_000, 1 << 12
INDEX = "model.safetensors.index.json"


class Watched(FileStore):
    """Notes every range that is read, and how many reads go on at once."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.ranges: list[tuple[str, int, int]] = []
        self.most_at_once = self._now = 0
        self._lock = threading.Lock()

    def get_range(self, key: str, start: int, length: int) -> bytes:
        with self._lock:
            self.ranges.append((key, start, length))
            self._now += 1
            self.most_at_once = max(self.most_at_once, self._now)
        try:
            return super().get_range(key, start, length)
        finally:
            with self._lock:
                self._now -= 1


class Failing(FileStore):
    """Takes so many uploads, then fails."""

    def __init__(self, root: Path, uploads: int) -> None:
        super().__init__(root)
        self.left = uploads

    def upload(self, path: Path, key: str) -> None:
        if not self.left:
            raise StorageError("StorageUnreachable", "the store went away", retryable=True)
        self.left -= 1
        super().upload(path, key)


@pytest.fixture
def run(tmp_path: Path, tokenizer: LoadedTokenizer) -> tuple[RunConfig, ReferenceEngine, Manifest]:
    config = configured(tmp_path, GQA, tokenizer)
    engine = trained(config)
    return config, engine, relaid(config, saved(config, engine, tokenizer), engine, ranks=3, block_bytes=BLOCK_BYTES)


@pytest.fixture
def plan(run: tuple[RunConfig, ReferenceEngine, Manifest], tokenizer: LoadedTokenizer) -> Export:
    return Export(manifest=run[2], tokenizer=tokenizer, dtype="fp32", shard_bytes=SHARD_BYTES)


@pytest.fixture
def source(run: tuple[RunConfig, ReferenceEngine, Manifest]) -> Watched:
    return Watched(Path(run[0].checkpoints.uri.removeprefix("file://")))


def test_a_block_is_read_once_for_a_file_and_blocks_of_moments_alone_never(
    tmp_path: Path, plan: Export, source: Watched
) -> None:
    assert export(plan, source, FileStore(tmp_path / "out"))
    every = sum(-(-file.size // file.block_bytes) for file in plan.manifest.files)
    assert all(length <= BLOCK_BYTES for _, _, length in source.ranges)
    # At each border of two files of weights a block may belong to both.
    assert len(source.ranges) - len(set(source.ranges)) <= 3 * len(shards(plan))
    assert len(set(source.ranges)) < 0.75 * every
    assert 1 < source.most_at_once <= 8


def test_files_are_as_large_as_was_planned_and_no_larger_than_was_asked_for(
    tmp_path: Path, plan: Export, source: Watched
) -> None:
    export(plan, source, FileStore(tmp_path / "out"))
    planned = {shard.name: shard.size for shard in shards(plan)}
    assert {path.name: path.stat().st_size for path in (tmp_path / "out").glob("*.safetensors")} == planned
    assert len(planned) == 3
    assert max(size - len(shard.header) for shard, size in zip(shards(plan), planned.values(), strict=True)) <= 60_000
    index = json.loads((tmp_path / "out" / INDEX).read_bytes())
    assert set(index["weight_map"].values()) == set(planned)
    assert index["metadata"]["total_size"] == sum(shard.size - len(shard.header) for shard in shards(plan))


def test_the_same_export_again_writes_nothing(tmp_path: Path, plan: Export, source: Watched) -> None:
    assert export(plan, source, FileStore(tmp_path / "out"))
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    read = len(source.ranges)
    assert not export(plan, source, FileStore(tmp_path / "out"))
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()} == before
    assert len(source.ranges) == read


def test_another_export_into_the_same_folder_is_refused(
    tmp_path: Path, plan: Export, source: Watched, run: tuple[RunConfig, ReferenceEngine, Manifest]
) -> None:
    export(plan, source, FileStore(tmp_path / "out"))
    before = contents(tmp_path / "out")
    later = saved(run[0], run[1], plan.tokenizer, step=4)
    for other in (
        Export(manifest=plan.manifest, tokenizer=plan.tokenizer, dtype="bf16", shard_bytes=SHARD_BYTES),
        Export(manifest=plan.manifest, tokenizer=plan.tokenizer, dtype="fp32"),
        Export(manifest=later, tokenizer=plan.tokenizer, dtype="fp32", shard_bytes=SHARD_BYTES),
    ):
        with pytest.raises(ExportRefused, match="holds another export: name an empty folder"):
            export(other, source, FileStore(tmp_path / "out"))
    assert contents(tmp_path / "out") == before


@pytest.mark.parametrize("name", ["config.json", "holiday.jpg", "model.safetensors"])
def test_a_folder_that_holds_something_else_is_left_alone(
    tmp_path: Path, plan: Export, source: Watched, name: str
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).write_bytes(b"precious")
    with pytest.raises(ExportRefused, match="name an empty folder"):
        export(plan, source, FileStore(tmp_path / "out"))
    assert contents(tmp_path / "out") == {name: b"precious"}
    assert not source.ranges


def test_a_file_that_came_into_an_export_later_is_not_passed_over(
    tmp_path: Path, plan: Export, source: Watched
) -> None:
    export(plan, source, FileStore(tmp_path / "out"))
    (tmp_path / "out" / "model.safetensors").write_bytes(b"transformers would load this one")
    with pytest.raises(ExportRefused, match=r"holds model\.safetensors, which is none of the export's"):
        export(plan, source, FileStore(tmp_path / "out"))


def test_an_export_that_was_interrupted_has_no_index_and_goes_on_where_it_was(
    tmp_path: Path, plan: Export, source: Watched
) -> None:
    with pytest.raises(StorageError):
        export(plan, source, Failing(tmp_path / "out", uploads=2))
    assert not (tmp_path / "out" / INDEX).exists()
    reads = len(source.ranges)
    source.ranges.clear()
    assert export(plan, source, FileStore(tmp_path / "out"))
    assert len(source.ranges) < reads + len(shards(plan)) * 20
    export(plan, source, FileStore(tmp_path / "undisturbed"))
    assert contents(tmp_path / "out") == contents(tmp_path / "undisturbed")


def test_an_export_of_which_a_file_was_lost_is_made_whole(tmp_path: Path, plan: Export, source: Watched) -> None:
    export(plan, source, FileStore(tmp_path / "out"))
    before = contents(tmp_path / "out")
    (tmp_path / "out" / shards(plan)[1].name).unlink()
    assert export(plan, source, FileStore(tmp_path / "out"))
    assert contents(tmp_path / "out") == before


def test_a_damaged_checkpoint_is_not_exported(tmp_path: Path, plan: Export, source: Watched) -> None:
    key = prefix(plan.manifest.id) + plan.manifest.files[1].name
    content = bytearray(source.get(key))
    piece = next(p for p in plan.manifest.pieces if p.file == 1 and p.kind == "master")
    content[piece.offset] ^= 1
    source.put(key, bytes(content))
    with pytest.raises(CheckpointCorrupt, match="differs from what was written"):
        export(plan, source, FileStore(tmp_path / "out"))
    assert not (tmp_path / "out" / INDEX).exists()


def test_a_checkpoint_that_lacks_a_parameter_is_not_exported_with_zeros(
    tmp_path: Path, plan: Export, source: Watched
) -> None:
    pieces = tuple(piece for piece in plan.manifest.pieces if piece.name != "norm.weight")
    holed = plan.manifest.model_copy(update={"pieces": pieces})
    with pytest.raises(CheckpointCorrupt, match=r"norm\.weight master has 0 elements"):
        export(Export(manifest=holed, tokenizer=plan.tokenizer, dtype="bf16"), source, FileStore(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_a_head_that_is_not_the_embedding_is_never_left_out(
    tmp_path: Path, run: tuple[RunConfig, ReferenceEngine, Manifest], plan: Export, source: Watched
) -> None:
    module = run[1].module
    with torch.no_grad():
        module.get_parameter("head.weight").copy_(module.get_parameter("embedding.weight"))
        module.get_parameter("head.weight")[-1, -1].nextafter_(torch.tensor(9.0))
    plan = replace(plan, manifest=saved(run[0], run[1], plan.tokenizer, step=4))
    tied = Export(manifest=plan.manifest, tokenizer=plan.tokenizer, dtype="bf16", tied=True)
    with pytest.raises(ExportRefused, match="is not its embedding, bit for bit"):
        export(tied, source, FileStore(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_another_tokenizer_than_the_run_s_is_refused(tmp_path: Path, plan: Export, source: Watched) -> None:
    other = train_tokenizer(iter(["zzz yyy " * 9]), 300)
    wrong = Export(manifest=plan.manifest, tokenizer=other, dtype="bf16")
    with pytest.raises(ExportRefused, match=r"spec\.tokenizer\.uri"):
        export(wrong, source, open_store((tmp_path / "out").as_uri()))
