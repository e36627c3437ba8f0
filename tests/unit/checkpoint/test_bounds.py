"""A manifest is data from outside: whatever it says, reading it is bounded and ends in a state or a clear error."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from skywork_trainer.checkpoint import CheckpointCorrupt, bounds
from skywork_trainer.checkpoint.files import FragmentReader
from skywork_trainer.checkpoint.manifest import Manifest, parse_manifest, read_manifest
from skywork_trainer.engine import KINDS, Span
from skywork_trainer.storage import FileStore

from tests.unit.checkpoint.saving import ELEMENTS, saver, snapshot
from tests.unit.train.world import run_config

HUGE = 10**30


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[FileStore, Manifest]:
    folder = tmp_path_factory.mktemp("run")
    store = FileStore(folder / "store")
    return store, saver(store, run_config(folder), folder).save(snapshot(3))


def changed(manifest: Manifest, where: str, value: Any) -> bytes:
    """The manifest's text with one value replaced, named like files.0.size."""
    tree: Any = json.loads(manifest.model_dump_json())
    *path, last = (int(part) if part.isdecimal() else part for part in where.split("."))
    inner = tree
    for part in path:
        inner = inner[part]
    inner[last] = value
    return json.dumps(tree).encode()


def test_arrays_have_the_names_that_engines_give_them() -> None:
    assert bounds.ARRAYS == KINDS


def test_what_was_written_is_read(saved: tuple[FileStore, Manifest]) -> None:
    assert read_manifest(saved[0], saved[1].id) == saved[1]


@pytest.mark.parametrize(
    ("where", "value", "says"),
    [
        ("id", "0000000009-000001-000000000003", "id is '0000000009"),
        ("files.0.name", "../../../etc/passwd", r"files\[0\].name is '\.\./\.\./"),
        ("files.0.name", "/etc/passwd", r"files\[0\].name is '/etc/passwd'"),
        ("files.0.name", "rank-00000.safetensors/../x", r"files\[0\].name"),
        ("files.0.size", HUGE, r"files\[0\].size is 1000000"),
        ("files.0.size", -1, r"files\[0\].size is -1"),
        ("files.0.size", 1 << 40, r"sha256 has 1 hashes for 1099511627776 bytes"),
        ("files.0.block_bytes", 1 << 40, r"files\[0\].block_bytes is 1099511627776"),
        ("files.0.block_bytes", 0, r"files\[0\].block_bytes is 0"),
        ("files.0.block_bytes", -8, r"files\[0\].block_bytes is -8"),
        ("files.0.sha256", [], "sha256 has 0 hashes"),
        ("files.0.sha256", ["x"], r"sha256\[0\] is 'x'"),
        ("pieces.1.offset", -4, r"pieces\[1\].offset is -4"),
        ("pieces.1.offset", HUGE, r"pieces\[1\].offset is 1000"),
        ("pieces.1.length", HUGE, r"pieces\[1\]"),
        ("pieces.1.length", 0, r"pieces\[1\].length is 0"),
        ("pieces.1.start", -1, r"pieces\[1\].start is -1"),
        ("pieces.1.file", 1, r"pieces\[1\].file is 1, there are 1 files"),
        ("pieces.1.file", -1, r"pieces\[1\].file is -1"),
        ("pieces.1.kind", "os.system", r"pieces\[1\].kind is 'os.system'"),
        ("pieces.1.kind", "master", "elements 0 to 1000 of 'w' master are there twice"),
        ("pieces.1.start", 5, "elements 0 to 5 of 'w' exp_avg are missing"),
        ("pieces.1.offset", 180, "share bytes of file 0"),
        ("model.layers", 10**9, "model.layers is 1000000000"),
        ("step", -3, "step is -3"),
        ("format", 2, "format"),
        ("files", None, "files"),
        ("pieces", [{}], "pieces.0"),
    ],
)
def test_each_wrong_value_is_refused_by_its_name(
    saved: tuple[FileStore, Manifest], where: str, value: Any, says: str
) -> None:
    with pytest.raises(CheckpointCorrupt, match=says) as raised:
        parse_manifest(saved[1].id, changed(saved[1], where, value))
    assert len(str(raised.value)) < 500


