"""The body of an answer, read to its end: short or trickling ones are failures, not content."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

_CHUNK_BYTES = 1 << 20


class BodyError(Exception):
    """A body ended early or came too slowly; asking again may help."""


class Raw(Protocol):
    """A stream of an answer: `read1` returns what has come, at once, and b"" at the end only."""

    def read1(self, amt: int, /) -> bytes:
        """Return at most `amt` bytes after at most one wait."""


@dataclass(frozen=True, kw_only=True)
class LeastRate:
    """So many bytes must come in every window of so many seconds.

    A socket's timeout is about silence: a server that sends a byte every few seconds would hold a caller for days.
    """

    window_bytes: int = 1 << 16
    window_seconds: float = 10.0


def read_body(
    raw: Raw, expected_bytes: int | None, least: LeastRate, *, now: Callable[[], float] = time.monotonic
) -> bytes:
    """Return the whole body; BodyError when it ends before `expected_bytes` or comes more slowly than `least`."""
    chunks: list[bytes] = []
    received = in_window = 0
    window_began = now()
    # Not read(): that waits until a chunk is full, and each byte of a trickle starts the socket's timeout anew.
    while chunk := raw.read1(_CHUNK_BYTES):
        chunks.append(chunk)
        received += len(chunk)
        in_window += len(chunk)
        if (elapsed := now() - window_began) >= least.window_seconds:
            if in_window < least.window_bytes and received != expected_bytes:
                raise BodyError(
                    f"too slow: {in_window} bytes in {elapsed:.0f} s, {received} of {expected_bytes} so far"
                )
            window_began, in_window = now(), 0
    if expected_bytes is not None and received != expected_bytes:
        raise BodyError(f"the answer ended after {received} of {expected_bytes} bytes")
    return b"".join(chunks)
