"""Small models of ours and of `transformers`, saved by the real code of either side."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from skywork_trainer.checkpoint.manifest import Counters, Manifest, Piece, RankFile, manifest_key, prefix
from skywork_trainer.checkpoint.saver import DataIdentity, Saver, Snapshot
from skywork_trainer.collectives import World
from skywork_trainer.config import Model, RunConfig
from skywork_trainer.engine import KINDS, shares
from skywork_trainer.engine.reference import ReferenceEngine
from skywork_trainer.exchange.geometry import EMBEDDING, HEAD
from skywork_trainer.exchange.headers import read_header
from skywork_trainer.model import Decoder, initialise
from skywork_trainer.storage import open_store
from skywork_trainer.tokenizer import LoadedTokenizer
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from tests.unit.train.world import run_config

VOCABULARY = 320
MHA = Model(layers=2, hidden=32, heads=4, kv_heads=4, ffn=48, vocab_size=VOCABULARY, init_std=0.1)
GQA = MHA.model_copy(update={"kv_heads": 2, "rope_theta": 500_000.0, "norm_eps": 1e-5})
HEADS = {"MHA": MHA, "GQA": GQA}


def configured(folder: Path, model: Model, tokenizer: LoadedTokenizer, **changes: object) -> RunConfig:
    """A run of `model` below `folder`, its tokenizer in place."""
    uri = (folder / "tokenizer").as_uri()
    open_store(uri).put("tokenizer.json", tokenizer.content)
    return run_config(folder, **({"model": model, "tokenizer_uri": uri} | changes))


def trained(config: RunConfig, *, steps: int = 2, tied: bool = False) -> ReferenceEngine:
    """Train a little on random tokens; with `tied`, the head is then set to the embedding."""
    module = Decoder(config.model)
    initialise(module, config.seed)
    engine = ReferenceEngine(module, config.optimizer)
    generator = torch.Generator().manual_seed(5)
    for _ in range(steps):
        tokens = torch.randint(0, config.model.vocab_size, (2, 17), generator=generator)
        engine.forward_backward(tokens, torch.ones(2, 16), global_tokens=32, last=True)
        engine.step(1e-2)
    if tied:
        with torch.no_grad():
            module.get_parameter(HEAD).copy_(module.get_parameter(EMBEDDING))
    return engine


def saved(
    config: RunConfig,
    engine: ReferenceEngine,
    tokenizer: LoadedTokenizer,
    *,
    step: int = 2,
    generation: int = 1,
    parent: Manifest | None = None,
) -> Manifest:
    """Save the engine as one rank does."""
    store = open_store(config.checkpoints.uri)
    local = Path(config.checkpoints.uri.removeprefix("file://")).parent / "local"
    saver = Saver(store, config, world=World(), generation=generation, local=local)
    return saver.save(
        Snapshot(
            step=step,
            stage="s0",
            optimizer_step=engine.optimizer_step,
            fragments=engine.fragments(),
            data=DataIdentity(tokenizer_sha256=tokenizer.sha256, fingerprints={"main": "f"}, past_hash="p"),
            counters=Counters(train_loss=5.5),
            parent=parent.id if parent else "",
            parent_step=parent.step if parent else 0,
            consumed=(),
            losses=(),
        )
    )


def relaid(config: RunConfig, manifest: Manifest, engine: ReferenceEngine, *, ranks: int, block_bytes: int) -> Manifest:
    """Write the same checkpoint anew as `ranks` ranks would, in small blocks: arrays then span files and blocks."""
    store, whole = open_store(config.checkpoints.uri), {f.span.name: f.arrays() for f in engine.fragments()}
    files, pieces = [], list[Piece]()
    for rank in range(ranks):
        key = f"{prefix(manifest.id)}rank-{rank:05d}.safetensors"
        path = Path(config.checkpoints.uri.removeprefix("file://")) / key
        held = {
            f"{span.name}@{span.start}.{kind}": (span, kind, array[span.start : span.start + span.length].clone())
            for span in shares(engine.module, rank=rank, world=ranks)
            for kind, array in zip(KINDS, whole[span.name], strict=True)
        }
        save_file({name: array for name, (_, _, array) in held.items()}, path)
        content = path.read_bytes()
        hashes = [
            hashlib.sha256(content[at : at + block_bytes]).hexdigest() for at in range(0, len(content), block_bytes)
        ]
        files.append(RankFile(name=path.name, size=len(content), block_bytes=block_bytes, sha256=tuple(hashes)))
        for name, located in read_header(store, key).items():
            span, kind, _ = held[name]
            pieces.append(
                Piece(name=span.name, kind=kind, start=span.start, length=span.length, file=rank, offset=located.offset)
            )
    changed = manifest.model_copy(update={"files": tuple(files), "pieces": tuple(pieces), "world": ranks})
    store.put(manifest_key(manifest.id), changed.model_dump_json().encode())
    return changed


def tokens(count: int = 24, *, below: int = VOCABULARY) -> Tensor:
    """Return two sequences of random tokens."""
    return torch.randint(0, below, (2, count), generator=torch.Generator().manual_seed(3))


@torch.no_grad()
def our_logits(module: Decoder, tokens_BT: Tensor) -> Tensor:
    """Return our decoder's logits."""
    logits: Tensor = module.head(module.hidden(tokens_BT))
    return logits


@torch.no_grad()
def their_logits(model: LlamaForCausalLM, tokens_BT: Tensor) -> Tensor:
    """Return the logits of a model of transformers."""
    logits: Tensor = model.eval()(tokens_BT).logits
    return logits


def llama(model: Model, *, tied: bool = False, seed: int = 1) -> LlamaForCausalLM:
    """Return a random Llama of transformers with our geometry."""
    torch.manual_seed(seed)
    made = LlamaForCausalLM(
        LlamaConfig(
            hidden_size=model.hidden,
            intermediate_size=model.ffn,
            num_hidden_layers=model.layers,
            num_attention_heads=model.heads,
            num_key_value_heads=model.kv_heads,
            vocab_size=model.vocab_size,
            rms_norm_eps=model.norm_eps,
            rope_parameters={"rope_theta": model.rope_theta, "rope_type": "default"},
            initializer_range=0.1,
            tie_word_embeddings=tied,
            max_position_embeddings=64,
        )
    )
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if "norm" in name:  # gains of one would hide a norm that is mixed up with another
                parameter.uniform_(0.5, 1.5)
    return made


def agree(ours: Tensor, theirs: Tensor) -> None:
    """Assert that two computations of the same logits differ by rounding alone."""
    assert float((ours - theirs).abs().max()) <= 1e-4
    assert torch.equal(ours.argmax(dim=-1), theirs.argmax(dim=-1))


def contents(folder: Path, names: Sequence[str] | None = None) -> dict[str, bytes]:
    """Return the files of a folder."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if names is None or path.name in names}
