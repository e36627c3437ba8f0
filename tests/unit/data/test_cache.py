import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from skywork_trainer.data.cache import ShardCache
from skywork_trainer.data.errors import DataError
from skywork_trainer.data.shards import SourceIndex, read_index
from skywork_trainer.storage import FileStore


class CountingStore(FileStore):
    """A folder that counts downloads, and damages the first few."""

    def __init__(self, root: Path, damaged: int = 0) -> None:
        super().__init__(root)
        self.downloads = 0
        self.damaged = damaged

    def download(self, key: str, path: Path) -> None:
        super().download(key, path)
        self.downloads += 1
        if self.downloads <= self.damaged:
            path.write_bytes(b"damaged")


@pytest.fixture
def source(prepare, tmp_path: Path) -> tuple[CountingStore, SourceIndex]:
    uri = prepare("main")
    return CountingStore(tmp_path / "main"), read_index("main", uri)


def cached(cache: Path) -> set[str]:
    return {path.stem for path in cache.glob("*.bin")}


def test_a_shard_is_fetched_once_whoever_asks(source, tmp_path: Path) -> None:
    store, index = source

    def read(_: int) -> list[int]:
        opened = ShardCache(tmp_path / "cache").open(store, index.shards[0], index.numpy_dtype)
        tokens = opened.read(5, 4).tolist()
        opened.close()
        return tokens

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(read, range(16)))
    assert store.downloads == 1
    assert answers == [answers[0]] * 16
    assert len(answers[0]) == 4


def test_damage_on_the_way_is_repaired_by_fetching_again(source, tmp_path: Path) -> None:
    store, index = source
    store.damaged = 1
    ShardCache(tmp_path / "cache").open(store, index.shards[0], index.numpy_dtype).close()
    assert store.downloads == 2


def test_damage_at_the_source_is_refused_and_leaves_nothing_behind(source, tmp_path: Path) -> None:
    store, index = source
    store.damaged = 2
    with pytest.raises(DataError, match=r"shard-00000\.bin: sha256 is .* the index says") as refusal:
        ShardCache(tmp_path / "cache").open(store, index.shards[0], index.numpy_dtype)
    assert (refusal.value.reason, refusal.value.retryable) == ("ShardCorrupt", False)
    assert {path.suffix for path in (tmp_path / "cache").iterdir()} == {".lock"}


def test_the_oldest_shard_makes_room_but_never_one_in_use(source, tmp_path: Path) -> None:
    store, index = source
    first, second, third = index.shards[:3]
    cache = ShardCache(tmp_path / "cache", capacity_bytes=first.bytes + second.bytes)
    in_use = cache.open(store, first, index.numpy_dtype)
    cache.open(store, second, index.numpy_dtype).close()
    cache.open(store, third, index.numpy_dtype).close()
    assert cached(tmp_path / "cache") == {first.sha256, third.sha256}
    in_use.close()


def test_shards_in_use_may_exceed_the_capacity_rather_than_stop_the_run(source, tmp_path: Path) -> None:
    store, index = source
    cache = ShardCache(tmp_path / "cache", capacity_bytes=1)
    opened = [cache.open(store, shard, index.numpy_dtype) for shard in index.shards[:3]]
    assert cached(tmp_path / "cache") == {shard.sha256 for shard in index.shards[:3]}
    for shard in opened:
        shard.close()


KILLED_WHILE_FETCHING = """
import os, signal, sys
from pathlib import Path
from skywork_trainer.data.cache import ShardCache
from skywork_trainer.data.shards import read_index
from skywork_trainer.storage import FileStore
class Killed(FileStore):
    def download(self, key, path):
        path.write_bytes(b"half")
        os.kill(os.getpid(), signal.SIGKILL)
index = read_index("main", Path(sys.argv[1]).as_uri())
ShardCache(Path(sys.argv[2])).open(Killed(Path(sys.argv[1])), index.shards[0], index.numpy_dtype)
"""


def test_a_fetch_killed_half_way_is_swept_and_done_again(source, tmp_path: Path) -> None:
    store, index = source
    command = [sys.executable, "-c", KILLED_WHILE_FETCHING, str(tmp_path / "main"), str(tmp_path / "cache")]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    assert list((tmp_path / "cache").glob("*.fetch"))
    cache = ShardCache(tmp_path / "cache")
    assert not list((tmp_path / "cache").glob("*.fetch"))
    cache.open(store, index.shards[0], index.numpy_dtype).close()
    assert store.downloads == 1
