"""A reverse proxy in front of an HTTP server (S3's) that fails as networks and stores do, at given rates.

Which requests fail is drawn from the seed, the method, the path and how often it was asked for before: the same faults
in every run, whatever the threads do. As a program it is ``python fault_proxy.py PORT --target PORT --faults
'{"error": 0.1}'``, and GET /_counts tells what it did.

A condition (``If-Match``, ``If-None-Match``) is decided for one request at a time: moto looks and writes in two steps.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import random
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

DRAWN = ("error", "slow_down", "reset", "cut", "hang", "trickle")
ERRORS = {
    "error": (500, "InternalError", "We encountered an internal error. Please try again."),
    "slow_down": (503, "SlowDown", "Please reduce your request rate."),
    "denied": (403, "AccessDenied", "Access Denied"),
    "expired": (400, "ExpiredToken", "The provided token has expired."),
    "signature": (
        403,
        "SignatureDoesNotMatch",
        "The signature we calculated does not match yours.",
    ),
    "unsupported": (501, "NotImplemented", "A header you provided implies functionality that is not implemented."),
}


@dataclass(frozen=True, kw_only=True)
class Faults:
    """Rates are shares of the requests, 0 to 1."""

    seed: int = 0
    error: float = 0.0
    """Answered with 500 InternalError."""
    slow_down: float = 0.0
    """Answered with 503 SlowDown."""
    reset: float = 0.0
    """The connection is reset, in half of the cases after the request was done: its answer is lost."""
    cut: float = 0.0
    """The connection is closed within the answer."""
    hang: float = 0.0
    """No answer for ``hang_seconds``, then the connection is closed."""
    hang_seconds: float = 5.0
    trickle: float = 0.0
    """The body comes in bits, over ``trickle_seconds``."""
    trickle_seconds: float = 5.0
    lost: tuple[str, ...] = ()
    """Methods whose first request for each path is done, and its answer lost."""
    denied: tuple[str, ...] = ()
    """Parts of the paths that are answered with 403 AccessDenied."""
    keys: tuple[str, ...] = ()
    """Access keys whose requests are answered with 403 AccessDenied."""
    signature: bool = False
    """Everything is answered with 403 SignatureDoesNotMatch."""
    expired_after: int | None = None
    """Requests after which everything is answered with 400 ExpiredToken."""
    expired_tokens: tuple[str, ...] = ()
    """Session tokens that are answered with 400 ExpiredToken."""
    unsupported: tuple[str, ...] = ()
    """Headers that are answered with 501 NotImplemented."""


@dataclass
class Proxy:
    """A running proxy. ``faults`` may be changed at any time."""

    port: int
    target: int
    faults: Faults
    counts: Counter[str] = field(default_factory=Counter)
    """``requests``, ``most_at_once``, and each kind of fault."""
    headers: list[dict[str, str]] = field(default_factory=list)
    """Of each request, its headers in lower case, and ``:path`` with the method."""
    asked: Counter[tuple[str, str]] = field(default_factory=Counter)
    at_once: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)
    conditions: threading.Lock = field(default_factory=threading.Lock)

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def fault(self, method: str, target: str, headers: dict[str, str]) -> str | None:
        """The fault that this request is to have, counted."""
        path = unquote(urlsplit(target).path)
        with self.lock:
            self.counts["requests"] += 1
            self.asked[method, target] += 1
            self.headers.append({**headers, ":path": f"{method} {path}"})
            fault = self._chosen(method, path, target, headers)
            if fault:
                self.counts[fault] += 1
        return fault

    def _chosen(self, method: str, path: str, target: str, headers: dict[str, str]) -> str | None:
        faults, time_of_asking = self.faults, self.asked[method, target]
        after = faults.expired_after
        if (after is not None and self.counts["requests"] > after) or (
            headers.get("x-amz-security-token") in faults.expired_tokens
        ):
            return "expired"
        if faults.signature:
            return "signature"
        known = headers.get("authorization", "")
        if any(part in path for part in faults.denied) or any(f"Credential={key}/" in known for key in faults.keys):
            return "denied"
        if any(name in headers for name in faults.unsupported):
            return "unsupported"
        if method in faults.lost and time_of_asking == 1:
            return "lost"
        draw = random.Random(f"{faults.seed} {method} {target} {time_of_asking}")
        share = draw.random()
        for kind in DRAWN:
            share -= getattr(faults, kind)
            if share < 0:
                return "lost" if kind == "reset" and draw.random() < 0.5 else kind
        return None


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128
    proxy: Proxy

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that go away are a part of it."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def handle_one_request(self) -> None:
        self.raw_requestline = self.rfile.readline(65537)
        if not self.raw_requestline or not self.parse_request():
            self.close_connection = True
            return
        proxy = self.server.proxy
        with proxy.lock:
            proxy.at_once += 1
            proxy.counts["most_at_once"] = max(proxy.counts["most_at_once"], proxy.at_once)
        try:
            self._serve(proxy)
        finally:
            with proxy.lock:
                proxy.at_once -= 1

    def _serve(self, proxy: Proxy) -> None:
        headers = {name.lower(): value for name, value in self.headers.items()}
        if self.path == "/_counts":
            self._answer(200, [("Content-Type", "application/json")], json.dumps(proxy.counts).encode())
            return
        body = self.rfile.read(int(headers.get("content-length", 0)))
        fault = proxy.fault(self.command, self.path, headers)
        if fault in ERRORS:
            status, code, text = ERRORS[fault]
            page = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{text}</Message></Error>".encode()
            self._answer(status, [("Content-Type", "application/xml")], page)
        elif fault == "hang":
            time.sleep(proxy.faults.hang_seconds)
            self.close_connection = True
        elif fault == "reset":
            self._reset()
        else:
            self._forward(proxy, body, headers, fault)

    def _forward(self, proxy: Proxy, body: bytes, headers: dict[str, str], fault: str | None) -> None:
        conditional = "if-match" in headers or "if-none-match" in headers
        with proxy.conditions if conditional else contextlib.nullcontext():
            upstream = http.client.HTTPConnection("127.0.0.1", proxy.target, timeout=60)
            with contextlib.closing(upstream):
                upstream.request(self.command, self.path, body or None, dict(self.headers.items()))
                response = upstream.getresponse()
                content = response.read()
        if fault == "lost":
            self._reset()
            return
        kept = [(name, value) for name, value in response.getheaders() if name.lower() not in ("connection", "server")]
        self._answer(response.status, kept, content, fault)

    def _answer(self, status: int, headers: list[tuple[str, str]], body: bytes, fault: str | None = None) -> None:
        self.send_response_only(status)
        for name, value in headers:
            if name.lower() not in ("content-length", "transfer-encoding"):
                self.send_header(name, value)
        length = {name.lower(): value for name, value in headers}.get("content-length")
        self.send_header("Content-Length", length if self.command == "HEAD" and length else str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        if fault == "cut":
            self.wfile.write(body[: len(body) // 2])
            self._reset()
        elif fault == "trickle":
            steps = 50
            for step in range(steps):
                self.wfile.write(body[len(body) * step // steps : len(body) * (step + 1) // steps])
                time.sleep(self.server.proxy.faults.trickle_seconds / steps)
        else:
            self.wfile.write(body)

    def _reset(self) -> None:
        self.wfile.flush()
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
        self.close_connection = True


def serving(target: int, faults: Faults, port: int = 0) -> tuple[_Server, Proxy]:
    """A server that is bound but does not serve yet, and its proxy. Port 0 takes a free one."""
    server = _Server(("127.0.0.1", port), _Handler)
    server.proxy = Proxy(port=server.server_address[1], target=target, faults=faults)
    return server, server.proxy


@contextlib.contextmanager
def running(target: int, faults: Faults) -> Iterator[Proxy]:
    """A proxy of the port ``target`` in this process."""
    server, proxy = serving(target, faults)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("port", type=int)
    parser.add_argument("--target", type=int, required=True)
    parser.add_argument("--faults", type=json.loads, default={})
    arguments = parser.parse_args()
    faults: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in arguments.faults.items()
    }
    serving(arguments.target, Faults(**faults), arguments.port)[0].serve_forever()


if __name__ == "__main__":
    main()
