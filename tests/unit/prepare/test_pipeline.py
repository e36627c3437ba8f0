import gzip
import hashlib
import json
import os
import signal
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from skywork_trainer.cli import main
from skywork_trainer.config import Decontamination, Filters, NearDuplicates, Preparation
from skywork_trainer.data.errors import DataError
from skywork_trainer.data.shards import SourceIndex, read_index
from skywork_trainer.prepare import examination
from skywork_trainer.prepare.chunks import cut
from skywork_trainer.prepare.pipeline import Phase, Share, prepare
from skywork_trainer.prepare.report import Report
from skywork_trainer.prepare.texts import TextFile, find_texts
from skywork_trainer.storage import FileStore
from skywork_trainer.tokenizer import END_OF_TEXT, LoadedTokenizer

TEXTS = [f"文档{n}。document {n}: " + "abc " * (n % 9) + "end" for n in range(90)]


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(examination, "BATCH_DOCUMENTS", 7)


@pytest.fixture
def tokenizer_uri(tmp_path: Path, tokenizer: LoadedTokenizer) -> str:
    path = tmp_path / "tokenizer" / "tokenizer.json"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(tokenizer.content)
    return path.parent.as_uri()


def jsonl(texts: list[str]) -> bytes:
    return "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()


def options(output: Path, *inputs: Path, **changes: object) -> Preparation:
    values: dict[str, object] = {
        "inputs": [str(path) for path in inputs],
        "output": output.as_uri(),
        "tokenizer_uri": (output.parent / "tokenizer").as_uri(),
        "shard_tokens": 400,
        "chunk_bytes": 1500,
    }
    return Preparation.model_validate(values | changes)


def make(output: Path, *inputs: Path, workers: int = 1, **changes: object) -> SourceIndex:
    index = prepare(options(output, *inputs, **changes), workers=workers, say=lambda line: None)
    assert index is not None
    return index


