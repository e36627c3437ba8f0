"""Models in the format of Hugging Face's Llama: a checkpoint written as one, and a run that starts from one.

    config.json, generation_config.json            geometry and special tokens
    model-00001-of-0000N.safetensors ...           weights, by HF's names
    model.safetensors.index.json                   which tensor lies in which file
    tokenizer.json, tokenizer_config.json, special_tokens_map.json

No weight is permuted on the way: our rotary embedding turns the first half of a head against the second, as HF's
`rotate_half` does. (Meta's original release turns neighbours; its conversion to HF's format has permuted them.)
What is read here comes from strangers: sizes are bounded before they are believed, and nothing is ever unpickled.
"""


class WeightsError(Exception):
    """A folder of weights cannot be used, or not for this run; the message says to a person what to do.

    Reasons: WeightsMissing, WeightsInvalid (not readable as safetensors of a Llama), WeightsMismatch (another geometry
    or tokenizer than the run's).
    """

    retryable = False

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message


class ExportRefused(Exception):
    """The export would not be what was asked for, or would harm what is there; nothing was written."""
