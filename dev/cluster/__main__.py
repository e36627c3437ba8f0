"""The development cluster: `python -m dev.cluster up|down|status|build`."""

import argparse
import json
import sys
import time

from dev.cluster import build, lifecycle
from dev.cluster.image import pod_overlay


def main() -> int:
    """Run one command; 0 when it did what it says."""
    parser = argparse.ArgumentParser(prog="python -m dev.cluster", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    boot = commands.add_parser("up", help="build what is missing and boot the cluster")
    boot.add_argument("--nodes", type=int, default=3, choices=range(1, lifecycle.MOST_NODES + 1), metavar="1..9")
    commands.add_parser("down", help="stop it and remove every trace")
    commands.add_parser("status", help="what runs; exit code 1 unless all of it does")
    commands.add_parser("build", help="only build the programs")
    commands.add_parser("pod-overlay", help="what pods need to run this checkout's code, as JSON")
    options = parser.parse_args()
    started = time.monotonic()

    def say(text: str) -> None:
        print(f"[{time.monotonic() - started:5.0f} s] cluster: {text}", flush=True)

    try:
        if options.command == "up":
            lifecycle.up(options.nodes, say)
        elif options.command == "down":
            lifecycle.down(say)
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


def _print_status() -> int:
    described, whole = lifecycle.status()
    for daemon, facts in described.pop("daemons", {}).items():
        print(f"  {daemon:<40} pid {facts['pid']:<8} {facts['memoryMiB']:>5} MiB")
    for key, value in described.items():
        print(f"{key}: {', '.join(value) or 'none' if isinstance(value, list) else value}")
    return 0 if whole else 1


if __name__ == "__main__":
    sys.exit(main())
