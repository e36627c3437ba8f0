"""Model FLOPs: what training a token costs in arithmetic, and what share of a device's peak that is."""

from skywork_trainer.config import Model

_TERA = 10**12
# Dense bf16 peak in FLOP/s, by words of the device's name as CUDA tells it; the first line that fits counts.
# From NVIDIA's data sheets. The A800 and H800 have the arithmetic of the A100 and H100.
_PEAKS: tuple[tuple[tuple[str, ...], float], ...] = (
    (("H200",), 989.4 * _TERA),
    (("H100", "PCIe"), 756.0 * _TERA),
    (("H100", "NVL"), 835.5 * _TERA),
    (("H100",), 989.4 * _TERA),
    (("H800", "PCIe"), 756.0 * _TERA),
    (("H800",), 989.4 * _TERA),
    (("B200",), 2250.0 * _TERA),
    (("A100",), 312.0 * _TERA),
    (("A800",), 312.0 * _TERA),
)


def matrix_parameters(model: Model) -> int:
    """Return how many parameters take part in matrix products: all but the embedding and the norms' gains."""
    head_dim = model.hidden // model.heads
    attention = 2 * model.hidden * model.hidden + 2 * model.hidden * model.kv_heads * head_dim
    return model.layers * (attention + 3 * model.hidden * model.ffn) + model.hidden * model.vocab_size


def flops_per_token(model: Model, sequence_length: int) -> float:
    """Return the FLOPs of one trained token, forward and backward: 6 N + 12 L H T.

    N are the parameters of matrices; L layers of hidden size H score T positions, counted without the causal half, as
    the Skywork-13B report and most others do. What is computed again for memory's sake does not count.
    """
    return 6.0 * matrix_parameters(model) + 12.0 * model.layers * model.hidden * sequence_length


def peak_flops_per_second(device_name: str) -> float | None:
    """Return a device's dense bf16 peak; None where it is not known, for a guess would make every share a lie."""
    for words, peak in _PEAKS:
        if all(word in device_name for word in words):
            return peak
    return None
