"""Where documents begin in packed sequences, for models that attend within a document only.

The end-of-text token belongs to the document that follows it: it is that document's first input, as it is the first
input of a prompt later, so no prediction ever sees a document before its own.

Shape suffixes: B sequences, T positions.
"""

import torch
from torch import Tensor


def positions(tokens_BT: Tensor, end_of_text: int) -> Tensor:
    """Return each position's distance from the first token of its document, or from the sequence's start [B, T]."""
    index_T = torch.arange(tokens_BT.shape[1], device=tokens_BT.device)
    starts_BT = torch.where(tokens_BT == end_of_text, index_T, 0)
    return index_T - starts_BT.cummax(dim=1).values


def visible(position_BT: Tensor) -> Tensor:
    """Return which earlier positions each one may attend to, itself included, as a boolean mask [B, 1, T, T]."""
    index_T = torch.arange(position_BT.shape[1], device=position_BT.device)
    begin_BT1 = (index_T - position_BT).unsqueeze(2)
    return ((index_T >= begin_BT1) & (index_T <= index_T.unsqueeze(1))).unsqueeze(1)
