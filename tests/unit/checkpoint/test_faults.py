"""Whatever goes wrong while a checkpoint is written, what is restored is one that was committed, whole."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from skywork_trainer.checkpoint import Superseded
from skywork_trainer.checkpoint.commit import refuse_if_superseded
from skywork_trainer.checkpoint.history import audit
from skywork_trainer.checkpoint.manifest import committed, manifest_key, prefix
from skywork_trainer.checkpoint.notes import quarantined, reading
from skywork_trainer.checkpoint.restore import Candidates
from skywork_trainer.collectives import World
from skywork_trainer.config import Checkpoints, RunConfig
from skywork_trainer.curve import Part, curve_key, decode
from skywork_trainer.storage import FileStore, StorageError

from tests.unit.checkpoint.saving import OneArray, saver, snapshot
from tests.unit.train.world import run_config


class Killed(BaseException):
    """The process is gone: nothing behind this is executed."""


class Faulty(FileStore):
    """Spoils the write or removal whose turn it is, by number."""

    def __init__(self, root: Path, fault: str = "", at: int = 0) -> None:
        super().__init__(root)
        self.fault, self.at, self.mutations = fault, at, 0

    def put(self, key: str, data: bytes, *, if_absent: bool = False) -> None:
        self._mutate(key, lambda: super(Faulty, self).put(key, data, if_absent=if_absent))

    def upload(self, path: Path, key: str) -> None:
        self._mutate(key, lambda: super(Faulty, self).upload(path, key))

    def delete(self, key: str) -> None:
        self._mutate(key, lambda: super(Faulty, self).delete(key))

    def _mutate(self, key: str, act: Callable[[], None]) -> None:
        turn, self.mutations = self.mutations == self.at, self.mutations + 1
        if not turn or not self.fault:
            return act()
        if self.fault == "killed before":
            raise Killed
        if self.fault in ("503", "disk full"):
            # As the file store says it of ENOSPC, and the S3 store once its attempts are used up.
            raise StorageError("StorageUnreachable", self.fault, retryable=True)
        act()
        if self.fault == "killed after":
            raise Killed
        if self.fault == "answer lost":
            raise StorageError("StorageUnreachable", "reset by peer", retryable=True)
        path = self.root / key
        if path.exists() and path.stat().st_size:
            content = bytearray(path.read_bytes())
            if self.fault == "truncated":
                del content[len(content) // 2 :]
            else:
                content[len(content) // 2] ^= 1
            path.write_bytes(content)
        return None


FAULTS = ("killed before", "killed after", "503", "disk full", "answer lost", "truncated", "bit flip")


def configuration(folder: Path, **changes: Any) -> RunConfig:
    return run_config(folder, checkpoints=Checkpoints(uri=(folder / "store").as_uri(), **({"keep_last": 2} | changes)))


def restored(store: FileStore, generation: int = 9) -> tuple[int, float] | None:
    """Step of the checkpoint that a new generation starts from, and the value it finds."""
    candidates, engine = Candidates(store, World(), generation=generation), OneArray(-1)
    while (manifest := candidates.next()) is not None:
        if candidates.load(manifest, engine):  # type: ignore[arg-type]
            return manifest.step, engine.value
    return None


def mutations_of_a_save(folder: Path) -> int:
    """How often a save of the third checkpoint, which removes the first, changes something in the store."""
    store = Faulty(folder / "store")
    save_three(store, configuration(folder), folder)
    return store.mutations


def save_three(store: Faulty, config: RunConfig, folder: Path) -> None:
    plain, parent, step = FileStore(store.root), "", 0
    for step in (1, 2):
        parent = saver(plain, config, folder).save(snapshot(step, parent=parent, parent_step=step - 1)).id
    saver(store, config, folder).save(snapshot(3, parent=parent, parent_step=2))


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_at_any_write_of_a_save_leaves_a_committed_state_to_restore(tmp_path: Path, fault: str) -> None:
    writes = mutations_of_a_save(tmp_path / "count")
    assert writes == 6, "file, history, curve, manifest; then the oldest checkpoint's manifest, file"
    for at in range(writes):
        folder = tmp_path / str(at)
        store = Faulty(folder / "store", fault, at)
        try:
            save_three(store, configuration(folder), folder)
            returned = True
        except (Killed, StorageError):
            returned = False
        found = restored(FileStore(store.root))
        assert found is not None
        step, value = found
        assert value == step
        assert step in (2, 3)
        if returned and fault not in ("bit flip", "truncated"):
            assert step == 3, "a save that said it was done must be there"
        if fault not in ("bit flip", "truncated"):
            result = audit(FileStore(store.root))
            assert (result.steps, result.samples_lost, result.samples_repeated) == (step, 0, 0)
            for identity in committed(store):
                part = next(decode(store.get(curve_key(identity))))
                assert isinstance(part, Part) and part.id == identity, "what is committed has its curve"


def test_a_file_that_came_out_short_is_not_committed(tmp_path: Path) -> None:
    store = Faulty(tmp_path / "store", "truncated", 0)
    with pytest.raises(StorageError, match="were uploaded") as raised:
        save_three(store, configuration(tmp_path), tmp_path)
    assert raised.value.reason == "Incomplete"
    assert len(committed(store)) == 2


def test_damage_is_noted_passed_over_ever_after_and_left_for_examination(tmp_path: Path) -> None:
    store = Faulty(tmp_path / "store", "bit flip", 0)
    save_three(store, configuration(tmp_path), tmp_path)
    newest = committed(store)[-1]
    assert restored(store, generation=4) == (2, 2.0)
    (note,) = quarantined(store)
    assert (note.id, note.generation) == (newest, 4)
    assert "differs from what was written" in note.reason
    assert store.list(prefix(newest)), "its files stay"
    later = Candidates(store, World())
    found = later.next()
    assert found is not None and found.step == 2
    assert later.corrupt == {newest: note.reason}
    # It neither counts as kept nor is it removed.
    saver(FileStore(store.root), configuration(tmp_path), tmp_path, generation=5).save(snapshot(4, parent_step=2))
    assert [int(identity.split("-")[2]) for identity in committed(store)] == [2, 3, 4]


def test_where_nothing_can_be_read_nothing_is_restored_now_or_by_the_next_generation(tmp_path: Path) -> None:
    store, config = FileStore(tmp_path / "store"), configuration(tmp_path)
    identity = saver(store, config, tmp_path).save(snapshot(1)).id
    store.put(manifest_key(identity), b'{"id": "' + identity.encode() + b'"}')
    for _ in range(2):
        candidates = Candidates(store, World())
        assert candidates.next() is None
        assert list(candidates.corrupt) == [identity]


def test_a_superseded_generation_commits_nothing_and_is_told_so(tmp_path: Path) -> None:
    store, config = FileStore(tmp_path / "store"), configuration(tmp_path)
    old = saver(store, config, tmp_path, generation=3)
    first = old.save(snapshot(5))
    saver(store, config, tmp_path, generation=4).save(snapshot(6, parent=first.id, parent_step=5))
    before = store.list("checkpoints/")
    with pytest.raises(Superseded, match="newer generation"):
        old.save(snapshot(50, parent=first.id, parent_step=5))
    assert [key for key in store.list("checkpoints/") if key.endswith("manifest.json")] == [
        key for key in before if key.endswith("manifest.json")
    ]
    assert restored(store) == (6, 6.0)


def test_a_run_applied_anew_supersedes_every_generation_of_the_one_before(tmp_path: Path) -> None:
    store, config = FileStore(tmp_path / "store"), configuration(tmp_path)
    saver(store, config.model_copy(update={"incarnation": 2}), tmp_path, generation=1).save(snapshot(1))
    with pytest.raises(Superseded):
        refuse_if_superseded(store, "0000000001-000009-000000000009")


def test_a_commit_whose_answer_was_lost_can_be_made_again(tmp_path: Path) -> None:
    store, config = FileStore(tmp_path / "store"), configuration(tmp_path)
    one = saver(store, config, tmp_path).save(snapshot(1))
    assert saver(store, config, tmp_path).save(snapshot(1)).files == one.files
    with pytest.raises(StorageError, match="exists already"):
        saver(store, config, tmp_path).save(snapshot(1, fragments=OneArray(7).fragments()))


def test_a_checkpoint_that_somebody_reads_and_the_only_one_known_to_be_readable_are_not_removed(
    tmp_path: Path,
) -> None:
    store, config = FileStore(tmp_path / "store"), configuration(tmp_path, keep_last=1)

    def save(step: int) -> None:
        saver(store, config, tmp_path).save(snapshot(step, parent_step=step - 1))

    def steps() -> list[int]:
        return [int(identity.split("-")[2]) for identity in committed(store)]

    save(1)
    assert restored(store) == (1, 1.0)
    save(2)
    assert steps() == [1, 2], "nobody has read the second yet"
    with reading(store, committed(store)[-1]):
        save(3)
        assert steps() == [1, 2, 3]
    assert restored(store) == (3, 3.0)
    save(4)
    assert steps() == [3, 4]
