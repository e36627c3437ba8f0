"""`skywork watch`: a run of the cluster, live in the terminal: where it stands, what it learns, what is wrong.

It asks kubectl, so kubeconfig, contexts and plugins for logging in are the ones you have. Without a terminal it prints
a line for what is new. It ends with the run: 0 Succeeded, 1 Failed or deleted, or the cluster did not answer at the
start; 64 there is no such run, or no right to see it; 130 Ctrl-C.
"""

import argparse
import sys
import time

from skywork_trainer import kubectl
from skywork_trainer.cli.telling import needing

_INTERRUPTED = 130
_PIPE_COLUMNS = 100
_SECONDS_BETWEEN_STEPS = 60.0
"""Between lines that say no more than that training goes on."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the view."""
    parser.epilog = (__doc__ or "").partition("\n\n")[2]
    parser.add_argument("named", metavar="RUN", help="name of the SkyworkRun")
    parser.add_argument("--once", action="store_true", help="print one frame and end")
    parser.add_argument("--interval", type=_seconds, default=3.0, metavar="SECONDS", help="between looks (default 3)")
    kubectl.add_arguments(parser)
    parser.set_defaults(run=needing("cli", frozenset(("rich",)), run))


def run(arguments: argparse.Namespace) -> int:
    """Follow the run to its end; the exit code is the command's."""
    from rich.console import Console
    from rich.live import Live

    from skywork_trainer.watch.asking import Asking
    from skywork_trainer.watch.following import follow
    from skywork_trainer.watch.frame import frame, printed
    from skywork_trainer.watch.lines import lines
    from skywork_trainer.watch.view import View

    console = Console()
    if not console.is_terminal:
        console = Console(width=_PIPE_COLUMNS, soft_wrap=False)
    ask = Asking(kubectl.Kubectl(arguments.namespace, arguments.context), arguments.named)

    def wait() -> None:
        time.sleep(arguments.interval)

    try:
        if arguments.once:
            code, word = follow(ask, lambda seen: printed(seen, console), wait=wait, now=time.time, once=True)
        elif console.is_terminal:
            with Live(console=console, auto_refresh=False, vertical_overflow="crop") as live:
                code, word = follow(
                    ask,
                    lambda seen: live.update(frame(seen, console.width), refresh=True),
                    wait=wait,
                    now=time.time,
                )
        else:
            before: list[View] = []
            due = time.monotonic()

            def tell(seen: View) -> None:
                nonlocal due
                progress = time.monotonic() >= due
                due = time.monotonic() + _SECONDS_BETWEEN_STEPS if progress else due
                for line in lines(before[-1] if before else None, seen, progress=progress):
                    print(f"{time.strftime('%H:%M:%S')} {line}", flush=True)
                before[:] = [seen]

            code, word = follow(ask, tell, wait=wait, now=time.time)
    except kubectl.ClusterError as error:
        print(f"{error.reason}: {error.message}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return _INTERRUPTED
    if word:
        print(f"{arguments.named}: {word}", file=sys.stderr)
    return code


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0.5 <= value <= 3600:
        raise argparse.ArgumentTypeError(f"{text} is no number of seconds from 0.5 to 3600")
    return value
