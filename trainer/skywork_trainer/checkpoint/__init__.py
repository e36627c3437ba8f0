"""Checkpoints of our own: fragments in safetensors files, one manifest that commits them, a history that outlives them.

    checkpoints/<id>/rank-00000.safetensors ...   what each rank answers for
    checkpoints/<id>/manifest.json                written last: no manifest, no checkpoint
    history/<id>.json                             what was consumed since the parent; never removed
    quarantine/, verified/, reading/              notes on single checkpoints (`notes`)

An id is incarnation-generation-step, zero-padded, so that the greatest name is the newest generation's newest step:
a superseded generation that goes on writing on the far side of a broken link can harm nobody.
"""


class CheckpointMismatch(Exception):
    """The newest checkpoint was made by another model, tokenizer or past: retrying cannot help, nothing is touched.

    Reasons: CheckpointMismatch, CheckpointMissing, CheckpointCorrupt (no checkpoint left that can be read).
    """

    retryable = False

    def __init__(self, message: str, *, reason: str = "CheckpointMismatch") -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message


class CheckpointCorrupt(Exception):
    """One checkpoint cannot be read as it was written; the one before it may."""


class Superseded(Exception):
    """A newer generation has committed a checkpoint: whoever still trains in an older one ends, and saves nothing."""

    reason = "Superseded"
    retryable = True

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message
