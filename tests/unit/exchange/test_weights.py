"""Folders of weights come from strangers: what is wrong with one is said before a number of it is used."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from skywork_trainer.collectives import World
from skywork_trainer.config import Model
from skywork_trainer.engine import Span
from skywork_trainer.engine.reference import ReferenceEngine
from skywork_trainer.exchange import WeightsError, weights
from skywork_trainer.exchange.geometry import parameters
from skywork_trainer.exchange.headers import MOST_HEADER_BYTES, read_header
from skywork_trainer.exchange.start import load_initial_weights
from skywork_trainer.exchange.weights import WeightReader, open_weights
from skywork_trainer.model import Decoder
from skywork_trainer.storage import FileStore
from skywork_trainer.tokenizer import LoadedTokenizer, train_tokenizer

from tests.unit.exchange.building import GQA, MHA, configured, llama

Header = dict[str, Any]


def file_of(folder: Path, header: object, data: bytes = b"\0" * 16, *, length: int | None = None) -> FileStore:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    said = len(text) if length is None else length
    (folder / "model.safetensors").write_bytes(said.to_bytes(8, "little") + text + data)
    return FileStore(folder)


def tensor(begin: int, end: int, shape: list[Any], dtype: str = "F32") -> Header:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def test_the_table_of_parameters_is_the_decoder_s_own() -> None:
    for model in (MHA, GQA):
        real = [(name, tuple(p.shape)) for name, p in Decoder(model).named_parameters()]
        assert sorted((p.name, p.shape) for p in parameters(model)) == sorted(real)


@pytest.mark.parametrize(
    ("header", "says"),
    [
        pytest.param({"w": tensor(0, 20, [5])}, "lies at bytes 0 to 20 of 16", id="behind the end"),
        pytest.param({"w": tensor(-4, 4, [2])}, "cannot be read", id="before the beginning"),
        pytest.param({"w": tensor(8, 4, [1])}, "lies at bytes 8 to 4", id="backwards"),
        pytest.param({"a": tensor(0, 8, [2]), "b": tensor(4, 12, [2])}, "overlaps", id="overlapping"),
        pytest.param({"w": tensor(0, 8, [3])}, r"has 8 bytes, which is not F32 \[3\]", id="another shape"),
        pytest.param({"w": tensor(0, 8, [1 << 40, 1 << 40])}, "which is not F32", id="a shape beyond all memory"),
        pytest.param({"w": tensor(0, 8, ["2"])}, "cannot be read", id="a shape in words"),
        pytest.param({"w": tensor(0, 8, [True, 2])}, "cannot be read", id="a shape of truths"),
        pytest.param({"w": {"dtype": "F32", "shape": [2]}}, "cannot be read", id="no offsets"),
        pytest.param({"w": [1, 2]}, "cannot be read", id="no object"),
        pytest.param([], "it is no object", id="a list"),
        pytest.param(b"{", "cannot be read", id="half a header"),
        pytest.param(b"\xff\xfe{}", "cannot be read", id="no text"),
        pytest.param(b"[" * 200_000, "cannot be read", id="brackets by the thousand"),
        pytest.param(b'{"w": {"shape": ' + b"9" * 5000 + b"}}", "cannot be read", id="a number of 5,000 digits"),
        pytest.param(b'{"w": {}, "w": {}}', "a name occurs twice", id="twins"),
    ],
)
def test_a_header_that_lies_is_refused(tmp_path: Path, header: object, says: str) -> None:
    with pytest.raises(WeightsError, match=says) as refused:
        read_header(file_of(tmp_path, header), "model.safetensors")
    assert refused.value.reason == "WeightsInvalid"


@pytest.mark.parametrize("length", [17 + 3, MOST_HEADER_BYTES + 1, (1 << 64) - 1])
def test_a_header_longer_than_its_file_is_not_read(tmp_path: Path, length: int) -> None:
    store = file_of(tmp_path, {}, length=length)
    with pytest.raises(WeightsError, match="its header would have"):
        read_header(store, "model.safetensors")
    (tmp_path / "model.safetensors").write_bytes(b"123")
    with pytest.raises(WeightsError, match="it has 3 bytes"):
        read_header(store, "model.safetensors")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A Llama in several files."""
    llama(GQA).save_pretrained(tmp_path / "llama", max_shard_size="60KB")
    return tmp_path / "llama"


