"""Reports and orders over HTTP: node 0 serves, the others call."""

import ipaddress
import socket
import threading
import time
import urllib.request
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.error import URLError

from pydantic import ValidationError

from skywork_operator.standalone.authority import Authority
from skywork_operator.standalone.node import Unreachable
from skywork_operator.standalone.words import Orders, Report

_ANSWER_SECONDS = 5.0
_LONGEST_REPORT_BYTES = 1 << 20


def serve(authority: Authority, *, host: str, port: int) -> ThreadingHTTPServer:
    """Take reports at `POST /report`, and show the run's status at `GET /status`; raises OSError for a taken port."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            if self.path != "/report" or length > _LONGEST_REPORT_BYTES:
                return self._answer(404, "POST /report, at most 1 MiB")
            try:
                report = Report.model_validate_json(self.rfile.read(length))
            except ValidationError as error:
                return self._answer(400, str(error))
            address = str(self.client_address[0])
            if not ipaddress.ip_address(address).is_loopback:
                # The address this node has for its peers is the one that they have just reached it by.
                authority.own_address = self.connection.getsockname()[0]
            orders = authority.hear(report, address, time.time())
            return self._answer(200, orders.model_dump_json())

        def do_GET(self) -> None:
            if self.path != "/status":
                return self._answer(404, "GET /status")
            return self._answer(200, authority.run.status.model_dump_json(by_alias=True, exclude_none=True, indent=1))

        def _answer(self, code: int, text: str) -> None:
            body = text.encode()
            self.send_response(code)
            self.send_header("Content-Type", "application/json" if code == 200 else "text/plain")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Four lines a second and node would bury the log."""

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def server_bind(self) -> None:
            # HTTPServer looks up its own name here, which without a DNS server takes ten seconds.
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self.socket.bind(self.server_address)
            self.server_address = self.socket.getsockname()
            self.server_name, self.server_port = host, self.server_address[1]

    server = Server((host, port), Handler)
    threading.Thread(target=server.serve_forever, args=(0.05,), name="reports", daemon=True).start()
    return server


def caller(host: str, port: int) -> Callable[[Report], Orders]:
    """Return what sends a report to node 0 and returns its orders, or raises Unreachable."""

    def exchange(report: Report) -> Orders:
        request = urllib.request.Request(f"http://{host}:{port}/report", data=report.model_dump_json().encode())
        try:
            with urllib.request.urlopen(request, timeout=_ANSWER_SECONDS) as answer:
                return Orders.model_validate_json(answer.read())
        except (OSError, URLError, ValueError) as error:
            raise Unreachable(f"{host}:{port}: {error}") from error

    return exchange
