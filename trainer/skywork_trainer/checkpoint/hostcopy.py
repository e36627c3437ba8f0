"""A rank's file in host memory: what training waits for. The rest of a save reads it from there in another process.

The memory is an anonymous file (memfd): a child process maps the same pages by its descriptor, and the kernel frees it
with the last process that holds it, so a kill leaves nothing behind.
"""

import ctypes
import logging
import mmap
import os
import threading
from collections.abc import Sequence

import torch

from skywork_trainer.checkpoint.layout import Layout
from skywork_trainer.engine import Fragment

_MADV_POPULATE_WRITE = 23
_POPULATED_BYTES = 16 << 20
_log = logging.getLogger(__name__)


class HostCopy:
    """Room for one file of `size` bytes; copied into between steps, as often as one likes."""

    def __init__(self, size: int, *, pinned: bool) -> None:
        self.size = size
        self.fd = os.memfd_create("skywork-checkpoint", os.MFD_CLOEXEC)
        os.ftruncate(self.fd, size)
        self._map = mmap.mmap(self.fd, size)
        self._registered = pinned and self._pin()
        if not self._registered:
            threading.Thread(target=self._populate, name="host-copy", daemon=True).start()

    def fill(self, layout: Layout, fragments: Sequence[Fragment]) -> None:
        """Copy header and arrays; they may change again as soon as this returns."""
        self._map[: len(layout.header)] = layout.header
        pieces = iter(layout.pieces)
        for fragment in fragments:
            for array in fragment.arrays():
                piece = next(pieces)
                target = torch.frombuffer(self._map, dtype=torch.float32, count=piece.length, offset=piece.offset)
                target.copy_(array.detach(), non_blocking=self._registered)
        if self._registered:
            torch.cuda.synchronize()

    def close(self) -> None:
        """Give the memory back, once every process that was passed the descriptor has ended."""
        if self._registered:
            torch.cuda.cudart().cudaHostUnregister(self._address())  # type: ignore[no-untyped-call]
        os.close(self.fd)

    def _populate(self) -> None:
        # The first touch of a page costs many times its copy: done here, beside training, the first save has it behind
        # it. An older kernel refuses, and the first save pays. In portions, for the sake of others who map memory.
        libc = ctypes.CDLL(None)
        for start in range(0, self.size, _POPULATED_BYTES):
            length = min(_POPULATED_BYTES, self.size - start)
            if libc.madvise(ctypes.c_void_p(self._address() + start), ctypes.c_size_t(length), _MADV_POPULATE_WRITE):
                return

    def _pin(self) -> bool:
        # Copies from the GPU into pinned pages run at the bus's speed; without, they still work, several times slower.
        code = torch.cuda.cudart().cudaHostRegister(self._address(), self.size, 0)  # type: ignore[no-untyped-call]
        if int(code):
            _log.warning("the host copy of checkpoints cannot be pinned (CUDA error %d): saves stall longer", int(code))
        return not int(code)

    def _address(self) -> int:
        return ctypes.addressof(ctypes.c_char.from_buffer(self._map))