def edited(name: str, change: Callable[[Any], object]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        content = json.loads((folder / name).read_bytes())
        change(content)
        (folder / name).write_text(json.dumps(content))

    return edit


def resaved(name: str, change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    """Change the tensors of the file that holds `name`."""

    def save(folder: Path) -> None:
        file = folder / json.loads((folder / "model.safetensors.index.json").read_bytes())["weight_map"][name]
        tensors = load_file(file)
        change(tensors)
        save_file(tensors, file)

    return save


def pickled(folder: Path) -> None:
    for path in folder.glob("model*"):
        path.unlink()
    (folder / "pytorch_model.bin").write_bytes(b"never read")


CONFIG, INDEX, NORM = "config.json", "model.safetensors.index.json", "model.norm.weight"


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        pytest.param(lambda f: (f / CONFIG).unlink(), "there is no config.json", id="no config"),
        pytest.param(lambda f: (f / CONFIG).write_text("{"), "is no config.json of a Llama", id="half a config"),
        pytest.param(lambda f: (f / CONFIG).write_bytes(b" " * (2 << 20)), "not read", id="a config of 2 MiB"),
        pytest.param(edited(CONFIG, lambda c: c.update(model_type="mixtral")), "model_type is 'mixtral'", id="another"),
        pytest.param(edited(CONFIG, lambda c: c.update(attention_bias=True)), "attention_bias is true", id="biases"),
        pytest.param(edited(CONFIG, lambda c: c.update(head_dim=16)), "head_dim 16 is not", id="wide heads"),
        pytest.param(edited(CONFIG, lambda c: c.update(hidden_act="gelu")), "hidden_act is 'gelu'", id="gelu"),
        pytest.param(
            edited(CONFIG, lambda c: c.update(rope_scaling={"type": "linear", "factor": 2.0})),
            "rope_scaling is .* not plain",
            id="scaled rotation, as transformers 4 says it",
        ),
        pytest.param(
            edited(CONFIG, lambda c: c["rope_parameters"].update(rope_type="llama3", factor=8.0)),
            "rope_parameters is .* not plain",
            id="scaled rotation, as transformers 5 says it",
        ),
        pytest.param(edited(CONFIG, lambda c: c.update(num_key_value_heads=3)), "kvHeads must divide", id="odd heads"),
        pytest.param(
            edited(CONFIG, lambda c: c.update(vocab_size=300)), r"is \[320, 32\], .* makes it", id="fewer rows"
        ),
        pytest.param(edited(CONFIG, lambda c: c.update(num_hidden_layers=3)), "layers.2.* and 6 more are", id="layers"),
        pytest.param(edited(INDEX, lambda i: i.pop("weight_map")), "is no index", id="no map"),
        pytest.param(
            edited(INDEX, lambda i: i["weight_map"].update(x="../../secret.safetensors")),
            "no safetensors",
            id="a way out",
        ),
        pytest.param(
            edited(INDEX, lambda i: i["weight_map"].update(x="pytorch_model.bin")), "no safetensors file", id="a pickle"
        ),
        pytest.param(
            edited(INDEX, lambda i: i["weight_map"].update(x="model-9.safetensors")),
            "which is not there",
            id="a file gone",
        ),
        pytest.param(pickled, "is a pickle, which runs code", id="pickles only"),
        pytest.param(lambda f: [p.unlink() for p in f.glob("model*")], "there is neither", id="no weights"),
        pytest.param(resaved(NORM, lambda t: t.pop(NORM)), "model.norm.weight are missing", id="a tensor missing"),
        pytest.param(
            resaved(NORM, lambda t: t.update({"model.layers.0.self_attn.q_proj.bias": torch.ones(2)})),
            "q_proj.bias have no place",
            id="a tensor too many",
        ),
        pytest.param(
            resaved(NORM, lambda t: t.update({NORM: t[NORM].double()})), "is F64, only", id="a type of 8 bytes"
        ),
    ],
)
def test_a_folder_that_is_no_plain_llama_is_refused_in_its_own_words(
    folder: Path, damage: Callable[[Path], object], says: str
) -> None:
    assert open_weights(folder.as_uri()).model == GQA.model_copy(update={"init_std": 0.01})
    damage(folder)
    with pytest.raises(WeightsError, match=says):
        open_weights(folder.as_uri())


def test_a_file_cut_short_is_refused_before_anything_is_read(folder: Path) -> None:
    file = sorted(folder.glob("*.safetensors"))[0]
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(WeightsError, match="cut short"):
        open_weights(folder.as_uri())


@pytest.mark.parametrize("damage", ["cut", "gone", "not a number"])
def test_damage_found_while_reading_is_an_answer_on_every_rank_not_an_exception_on_one(
    folder: Path, damage: str
) -> None:
    opened = open_weights(folder.as_uri())
    file = folder / opened.tensors["norm.weight"].file
    if damage == "cut":
        file.write_bytes(file.read_bytes()[: opened.tensors["norm.weight"].offset + 8])
    elif damage == "gone":
        file.unlink()
    else:
        content = bytearray(file.read_bytes())
        at = opened.tensors["norm.weight"].offset
        content[at : at + 4] = b"\0\0\xc0\x7f"
        file.write_bytes(content)
    reader = WeightReader(opened, GQA)
    master, first, second = reader(Span("norm.weight", 0, GQA.hidden))
    assert not (master.any() or first.any() or second.any())
    assert reader.failure is not None
    assert {"cut": "bytes early", "gone": "is gone", "not a number": "not finite"}[damage] in reader.failure


