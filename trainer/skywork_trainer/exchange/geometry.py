"""The decoder's geometry in the words of a Llama's config.json, and the names of its parameters on both sides."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from skywork_trainer.config import Model
from skywork_trainer.exchange import WeightsError


@dataclass(frozen=True)
class Parameter:
    """One parameter: our name, HF's name, its shape (rows first, as in torch)."""

    name: str
    theirs: str
    shape: tuple[int, ...]

    @property
    def numel(self) -> int:
        """Elements of the parameter."""
        count = 1
        for size in self.shape:
            count *= size
        return count


_BLOCK = {
    "attention_norm": "input_layernorm",
    "attention.q": "self_attn.q_proj",
    "attention.k": "self_attn.k_proj",
    "attention.v": "self_attn.v_proj",
    "attention.o": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn.gate": "mlp.gate_proj",
    "ffn.up": "mlp.up_proj",
    "ffn.down": "mlp.down_proj",
}
EMBEDDING = "embedding.weight"
HEAD = "head.weight"


def parameters(model: Model) -> list[Parameter]:
    """Return every parameter of the decoder, in the decoder's own order."""
    hidden, ffn, vocabulary = model.hidden, model.ffn, model.vocab_size
    keys = hidden // model.heads * model.kv_heads
    shapes = {
        "attention_norm": (hidden,),
        "attention.q": (hidden, hidden),
        "attention.k": (keys, hidden),
        "attention.v": (keys, hidden),
        "attention.o": (hidden, hidden),
        "ffn_norm": (hidden,),
        "ffn.gate": (ffn, hidden),
        "ffn.up": (ffn, hidden),
        "ffn.down": (hidden, ffn),
    }
    blocks = [
        Parameter(f"blocks.{layer}.{ours}.weight", f"model.layers.{layer}.{theirs}.weight", shapes[ours])
        for layer in range(model.layers)
        for ours, theirs in _BLOCK.items()
    ]
    return [
        Parameter(EMBEDDING, "model.embed_tokens.weight", (vocabulary, hidden)),
        *blocks,
        Parameter("norm.weight", "model.norm.weight", (hidden,)),
        Parameter(HEAD, "lm_head.weight", (vocabulary, hidden)),
    ]


def llama_config(model: Model, *, sequence_length: int, end_of_text: int, tied: bool, dtype: str) -> dict[str, object]:
    """Return the content of config.json; `dtype` is torch's name, such as bfloat16.

    End-of-text is both ends: our documents open with it, so it is the first input of a prompt, too.
    """
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": model.hidden,
        "intermediate_size": model.ffn,
        "num_hidden_layers": model.layers,
        "num_attention_heads": model.heads,
        "num_key_value_heads": model.kv_heads,
        "head_dim": model.hidden // model.heads,
        "vocab_size": model.vocab_size,
        "max_position_embeddings": sequence_length,
        "rms_norm_eps": model.norm_eps,
        # transformers 5 reads the second of these, older ones the first.
        "rope_theta": model.rope_theta,
        "rope_parameters": {"rope_theta": model.rope_theta, "rope_type": "default"},
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "attention_dropout": 0.0,
        "initializer_range": model.init_std,
        "tie_word_embeddings": tied,
        "bos_token_id": end_of_text,
        "eos_token_id": end_of_text,
        "torch_dtype": dtype,
        "use_cache": True,
    }


_Size = Annotated[int, Field(ge=1, le=1 << 31)]


