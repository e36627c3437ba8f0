"""Held-out domains: what text their windows are, and what is wrong with those that cannot be measured."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from skywork_trainer.config import Preparation, RunConfig, Source
from skywork_trainer.data.errors import DataError
from skywork_trainer.data.held_out import Sizer, open_held_out
from skywork_trainer.data.shards import INDEX_FILE, read_index
from skywork_trainer.prepare.pipeline import prepare as prepare_source
from skywork_trainer.tokenizer import train_tokenizer

from tests.unit.data.conftest import TEXTS

GENERAL: dict[str, object] = {"name": "general", "tokens": 16 * 240, "mixture": [{"source": "main"}]}


@pytest.fixture
def held_out(configure, prepare):
    main = prepare("main")

    def configured(uris: dict[str, str], **validation: object) -> RunConfig:
        config: RunConfig = configure({"main": main}, [GENERAL])
        domains = tuple(Source(name=name, uri=uri) for name, uri in uris.items())
        values = {"domains": domains, "windows": 10_000, **validation}
        return config.model_copy(update={"validation": config.validation.model_copy(update=values)})

    return configured


def test_the_sizes_of_a_domain_are_those_of_its_text(held_out, prepare, tmp_path: Path) -> None:
    texts = TEXTS[:20]
    config = held_out({"web": prepare("web", texts, shard_tokens=1 << 20)})
    (windows,), broken = open_held_out(config, tmp_path / "cache")
    sizes = Sizer(config)(windows)
    # Preparing strips the ends of documents, and a shard's first token is predicted by nothing.
    first = "第"
    assert not broken
    assert sizes.bytes == sum(len(text.strip().encode()) for text in texts) - len(first.encode())
    assert sizes.characters == sum(len(text.strip()) for text in texts) - len(first)
    assert sizes.reference_tokens == 0


def test_reference_tokens_are_what_the_reference_tokenizer_makes_of_the_same_text(
    held_out, prepare, tmp_path: Path
) -> None:
    other = train_tokenizer(iter(TEXTS[50:]), 300)
    (tmp_path / "other.json").write_bytes(other.content)
    uri = (tmp_path / "other.json").as_uri()
    texts = [f"第{n}篇：天地玄黄" for n in range(12)]
    config = held_out(
        {"zh": prepare("zh", texts, shard_tokens=1 << 20)}, reference_tokenizer_uri=uri, windows=10_000
    ).model_copy(update={"sequence_length": 4096})
    (windows,), _ = open_held_out(config, tmp_path / "cache")
    read = [texts[0].removeprefix("第"), *texts[1:]]
    expected = sum(len(other.tokenizer.encode(text, add_special_tokens=False).ids) for text in read)
    assert Sizer(config)(windows).reference_tokens == expected


def test_a_reference_tokenizer_that_is_not_there_is_named_before_anything_is_measured(
    held_out, prepare, tmp_path: Path
) -> None:
    config = held_out({"web": prepare("web")}, reference_tokenizer_uri=(tmp_path / "none.json").as_uri())
    with pytest.raises(DataError, match=r"none\.json") as error:
        open_held_out(config, tmp_path / "cache")
    assert error.value.reason == "TokenizerInvalid"


def test_domains_that_cannot_be_measured_are_told_with_their_reason_and_the_others_are_read(
    held_out, prepare, tmp_path: Path
) -> None:
    good, gone, empty, short = (prepare(name, TEXTS[:9]) for name in ("good", "gone", "empty", "short"))
    (Path(gone.removeprefix("file://")) / INDEX_FILE).unlink()
    for uri, tokens in ((empty, 0), (short, 1)):
        _cut(Path(uri.removeprefix("file://")), tokens)
    config = held_out({"good": good, "gone": gone, "empty": empty, "short": short})
    found, broken = open_held_out(config, tmp_path / "cache")
    assert [windows.domain for windows in found] == ["good"]
    assert broken["gone"].startswith("SourceMissing: source 'gone': no index.json below ")
    assert broken["empty"].startswith("SourceInvalid: validation domain 'empty'") and "0 tokens" in broken["empty"]
    assert "holds 1 tokens and no shard of two or more" in broken["short"]


def test_a_domain_whose_shard_vanished_is_told_by_the_shard_s_name(held_out, prepare, tmp_path: Path) -> None:
    uri = prepare("web", TEXTS[:9])
    for shard in Path(uri.removeprefix("file://")).glob("*.bin"):
        shard.unlink()
    found, broken = open_held_out(held_out({"web": uri}), tmp_path / "cache")
    assert not found and "shard-00000" in broken["web"] and "does not exist" in broken["web"]


def test_bits_per_byte_of_uniform_guessing_is_the_entropy_of_the_vocabulary(held_out, prepare, tmp_path: Path) -> None:
    from skywork_trainer.config import DomainLoss

    config = held_out({"web": prepare("web", TEXTS[:30])})
    (windows,), _ = open_held_out(config, tmp_path / "cache")
    sizes, tokens = Sizer(config)(windows), int(windows.valid_WT.sum())
    loss = DomainLoss(domain="web", loss=math.log(400), tokens=tokens, step=0, bytes=sizes.bytes)
    assert loss.bits_per_byte == pytest.approx(math.log2(400) * tokens / sizes.bytes)


def _cut(folder: Path, tokens: int) -> None:
    """Leave so many tokens of a prepared source: one shard of them, or none."""
    index = read_index("x", folder.as_uri())
    shard = index.shards[0]
    content = np.fromfile(folder / shard.file, dtype=index.numpy_dtype)[:tokens].tobytes()
    shards = ()
    if tokens:
        from skywork_trainer.data.shards import part_digests

        digests = part_digests(content, index.part_bytes)
        (folder / shard.file).write_bytes(content)
        (folder / f"{shard.stem}.sum").write_bytes(digests)
        shards = (shard.model_copy(update={"tokens": tokens, "bytes": len(content), "documents": 1}),)
    cut = index.model_copy(update={"shards": shards, "fingerprint": ""}).sealed()
    (folder / INDEX_FILE).write_text(json.dumps(json.loads(cut.model_dump_json())))


def test_text_with_a_line_of_ten_megabytes_and_with_broken_utf_8_is_measured_on_what_is_text(
    held_out, tokenizer_uri, tmp_path: Path
) -> None:
    whole = "天地玄黄 lines of text. " * 380_000
    lines = [
        json.dumps({"text": "short"}).encode(),
        json.dumps({"text": whole}, ensure_ascii=False).encode(),
        b'{"text": "cut \xe5\xa4 short"}',
        b"\xff\xfe not even JSON",
        json.dumps({"text": "after"}).encode(),
    ]
    assert len(lines[1]) > 10_000_000
    (tmp_path / "odd.jsonl").write_bytes(b"\n".join(lines))
    options = Preparation(
        inputs=(str(tmp_path / "odd.jsonl"),),
        output=(tmp_path / "odd").as_uri(),
        tokenizer_uri=tokenizer_uri,
        shard_tokens=1 << 24,
        max_bad_share=0.5,
    )
    prepare_source(options, say=lambda line: None)
    uri = (tmp_path / "odd").as_uri()
    index = read_index("odd", uri)
    assert (index.documents, index.bad_lines) == (3, 2)
    config = held_out({"odd": uri}, windows=1_000_000)
    (windows,), broken = open_held_out(config, tmp_path / "cache")
    assert not broken
    # All but the first token, which nothing predicts: "short" begins with a letter of its own or more.
    text = len("short") + len(whole.strip().encode()) + len("after")
    assert text - len("short") <= Sizer(config)(windows).bytes < text