def begin(folder: Path, run: Path, model: Model, tokenizer: LoadedTokenizer) -> ReferenceEngine:
    config = configured(run, model, tokenizer, initial_weights_uri=folder.as_uri())
    engine = ReferenceEngine(Decoder(model), config.optimizer)
    load_initial_weights(config, engine, World())
    return engine


def test_a_run_does_not_begin_with_weights_of_which_a_part_could_not_be_read(
    tmp_path: Path, folder: Path, tokenizer: LoadedTokenizer
) -> None:
    located = open_weights(folder.as_uri()).tensors["blocks.1.ffn.down.weight"]
    content = bytearray((folder / located.file).read_bytes())
    content[located.offset + 40 : located.offset + 44] = b"\0\0\x80\x7f"  # infinity
    (folder / located.file).write_bytes(content)
    with pytest.raises(WeightsError, match=f"{located.file} holds values that are not finite"):
        begin(folder, tmp_path, GQA, tokenizer)


def test_a_geometry_that_differs_is_refused_naming_every_field(
    tmp_path: Path, folder: Path, tokenizer: LoadedTokenizer
) -> None:
    changes = {"layers": 3, "hidden": 64, "heads": 8, "kv_heads": 4, "ffn": 64, "rope_theta": 1e4, "norm_eps": 1e-6}
    with pytest.raises(WeightsError) as refused:
        begin(folder, tmp_path, GQA.model_copy(update=changes), tokenizer)
    assert refused.value.reason == "WeightsMismatch"
    for said in ("layers is 3", "hidden is 64", "heads is 8", "kvHeads is 4", "ffn is 64", "ropeTheta is 1", "normEps"):
        assert f"model.{said}" in refused.value.message


def test_a_smaller_vocabulary_is_refused(tmp_path: Path, folder: Path, tokenizer: LoadedTokenizer) -> None:
    with pytest.raises(WeightsError, match=r"model\.vocabSize is 300, the weights have 320"):
        begin(folder, tmp_path, GQA.model_copy(update={"vocab_size": 300}), tokenizer)


def test_rows_of_a_larger_vocabulary_begin_as_the_mean_of_the_others(
    tmp_path: Path, folder: Path, tokenizer: LoadedTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    larger = GQA.model_copy(update={"vocab_size": 352})
    module = begin(folder, tmp_path, larger, tokenizer).module
    for ours, theirs in (("embedding.weight", "model.embed_tokens.weight"), ("head.weight", "lm_head.weight")):
        rows, known = module.get_parameter(ours).detach(), llama(GQA).get_parameter(theirs).detach()
        assert torch.equal(rows[:320], known)
        assert torch.allclose(rows[320:], known.mean(dim=0).expand(32, -1), atol=1e-7)
    monkeypatch.setattr(weights, "_CHUNK_ELEMENTS", 100)
    # Any cut of the array, in chunks of any size, inside rows and across their ends, reads the same elements.
    reader, whole = WeightReader(open_weights(folder.as_uri()), larger), module.get_parameter("head.weight").flatten()
    for start, length in [(320 * 32 - 5, 10), (321 * 32 + 7, 40), (320 * 32, 1), (0, 352 * 32)]:
        assert torch.equal(reader(Span("head.weight", start, length))[0], whole[start : start + length])


def test_a_tokenizer_that_numbers_a_token_otherwise_is_refused(
    tmp_path: Path, folder: Path, tokenizer: LoadedTokenizer, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        begin(folder, tmp_path, GQA, tokenizer)
    assert "is not checked" in caplog.text
    (folder / "tokenizer.json").write_bytes(tokenizer.content)
    begin(folder, tmp_path, GQA, tokenizer)
    other = train_tokenizer(iter(["zzz yyy xxx " * 9]), 300)
    with pytest.raises(WeightsError, match="tokens have another number in") as refused:
        begin(folder, tmp_path, GQA, other)
    assert refused.value.reason == "WeightsMismatch"


def test_a_tokenizer_that_only_adds_tokens_is_the_same_tokenizer(
    tmp_path: Path, folder: Path, tokenizer: LoadedTokenizer
) -> None:
    (folder / "tokenizer.json").write_bytes(tokenizer.content)
    more = LoadedTokenizer(tokenizer.content).tokenizer
    more.add_tokens(["超导", "钙钛矿"])
    begin(folder, tmp_path, GQA, LoadedTokenizer(more.to_str().encode()))
