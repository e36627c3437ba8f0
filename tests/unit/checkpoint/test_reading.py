"""Blocks are read once, ahead and side by side, and from the node's own disk where it has them."""

import subprocess
import sys
import threading
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from skywork_trainer.checkpoint.files import FragmentReader, write_rank_file
from skywork_trainer.checkpoint.local import keep_file, local_file
from skywork_trainer.checkpoint.manifest import Manifest, prefix
from skywork_trainer.checkpoint.orders import Answer, WriteFile
from skywork_trainer.checkpoint.uploader import carry_out
from skywork_trainer.engine import Fragment, Span
from skywork_trainer.storage import FileStore

from tests.unit.checkpoint.saving import saver, snapshot
from tests.unit.train.world import run_config

ELEMENTS = 900


class Watched(FileStore):
    """Counts ranged reads, and holds them until `together` are asked for at once."""

    def __init__(self, root: Path, together: int = 0) -> None:
        super().__init__(root)
        self.ranges: list[tuple[str, int, int]] = []
        self._barrier = threading.Barrier(together) if together else None

    def get_range(self, key: str, start: int, length: int) -> bytes:
        self.ranges.append((key, start, length))
        if self._barrier is not None:
            self._barrier.wait(30)
        return super().get_range(key, start, length)


@pytest.fixture(scope="module")
def laid(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Manifest]:
    """Parameter w in two files of three fragments each, in blocks of 64 bytes."""
    folder = tmp_path_factory.mktemp("run")
    store = FileStore(folder / "store")
    manifest = saver(store, run_config(folder), folder).save(snapshot(1))
    whole, files, pieces = torch.arange(ELEMENTS, dtype=torch.float32), [], []
    for index in range(2):
        parts = []
        for start in range(450 * index, 450 * index + 450, 150):
            values = whole[start : start + 150]
            parts.append(Fragment(Span("w", start, 150), values, values + 1000, values + 2000))
        path = store.root / prefix(manifest.id) / f"rank-{index:05d}.safetensors"
        file, located = write_rank_file(path, parts, file_index=index, block_bytes=64)
        files.append(file)
        pieces += located
    return store.root, manifest.model_copy(update={"files": tuple(files), "pieces": tuple(pieces)})


@settings(max_examples=60)
@given(cuts=st.sets(st.integers(1, ELEMENTS - 1), max_size=12), rank=st.integers(0, 12))
def test_a_rank_of_any_world_reads_its_part_each_block_once(
    laid: tuple[Path, Manifest], cuts: set[int], rank: int
) -> None:
    edges = [0, *sorted(cuts), ELEMENTS]
    mine = list(pairwise(edges))[rank % (len(edges) - 1)]
    spans = [Span("w", low, min(low + 100, mine[1]) - low) for low in range(mine[0], mine[1], 100)]
    store = Watched(laid[0])
    reader = FragmentReader(store, laid[1])
    reader.expect(spans)
    for span in spans:
        for array, more in zip(reader(span), (0, 1000, 2000), strict=True):
            assert torch.equal(array, torch.arange(span.start, span.start + span.length, dtype=torch.float32) + more)
    reader.close()
    assert reader.corruption is None
    assert len(store.ranges) == len(set(store.ranges)), "a block was fetched twice"
    needed = 3 * 4 * (mine[1] - mine[0])
    # At the edges of what is needed of each array in each file, at most two blocks are read for a part of them.
    assert needed <= reader.bytes_read <= needed + 3 * 6 * 2 * 64


def test_blocks_are_fetched_side_by_side(laid: tuple[Path, Manifest]) -> None:
    # Eight blocks: the reads of the first four end only when all four are under way, and so on.
    spans = [Span("w", start, 1) for start in (0, 50, 100, 449)]
    store = Watched(laid[0])
    plain = FragmentReader(store, laid[1])
    for span in spans:
        plain(span)
    plain.close()
    assert len(store.ranges) % 4 == 0
    together = Watched(laid[0], together=4)
    reader = FragmentReader(together, laid[1])
    reader.expect(spans)
    for span in spans:
        reader(span)
    reader.close()
    assert reader.corruption is None


def test_what_a_node_has_as_it_was_written_is_not_fetched(laid: tuple[Path, Manifest], tmp_path: Path) -> None:
    root, manifest = laid
    for name in ("rank-00000.safetensors", "rank-00001.safetensors"):
        path = local_file(tmp_path, manifest.id, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes((root / prefix(manifest.id) / name).read_bytes())
    damaged = local_file(tmp_path, manifest.id, "rank-00001.safetensors")
    content = bytearray(damaged.read_bytes())
    content[-1] ^= 1
    damaged.write_bytes(content)
    store = Watched(root)
    reader = FragmentReader(store, manifest, local=tmp_path)
    master, _, second = reader(Span("w", 0, ELEMENTS))
    reader.close()
    assert torch.equal(master, torch.arange(ELEMENTS, dtype=torch.float32))
    assert torch.equal(second, master + 2000)
    assert (len(store.ranges), reader.bytes_read) == (1, store.ranges[0][2]), "only the damaged block"


def test_a_node_without_room_keeps_nothing_and_the_save_goes_on(laid: tuple[Path, Manifest], tmp_path: Path) -> None:
    source = laid[0] / prefix(laid[1].id) / "rank-00000.safetensors"
    (tmp_path / "local").write_text("a file where the folder would be")

    def order(*, durable: bool) -> Answer:
        with source.open("rb") as file:
            write = WriteFile(
                id=laid[1].id,
                name=source.name,
                fd=file.fileno(),
                size=source.stat().st_size,
                block_bytes=64,
                durable=durable,
                local_keep=1,
            )
            return carry_out(write, FileStore(tmp_path / "store"), tmp_path / "local")

    stored = order(durable=True)
    assert stored.trouble is None and stored.sha256 == laid[1].files[0].sha256
    only_here = order(durable=False)
    assert only_here.trouble is not None and only_here.trouble.retryable
    with source.open("rb") as file, pytest.raises(OSError, match="bytes free"):
        keep_file(tmp_path / "disk", laid[1].id, source.name, file.fileno(), 1 << 60, keep=1)


def test_a_node_s_disk_holds_a_bounded_number_of_checkpoints(laid: tuple[Path, Manifest], tmp_path: Path) -> None:
    source = laid[0] / prefix(laid[1].id) / "rank-00000.safetensors"
    with source.open("rb") as file:
        for step in range(1, 6):
            identity = f"0000000001-000001-{step:012d}"
            keep_file(tmp_path, identity, "rank-00000.safetensors", file.fileno(), source.stat().st_size, keep=2)
            assert len(list(tmp_path.iterdir())) <= 3
    assert sorted(path.name[-1] for path in tmp_path.iterdir()) == ["3", "4", "5"]


def test_the_process_that_stores_checkpoints_imports_no_torch() -> None:
    code = "import sys, skywork_trainer.checkpoint.uploader; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
