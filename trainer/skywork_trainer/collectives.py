"""The few collectives the loop needs, on bytes and float64: no pickle travels between ranks."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class World:
    """This rank's place among all, and the device its collectives run on; one rank needs no process group."""

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def sum(self, values: Sequence[float]) -> list[float]:
        """Return the element-wise sums over ranks, as float64."""
        total = torch.tensor(values, dtype=torch.float64, device=self.device)
        if self.size > 1:
            dist.all_reduce(total)
        return [float(value) for value in total.cpu()]

    def gather_bytes(self, data: bytes) -> list[bytes]:
        """Return what every rank passed, in rank order; a barrier."""
        if self.size == 1:
            return [data]
        lengths = [torch.zeros(1, dtype=torch.int64, device=self.device) for _ in range(self.size)]
        dist.all_gather(lengths, torch.tensor([len(data)], dtype=torch.int64, device=self.device))
        longest = max(int(length) for length in lengths)
        parts = [torch.zeros(longest, dtype=torch.uint8, device=self.device) for _ in range(self.size)]
        dist.all_gather(parts, _padded(data, longest).to(self.device))
        return [bytes(part.cpu().numpy()[: int(n)]) for part, n in zip(parts, lengths, strict=True)]

    def broadcast_bytes(self, data: bytes) -> bytes:
        """Return what rank 0 passed."""
        if self.size == 1:
            return data
        length = torch.tensor([len(data)], dtype=torch.int64, device=self.device)
        dist.broadcast(length, src=0)
        content = _padded(data if self.rank == 0 else b"", int(length)).to(self.device)
        dist.broadcast(content, src=0)
        return bytes(content.cpu().numpy())


def _padded(data: bytes, length: int) -> Tensor:
    return torch.frombuffer(bytearray(data.ljust(max(length, 1), b"\0")), dtype=torch.uint8)[:length].clone()
