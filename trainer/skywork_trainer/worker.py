"""One worker process of one generation: from a forked (or fresh) interpreter to an exit code the agent acts on.

The agent imports this module, calls `preload()` in the parent of all workers, and `run()` in each child.
Nothing before `run()` may start a thread or touch a GPU: neither survives a fork.
"""

import contextlib
import faulthandler
import importlib
import logging
import os
import signal
import socket
import struct
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from skywork_trainer import lazy_imports
from skywork_trainer.config import EXIT_CONFIG, EXIT_LEFT, Failure, HangLimits, Place, RunConfig, Section
from skywork_trainer.stacks import STACK_SIGNAL, stack_path

if TYPE_CHECKING:
    from skywork_trainer.collectives import World
    from skywork_trainer.engine import Engine

_log = logging.getLogger(__name__)
_LATER_SECONDS = 60.0
_TRY_SECONDS = 0.02
_SIOCGIFADDR = 0x8915


def has_gpu() -> bool:
    """Return whether this pod was given an NVIDIA GPU, without asking CUDA."""
    return any(Path("/dev").glob("nvidia[0-9]*"))


def preload(config: RunConfig | None = None, *, remember: bool = False) -> None:
    """Import all that a first step of `config` imports, lazily or not, so that a fork is warm.

    That starts no thread and no CUDA. Takes seconds; call it once, in the single-threaded parent. With `remember`, what
    is imported lazily is found anew, and kept for the processes of this environment.
    """
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(name, "1")  # or a BLAS starts a thread pool when it is imported
    # DeepSpeed's own probe of the hardware would start CUDA in this process.
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if has_gpu() else "cpu")
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
    for module in ("train", "node_check", "engine.deepspeed_engine", "data.stream", "data.held_out", "warmup"):
        importlib.import_module(f"skywork_trainer.{module}")
    importlib.import_module("skywork_trainer.engine.deepspeed_fragments").forbid_compilation()
    importlib.import_module("skywork_trainer.storage.client").prepare()
    if remember:
        lazy_imports.keep(lazy_imports.found(), on_gpu=has_gpu())
    lazy_imports.import_all(on_gpu=has_gpu())
    if config is not None and config.engine.compile:
        importlib.import_module("torch._inductor.compile_fx")


def run(config: RunConfig, place: Place) -> int:
    """Train the configured stage in this world; return the exit code, with the failure written if it is one.

    Call it from the main thread; leave the process by os._exit with the code: threads of the data path and of the
    process group may still be there.
    """
    # c10d looks every peer's address up backwards, only to name it in logs. With a name server that does not answer
    # each look-up takes 10 s by default; here, and only where nobody chose otherwise, 2 s.
    os.environ.setdefault("RES_OPTIONS", "timeout:1 attempts:2")
    leave = LeaveRequest()
    leave.install()
    try:
        return _train(config, place, leave)
    except Exception as error:
        if leave.requested and not leave.heeded:
            # A peer that left before us broke the group: nothing was trained here, so nothing is lost.
            return EXIT_LEFT
        return _fail(error, place)


class LeaveRequest:
    """SIGTERM. It ends the process at once, unless the loop has said that it looks at `requested` and saves first."""

    def __init__(self) -> None:
        self.requested = False
        self.heeded = False

    def install(self) -> None:
        """Take over the signals a fork inherited from the agent."""
        reader, writer = socket.socketpair()
        writer.setblocking(False)
        # Python runs handlers between bytecodes, and joining a group blocks in C for minutes: a thread that reads
        # what the C-level handler writes hears the signal anyway.
        signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGTERM, self._note)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        self._sockets = (reader, writer)
        threading.Thread(target=self._listen, args=(reader,), name="leave", daemon=True).start()

    def heed(self, heeded: bool) -> None:
        """Say whether the loop looks at `requested` soon: not while it restores, or compiles its first step."""
        self.heeded = heeded

    def __call__(self) -> bool:
        """Return whether somebody asked; called after each step, and between parts of a validation."""
        return self.requested

    def _note(self, *_: object) -> None:
        self.requested = True

    def _listen(self, reader: socket.socket) -> None:
        while received := reader.recv(64):
            if signal.SIGTERM in received:
                self.requested = True
                if not self.heeded:
                    sys.stderr.flush()
                    os._exit(EXIT_LEFT)


