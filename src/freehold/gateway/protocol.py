"""uvicorn's HTTP protocol with what its two doors need beside: an end to headers, and the name of a peer."""

from __future__ import annotations

import asyncio
import socket
import struct

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from freehold.gateway.rundir import user

LONGEST_HEADERS_BYTES = 64 << 10
HEADERS_S = 30.0


class BoundedProtocol(HttpToolsProtocol):
    """Callers without a key can send nothing but headers, so these end: in size, and in time."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._header_bytes = 0
        self._too_slow = self.loop.call_later(HEADERS_S, transport.abort)

    def data_received(self, data: bytes) -> None:
        before = self._too_slow
        super().data_received(data)
        if before is not None and self._too_slow is before:  # headers from its first byte to its last
            self._header_bytes += len(data)
            if self._header_bytes > LONGEST_HEADERS_BYTES:
                self.transport.abort()

    def on_message_begin(self) -> None:
        if self._too_slow is None:
            self._header_bytes = 0
            self._too_slow = self.loop.call_later(HEADERS_S, self.transport.abort)
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._stop_waiting()
        super().on_headers_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)

    def _stop_waiting(self) -> None:
        if self._too_slow is not None:
            self._too_slow.cancel()
            self._too_slow = None


class PeerProtocol(HttpToolsProtocol):
    """The client's address is the user at the other end of the Unix socket, as the kernel tells it."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        peer = transport.get_extra_info("socket")
        _, uid, _ = struct.unpack("3i", peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")))
        self.client = (user(uid), 0)
