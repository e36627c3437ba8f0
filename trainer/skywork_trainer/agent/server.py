"""The agent's HTTP server: /status, /over, /metrics, /readyz, /healthz."""

import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

from skywork_trainer.config import OVER_HOLD_SECONDS, OVER_PATH

CONTENT_TYPE_METRICS = "text/plain; version=0.0.4; charset=utf-8"


@dataclass(frozen=True, kw_only=True)
class Pages:
    """What the server shows, asked for at each request."""

    status: Callable[[], str]
    over: Callable[[int, float], bool]
    """Whether a generation is over here; waits for that up to so many seconds."""
    metrics: Callable[[], str]
    unready: Callable[[], str]
    """Why the pod is not ready; empty when it is."""
    unhealthy: Callable[[], str]
    """Why the agent is not alive; empty when it is."""


def serve(pages: Pages, port: int) -> ThreadingHTTPServer:
    """Start the server in a thread of its own; port 0 picks a free one."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path == "/status":
                self._answer(200, pages.status(), "application/json")
            elif urlsplit(self.path).path == OVER_PATH:
                self._answer_when_over(parse_qs(urlsplit(self.path).query).get("generation", [""])[0])
            elif self.path == "/metrics":
                self._answer(200, pages.metrics(), CONTENT_TYPE_METRICS)
            elif self.path in ("/readyz", "/healthz"):
                wrong = pages.unready() if self.path == "/readyz" else pages.unhealthy()
                self._answer(503 if wrong else 200, wrong or "ok", "text/plain")
            else:
                self._answer(404, "see /status, /over, /metrics, /readyz, /healthz", "text/plain")

        def _answer_when_over(self, generation: str) -> None:
            if not generation.isdecimal():
                wrong = f"generation is {generation!r}, and must be a number: {OVER_PATH}?generation=3"
                self._answer(400, wrong, "text/plain")
            elif pages.over(int(generation), OVER_HOLD_SECONDS):
                self._answer(200, "over", "text/plain")
            else:
                self._answer(204, "", "text/plain")

        def _answer(self, code: int, text: str, kind: str) -> None:
            body = text.encode()
            self.send_response(code)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """A line for every probe would bury the log."""

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def server_bind(self) -> None:
            # HTTPServer looks up its own name here, which without a DNS server takes ten seconds.
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self.socket.bind(self.server_address)
            self.server_address = self.socket.getsockname()
            self.server_name, self.server_port = "agent", self.server_address[1]

    server = Server(("0.0.0.0", port), Handler)
    # shutdown() waits for the next poll, and every pod's end waits for shutdown().
    threading.Thread(target=server.serve_forever, args=(0.02,), name="http", daemon=True).start()
    return server
