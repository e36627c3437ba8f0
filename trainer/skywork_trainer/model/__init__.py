"""The Skywork-shaped decoder and its loss."""

from skywork_trainer.model.decoder import Decoder, initialise

__all__ = ["Decoder", "initialise"]
