"""Trains a SkyworkRun without Kubernetes: all its stages, on this machine or on the nodes that start this together.

Interrupted (Ctrl-C, SIGTERM) it saves first. Started again it goes on from the newest checkpoint, wherever that was
written: a run begun here goes on in a cluster by `kubectl apply`, and the other way round.
"""

import argparse
import os
import re
import signal
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from skywork_trainer.config import EXIT_CONFIG

from skywork_operator.standalone import embedded
from skywork_operator.standalone.authority import Authority
from skywork_operator.standalone.exchange import caller
from skywork_operator.standalone.lead import Lead
from skywork_operator.standalone.manifest import choose, environment, parse
from skywork_operator.standalone.node import Folders, Node
from skywork_operator.standalone.preparing import ChildPreparations
from skywork_operator.world import Run

_FIRST_PORT, _PORTS = 20000, 9000
_LOOPBACK = ("localhost", "127.0.0.1", "::1")


def main(argv: list[str] | None = None) -> int:
    """Train to the end: 0 done, 64 the manifest is wrong, 75 interrupted with everything saved, 1 given up."""
    options = _parser().parse_args(argv)
    try:
        if not 0 <= options.node < options.nodes:
            raise ValueError(f"--node {options.node} is not among --nodes {options.nodes}: they count from 0")
        host = _leader(options)
        # Every node reads the manifest, so that a wrong one is told of by all.
        body = choose(_text(options.run), options.name)
        limit = ((body.get("spec") or {}).get("trainer") or {}).get("gpusPerNode", 0)
        run = parse(body, nodes=options.nodes, gpus_per_node=_gpus(limit), now=time.time())
    except (ValueError, OSError) as error:
        print(f"skywork-pretrain: {error}", file=sys.stderr)
        return EXIT_CONFIG
    port = options.port or _port(options.job or f"{run.namespace}/{run.name}")
    folders, say = _folders(options, run), _speaker(options.node)
    if options.node:
        follower = Node(options.node, folders, exchange=caller(host, port), say=say)
        _on_signals(follower.leave)
        return follower.run()
    lead = _lead(run, options.nodes if host in _LOOPBACK else 1, folders, say)
    _on_signals(lead.leave)
    listen = None if options.nodes == 1 else ("127.0.0.1" if host in _LOOPBACK else "0.0.0.0", port)
    return lead.run(Node(0, folders, exchange=lead.exchange, say=say), listen=listen)


def _lead(run: Run, nodes_here: int, folders: Folders, say: Callable[[str], None]) -> Lead:
    found, elsewhere = environment(run.spec.trainer)
    if elsewhere:
        say(f"the manifest takes {', '.join(elsewhere)} from the cluster: what is needed must be set in this shell")
    workers = max(run.spec.trainer.gpus_per_node, 1)
    threads = max((os.cpu_count() or 1) // (workers * nodes_here), 1)
    found = {"SKYWORK_THREADS": str(threads)} | found
    preparations = ChildPreparations(folders.state / "prepare", found)
    authority = Authority(run, workers=workers, environment=found, preparations=preparations, say=say)
    return Lead(authority, preparations, say)


def _on_signals(leave: Callable[[], None]) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: leave())


def _speaker(node: int) -> Callable[[str], None]:
    def say(text: str) -> None:
        print(f"{time.strftime('%H:%M:%S')} node {node}: {text}", file=sys.stderr, flush=True)

    return say


def _text(path: Path | None) -> str:
    return path.read_text() if path is not None else embedded.decode(os.environ)


def _leader(options: argparse.Namespace) -> str:
    """Host of node 0; schedulers of TorchX name the variable that holds it."""
    if not options.leader_env:
        return str(options.leader)
    host = os.environ.get(options.leader_env, "")
    if not host:
        raise ValueError(f"--leader-env {options.leader_env}: that variable is empty here")
    return host


def _gpus(limit: int) -> int:
    """GPUs of this machine that the run may use: those that CUDA_VISIBLE_DEVICES leaves, at most `limit`."""
    devices = len([device for device in Path("/dev").iterdir() if re.fullmatch(r"nvidia\d+", device.name)])
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        devices = min(devices, len([entry for entry in visible.split(",") if entry.strip()]))
    return min(devices, limit) if limit else 0


def _port(job: str) -> int:
    """A port that all nodes of a job reckon alike, and that two jobs on one machine rarely share."""
    return _FIRST_PORT + zlib.crc32(job.encode()) % _PORTS


def _folders(options: argparse.Namespace, run: Run) -> Folders:
    state = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    node = f"node-{options.node}"
    return Folders(
        state=(options.state_dir or Path(state, "skywork", run.namespace, run.name)).expanduser().absolute() / node,
        cache=(options.cache_dir or Path(cache, "skywork", "nodes")).expanduser().absolute() / node,
    )


class _Parser(argparse.ArgumentParser):
    """Ends with the code of a wrong configuration."""

    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        self.exit(EXIT_CONFIG, f"{self.prog}: {message}\n")


def _positive(value: str) -> int:
    number = int(value)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{value} is less than 1")
    return number


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="skywork-pretrain", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, metavar="FILE", help="manifest with the SkyworkRun, as for kubectl apply")
    parser.add_argument("--name", help="which run, where the manifest holds several")
    parser.add_argument("--nodes", type=_positive, default=1, metavar="N", help="nodes that start this together (1)")
    parser.add_argument("--node", type=int, default=0, metavar="K", help="which of them this is, from 0; 0 leads (0)")
    parser.add_argument("--leader", default="localhost", metavar="HOST", help="where node 0 runs (localhost)")
    parser.add_argument("--leader-env", metavar="NAME", help="environment variable that holds that host instead")
    parser.add_argument("--port", type=_positive, help="of node 0, for the others; reckoned from --job when left out")
    parser.add_argument("--job", metavar="ID", help="name of this start, the same on all nodes; the run's by default")
    parser.add_argument("--state-dir", type=Path, help="for logs of workers (~/.local/state/skywork/NAMESPACE/NAME)")
    parser.add_argument(
        "--cache-dir", type=Path, help="for token shards, best on a local disk (~/.cache/skywork/nodes)"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
