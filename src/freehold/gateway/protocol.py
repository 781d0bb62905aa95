"""uvicorn's HTTP protocol with what its two doors need beside: an end to what callers send, and the name of a peer."""

from __future__ import annotations

import asyncio
import inspect
import re
import socket
import struct
from collections.abc import Iterable

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from freehold.errors import BadRequest
from freehold.fleet.config import Server
from freehold.gateway.openai import error_body
from freehold.gateway.rundir import user

SWEEP_S = 1.0
_UPGRADE = re.compile(rb"\r\nupgrade:[^\r\n]*", re.IGNORECASE).sub
MOST_PIPELINED = 64  # on one connection; each takes memory before anybody looks at its key
_HEAD, _BODY = "the head of a request", "the body of a request"
# What this rests on: methods and what they take, and names that they use.
_METHODS = {
    "on_message_begin": (), "on_headers_complete": (), "on_body": ("body",), "on_message_complete": (),
    "connection_lost": ("exc",), "data_received": ("data",), "send_400_response": ("msg",), "shutdown": (),
    "pause_writing": (), "resume_writing": (), "on_response_complete": (),
}  # fmt: skip
_NAMES = {"url", "headers", "cycle", "parser", "transport", "expect_100_continue", "pipeline", "flow", "client"}


def fits() -> bool:
    """Whether this uvicorn is one that the fast path knows."""
    codes = {name: method.__code__ for name, method in vars(HttpToolsProtocol).items() if inspect.isfunction(method)}
    used = {name for code in codes.values() for name in code.co_names}
    takes = {name: code.co_varnames[1 : code.co_argcount] for name, code in codes.items()}
    return used >= _NAMES and takes.items() >= _METHODS.items()


class BoundedProtocol(HttpToolsProtocol):
    """What a caller sends ends: headers in size and in time, a body in time. (Its size is the application's business.)

    No timer a request: `sweep` looks at all connections every second.
    """

    limits = Server()
    _reading = ""  # what is under way from the caller
    _closing_s = 0.0  # since when

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._heads = 0
        self._cycles: list[RequestResponseCycle] = []  # that are not over, as far as was looked
        self._await_head()

    def data_received(self, data: bytes) -> None:
        before = self._heads if self._reading == _HEAD else 0
        if before and b"pgrade:" in data:  # curl and Java offer h2c; a parser that hears of it would read no body
            head, end, rest = data.partition(b"\r\n\r\n")
            data = _UPGRADE(b"", head) + end + rest
        super().data_received(data)
        if self._heads == before and self._reading == _HEAD:  # headers from its first byte to its last
            self._header_bytes += len(data)
            if self._header_bytes > self.limits.max_header_kib << 10:
                self._turn_away(431, f"the headers are larger than {self.limits.max_header_kib} KiB")

    def on_message_begin(self) -> None:
        self._await_head()
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._await_body()
        if len(self.pipeline) >= MOST_PIPELINED:
            raise BadRequest("too many requests at once")  # which ends the parser, and with it the connection
        super().on_headers_complete()
        self._cycles = [cycle for cycle in self._cycles if not cycle.response_complete] + [self.cycle]
        if self.pipeline:
            self.flow.resume_reading()  # or nobody would hear that they left

    def on_message_complete(self) -> None:
        self._reading = ""
        super().on_message_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        for cycle in self._cycles:  # uvicorn tells the latest only
            cycle.disconnected = True
            cycle.message_event.set()

    def _await_head(self) -> None:
        if self._reading != _HEAD:  # else it is the first, and its time began with the connection
            self._heads += 1
            self._reading, self._since_s, self._header_bytes = _HEAD, self.loop.time(), 0

    def _await_body(self) -> None:
        self._reading, self._since_s = _BODY, self.loop.time()

    def sweep(self, now_s: float) -> None:
        if self.transport.is_closing():  # what is left in its buffer is not read
            self._closing_s = self._closing_s or now_s
            if now_s - self._closing_s > self.limits.idle_seconds:
                self.transport.abort()
        elif self._reading and not self._busy():
            limit_s = self.limits.header_seconds if self._reading == _HEAD else self.limits.body_seconds
            if now_s - self._since_s > limit_s:
                self._turn_away(408, f"{self._reading} did not arrive within {limit_s:g} s")

    def send_400_response(self, msg: str) -> None:
        if self._busy():  # not into the middle of an answer, which is the last here
            self.cycle.keep_alive = False
        elif self._answered():
            self.transport.close()
        else:
            super().send_400_response(msg)

    def _busy(self) -> bool:
        """With the answer to an earlier request."""
        if self._reading == _BODY:
            return bool(self.pipeline)
        return self.cycle is not None and not self.cycle.response_complete

    def _answered(self) -> bool:
        """What is being read was answered before all of it was there."""
        return self._reading == _BODY and self.cycle.response_complete

    def _turn_away(self, status: int, why: str) -> None:
        """Whoever is late, or too long, is told so if nothing else is on its way to them; then the connection ends."""
        if not self._busy() and not self._answered():
            error = BadRequest(why, hint="[server] in freehold.toml has the limits")
            error.code = "request_timeout" if status == 408 else "headers_too_large"
            self.transport.write(whole(status, (), error_body(error), keep=False))
        self._reading = ""
        self.transport.close()


class Turn:
    """A request of the fast path, as uvicorn's own methods see it: what it calls a cycle."""

    response_complete = disconnected = False
    message_event = asyncio.Event()  # nobody waits for it

    def __init__(self, keep_alive: bool) -> None:
        self.keep_alive = keep_alive


def whole(status: int, headers: Iterable[tuple[bytes, bytes]], body: bytes, *, keep: bool = True) -> bytes:
    """An answer of ours as it goes over the wire."""
    lines = b"".join([b"%b: %b\r\n" % pair for pair in headers]) or b"content-type: application/json\r\n"
    close = b"" if keep else b"connection: close\r\n"
    return b"%b%b%bcontent-length: %d\r\n\r\n%b" % (STATUS_LINE[status], lines, close, len(body), body)


class PeerProtocol(HttpToolsProtocol):
    """The client's address is the user at the other end of the Unix socket, as the kernel tells it."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        peer = transport.get_extra_info("socket")
        _, uid, _ = struct.unpack("3i", peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")))
        self.client = (user(uid), 0)
