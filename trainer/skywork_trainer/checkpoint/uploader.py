"""The process beside each worker that stores its checkpoints while it trains; it imports no torch.

    python -m skywork_trainer.checkpoint.uploader STORE_URI LOCAL_FOLDER WORKER_PID

Orders come as JSON lines on standard input, each is answered by one on standard output. It ends with its worker,
however that ends: no save may go on for a world that is no more.
"""

import ctypes
import hashlib
import logging
import mmap
import os
import signal
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

from skywork_trainer.checkpoint import CheckpointCorrupt, Superseded
from skywork_trainer.checkpoint.commit import commit, put_records
from skywork_trainer.checkpoint.local import keep_file, note_local
from skywork_trainer.checkpoint.manifest import prefix
from skywork_trainer.checkpoint.orders import ORDER, Answer, Commit, Trouble, WriteFile, assembled
from skywork_trainer.storage import StorageError, Store, open_store

_log = logging.getLogger(__name__)
_PR_SET_PDEATHSIG = 1
_HASHING_THREADS = 4
_NICER = 5
"""Below training, which shares the cores, and above nothing."""


def carry_out(order: WriteFile | Commit, store: Store, local: Path) -> Answer:
    """Do what is asked; a failure comes back as the answer's trouble, never as an exception."""
    try:
        return _write(order, store, local) if isinstance(order, WriteFile) else _commit(order, store, local)
    except Superseded as error:
        return Answer(trouble=Trouble(reason=error.reason, message=error.message, superseded=True))
    except StorageError as error:
        return Answer(trouble=Trouble(reason=error.reason, message=error.message, retryable=error.retryable))
    except (OSError, CheckpointCorrupt) as error:
        return Answer(trouble=Trouble(reason="SaveFailed", message=f"{type(error).__name__}: {error}"))


def _write(order: WriteFile, store: Store, local: Path) -> Answer:
    source = Path(f"/proc/self/fd/{order.fd}")
    with ThreadPoolExecutor(2 + _HASHING_THREADS, thread_name_prefix="save") as pool:
        uploaded = pool.submit(store.upload, source, prefix(order.id) + order.name) if order.durable else None
        copied = pool.submit(_keep_on_node, order, local) if order.local_keep else None
        with closing(mmap.mmap(order.fd, order.size, prot=mmap.PROT_READ)) as mapped:
            digests = tuple(pool.map(lambda block: _sha256(mapped, *block), _blocks(order.size, order.block_bytes)))
        if uploaded is not None:
            uploaded.result()
        if copied is not None:
            problem = copied.result()
            if problem is not None and not order.durable:
                raise problem
    return Answer(sha256=digests)


def _keep_on_node(order: WriteFile, local: Path) -> OSError | None:
    try:
        keep_file(local, order.id, order.name, order.fd, order.size, keep=order.local_keep)
    except OSError as error:
        _log.warning("checkpoint %s is not kept on this node: %s", order.id, error)
        return error
    return None


def _sha256(mapped: mmap.mmap, start: int, length: int) -> str:
    with memoryview(mapped) as whole, whole[start : start + length] as block:
        return hashlib.sha256(block).hexdigest()


def _blocks(size: int, block_bytes: int) -> Iterator[tuple[int, int]]:
    return ((start, min(block_bytes, size - start)) for start in range(0, size, block_bytes))


def _commit(order: Commit, store: Store, local: Path) -> Answer:
    manifest, history = assembled(order)
    if order.durable:
        commit(store, manifest, history, order.keep, curve=order.curve)
        return Answer()
    if order.leads:
        # In the object store even so: a later checkpoint's chain leads through this one.
        put_records(store, history, order.curve)
    note_local(local, manifest)
    return Answer()


def main(arguments: list[str]) -> int:
    """Serve until standard input ends."""
    uri, local, parent = arguments
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(parent):
        return 1  # it ended before this had begun
    for number in (signal.SIGTERM, signal.SIGINT):
        # The worker decides when this ends: it may be waiting for the commit that lets it leave.
        signal.signal(number, signal.SIG_IGN)
    os.nice(_NICER)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s", stream=sys.stderr)
    store = open_store(uri)
    for line in sys.stdin.buffer:
        answer = carry_out(ORDER.validate_json(line), store, Path(local))
        sys.stdout.buffer.write(answer.model_dump_json().encode() + b"\n")
        sys.stdout.buffer.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