def contents(folder: Path) -> dict[str, str]:
    """What lies in a source, but for where it was made."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name not in ("report.json", "report.html"):
            found[path.relative_to(folder).as_posix()] = hashlib.sha256(path.read_bytes()).hexdigest()
    told = Report.model_validate_json((folder / "report.json").read_bytes())
    found["report"] = told.model_copy(update={"options": None}).model_dump_json(warnings=False)
    return found


def texts_of(folder: Path, index: SourceIndex, tokenizer: LoadedTokenizer) -> list[str]:
    return [tokenizer.tokenizer.decode(document[:-1]) for document in documents(folder, index)]


def documents(folder: Path, index: SourceIndex) -> list[list[int]]:
    found = []
    for shard in index.shards:
        tokens = np.fromfile(folder / shard.file, dtype=index.numpy_dtype)
        offsets = np.fromfile((folder / shard.file).with_suffix(".idx"), dtype="<u8")
        assert (len(tokens), len(offsets)) == (shard.tokens, shard.documents + 1)
        found += [tokens[a:b].tolist() for a, b in pairwise(offsets)]
    return found


@pytest.mark.usefixtures("tokenizer_uri")
class TestPreparing:
    def test_every_document_is_there_once_in_order_and_ended(self, tmp_path: Path, tokenizer: LoadedTokenizer) -> None:
        (tmp_path / "a.jsonl").write_bytes(jsonl(TEXTS))
        index = make(tmp_path / "out", tmp_path / "a.jsonl")
        assert len(index.shards) > 3
        assert {d[-1] for d in documents(tmp_path / "out", index)} == {tokenizer.end_of_text} == {index.end_of_text}
        assert texts_of(tmp_path / "out", index, tokenizer) == TEXTS
        assert sum(shard.text_bytes for shard in index.shards) == sum(len(text.encode()) for text in TEXTS)
        assert sum(shard.text_characters for shard in index.shards) == sum(map(len, TEXTS))
        assert read_index("out", (tmp_path / "out").as_uri()) == index
        assert not list((tmp_path / "out").glob("work/*"))

    @pytest.mark.parametrize("looking", [{}, {"exact_duplicates": True, "near_duplicates": {"permutations": 16}}])
    def test_workers_and_parts_change_nothing(self, looking: dict[str, object], tmp_path: Path) -> None:
        (tmp_path / "a.jsonl").write_bytes(jsonl(TEXTS + TEXTS[:9]))
        (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(jsonl(TEXTS[40:60])))
        inputs = (tmp_path / "a.jsonl", tmp_path / "b.jsonl.gz")
        for name, workers in (("1", 1), ("2", 2), ("5", 5)):
            make(tmp_path / name, *inputs, workers=workers, **looking)
        assert contents(tmp_path / "1") == contents(tmp_path / "2") == contents(tmp_path / "5")
        whole = options(tmp_path / "parts", *inputs, **looking)
        for phase in ([Phase.SCAN] if looking else []) + [Phase.WRITE]:
            for part in (2, 0, 1):
                prepare(whole, phase=phase, share=Share(part=part, parts=3), say=lambda line: None)
        assert contents(tmp_path / "parts") == contents(tmp_path / "1")

    def test_writing_before_everything_was_looked_at_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "a.jsonl").write_bytes(jsonl(TEXTS))
        whole = options(tmp_path / "out", tmp_path / "a.jsonl", exact_duplicates=True)
        prepare(whole, phase=Phase.SCAN, share=Share(part=0, parts=2), say=lambda line: None)
        with pytest.raises(DataError, match="run --phase scan first"):
            prepare(whole, phase=Phase.WRITE, share=Share(part=0, parts=2), say=lambda line: None)

    def test_plain_compressed_and_parquet_inputs_hold_the_same_documents(
        self, tmp_path: Path, tokenizer: LoadedTokenizer
    ) -> None:
        content = jsonl(TEXTS)
        (tmp_path / "a.jsonl").write_bytes(content)
        (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(content))
        frames = [zstandard.ZstdCompressor().compress(part) for part in (content[:999], content[999:])]
        (tmp_path / "a.jsonl.zst").write_bytes(b"".join(frames))
        pq.write_table(pa.table({"text": TEXTS, "n": list(range(90))}), tmp_path / "a.parquet", row_group_size=20)
        for name in ("a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.parquet"):
            index = make(tmp_path / f"out-{name}", tmp_path / name)
            assert texts_of(tmp_path / f"out-{name}", index, tokenizer) == TEXTS

    def test_a_column_that_is_not_there_is_named_with_those_that_are(self, tmp_path: Path) -> None:
        pq.write_table(pa.table({"content": TEXTS}), tmp_path / "a.parquet")
        with pytest.raises(DataError, match=r"no column 'text'; its columns are content: name one with --text-field"):
            make(tmp_path / "out", tmp_path / "a.parquet")
        assert make(tmp_path / "out", tmp_path / "a.parquet", text_field="content").documents == 90

    def test_preparing_the_same_again_has_nothing_to_do(self, tmp_path: Path) -> None:
        (tmp_path / "a.jsonl").write_bytes(jsonl(TEXTS))
        index = make(tmp_path / "out", tmp_path / "a.jsonl")
        before = contents(tmp_path / "out")
        (tmp_path / "a.jsonl").rename(tmp_path / "renamed.jsonl")
        told: list[str] = []
        assert prepare(options(tmp_path / "out", tmp_path / "renamed.jsonl"), say=told.append) == index
        assert "nothing to do" in told[0]
        assert contents(tmp_path / "out") == before

    def test_a_source_made_from_other_inputs_is_never_overwritten(self, tmp_path: Path) -> None:
        (tmp_path / "a.jsonl").write_bytes(jsonl(TEXTS))
        make(tmp_path / "out", tmp_path / "a.jsonl")
        before = contents(tmp_path / "out")
        with pytest.raises(DataError, match="another --output") as refusal:
            make(tmp_path / "out", tmp_path / "a.jsonl", exact_duplicates=True)
        assert refusal.value.reason == "OutputOccupied"
        assert contents(tmp_path / "out") == before

    def test_an_unfinished_source_of_other_inputs_is_refused_too(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "a.jsonl").write_bytes(jsonl(TEXTS))
        with monkeypatch.context() as patch:
            patch.setattr(FileStore, "put", _dying_after(8))
            with pytest.raises(KeyboardInterrupt):
                make(tmp_path / "out", tmp_path / "a.jsonl")
        with pytest.raises(DataError, match="unfinished source"):
            make(tmp_path / "out", tmp_path / "a.jsonl", exact_duplicates=True, chunk_bytes=1500)

    @given(kills=st.lists(st.integers(0, 60), min_size=1, max_size=5))
    @settings(max_examples=12)
    def test_whenever_it_is_killed_the_same_shards_come_out(
        self, kills: list[int], tmp_path_factory: pytest.TempPathFactory, tokenizer: LoadedTokenizer
    ) -> None:
        folder = tmp_path_factory.mktemp("kills")
        (folder / "tokenizer").mkdir()
        (folder / "tokenizer" / "tokenizer.json").write_bytes(tokenizer.content)
        (folder / "a.jsonl").write_bytes(jsonl(TEXTS[:40]) + b"bad\n" + jsonl(TEXTS[20:]))
        # Several shards to a chunk, and several to a batch of documents: each may be the last before a kill.
        looking = {"exact_duplicates": True, "max_bad_share": 0.5, "shard_tokens": 60}
        make(folder / "whole", folder / "a.jsonl", **looking)
        for puts in kills:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(FileStore, "put", _dying_after(puts))
                try:
                    make(folder / "out", folder / "a.jsonl", **looking)
                except KeyboardInterrupt:
                    continue
        make(folder / "out", folder / "a.jsonl", **looking)
        assert contents(folder / "out") == contents(folder / "whole")

    def test_a_real_sigkill_loses_no_finished_shard(self, tmp_path: Path) -> None:
        (tmp_path / "a.jsonl").write_bytes(jsonl(TEXTS))
        make(tmp_path / "whole", tmp_path / "a.jsonl")
        code = _DIES.format(text=str(tmp_path / "a.jsonl"), out=(tmp_path / "out").as_uri())
        code = code.replace("TOKENIZER", (tmp_path / "tokenizer").as_uri())
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        assert subprocess.run([sys.executable, "-c", code], env=environment, check=False).returncode == -signal.SIGKILL
        kept = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.bin")}
        assert len(kept) >= 2
        make(tmp_path / "out", tmp_path / "a.jsonl")
        assert contents(tmp_path / "out") == contents(tmp_path / "whole")
        again = [name for name, when in kept.items() if (tmp_path / "out" / name).stat().st_mtime_ns != when]
        assert len(again) <= 1, "only the shard that was being recorded is written twice"

    def test_bad_lines_are_counted_sampled_and_skipped(self, tmp_path: Path) -> None:
        bad = [b"not json", b"[]", b'{"text": 3}', b'{"text": ""}', b'{"other": "x"}', b'{"text": "\\ud800"}', b"\xff"]
        (tmp_path / "a.jsonl").write_bytes(b"\n".join([*bad, b""]) + jsonl(["good"]))
        index = make(tmp_path / "out", tmp_path / "a.jsonl", max_bad_share=1)
        assert (index.documents, index.bad_lines) == (1, len(bad))
        told = Report.model_validate_json((tmp_path / "out" / "report.json").read_bytes())
        assert told.removed["BadLine"].samples[0].text == "not json"
        with pytest.raises(DataError, match=r"7 of 8 lines have no text in field 'text'.*'not json") as refusal:
            make(tmp_path / "strict", tmp_path / "a.jsonl", max_bad_share=0.5)
        assert refusal.value.reason == "InputInvalid"

    def test_a_file_of_bad_lines_is_tolerated_where_all_files_together_are_not_too_bad(self, tmp_path: Path) -> None:
        (tmp_path / "a.jsonl").write_bytes(b"broken\n" * 60)
        (tmp_path / "b.jsonl").write_bytes(jsonl(TEXTS * 3))
        index = make(tmp_path / "out", tmp_path / "a.jsonl", tmp_path / "b.jsonl", max_bad_share=0.5)
        assert (index.bad_lines, index.documents) == (60, len(TEXTS) * 3)

    @pytest.mark.parametrize("exact", [True, False], ids=["scanning", "writing"])
    def test_a_file_without_any_text_is_refused_long_before_its_end(self, tmp_path: Path, exact: bool) -> None:
        (tmp_path / "a.jsonl").write_bytes(b'{"body": "some text"}\n' * 5000)
        with pytest.raises(DataError, match=r"none of the first 1,\d+ lines has text in field 'text'"):
            make(tmp_path / "out", tmp_path / "a.jsonl", exact_duplicates=exact, chunk_bytes=1 << 20)

    def test_long_documents_are_worked_on_in_short_runs_and_give_the_same_shards(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "a.jsonl").write_bytes(jsonl(TEXTS))
        make(tmp_path / "whole", tmp_path / "a.jsonl")
        monkeypatch.setattr(examination, "_BATCH_CHARACTERS", 100)
        longest = []
        original = examination._Batch.examine

        def measured(batch: Any, lines: Any) -> Any:
            longest.append(sum(len(text or "") for _, (_, text) in lines))
            return original(batch, lines)

        monkeypatch.setattr(examination._Batch, "examine", measured)
        make(tmp_path / "short", tmp_path / "a.jsonl")
        assert contents(tmp_path / "short") == contents(tmp_path / "whole")
        assert max(longest) < 100 + max(map(len, TEXTS))

    def test_each_step_says_what_it_removed(self, tmp_path: Path, tokenizer: LoadedTokenizer) -> None:
        good = "a sentence of quite ordinary words that nobody has reason to take out of this source"
        lines = [good, "short", good, "%$#@ " * 20, good + " but for its end"]
        question = "Natalia sold clips to forty eight of her friends in April and then she sold half as many"
        lines += [f"As we know, {question.upper()} clips in May"]
        (tmp_path / "a.jsonl").write_bytes(jsonl(lines))
        (tmp_path / "eval.jsonl").write_text(json.dumps({"question": question, "answer": "72"}) + "\n")
        index = make(
            tmp_path / "out",
            tmp_path / "a.jsonl",
            filters=Filters(min_characters=20, max_symbol_share=0.3),
            exact_duplicates=True,
            near_duplicates=NearDuplicates(threshold=0.6, words=2),
            decontamination=Decontamination(uris=(str(tmp_path / "eval.jsonl"),)),
            chunk_bytes=1 << 20,
        )
        told = Report.model_validate_json((tmp_path / "out" / "report.json").read_bytes())
        assert {reason: removed.documents for reason, removed in told.removed.items()} == {
            "TooShort": 1,
            "Duplicate": 1,
            "Symbols": 1,
            "NearDuplicate": 1,
            "Contaminated": 1,
        }
        assert texts_of(tmp_path / "out", index, tokenizer) == [good]
        page = (tmp_path / "out" / "report.html").read_text()
        assert all(reason in page for reason in told.removed)

    def test_a_document_of_a_known_source_counts_as_seen(self, tmp_path: Path, tokenizer: LoadedTokenizer) -> None:
        (tmp_path / "a.jsonl").write_bytes(jsonl(TEXTS[:50]))
        (tmp_path / "b.jsonl").write_bytes(jsonl(TEXTS[30:]))
        make(tmp_path / "first", tmp_path / "a.jsonl")
        known = ((tmp_path / "first").as_uri(),)
        index = make(tmp_path / "second", tmp_path / "b.jsonl", exact_duplicates=True, known=known)
        assert texts_of(tmp_path / "second", index, tokenizer) == TEXTS[50:]

    def test_text_that_spells_out_the_end_of_text_does_not_end_a_document(self, tmp_path: Path) -> None:
        (tmp_path / "a.jsonl").write_bytes(jsonl([f"one {END_OF_TEXT} still one"]))
        (document,) = documents(tmp_path / "out", make(tmp_path / "out", tmp_path / "a.jsonl"))
        assert document.count(0) == 1

    def test_inputs_of_which_nothing_is_left_are_refused_with_the_reasons(self, tmp_path: Path) -> None:
        (tmp_path / "a.jsonl").write_bytes(jsonl(TEXTS))
        with pytest.raises(DataError, match="no document is left of 90 lines: TooShort 90"):
            make(tmp_path / "out", tmp_path / "a.jsonl", filters=Filters(min_characters=10_000))

    def test_a_damaged_archive_is_an_error_that_names_it(self, tmp_path: Path) -> None:
        (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(jsonl(TEXTS))[:-20])
        (tmp_path / "b.parquet").write_bytes(b"PAR1 this is none")
        for name in ("a.jsonl.gz", "b.parquet"):
            with pytest.raises(DataError, match=rf"{name}: damaged") as refusal:
                make(tmp_path / f"out-{name}", tmp_path / name)
            assert refusal.value.reason == "InputInvalid"


_DIES = """
import os, signal
from skywork_trainer.config import Preparation
from skywork_trainer.prepare import pipeline
from skywork_trainer.storage import FileStore
put, count = FileStore.put, []
def dying(self, key, data, **more):
    count.append(key)
    if len(count) == 13:
        os.kill(os.getpid(), signal.SIGKILL)
    put(self, key, data, **more)
