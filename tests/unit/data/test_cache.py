import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from skywork_trainer.data.cache import PartCache
from skywork_trainer.data.errors import DataError
from skywork_trainer.data.fetch import Part
from skywork_trainer.data.shards import part_at, read_index
from skywork_trainer.storage import FileStore


class CountingStore(FileStore):
    """A folder that counts reads, and damages the first few."""

    def __init__(self, root: Path, damaged: int = 0) -> None:
        super().__init__(root)
        self.reads = 0
        self.damaged = damaged

    def get_range(self, key: str, start: int, length: int) -> bytes:
        self.reads += 1
        content = super().get_range(key, start, length)
        return b"damaged" if self.reads <= self.damaged else content


@pytest.fixture
def source(prepare, tmp_path: Path) -> tuple[CountingStore, list[Part]]:
    index = read_index("main", prepare("main"))
    shard = index.shards[0]
    digests = (tmp_path / "main" / f"{shard.stem}.sum").read_bytes()
    count = len(digests) // 32
    return CountingStore(tmp_path / "main"), [part_at(shard, n, index.part_bytes, digests) for n in range(count)]


def cached(cache: Path) -> set[str]:
    return {path.stem for path in cache.glob("*.bin")}


def test_a_part_is_fetched_once_whoever_asks(source, tmp_path: Path) -> None:
    store, parts = source

    def read(_: int) -> bytes:
        opened = PartCache(tmp_path / "cache").open(store, parts[0])
        content = opened.read(5, 4)
        opened.close()
        return content

    with ThreadPoolExecutor(8) as pool:
        answers = set(pool.map(read, range(16)))
    assert store.reads == 1
    assert answers == {(tmp_path / "main" / parts[0].file).read_bytes()[5:9]}


def test_damage_on_the_way_is_repaired_by_fetching_again(source, tmp_path: Path) -> None:
    store, parts = source
    store.damaged = 2
    PartCache(tmp_path / "cache").open(store, parts[0]).close()
    assert store.reads == 3


def test_damage_at_the_source_is_refused_and_leaves_nothing_behind(source, tmp_path: Path) -> None:
    store, parts = source
    store.damaged = 99
    with pytest.raises(DataError, match=r"shard-00000-000\.bin bytes 0-299: sha256 is .* the index says") as refusal:
        PartCache(tmp_path / "cache").open(store, parts[0])
    assert (refusal.value.reason, refusal.value.retryable) == ("ShardCorrupt", False)
    assert list((tmp_path / "cache").iterdir()) == []


def test_the_longest_unread_part_makes_room_but_never_one_in_use(source, tmp_path: Path) -> None:
    store, parts = source
    first, second, third = parts[:3]
    cache = PartCache(tmp_path / "cache", capacity_bytes=first.length + second.length)
    in_use = cache.open(store, first)
    cache.open(store, second).close()
    cache.open(store, third).close()
    assert cached(tmp_path / "cache") == {first.sha256, third.sha256}
    assert in_use.read(0, first.length) == (tmp_path / "main" / first.file).read_bytes()[: first.length]
    in_use.close()


def test_parts_in_use_may_exceed_the_capacity_rather_than_stop_the_run(source, tmp_path: Path) -> None:
    store, parts = source
    cache = PartCache(tmp_path / "cache", capacity_bytes=1)
    opened = [cache.open(store, part) for part in parts[:3]]
    assert cached(tmp_path / "cache") == {part.sha256 for part in parts[:3]}
    for part in opened:
        part.close()


def test_a_tally_that_a_kill_made_wrong_is_counted_anew(source, tmp_path: Path) -> None:
    store, parts = source
    cache = PartCache(tmp_path / "cache", capacity_bytes=2 * parts[0].length)
    cache.open(store, parts[0]).close()
    (tmp_path / "cache" / "held").write_text("999999999")
    cache.open(store, parts[1]).close()
    assert cached(tmp_path / "cache") == {parts[0].sha256, parts[1].sha256}
    (tmp_path / "cache" / "held").write_text("")
    cache.open(store, parts[2]).close()
    assert parts[2].sha256 in cached(tmp_path / "cache")
    assert len(cached(tmp_path / "cache")) <= 2


KILLED_WHILE_FETCHING = """
import os, signal, sys
from pathlib import Path
from skywork_trainer.data import cache
from skywork_trainer.data.fetch import Part
from skywork_trainer.storage import FileStore
def killed(file):
    os.write(file, b"half")
    os.kill(os.getpid(), signal.SIGKILL)
os.fsync = killed
part = Part(sys.argv[3], 0, int(sys.argv[4]), sys.argv[5])
cache.PartCache(Path(sys.argv[2])).open(FileStore(Path(sys.argv[1])), part)
"""


def test_a_fetch_killed_half_way_is_swept_and_done_again(source, tmp_path: Path) -> None:
    store, parts = source
    part = parts[0]
    arguments = [str(tmp_path / "main"), str(tmp_path / "cache"), part.file, str(part.length), part.sha256]
    killed = subprocess.run([sys.executable, "-c", KILLED_WHILE_FETCHING, *arguments], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert list((tmp_path / "cache").glob("*.fetch"))
    cache = PartCache(tmp_path / "cache")
    assert not list((tmp_path / "cache").glob("*.fetch"))
    opened = cache.open(store, part)
    assert opened.read(0, part.length) == (tmp_path / "main" / part.file).read_bytes()[: part.length]
    assert store.reads == 1
