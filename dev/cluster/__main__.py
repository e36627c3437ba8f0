"""The development cluster: `python -m dev.cluster up|down|status|build|images|kubeconfig|pod-overlay`."""

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

from dev.cluster import build, lifecycle
from dev.cluster.control_plane import remove_control_plane, start_control_plane
from dev.cluster.image import pod_overlay
from dev.cluster.paths import STATE


def main() -> int:
    """Run one command; 0 when it did what it says."""
    parser = argparse.ArgumentParser(prog="python -m dev.cluster", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    boot = commands.add_parser("up", help="build what is missing and boot the cluster")
    boot.add_argument("--nodes", type=int, default=3, choices=range(1, lifecycle.MOST_NODES + 1), metavar="1..9")
    boot.add_argument("--control-plane-only", action="store_true", help="no nodes, on loopback, beside any cluster")
    stop = commands.add_parser("down", help="stop it and remove every trace")
    stop.add_argument("--keep-storage", action="store_true", help="leave the buckets for the next `up`")
    stop.add_argument("--control-plane-only", action="store_true", help="only the one in --state")
    for command in (boot, stop):
        command.add_argument("--state", type=Path, help="folder of the lone control plane")
    boot.add_argument("--port-base", type=int, default=0, help="first of its five ports; 0 picks free ones")
    commands.add_parser("status", help="what runs; exit code 1 unless all of it does")
    commands.add_parser("build", help="only build the programs")
    commands.add_parser("images", help="load the local images into the nodes anew")
    commands.add_parser("kubeconfig", help="the path of the administrator's kubeconfig")
    commands.add_parser("pod-overlay", help="what pods need to run this checkout's code, as JSON")
    options = parser.parse_args()
    started = time.monotonic()

    def say(text: str) -> None:
        print(f"[{time.monotonic() - started:5.0f} s] cluster: {text}", flush=True)

    try:
        if getattr(options, "control_plane_only", False):
            _lone_control_plane(options, say)
        elif options.command == "up":
            lifecycle.up(options.nodes, say)
        elif options.command == "down":
            lifecycle.down(say, keep_storage=options.keep_storage)
        elif options.command == "images":
            lifecycle.load_images(say)
        elif options.command == "kubeconfig":
            print(lifecycle.kubeconfig())
        elif options.command == "build":
            build.ensure_built(say)
        elif options.command == "pod-overlay":
            print(json.dumps(pod_overlay(), indent=2))
        else:
            return _print_status()
    except RuntimeError as error:
        print(f"cluster: {error}", file=sys.stderr)
        return 1
    return 0


def _lone_control_plane(options: argparse.Namespace, say: Callable[[str], None]) -> None:
    if options.state is None:
        raise RuntimeError("--control-plane-only needs --state DIR")
    folder = options.state.resolve()
    if folder == STATE:
        raise RuntimeError(f"{folder} belongs to the whole cluster; name another folder")
    if options.command == "up":
        if (folder / "control-plane").exists():
            raise RuntimeError(f"{folder} holds a control plane already; take that down first")
        binaries = build.ensure_built(say)
        try:
            plane = start_control_plane(folder, binaries, ports=options.port_base)
        except RuntimeError:
            remove_control_plane(folder)
            raise
        say(f"control plane ready: KUBECONFIG={plane.kubeconfig}")
        return
    remove_control_plane(folder)
    say("the control plane is down, nothing is left")


def _print_status() -> int:
    described, whole = lifecycle.status()
    for daemon, facts in described.pop("daemons", {}).items():
        print(f"  {daemon:<40} pid {facts['pid']:<8} {facts['memoryMiB']:>5} MiB")
    for name, condition in described.pop("nodes", {}).items():
        print(f"  {name:<40} {condition}")
    for key, value in described.items():
        print(f"{key}: {', '.join(value) or 'none' if isinstance(value, list) else value}")
    return 0 if whole else 1


if __name__ == "__main__":
    sys.exit(main())
