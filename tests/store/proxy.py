"""An HTTP proxy before a real S3 server that misbehaves by plan."""

from __future__ import annotations

import http.client
import os
import socket
import struct
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

UNAVAILABLE = "unavailable"
"""Answer 503 without asking the server."""
DROP = "drop"
"""Close the connection without asking the server."""
LOSE = "lose"
"""Let the server do it, then close the connection without an answer."""
CUT = "cut"
"""Let the server do it, then send half of its answer's body and close."""
LEAK = "leak"
"""Answer 400 with `leak` in the message, as servers that repeat what they were sent do."""
INTERNAL, TOO_MANY, SLOW_DOWN = "500", "429", "503"
"""Answer that status without asking the server."""
EXPIRED, DENIED = "expired", "denied"
"""Answer 403 as for credentials that ended, or whose rights were taken away."""
RESET = "reset"
"""Reset the connection (RST) without asking the server."""
HANG = "hang"
"""Never answer."""
DRIP = "drip"
"""Let the server do it, then send its answer's body a byte at a time, for ever so long."""
GARBLE = "garble"
"""Let the server do it, then flip a bit of its answer's body."""
SHORTEN = "shorten"
"""Let the server do it, then send half of its answer's body as if that were all."""
GARBLE_UP = "garble-up"
"""Flip a bit of what is sent to the server."""
KILL = "kill"
"""Send the server half of the body, then call `kill`."""
PASS = "pass"
"""Do what a proxy does."""
STATUSES = {
    UNAVAILABLE: (503, "ServiceUnavailable"),
    INTERNAL: (500, "InternalError"),
    TOO_MANY: (429, "TooManyRequests"),
    SLOW_DOWN: (503, "SlowDown"),
    EXPIRED: (403, "ExpiredToken"),
    DENIED: (403, "AccessDenied"),
}


@dataclass
class FaultyProxy:
    """`plan` holds what happens to the next requests that `matches` accepts, by method; everything else passes."""

    endpoint_url: str = ""
    plan: deque[str] = field(default_factory=deque)
    matches: Callable[[str], bool] = lambda method: True
    leak: str = ""
    kill: Callable[[], None] = lambda: None
    seen: list[str] = field(default_factory=list)
    ended: threading.Event = field(default_factory=threading.Event)

    def schedule(self, faults: Sequence[str], *methods: str) -> None:
        """Plan faults for the next requests of these methods (all methods when none is named)."""
        self.plan = deque(faults)
        self.matches = lambda method: not methods or method in methods

    def next_fault(self, method: str) -> str:
        self.seen.append(method)
        return self.plan.popleft() if self.plan and self.matches(method) else PASS


@contextmanager
def faulty_proxy(upstream_url: str) -> Iterator[FaultyProxy]:
    """Listen on a free port until the end of the block."""
    proxy = FaultyProxy()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(proxy, urlsplit(upstream_url).netloc))
    server.daemon_threads = True
    proxy.endpoint_url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield proxy
    finally:
        proxy.ended.set()
        server.shutdown()
        thread.join()
        server.server_close()


def _garbled(data: bytes) -> bytes:
    """One bit in the middle is another."""
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :] if data else data


def _handler(proxy: FaultyProxy, upstream: str) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _handle(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            fault = proxy.next_fault(self.command)
            if fault in STATUSES:
                status, code = STATUSES[fault]
                content = f"<Error><Code>{code}</Code><Message>try later</Message></Error>".encode()
                self._answer(status, [("Content-Type", "application/xml")], content)
                return
            if fault == LEAK:
                content = f"<Error><Code>InvalidArgument</Code><Message>{proxy.leak}</Message></Error>".encode()
                self._answer(400, [("Content-Type", "application/xml")], content)
                return
            if fault == DROP:
                self.close_connection = True
                return
            if fault == RESET:
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                os.close(self.connection.detach())
                self.close_connection = True
                return
            if fault == HANG:
                proxy.ended.wait(600)
                self.close_connection = True
                return
            if fault == KILL:
                self._half(body)
                proxy.kill()
                self.close_connection = True
                return
            status, headers, content = self._forward(_garbled(body) if fault == GARBLE_UP else body)
            if fault == LOSE:
                self.close_connection = True
                return
            if fault == DRIP:
                self._drip(status, headers, content)
                return
            content = _garbled(content) if fault == GARBLE else content[: len(content) // 2] if fault == SHORTEN else content
            self._answer(status, headers, content, len(content) // 2 if fault == CUT else None)

        def _forward(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
            connection = http.client.HTTPConnection(upstream, timeout=30)
            connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name.lower() != "expect":
                    connection.putheader(name, value)
            connection.endheaders(body)
            response = connection.getresponse()
            headers = [(name, value) for name, value in response.getheaders() if name.lower() not in ("transfer-encoding", "connection")]
            content = response.read()
            connection.close()
            return response.status, headers, content

        def _half(self, body: bytes) -> None:
            """The server gets half of what it was promised."""
            with socket.create_connection((upstream.rpartition(":")[0], int(upstream.rpartition(":")[2]))) as server:
                lines = [f"{self.command} {self.path} HTTP/1.1", *(f"{name}: {value}" for name, value in self.headers.items())]
                server.sendall("\r\n".join([*lines, "", ""]).encode() + body[: len(body) // 2])

        def _drip(self, status: int, headers: list[tuple[str, str]], content: bytes) -> None:
            self.send_response_only(status)
            for name, value in headers:
                self.send_header(name, value)
            self.end_headers()
            for number in range(len(content)):
                if proxy.ended.wait(0.2):
                    break
                try:
                    self.wfile.write(content[number : number + 1])
                except OSError:  # given up
                    break
            self.close_connection = True

        def _answer(self, status: int, headers: list[tuple[str, str]], content: bytes, cut_at: int | None = None) -> None:
            self.send_response_only(status)
            for name, value in headers:
                if name.lower() != "content-length" or self.command == "HEAD":
                    self.send_header(name, value)
            if self.command != "HEAD":
                self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[:cut_at])
            if cut_at is not None:
                self.close_connection = True

        do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _handle

        def log_message(self, format: str, *args: Any) -> None:
            """Quiet."""

    return Handler
