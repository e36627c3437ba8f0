"""A manifest in an environment variable: how it reaches nodes that do not have the file."""

import base64
import binascii
import zlib
from collections.abc import Mapping

VARIABLE = "SKYWORK_RUN"
# Linux takes 128 KiB for one variable, its name included.
_LONGEST = 120_000


def encode(text: str) -> str:
    """Return `text` as letters that no shell, scheduler or macro processor changes; ValueError when it is too long."""
    value = base64.urlsafe_b64encode(zlib.compress(text.encode(), 9)).decode()
    if len(value) > _LONGEST:
        raise ValueError(f"the manifest has {len(value)} bytes, compressed; an environment variable takes {_LONGEST}")
    return value


def decode(environment: Mapping[str, str]) -> str:
    """Return the manifest; ValueError when the variable is missing or holds something else."""
    if VARIABLE not in environment:
        raise ValueError(f"give the manifest with --run FILE (or in {VARIABLE}, as the TorchX component does)")
    try:
        return zlib.decompress(base64.urlsafe_b64decode(environment[VARIABLE])).decode()
    except (binascii.Error, zlib.error, UnicodeDecodeError) as error:
        raise ValueError(f"{VARIABLE} holds no manifest as the TorchX component writes it ({error})") from error
