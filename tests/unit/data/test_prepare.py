import gzip
import hashlib
import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import zstandard
from skywork_trainer.cli import main
from skywork_trainer.data import prepare as module
from skywork_trainer.data.errors import DataError
from skywork_trainer.data.prepare import Preparation
from skywork_trainer.data.shards import SourceIndex, read_index
from skywork_trainer.data.texts import find_texts
from skywork_trainer.storage import FileStore
from skywork_trainer.tokenizer import END_OF_TEXT, LoadedTokenizer

TEXTS = [f"文档{n}。document {n}: " + "abc " * (n % 9) for n in range(90)]


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BATCH_LINES", 7)


def jsonl(texts: list[str]) -> bytes:
    return "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()


def make(output: Path, tokenizer: LoadedTokenizer, *inputs: Path, workers: int = 1) -> tuple[SourceIndex, bool]:
    return Preparation(
        inputs=find_texts([str(path) for path in inputs]),
        tokenizer=tokenizer,
        output=output.as_uri(),
        shard_tokens=400,
        workers=workers,
        report=lambda line: None,
    ).run()


def contents(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def documents(folder: Path, index: SourceIndex) -> list[list[int]]:
    found = []
    for shard in index.shards:
        tokens = np.fromfile(folder / shard.file, dtype=index.numpy_dtype)
        offsets = np.fromfile((folder / shard.file).with_suffix(".idx"), dtype="<u8")
        assert (len(tokens), len(offsets)) == (shard.tokens, shard.documents + 1)
        found += [tokens[a:b].tolist() for a, b in pairwise(offsets)]
    return found


def test_every_document_is_there_once_in_order_and_ended(tmp_path: Path, tokenizer: LoadedTokenizer) -> None:
    (tmp_path / "a.jsonl").write_bytes(jsonl(TEXTS))
    index, made = make(tmp_path / "out", tokenizer, tmp_path / "a.jsonl")
    assert made
    assert len(index.shards) > 2
    found = documents(tmp_path / "out", index)
    assert {document[-1] for document in found} == {tokenizer.end_of_text} == {0}
    assert [tokenizer.tokenizer.decode(document[:-1]) for document in found] == TEXTS
    assert sum(shard.text_bytes for shard in index.shards) == sum(len(text.encode()) for text in TEXTS)
    assert sum(shard.text_characters for shard in index.shards) == sum(map(len, TEXTS))
    assert read_index("out", (tmp_path / "out").as_uri()) == index


def test_the_number_of_workers_changes_nothing(tmp_path: Path, tokenizer: LoadedTokenizer) -> None:
    (tmp_path / "a.jsonl").write_bytes(jsonl(TEXTS))
    make(tmp_path / "one", tokenizer, tmp_path / "a.jsonl")
    make(tmp_path / "two", tokenizer, tmp_path / "a.jsonl", workers=2)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_plain_gzip_and_zstandard_hold_the_same_documents(tmp_path: Path, tokenizer: LoadedTokenizer) -> None:
    content = jsonl(TEXTS)
    (tmp_path / "a.jsonl").write_bytes(content)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(content))
    frames = [zstandard.ZstdCompressor().compress(part) for part in (content[:999], content[999:])]
    (tmp_path / "a.jsonl.zst").write_bytes(b"".join(frames))
    made = {
        name: make(tmp_path / f"out{name}", tokenizer, tmp_path / f"a.jsonl{name}")[0] for name in ("", ".gz", ".zst")
    }
    assert made[""].shards == made[".gz"].shards == made[".zst"].shards


def test_preparing_the_same_again_has_nothing_to_do(tmp_path: Path, tokenizer: LoadedTokenizer) -> None:
    (tmp_path / "a.jsonl").write_bytes(jsonl(TEXTS))
    index, _ = make(tmp_path / "out", tokenizer, tmp_path / "a.jsonl")
    before = contents(tmp_path / "out")
    (tmp_path / "a.jsonl").rename(tmp_path / "renamed.jsonl")
    assert make(tmp_path / "out", tokenizer, tmp_path / "renamed.jsonl") == (index, False)
    assert contents(tmp_path / "out") == before


def test_a_source_made_from_other_inputs_is_never_overwritten(tmp_path: Path, tokenizer: LoadedTokenizer) -> None:
    (tmp_path / "a.jsonl").write_bytes(jsonl(TEXTS))
    make(tmp_path / "out", tokenizer, tmp_path / "a.jsonl")
    before = contents(tmp_path / "out")
    (tmp_path / "a.jsonl").write_bytes(jsonl(TEXTS[1:]))
    with pytest.raises(DataError, match="another --output") as refusal:
        make(tmp_path / "out", tokenizer, tmp_path / "a.jsonl")
    assert refusal.value.reason == "OutputOccupied"
    assert contents(tmp_path / "out") == before