FileStore.put = dying
pipeline.prepare(Preparation(inputs=["{text}"], output="{out}", tokenizer_uri="TOKENIZER", shard_tokens=400,
    chunk_bytes=1500))
"""


def _dying_after(puts: int) -> object:
    put, count = FileStore.put, [0]

    def dying(self: FileStore, key: str, data: bytes, *, if_absent: bool = False) -> None:
        if count[0] == puts:
            raise KeyboardInterrupt
        count[0] += 1
        put(self, key, data, if_absent=if_absent)

    return dying


@given(
    texts=st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=30), max_size=30),
    chunk_bytes=st.integers(1, 400),
    last_line_ends=st.booleans(),
)
@settings(max_examples=60)
def test_chunks_share_out_every_line_exactly_once_in_order(
    texts: list[str], chunk_bytes: int, last_line_ends: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("cut")
    lines = [json.dumps({"text": text}, ensure_ascii=False) for text in texts]
    content = "\n".join(lines) + ("\n" if last_line_ends and lines else "")
    (folder / "a.jsonl").write_bytes(content.encode())
    chunks = cut([TextFile(FileStore(folder), "a.jsonl")], chunk_bytes)
    found = [raw.rstrip(b"\n").decode() for chunk in chunks for raw, _ in chunk.documents("text")]
    assert found == lines


def test_patterns_and_folders_name_their_files_sorted(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a.jsonl.gz", "deep/c.parquet", "deep/c.jsonl", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    everything = ["a.jsonl.gz", "b.jsonl", "deep/c.jsonl", "deep/c.parquet"]
    assert [file.key for file in find_texts([str(tmp_path)])] == everything
    assert [file.key for file in find_texts([f"{tmp_path.as_uri()}/*.jsonl"])] == ["b.jsonl"]
    assert [file.key for file in find_texts([f"{tmp_path}/*/*.jsonl"])] == ["deep/c.jsonl"]
    with pytest.raises(DataError, match=r"missing\.jsonl does not exist"):
        find_texts([str(tmp_path / "missing.jsonl")])


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
    assert main(["data", "prepare", "--output", out]) == 64
    assert "--input and --tokenizer are required without --config" in capsys.readouterr().err
    assert main([*command, "--min-script-share", "Klingon=0.5"]) == 64
    assert "names Klingon; the scripts are Han" in capsys.readouterr().err
