"""A proxy between the operator and the real API server that fails requests as a test says."""

import http.client
import json
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from enum import Enum
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

_HOP = {"connection", "transfer-encoding", "content-length", "host", "keep-alive"}
_ERRORS = {409: "Conflict", 410: "Expired", 429: "TooManyRequests", 500: "InternalError", 503: "ServiceUnavailable"}


class Cut(Enum):
    """A request that gets no answer."""

    BEFORE = "before the API server heard of it"
    AFTER = "after the API server did as it was told"
    NEVER = "never, until whoever asks gives up"


Fault = int | Cut | None
"""An HTTP status to answer with instead of asking, a cut, or nothing."""


@dataclass
class Seen:
    """What a fault is chosen by."""

    method: str
    path: str
    """Without its query."""
    watching: bool
    query: str = ""
    at: float = field(default_factory=time.time)
    """When it was asked."""

    @property
    def writes(self) -> bool:
        """Whether it changes something of a run, and not only the operator's own sign of life."""
        return self.method != "GET" and "/leases" not in self.path


@dataclass
class Proxy:
    """One proxy; `fault` is asked about each request, `after` is told of each that was answered."""

    kubeconfig: Path
    fault: Callable[[Seen], Fault] = lambda seen: None
    after: Callable[[Seen], None] = lambda seen: None
    passed: list[Seen] = field(default_factory=list)
    """Requests that the API server has answered."""
    mute: bool = False
    """Whether no watch brings anything any more, those that are begun anew not either."""
    _streams: set[Any] = field(default_factory=set)
    _frozen: set[Any] = field(default_factory=set)

    def break_watches(self) -> None:
        """Close every watch, as a load balancer does that is replaced."""
        for stream in list(self._streams):
            with suppress(OSError):
                stream.shutdown(socket.SHUT_RDWR)

    def freeze_watches(self) -> None:
        """Have every watch that is open stay open and say nothing more, as one does whose peer has gone silently."""
        self._frozen |= self._streams


@contextmanager
def proxy(kubeconfig: Path, folder: Path) -> Iterator[Proxy]:
    """A proxy to the API server of `kubeconfig`, with a kubeconfig of its own."""
    config = json.loads(kubeconfig.read_text())
    cluster = config["clusters"][0]["cluster"]
    upstream = urlsplit(cluster["server"])
    context = ssl._create_unverified_context()
    path = folder / "proxied"
    made = Proxy(path)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_one(self) -> None:
            size = int(self.headers.get("Content-Length") or 0)
            body = self.rfile.read(size) if size else None
            url = urlsplit(self.path)
            seen = Seen(self.command, url.path, "watch=" in url.query, url.query)
            fault = made.fault(seen)
            if fault is Cut.NEVER:
                self.rfile.read(1)
                self.close_connection = True
            elif fault is Cut.BEFORE:
                self._hang_up()
            elif isinstance(fault, int):
                self._refuse(fault, in_stream=seen.watching and fault == 410)
            else:
                self._forward(seen, body, answer=fault is None)

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = handle_one

        def _hang_up(self) -> None:
            self.close_connection = True
            self.connection.close()

        def _refuse(self, status: int, *, in_stream: bool) -> None:
            said = {"kind": "Status", "status": "Failure", "reason": _ERRORS[status], "code": status, "message": "test"}
            # A watch from a version that is forgotten is begun, and ends with its first event.
            text = json.dumps({"type": "ERROR", "object": said} if in_stream else said).encode() + b"\n"
            self.send_response(200 if in_stream else status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            if status == 429:
                self.send_header("Retry-After", "1")
            self.end_headers()
            self.wfile.write(text)

        def _forward(self, seen: Seen, body: bytes | None, *, answer: bool) -> None:
            there = http.client.HTTPSConnection(upstream.hostname or "", upstream.port, context=context, timeout=3600)
            try:
                headers = {k: v for k, v in self.headers.items() if k.lower() not in _HOP}
                there.request(self.command, self.path, body, headers)
                said = there.getresponse()
                if seen.watching:
                    self._stream(said)
                    return
                text = said.read()
                made.passed.append(seen)
                made.after(seen)
                if not answer:
                    self._hang_up()
                    return
                self.send_response(said.status)
                for name, value in said.getheaders():
                    if name.lower() not in _HOP:
                        self.send_header(name, value)
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)
            finally:
                there.close()

        def _stream(self, said: http.client.HTTPResponse) -> None:
            made._streams.add(self.connection)
            self.close_connection = True
            self.send_response(said.status)
            self.send_header("Content-Type", said.getheader("Content-Type") or "application/json")
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            try:
                while piece := said.read1(65536):
                    if made.mute or self.connection in made._frozen:
                        continue
                    self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
                self.wfile.write(b"0\r\n\r\n")
            except (OSError, ValueError, http.client.HTTPException):
                pass
            finally:
                made._streams.discard(self.connection)

        def handle(self) -> None:
            try:
                super().handle()
            except (OSError, ValueError):
                self.close_connection = True

        def log_message(self, format: str, *args: object) -> None:
            """Nobody reads these."""

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: object, client_address: object) -> None:
            """An operator that was killed is no news."""

    server = Server(("127.0.0.1", 0), Handler)
    cluster.pop("certificate-authority-data", None)
    cluster["server"] = f"http://127.0.0.1:{server.server_address[1]}"
    path.write_text(json.dumps(config))
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield made
    finally:
        server.shutdown()
        server.server_close()