def test_a_preparation_killed_half_way_goes_on_behind_its_last_shard(
    tmp_path: Path, tokenizer: LoadedTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.jsonl").write_bytes(jsonl(TEXTS[:40]) + b"bad\n" + jsonl(TEXTS[40:]))
    make(tmp_path / "whole", tokenizer, tmp_path / "a.jsonl")
    uploaded: list[str] = []
    upload = FileStore.upload

    def dying(self: FileStore, path: Path, key: str) -> None:
        if len(uploaded) == 5:
            raise KeyboardInterrupt
        uploaded.append(key)
        upload(self, path, key)

    monkeypatch.setattr(FileStore, "upload", dying)
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path / "out", tokenizer, tmp_path / "a.jsonl")
    assert not (tmp_path / "out" / "index.json").exists()
    monkeypatch.setattr(FileStore, "upload", lambda self, path, key: (uploaded.append(key), upload(self, path, key)))
    uploaded.clear()
    make(tmp_path / "out", tokenizer, tmp_path / "a.jsonl")
    assert uploaded[0] == "shard-00002.bin"
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_bad_lines_are_counted_and_skipped(tmp_path: Path, tokenizer: LoadedTokenizer) -> None:
    bad = [b"not json", b"[]", b'{"text": 3}', b'{"text": ""}', b'{"other": "x"}', b'{"text": "\\ud800"}', b"\xff"]
    (tmp_path / "a.jsonl").write_bytes(b"\n".join([*bad, b""]) + jsonl(["good"]))
    index, _ = make(tmp_path / "out", tokenizer, tmp_path / "a.jsonl")
    assert (index.documents, index.bad_lines) == (1, len(bad))


def test_text_that_spells_out_the_end_of_text_does_not_end_a_document(
    tmp_path: Path, tokenizer: LoadedTokenizer
) -> None:
    (tmp_path / "a.jsonl").write_bytes(jsonl([f"one {END_OF_TEXT} still one"]))
    index, _ = make(tmp_path / "out", tokenizer, tmp_path / "a.jsonl")
    (document,) = documents(tmp_path / "out", index)
    assert document.count(0) == 1


def test_patterns_and_folders_name_their_files_sorted(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a.jsonl.gz", "deep/c.jsonl", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert [file.key for file in find_texts([str(tmp_path)])] == ["a.jsonl.gz", "b.jsonl", "deep/c.jsonl"]
    assert [file.key for file in find_texts([f"{tmp_path.as_uri()}/*.jsonl"])] == ["b.jsonl"]
    assert [file.key for file in find_texts([f"{tmp_path}/*/*.jsonl"])] == ["deep/c.jsonl"]
    with pytest.raises(DataError, match=r"missing\.jsonl does not exist"):
        find_texts([str(tmp_path / "missing.jsonl")])


def test_a_damaged_archive_is_an_error_that_names_it(tmp_path: Path, tokenizer: LoadedTokenizer) -> None:
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(jsonl(TEXTS))[:-20])
    with pytest.raises(DataError, match=r"a\.jsonl\.gz: damaged") as refusal:
        make(tmp_path / "out", tokenizer, tmp_path / "a.jsonl.gz")
    assert refusal.value.reason == "InputInvalid"


def test_the_command_line_trains_prepares_and_says_in_one_line_what_is_wrong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text, folder, out = tmp_path / "a.jsonl", (tmp_path / "tok").as_uri(), (tmp_path / "out").as_uri()
    text.write_bytes(jsonl(TEXTS))
    assert main(["tokenizer", "train", "--input", str(text), "--vocab-size", "300", "--output", folder]) == 0
    first = (tmp_path / "tok" / "tokenizer.json").read_bytes()
    assert main(["tokenizer", "train", "--input", str(text), "--vocab-size", "300", "--output", folder]) == 0
    assert (tmp_path / "tok" / "tokenizer.json").read_bytes() == first
    command = ["data", "prepare", "--input", str(text), "--tokenizer", folder, "--output", out, "--workers", "1"]
    assert main(command) == 0
    assert "90 documents" in capsys.readouterr().out
    assert main(command) == 0
    assert "nothing to do" in capsys.readouterr().out
    assert main([*command, "--limit", "3"]) == 64
    assert capsys.readouterr().err.count("\n") == 1
    assert main(["data", "prepare", "--input", str(text), "--tokenizer", f"{folder}/no", "--output", out]) == 64
    assert "TokenizerInvalid: no tokenizer at" in capsys.readouterr().err
