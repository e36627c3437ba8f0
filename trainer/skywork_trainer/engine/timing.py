"""How long a rank computes, apart from all it waits for: what tells a slow machine from one that waits for it."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class ForwardTimer:
    """Sums up the time that forward passes take on one device, without waiting for it."""

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._seconds = 0.0
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """Time what the block has the device do."""
        if not self._on_gpu:
            begun = time.perf_counter()
            yield
            self._seconds += time.perf_counter() - begun
            return
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        start.record()
        yield
        end.record()
        self._events.append((start, end))

    def take(self) -> float:
        """Return the seconds since the last call; on a GPU only behind something that has waited for it."""
        on_gpu = [float(start.elapsed_time(end)) for start, end in self._events]
        total = self._seconds + sum(on_gpu) / 1e3
        self._seconds, self._events = 0.0, []
        return total
