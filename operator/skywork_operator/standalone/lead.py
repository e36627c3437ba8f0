"""Node 0: the authority, the server that the others report to, and the thread that decides."""

import threading
import time
from collections.abc import Callable

from skywork_trainer.config import EXIT_CONFIG

from skywork_operator.standalone.authority import Authority
from skywork_operator.standalone.exchange import serve
from skywork_operator.standalone.node import Node
from skywork_operator.standalone.preparing import ChildPreparations
from skywork_operator.standalone.progress import line, verdict
from skywork_operator.standalone.words import REPORT_SECONDS, Orders, Report

_LINE_SECONDS = 5.0
_FAREWELL_SECONDS = 10.0


class Lead:
    """Leads the nodes of one run, this one among them, which reports to it directly."""

    def __init__(self, authority: Authority, preparations: ChildPreparations, say: Callable[[str], None]) -> None:
        self._authority, self._preparations, self._say = authority, preparations, say
        self._interrupted = False
        self._broken: Exception | None = None
        self._printed, self._printed_at = "", 0.0

    def leave(self) -> None:
        """Have every node save and end; safe in a signal handler."""
        self._interrupted = True

    def exchange(self, report: Report) -> Orders:
        """Take this node's own report."""
        return self._authority.hear(report, "127.0.0.1", time.time())

    def run(self, node: Node, *, listen: tuple[str, int] | None) -> int:
        """Decide, and run this node's own agent, to the end of the run; return its exit code.

        `listen` is where other nodes report to; None when there are none.
        """
        if listen is not None:
            try:
                serve(self._authority, host=listen[0], port=listen[1])
            except OSError as error:
                self._say(f"port {listen[1]} cannot be listened on ({error}): choose another with --port")
                return EXIT_CONFIG
        deciding = threading.Thread(target=self._decide, name="decide", daemon=True)
        deciding.start()
        try:
            code = node.run()
            deciding.join()
            self._farewell()
        finally:
            self._preparations.stop()
        if self._broken is not None:
            raise self._broken
        self._say(verdict(self._authority.run, code))
        return code

    def _decide(self) -> None:
        try:
            while self._authority.end is None:
                if self._interrupted:
                    self._say("interrupted: saving")
                    self._authority.leave()
                    return
                self._authority.advance(time.time())
                self._show()
                time.sleep(REPORT_SECONDS)
        except Exception as error:
            # Without this thread the nodes would train for ever, led by nobody.
            self._broken = error
            self._authority.leave()

    def _show(self) -> None:
        told, now = line(self._authority.run), time.monotonic()
        if told != self._printed and now - self._printed_at >= _LINE_SECONDS:
            self._say(told)
            self._printed, self._printed_at = told, now

    def _farewell(self) -> None:
        deadline = time.monotonic() + _FAREWELL_SECONDS
        while not self._authority.all_told(time.time()) and time.monotonic() < deadline:
            time.sleep(REPORT_SECONDS)
