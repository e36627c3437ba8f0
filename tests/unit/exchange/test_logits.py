"""The real `transformers` computes what our decoder computes: from our exports, and we from its models."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from skywork_trainer import cli
from skywork_trainer.collectives import World
from skywork_trainer.config import Model
from skywork_trainer.engine.reference import ReferenceEngine
from skywork_trainer.exchange.start import load_initial_weights
from skywork_trainer.model import Decoder, initialise
from skywork_trainer.tokenizer import LoadedTokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.unit.exchange.building import (
    GQA,
    HEADS,
    MHA,
    agree,
    configured,
    contents,
    llama,
    our_logits,
    relaid,
    saved,
    their_logits,
    tokens,
    trained,
)

KINDS = pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
ALL_HEADS = pytest.mark.parametrize("model", HEADS.values(), ids=HEADS.keys())


def export(config_uri: str, tokenizer_uri: str, output: Path, *more: str) -> int:
    arguments = ["checkpoints", "export", config_uri, "--tokenizer", tokenizer_uri, "--output", str(output), *more]
    return cli.main(arguments)


def started(folder: Path, model: Model, tokenizer: LoadedTokenizer, weights: Path) -> ReferenceEngine:
    """Begin a run with the weights in a folder."""
    config = configured(folder, model, tokenizer, initial_weights_uri=weights.as_uri())
    module = Decoder(model)
    initialise(module, 99)
    engine = ReferenceEngine(module, config.optimizer)
    load_initial_weights(config, engine, World())
    return engine


@ALL_HEADS
@KINDS
def test_transformers_computes_our_logits_from_an_export(
    tmp_path: Path, tokenizer: LoadedTokenizer, model: Model, tied: bool
) -> None:
    config = configured(tmp_path, model, tokenizer)
    engine = trained(config, tied=tied)
    relaid(config, saved(config, engine, tokenizer), engine, ranks=3, block_bytes=1 << 12)
    more = ["--dtype", "fp32", "--shard-bytes", "60000", *(["--tied"] if tied else [])]
    assert export(config.checkpoints.uri, config.tokenizer_uri, tmp_path / "out", *more) == 0
    assert len(list((tmp_path / "out").glob("model-*.safetensors"))) > 1
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    assert theirs.config.tie_word_embeddings is tied
    assert theirs.config.max_position_embeddings == config.sequence_length
    agree(our_logits(engine.module, tokens()), their_logits(theirs, tokens()))


def test_an_export_in_bf16_holds_each_weight_rounded_once(tmp_path: Path, tokenizer: LoadedTokenizer) -> None:
    config = configured(tmp_path, GQA, tokenizer)
    engine = trained(config)
    saved(config, engine, tokenizer)
    assert export(config.checkpoints.uri, config.tokenizer_uri, tmp_path / "out") == 0
    written = load_file(tmp_path / "out" / "model-00001-of-00001.safetensors")
    assert {tensor.dtype for tensor in written.values()} == {torch.bfloat16}
    ours = dict(engine.module.named_parameters())
    assert len(written) == len(ours)
    key = written["model.layers.1.self_attn.k_proj.weight"]
    assert torch.equal(key, ours["blocks.1.attention.k.weight"].detach().bfloat16())
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert theirs.dtype is torch.bfloat16


def test_transformers_reads_text_as_the_run_s_tokenizer_did(tmp_path: Path, tokenizer: LoadedTokenizer) -> None:
    config = configured(tmp_path, MHA, tokenizer)
    saved(config, trained(config), tokenizer)
    assert export(config.checkpoints.uri, config.tokenizer_uri, tmp_path / "out") == 0
    theirs = AutoTokenizer.from_pretrained(tmp_path / "out")
    for text in ["文档12。document 7: abc abc", "  two  spaces,\n0123 ünïcode 🙂"]:
        ids = tokenizer.tokenizer.encode(text, add_special_tokens=False).ids
        assert theirs(text)["input_ids"] == ids
        assert theirs.decode(ids) == text
    assert theirs.eos_token_id == theirs.bos_token_id == tokenizer.end_of_text
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    assert (model.config.eos_token_id, model.generation_config.eos_token_id) == (tokenizer.end_of_text,) * 2
    prompt = theirs(theirs.bos_token + "document", return_tensors="pt")
    assert model.generate(**prompt, max_new_tokens=3, do_sample=False).shape[1] == prompt["input_ids"].shape[1] + 3


@ALL_HEADS
@KINDS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_a_run_that_starts_from_a_llama_computes_its_logits(
    tmp_path: Path, tokenizer: LoadedTokenizer, model: Model, tied: bool, dtype: torch.dtype
) -> None:
    # In several files once, in a single one otherwise: both are what people publish.
    size = "100KB" if dtype is torch.bfloat16 else "5GB"
    llama(model, tied=tied).to(dtype).save_pretrained(tmp_path / "llama", max_shard_size=size)
    assert len(list((tmp_path / "llama").glob("*.safetensors"))) == 1 or dtype is torch.bfloat16
    engine = started(tmp_path, model, tokenizer, tmp_path / "llama")
    # Read back: the conversion above has also rounded rotary angles, which no file holds.
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "llama", dtype=torch.float32)
    agree(our_logits(engine.module, tokens()), their_logits(theirs, tokens()))
    assert engine.optimizer_step == 0
    assert not any(moment.any() for f in engine.fragments() for moment in (f.exp_avg, f.exp_avg_sq))


@KINDS
def test_what_is_exported_started_from_and_exported_again_is_the_same_bit_for_bit(
    tmp_path: Path, tokenizer: LoadedTokenizer, tied: bool
) -> None:
    config = configured(tmp_path / "a", GQA, tokenizer)
    saved(config, trained(config, tied=tied), tokenizer)
    more = ["--shard-bytes", "50000", *(["--tied"] if tied else [])]
    assert export(config.checkpoints.uri, config.tokenizer_uri, tmp_path / "one", *more) == 0
    engine = started(tmp_path / "b", GQA, tokenizer, tmp_path / "one")
    again = configured(tmp_path / "b", GQA, tokenizer)
    saved(again, engine, tokenizer)
    assert export(again.checkpoints.uri, again.tokenizer_uri, tmp_path / "two", *more) == 0
    one, two = contents(tmp_path / "one"), contents(tmp_path / "two")
    assert one.pop("skywork-export.json") != two.pop("skywork-export.json")
    assert one == two
