"""What a held-out domain is measured on, and what text that is."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, kw_only=True)
class TextSizes:
    """The text of a domain's targets that count."""

    characters: int = 0
    bytes: int = 0
    reference_tokens: int = 0
    """Tokens that the reference tokenizer makes of it; 0 without one."""


@dataclass(frozen=True)
class Windows:
    """One domain's fixed windows: tokens [W, T + 1], and which of the T targets count."""

    domain: str
    tokens_WS: npt.NDArray[np.int64]
    valid_WT: npt.NDArray[np.bool_]