@pytest.mark.parametrize(
    "text",
    [
        b"[" * 1_000_000,
        b'{"pieces": [' + b"{}," * 99_000 + b"{}]}",
        b'{"pieces": [' + b"{}," * 3_000_000 + b"{}]}",
        b'{"files": [{"sha256": [' + b'"",' * 990_000 + b'""]}]}',
        b'{"files": [' + b"1," * 990_000 + b"1]}",
        b'{"a": ' + b"9" * 5_000_000 + b"}",
        b'"' + b"x" * bounds.MOST_MANIFEST_BYTES + b'"',
        b"",
        b"\xff\xfe",
    ],
    ids=["deep", "empty pieces", "more empty pieces", "hashes", "numbers", "digits", "long", "empty", "no text"],
)
def test_texts_made_to_exhaust_memory_are_refused_within_bounds(
    tmp_path: Path, saved: tuple[FileStore, Manifest], text: bytes
) -> None:
    store, identity = FileStore(tmp_path), saved[1].id
    store.put(f"checkpoints/{identity}/manifest.json", text)
    Path("/proc/self/clear_refs").write_text("5")
    before = peak_bytes()
    with pytest.raises(CheckpointCorrupt) as raised:
        read_manifest(store, identity)
    assert len(str(raised.value)) < 500
    assert peak_bytes() - before < 256 << 20


def peak_bytes() -> int:
    """Most memory this process has held since the mark was reset."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) << 10


numbers = st.one_of(
    st.integers(-(2**70), 2**70), st.integers(-8, 13_000), st.sampled_from([0, 1 << 31, 1 << 32, 1 << 50, 1 << 63])
)
values = st.one_of(numbers, st.text(max_size=20), st.none(), st.booleans(), st.floats(), st.lists(numbers, max_size=3))
places = st.sampled_from(
    [f"files.0.{name}" for name in ("name", "size", "block_bytes", "sha256")]
    + [f"pieces.{n}.{name}" for n in (0, 2) for name in ("name", "kind", "start", "length", "file", "offset")]
    + ["files", "pieces", "id", "step", "model.layers", "counters"]
)


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=st.lists(st.tuples(places, values), min_size=1, max_size=3))
@example(changes=[("pieces.0.offset", -(1 << 40)), ("pieces.0.length", 1 << 45)])
def test_a_manifest_of_random_values_is_refused_or_reads_no_more_than_it_should(
    saved: tuple[FileStore, Manifest], changes: list[tuple[str, Any]]
) -> None:
    store, manifest = saved
    tree: Any = json.loads(manifest.model_dump_json())
    for where, value in changes:
        *path, last = (int(part) if part.isdecimal() else part for part in where.split("."))
        inner: Any = tree
        try:
            for part in path:
                inner = inner[part]
            inner[last] = value
        except (TypeError, IndexError, KeyError):
            continue
    try:
        found = parse_manifest(manifest.id, json.dumps(tree).encode())
    except CheckpointCorrupt:
        return
    reader = FragmentReader(store, found)
    arrays = reader(Span("w", 0, ELEMENTS))
    reader.close()
    assert reader.bytes_read <= 3 * bounds.MOST_BLOCK_BYTES
    if reader.corruption is None and found.pieces == manifest.pieces:
        assert [float(array[0]) for array in arrays] == [3.0, 3.25, 3.5]


@settings(max_examples=200)
@given(text=st.binary(max_size=300))
def test_random_bytes_are_no_manifest(text: bytes) -> None:
    with pytest.raises(CheckpointCorrupt):
        parse_manifest("0000000001-000001-000000000003", text)


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(header=st.binary(min_size=1, max_size=64), at=st.integers(0, 100))
@example(header=(1 << 63).to_bytes(8, "little"), at=0)
def test_a_file_s_own_header_is_never_believed(
    tmp_path: Path, saved: tuple[FileStore, Manifest], header: bytes, at: int
) -> None:
    """Where things lie is said by the manifest alone; a header that was tampered with is damage like any other."""
    store, manifest = saved
    key = f"checkpoints/{manifest.id}/rank-00000.safetensors"
    content = bytearray(store.get(key))
    whole = bytes(content)
    content[at : at + len(header)] = header
    other = FileStore(tmp_path)
    other.put(key, bytes(content))
    reader = FragmentReader(other, manifest)
    reader(Span("w", 0, ELEMENTS))
    reader.close()
    assert (reader.corruption is None) == (bytes(content) == whole)
