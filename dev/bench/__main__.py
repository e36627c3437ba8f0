"""Benchmarks: `python -m dev.bench data`; one JSON line a figure on standard output, progress on standard error.

Ours and the peer's are measured in turns. `ratio` says how many times better than the peer's a figure is: the median
over the turns, because the speed of a machine drifts. `holds` says whether the goal is reached; the exit code does not.
"""

import argparse
import importlib
import signal
import sys
import tempfile
from pathlib import Path

_GROUPS = {
    "data": ("order", "reading", "stalls", "preparing"),
    "checkpoint": ("checkpointing",),
    "train": ("training",),
    "operator": ("operating",),
    "monitoring": ("monitoring",),
    "recovery": ("recovering",),
}


def main() -> None:
    """Measure one group."""
    parser = argparse.ArgumentParser(
        prog="python -m dev.bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("group", choices=sorted(_GROUPS))
    parts = [part for group in _GROUPS.values() for part in group]
    parser.add_argument("--only", nargs="+", choices=parts, metavar="FIGURES", help=f"of {', '.join(parts)}")
    parser.add_argument("--quick", action="store_true", help="small sizes, few repeats: shows that it runs")
    options = parser.parse_args()
    # An end that is asked for goes through the contexts, too, which take down what they started.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    for part in _GROUPS[options.group]:
        if not options.only or part in options.only:
            with tempfile.TemporaryDirectory(prefix="skywork-bench-") as folder:
                for figure in importlib.import_module(f"dev.bench.{part}").measure(Path(folder), quick=options.quick):
                    print(figure.to_json(), flush=True)


if __name__ == "__main__":
    main()