def _train(config: RunConfig, place: Place, leave: LeaveRequest) -> int:
    import torch

    from skywork_trainer.data.held_out import Sizer, open_held_out
    from skywork_trainer.data.stream import SequenceStream
    from skywork_trainer.domains import Domains
    from skywork_trainer.engine.fitting import fitting_sequences
    from skywork_trainer.engine.requirements import check_requirements
    from skywork_trainer.memory import OutOfMemory, fitting_micro_batch, note_out_of_memory
    from skywork_trainer.metrics import Reporter
    from skywork_trainer.requests import read_request
    from skywork_trainer.storage import open_store
    from skywork_trainer.train import Trainer

    place.state_dir.mkdir(parents=True, exist_ok=True)
    reporter = Reporter(config, place)
    with stack_path(place.state_dir, place.local_rank).open("w") as stacks:
        # On the agent's signal, whatever the main thread is stuck in: the handler is C, and needs no interpreter.
        faulthandler.register(STACK_SIGNAL, file=os.dup(stacks.fileno()), all_threads=True, chain=False)
    reporter.section(Section.INIT)
    check_requirements(config.engine, on_gpu=has_gpu())
    # Before the group forms: a wrong configuration shall be told by its own error, not by a peer's time-out.
    stream = SequenceStream(config, place.cache_dir)
    threads = os.environ.get("SKYWORK_THREADS") or os.environ.get("OMP_NUM_THREADS") or "1"
    torch.set_num_threads(int(threads))
    with process_group(place, config.hang) as world:
        device = torch.cuda.get_device_name(world.device) if world.device.type == "cuda" else "cpu"
        store = open_store(config.checkpoints.uri)
        if not config.engine.micro_batch_sequences:
            config = _with_micro_batch(config, fitting_sequences(config, world.size, _least_memory_bytes(world)))
        micro_batch = fitting_micro_batch(store, config, device, world)
        config = _with_micro_batch(config, micro_batch)
        reporter.on_device(device, micro_batch=micro_batch)
        try:
            trainer = Trainer(
                config,
                engine=_engine(config, world, stream.end_of_text, place.cache_dir / "offload"),
                stream=stream,
                domains=Domains(
                    [domain.name for domain in config.validation.domains],
                    world=world,
                    opened=lambda: open_held_out(config, place.cache_dir),
                    sizes=Sizer(config),
                ),
                store=store,
                world=world,
                generation=place.generation,
                reporter=reporter,
                cache=place.cache_dir,
                leave=leave,
                before_step=place.before_step,
                after=place.after,
                asked=lambda: read_request(place.state_dir),
            )
            return trainer.run(heed=leave.heed)
        except torch.OutOfMemoryError as error:
            note_out_of_memory(store, config, device)
            raise OutOfMemory(micro_batch, str(error).splitlines()[0]) from error


def _with_micro_batch(config: RunConfig, sequences: int) -> RunConfig:
    return config.model_copy(update={"engine": config.engine.model_copy(update={"micro_batch_sequences": sequences})})


def _least_memory_bytes(world: "World") -> int | None:
    """Return the memory of the smallest device of all ranks, which have to agree on one micro-batch; None on CPUs."""
    import torch

    if world.device.type != "cuda":
        return None
    own = torch.cuda.get_device_properties(world.device).total_memory
    return min(int(said) for said in world.gather_bytes(str(own).encode()))


def _engine(config: RunConfig, world: "World", end_of_text: int, folder: Path) -> "Engine":
    import torch

    from skywork_trainer.batch import micro_batches
    from skywork_trainer.config import Attention
    from skywork_trainer.engine.deepspeed_engine import DeepSpeedEngine
    from skywork_trainer.model import Decoder

    torch.manual_seed(config.seed)
    within = config.attention is Attention.WITHIN_DOCUMENT
    with torch.device("meta"):  # the engine makes what this rank holds; the trainer fills it
        module = Decoder(
            config.model,
            end_of_text=end_of_text if within else None,
            recompute=config.engine.activation_checkpointing,
            kernels=config.engine.kernels,
        )
    if config.engine.compile:
        for block in module.blocks:
            block.compile()
    count = micro_batches(config, world.size)
    return DeepSpeedEngine(module, config, micro_batches=count, device=world.device, folder=folder)


