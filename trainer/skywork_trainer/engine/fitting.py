"""How many sequences one forward and backward pass may hold: reckoned from the geometry, for microBatchSequences Auto.

Pure arithmetic, nothing is tried out. What it promises too much of ends in OutOfMemory, which halves the micro-batch
and is remembered for the run; what it promises too little of costs a little speed, for the global batch is the same.
"""

from skywork_trainer.config import ActivationCheckpointing, Model, Offload, RunConfig
from skywork_trainer.flops import matrix_parameters

UNKNOWN_MEMORY_SEQUENCES = 4
"""Where no device says how much memory it has: on CPUs."""
_USABLE = 0.85
# The rest goes to the allocator's gaps, to NCCL and to what is gathered ahead.
_HALF, _SINGLE = 2, 4
_LOSS_POSITIONS = 4096


def state_bytes(config: RunConfig, world: int) -> float:
    """Return what weights, masters, moments and gradients take on one rank, in bytes."""
    model, stage = config.model, config.engine.zero_stage
    parameters = matrix_parameters(model) + model.hidden * model.vocab_size
    optimizer = 3 * _SINGLE * parameters
    if stage == 0:
        return optimizer + _SINGLE * parameters
    weights = _HALF * parameters / (world if stage == 3 else 1)
    # Stage 1 keeps the gradients of all parameters in fp32 until the last micro-batch.
    gradients = _SINGLE * parameters / (world if stage > 1 else 1)
    return weights + gradients + (0.0 if config.engine.offload is not Offload.NONE else optimizer / world)


def sequence_bytes(model: Model, sequence_length: int, kept: ActivationCheckpointing) -> float:
    """Return what one sequence keeps from its forward to its backward pass, in bytes of bf16 activations.

    None keeps about twelve vectors of the hidden size (norms, queries, keys, values and their rotated fp32 forms,
    attention, residuals) and four of the feed-forward size a token and layer; Selective what matrices and attention
    give; Full the stream between layers and one layer whole.
    """
    hidden, ffn = model.hidden, model.ffn
    everything = _HALF * (12 * hidden + 4 * ffn) + 3 * _SINGLE * hidden
    if kept is ActivationCheckpointing.FULL:
        return sequence_length * (_HALF * hidden * model.layers + everything)
    per_layer = everything if kept is ActivationCheckpointing.NONE else _HALF * (8 * hidden + 2 * ffn)
    return sequence_length * per_layer * model.layers


def fitting_sequences(config: RunConfig, world: int, memory_bytes: int | None) -> int:
    """Return the micro-batch to begin with: a power of two, at least 1, at most a rank's part of the global batch.

    `memory_bytes` is all memory of the smallest device, None where it is not known.
    """
    most = -(-config.global_batch_sequences // world)
    fitting = float(UNKNOWN_MEMORY_SEQUENCES)
    if memory_bytes is not None:
        logits = 3 * _SINGLE * _LOSS_POSITIONS * config.model.vocab_size
        free = _USABLE * memory_bytes - state_bytes(config, world) - logits
        kept = config.engine.activation_checkpointing
        fitting = free / sequence_bytes(config.model, config.sequence_length, kept)
    size = 1
    while size * 2 <= min(fitting, most):
        size *= 2
    return size
