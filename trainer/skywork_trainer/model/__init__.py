"""The Skywork-shaped decoder, its loss and its initial weights."""

from skywork_trainer.model.decoder import Block, Decoder, RMSNorm
from skywork_trainer.model.initial import InitialWeights, initialise

__all__ = ["Block", "Decoder", "InitialWeights", "RMSNorm", "initialise"]