@contextlib.contextmanager
def process_group(place: Place, limits: HangLimits | None = None) -> "Iterator[World]":
    """Join the generation's group: NCCL on GPUs, gloo otherwise, by addresses alone (no name is looked up).

    Its own time-outs lie behind the agent's `limits`: a collective that gives up first would hide where a rank hangs.
    """
    import torch
    import torch.distributed as dist

    from skywork_trainer.collectives import World
    from skywork_trainer.node_check import check_nodes

    limits = limits or HangLimits()
    os.environ.update(
        RANK=str(place.rank),
        WORLD_SIZE=str(place.world_size),
        LOCAL_RANK=str(place.local_rank),
        LOCAL_SIZE=str(place.local_world_size),
        MASTER_ADDR=place.master_address,
        MASTER_PORT=str(place.master_port),
    )
    interface = _interface_towards(place.master_address)
    if interface:
        # Gloo would otherwise resolve the host's name, which in a pod may be unknown or answer late.
        os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
        os.environ.setdefault("NCCL_SOCKET_IFNAME", interface)
    device = torch.device("cpu")
    if has_gpu():
        device = torch.device("cuda", place.local_rank)
        torch.cuda.set_device(device)
    patience = limits.init + _LATER_SECONDS
    if place.rank:
        _await_listener(place.master_address, place.master_port, patience)
    store = dist.TCPStore(  # type: ignore[attr-defined]
        place.master_address,
        place.master_port,
        world_size=place.world_size,
        is_master=place.rank == 0,
        timeout=timedelta(seconds=patience),
        wait_for_workers=False,
    )
    dist.init_process_group(
        "nccl" if device.type == "cuda" else "gloo",
        # Generations may share a port: a straggler of the last one must not read this one's keys.
        store=dist.PrefixStore(f"generation-{place.generation}", store),  # type: ignore[attr-defined]
        rank=place.rank,
        world_size=place.world_size,
        timeout=timedelta(seconds=limits.longest + _LATER_SECONDS),
        device_id=device if device.type == "cuda" else None,
    )
    world = World(place.rank, place.world_size, device)
    if place.check and world.size > 1:
        check_nodes(world, place, dist.PrefixStore(f"generation-{place.generation}", store))  # type: ignore[attr-defined]
    yield world
    # Only after success: destroying a broken group may wait for peers that are gone.
    world.sum([0.0])  # rank 0 holds the store, so it goes last
    dist.destroy_process_group()


def _await_listener(address: str, port: int, patience_seconds: float) -> None:
    """Return once somebody listens there: the store's own client would wait half a second between tries."""
    until = time.monotonic() + patience_seconds
    while time.monotonic() < until:
        with contextlib.suppress(OSError), socket.create_connection((address, port), timeout=1):
            return
        time.sleep(_TRY_SECONDS)


def _interface_towards(address: str) -> str | None:
    """Return the name of the interface that has the source address of packets to `address` (IPv4)."""
    import fcntl

    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((address, 9))  # sends nothing
            own = probe.getsockname()[0]
            for _, name in socket.if_nameindex():
                with contextlib.suppress(OSError):
                    answer = fcntl.ioctl(probe.fileno(), _SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
                    if socket.inet_ntoa(answer[20:24]) == own:
                        return name
    except OSError:
        return None
    return None


def _fail(error: Exception, place: Place) -> int:
    traceback.print_exception(error)
    retryable = bool(getattr(error, "retryable", True))
    reason = getattr(error, "reason", None)
    if not isinstance(reason, str):
        reason = "PeerLost" if _is_lost_peer(error) else "AppError"
    message = getattr(error, "message", None)
    if not isinstance(message, str) or reason in ("AppError", "PeerLost"):
        message = f"{type(error).__name__}: {error}"
    failure = Failure(time=time.time(), rank=place.rank, reason=reason, message=message[:4000], retryable=retryable)
    from skywork_trainer.metrics import write_atomically

    with contextlib.suppress(OSError):
        place.state_dir.mkdir(parents=True, exist_ok=True)
        path = place.state_dir / f"failure-{place.local_rank}.json"
        write_atomically(path, failure.model_dump_json().encode())
    return 1 if retryable else EXIT_CONFIG


def _is_lost_peer(error: Exception) -> bool:
    """Return whether this is what a collective says when another rank is gone: a consequence, never the cause."""
    import torch.distributed as dist

    text = str(error)
    return isinstance(error, dist.DistError) or any(word in text for word in ("gloo/", "Connection closed by peer"))
