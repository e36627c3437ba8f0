"""Child processes that outlive no parent, and ports that are free."""

import ctypes
import os
import signal
import socket

_PR_SET_PDEATHSIG = 1
_PORTS_TRIED = 100


def dies_with_parent() -> None:
    """In a child before it executes: have it sent SIGTERM when its parent dies, in whatever way.

    And leave the parent's process group: schedulers and terminals signal the whole group, but a child is to end when
    its parent says so, after what it reports has been heard.
    """
    os.setsid()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def free_port(first: int) -> int:
    """Return the first port from `first` on that nobody listens on; raises OSError when a hundred are taken."""
    for port in range(first, first + _PORTS_TRIED):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("0.0.0.0", port))
            except OSError:
                continue
            return port
    raise OSError(f"ports {first} to {first + _PORTS_TRIED - 1} are all taken")
