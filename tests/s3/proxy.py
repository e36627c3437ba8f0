"""A proxy in front of an S3 server that spoils the requests it is told to spoil, in the way it is told."""

import http.client
import socket
import socketserver
import struct
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from email.message import Message
from enum import StrEnum
from typing import Any

_TRICKLE_SECONDS = 0.02
_TRICKLED_BYTES = 250
"""Five seconds of it, so that a reader who puts up with it fails its test and does not hang it."""
_OF_THE_CONNECTION = ("connection", "expect", "transfer-encoding", "keep-alive")


class Fault(StrEnum):
    """What happens to one request; the words say how far it comes."""

    NONE = "none"
    SLOW_DOWN = "503 SlowDown"
    BROKEN = "500 with no body"
    RESET = "reset before the server sees it"
    RESET_AFTER = "done by the server, then reset before any answer"
    RESET_IN_BODY = "reset in the middle of the answer"
    TRUNCATED = "the answer ends early, in good order"
    FLIPPED = "a bit of the answer is flipped"
    FLIPPED_SENT = "a bit of what is sent is flipped"
    STALLED = "done by the server, never answered"
    TRICKLED = "the answer comes byte by byte"
    EXPIRED = "400 ExpiredToken"


@dataclass(frozen=True)
class Request:
    """What a client asked."""

    method: str
    target: str
    headers: Message
    body: bytes

    @property
    def access_key(self) -> str:
        return str(self.headers.get("Authorization", "")).partition("Credential=")[2].partition("/")[0]


@dataclass
class Answer:
    """What it is told."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes

    def head(self, length: str) -> bytes:
        lines = [f"HTTP/1.1 {self.status} {http.client.responses.get(self.status, 'Unknown')}"]
        lines += [f"{name}: {value}" for name, value in self.headers]
        lines += [f"Content-Length: {length}", "Connection: close", "", ""]
        return "\r\n".join(lines).encode("latin-1")


class Proxy:
    """Listens on a free port of loopback and passes requests on to `upstream`."""

    def __init__(self, upstream: tuple[str, int]) -> None:
        self.upstream = upstream
        self.requests: list[Request] = []
        self.expired_keys: set[str] = set()
        """Access keys whose requests are answered with ExpiredToken."""
        self.released = threading.Event()
        self._faults: deque[Fault] = deque()
        self._spoils: Callable[[Request], bool] = lambda request: True
        self._lock = threading.Lock()
        self._server = _Server(self)
        self.endpoint = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), name="proxy", daemon=True).start()

    def plan(self, *faults: Fault, spoils: Callable[[Request], bool] = lambda request: True) -> None:
        """Let these befall, one each, the next requests that `spoils` picks; those after them pass."""
        with self._lock:
            self._faults, self._spoils = deque(faults), spoils
            self.requests.clear()

    def heal(self) -> None:
        """Plan nothing more, and end what stalls."""
        self.plan()
        self.expired_keys.clear()
        self.released.set()
        self.released = threading.Event()

    def left(self) -> int:
        """Return how many planned faults have befallen nobody yet."""
        return len(self._faults)

    def close(self) -> None:
        self.heal()
        self._server.shutdown()
        self._server.server_close()

    def fault_for(self, request: Request) -> Fault:
        with self._lock:
            self.requests.append(request)
            if request.access_key in self.expired_keys:
                return Fault.EXPIRED
            spoils = self._spoils
        # Without the lock: what picks requests may make some itself.
        picked = spoils(request)
        with self._lock:
            return self._faults.popleft() if self._faults and picked else Fault.NONE


class _Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 64

    def __init__(self, proxy: Proxy) -> None:
        self.proxy = proxy
        super().__init__(("127.0.0.1", 0), _Connection)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: clients that give up are what this is for."""


class _Connection(socketserver.StreamRequestHandler):
    """One request; the connection ends with its answer."""

    server: _Server

    def handle(self) -> None:
        request = self._read()
        if request is None:
            return
        proxy = self.server.proxy
        released = proxy.released
        fault = proxy.fault_for(request)
        if fault is Fault.RESET:
            return self._reset()
        made_up = _made_up(fault)
        answer = made_up or _pass_on(request, proxy.upstream, flipped=fault is Fault.FLIPPED_SENT)
        if fault is Fault.STALLED:
            released.wait(120)
            return None
        if fault is Fault.RESET_AFTER:
            return self._reset()
        return self._send(request, answer, fault, released)

    def _read(self) -> Request | None:
        line = self.rfile.readline().decode("latin-1")
        if not line.strip():
            return None
        method, target, _ = line.split(" ", 2)
        headers = http.client.parse_headers(self.rfile)
        if headers.get("Expect"):
            self.wfile.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        return Request(method, target, headers, self.rfile.read(int(headers.get("Content-Length", 0))))

    def _send(self, request: Request, answer: Answer, fault: Fault, released: threading.Event) -> None:
        body = answer.body
        if fault is Fault.FLIPPED and body:
            body = _flipped(body)
        length = next((value for name, value in answer.headers if name.lower() == "content-length"), str(len(body)))
        answer.headers = [(name, value) for name, value in answer.headers if name.lower() != "content-length"]
        self.wfile.write(answer.head(length))
        half = body[: len(body) // 2]
        if fault is Fault.TRICKLED:
            for at in range(len(body[:_TRICKLED_BYTES])):
                self.wfile.write(body[at : at + 1])
                if released.wait(_TRICKLE_SECONDS):
                    return
            self.wfile.write(body[_TRICKLED_BYTES:])
        elif fault is Fault.TRUNCATED:
            self.wfile.write(half)
        elif fault is Fault.RESET_IN_BODY:
            self.wfile.write(half)
            self._reset()
        else:
            self.wfile.write(body)

    def _reset(self) -> None:
        # Lingering for no time turns the close into a reset.
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.rfile.close()
        self.connection.close()


def _pass_on(request: Request, upstream: tuple[str, int], *, flipped: bool) -> Answer:
    body = _flipped(request.body) if flipped and request.body else request.body
    server = http.client.HTTPConnection(*upstream, timeout=60)
    server.putrequest(request.method, request.target, skip_host=True, skip_accept_encoding=True)
    for name, value in request.headers.items():
        if name.lower() not in _OF_THE_CONNECTION:
            server.putheader(name, value)
    server.endheaders(body)
    answer = server.getresponse()
    content = answer.read()
    server.close()
    headers = [(name, value) for name, value in answer.getheaders() if name.lower() not in _OF_THE_CONNECTION]
    return Answer(answer.status, headers, content)


def _made_up(fault: Fault) -> Answer | None:
    if fault is Fault.BROKEN:
        return Answer(500, [], b"")
    if fault is Fault.SLOW_DOWN:
        return Answer(503, [("Content-Type", "application/xml")], _error("SlowDown"))
    if fault is Fault.EXPIRED:
        return Answer(400, [("Content-Type", "application/xml")], _error("ExpiredToken"))
    return None


def _error(code: str) -> bytes:
    return f'<?xml version="1.0"?><Error><Code>{code}</Code><Message>made up</Message></Error>'.encode()


def _flipped(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 0x10]) + content[middle + 1 :]