class _LlamaConfig(BaseModel):
    """What a config.json says that matters here; the defaults are transformers' own."""

    model_config = ConfigDict(extra="ignore")

    model_type: str
    hidden_size: _Size
    intermediate_size: _Size
    num_hidden_layers: Annotated[int, Field(ge=1, le=1 << 14)]
    num_attention_heads: _Size
    num_key_value_heads: _Size | None = None
    head_dim: _Size | None = None
    vocab_size: _Size
    rms_norm_eps: float = 1e-6
    rope_theta: float | None = None
    rope_scaling: dict[str, Any] | None = None
    rope_parameters: dict[str, Any] | None = None
    hidden_act: str = "silu"
    attention_bias: bool = False
    mlp_bias: bool = False
    tie_word_embeddings: bool = False

    def unsupported(self) -> list[str]:
        """Return what our decoder does not have, in the words of the file."""
        found = []
        if self.model_type != "llama":
            found.append(f"model_type is {self.model_type!r}, not 'llama'")
        if self.head_dim is not None and self.head_dim * self.num_attention_heads != self.hidden_size:
            found.append(f"head_dim {self.head_dim} is not hidden_size / num_attention_heads")
        if self.hidden_act != "silu":
            found.append(f"hidden_act is {self.hidden_act!r}, not 'silu'")
        found += [f"{name} is true" for name in ("attention_bias", "mlp_bias") if getattr(self, name)]
        for name, said in (("rope_scaling", self.rope_scaling), ("rope_parameters", self.rope_parameters)):
            kind = (said or {}).get("rope_type", (said or {}).get("type", "default"))
            if said and (kind != "default" or said.get("partial_rotary_factor", 1.0) != 1.0):
                found.append(f"{name} is {said}, not plain rotary embedding")
        return found

    def theta(self) -> float:
        """Return the base of the rotary angles, wherever this version of the format keeps it."""
        said = (self.rope_parameters or {}).get("rope_theta", self.rope_theta)
        return 10_000.0 if said is None else float(said)


def geometry_of(config: bytes, where: str) -> tuple[Model, bool]:
    """Return the geometry that a config.json describes, and whether the head is the embedding; WeightsError."""
    try:
        said = _LlamaConfig.model_validate_json(config)
        unsupported = said.unsupported()
        if unsupported:
            raise WeightsError(
                "WeightsInvalid",
                f"{where}: {'; '.join(unsupported)}. Only plain Llama models can be read: RMSNorm, SwiGLU, rotary "
                "embedding without scaling, no biases",
            )
        model = Model(
            layers=said.num_hidden_layers,
            hidden=said.hidden_size,
            heads=said.num_attention_heads,
            kv_heads=said.num_key_value_heads or said.num_attention_heads,
            ffn=said.intermediate_size,
            vocab_size=said.vocab_size,
            rope_theta=said.theta(),
            norm_eps=said.rms_norm_eps,
        )
    except (ValidationError, TypeError, ValueError) as error:
        raise WeightsError("WeightsInvalid", f"{where} is no config.json of a Llama: {error}") from error
    return model, said.tie_word_embeddings


_SPEC_NAMES = {
    "layers": "layers",
    "hidden": "hidden",
    "heads": "heads",
    "kv_heads": "kvHeads",
    "ffn": "ffn",
    "vocab_size": "vocabSize",
    "rope_theta": "ropeTheta",
    "norm_eps": "normEps",
}


def differences(theirs: Model, ours: Model) -> list[str]:
    """Return each field of `spec.model` that keeps `ours` from starting with the weights of `theirs`.

    A larger vocabulary of ours does not: rows that the weights lack are made up (see `weights`). How new weights are
    drawn (init_std) does not matter to weights that are there.
    """
    found = []
    for field, name in _SPEC_NAMES.items():
        has, wants = getattr(theirs, field), getattr(ours, field)
        if field == "vocab_size" and wants > has:
            continue
        if has != wants:
            found.append(f"model.{name} is {wants}, the weights have {has}")
    return found


def spec_fields(model: Model) -> Mapping[str, str]:
    """Return the geometry as fields of `spec.model`, in YAML's spelling of their values."""
    values = {}
    for field, name in _SPEC_NAMES.items():
        value = getattr(model, field)
        # The API takes decimals as text, so that no YAML reader rounds them.
        values[name] = f'"{value!r}"' if isinstance(value, float) else str(value)
    return values
