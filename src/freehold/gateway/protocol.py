"""uvicorn's HTTP protocol with what its two doors need beside: an end to what callers send, and the name of a peer."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Iterable

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from freehold.errors import BadRequest
from freehold.fleet.config import Server
from freehold.gateway.openai import error_body
from freehold.gateway.rundir import user

SWEEP_S = 1.0
_HEAD = "the head of a request"


class BoundedProtocol(HttpToolsProtocol):
    """What a caller sends ends: headers in size and in time, a body in time. (Its size is the application's business.)

    No timer a request: `sweep` looks at all connections every second.
    """

    limits = Server()
    _reading = ""  # what is under way from the caller

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._heads = 0
        self._await_head()

    def data_received(self, data: bytes) -> None:
        before = self._heads if self._reading == _HEAD else 0
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
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._reading = ""
        super().on_message_complete()

    def _await_head(self) -> None:
        if self._reading != _HEAD:  # else it is the first, and its time began with the connection
            self._heads += 1
            self._reading, self._since_s, self._header_bytes = _HEAD, self.loop.time(), 0

    def _await_body(self) -> None:
        self._reading, self._since_s = "the body of a request", self.loop.time()

    def sweep(self, now_s: float) -> None:
        if self._reading:
            limit_s = self.limits.header_seconds if self._reading == _HEAD else self.limits.body_seconds
            if now_s - self._since_s > limit_s:
                self._turn_away(408, f"{self._reading} did not arrive within {limit_s:g} s")

    def _turn_away(self, status: int, why: str) -> None:
        """Whoever is late, or too long, is told so if nothing else is on its way to them; then the connection ends."""
        if self.cycle is None or self.cycle.response_complete:
            error = BadRequest(why, hint="[server] in freehold.toml has the limits")
            error.code = "request_timeout" if status == 408 else "headers_too_large"
            self.transport.write(whole(status, (), error_body(error), keep=False))
        self._reading = ""
        self.transport.close()


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
