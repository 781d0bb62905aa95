"""The pooled HTTP/1.1 client to engines, on asyncio.Protocol and httptools (llhttp).

It is on every request's way; general clients cost 2.5 to 80 times as much there.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections import deque
from typing import NamedTuple, cast
from urllib.parse import urlsplit

import httptools

from freehold.errors import EngineFailed

# A caller who reads slowly stops the engine's stream here rather than fill our memory.
HIGH_WATER_PIECES = 64
CONNECT_S = 10.0


class Unanswered(EngineFailed):
    """The engine could not be reached, or went away before a byte of its answer."""


class Answer(NamedTuple):
    status: int
    body: bytes


class Upstream:
    """Where one engine listens, and the connections that wait there for the next request."""

    def __init__(self, url: str, api_key: str | None = None) -> None:
        """`url`: http://host:port[/prefix], https://..., or unix:/path."""
        self.url = url
        parts = urlsplit(url)
        self._path = parts.path if parts.scheme == "unix" else None
        self._host = parts.hostname or "engine"
        self._tls = ssl.create_default_context() if parts.scheme == "https" else None
        self._port = parts.port or (443 if self._tls else 80)
        self.prefix = "" if self._path else parts.path.rstrip("/")
        self.idle: list[Connection] = []
        self._closed = False
        host = parts.netloc.rpartition("@")[2] or "engine"
        key = f"authorization: Bearer {api_key}\r\n" if api_key else ""
        self._head = f"host: {host}\r\ncontent-type: application/json\r\n{key}"

    def head(self, method: str, path: str, length: int) -> bytes:
        line = f"{method} {self.prefix}{path} HTTP/1.1\r\n"
        return f"{line}{self._head}content-length: {length}\r\n\r\n".encode()

    async def connect(self) -> Connection:
        if self._closed:
            raise ConnectionRefusedError("its run is over")
        loop = asyncio.get_running_loop()
        if self._path:
            _, connection = await loop.create_unix_connection(lambda: Connection(self), self._path)
        else:
            _, connection = await loop.create_connection(
                lambda: Connection(self), self._host, self._port, ssl=self._tls
            )
        return connection

    async def fetch(self, method: str, path: str, body: bytes = b"") -> Answer:
        """One whole exchange, for probes. Raises EngineFailed."""
        exchange = Exchange(self)
        try:
            await exchange.start(method, path, body)
            return Answer(exchange.status, await exchange.rest())
        finally:
            exchange.cancel()

    def close(self) -> None:
        """No connection goes there any more: what its address names may be somebody else's soon."""
        self._closed = True
        while self.idle:
            self.idle.pop().transport.abort()


class Connection(asyncio.Protocol):
    """One connection: serves one exchange after the other and goes back to its upstream's pool between them."""

    transport: asyncio.Transport

    def __init__(self, upstream: Upstream) -> None:
        self._upstream = upstream
        self._exchange: Exchange | None = None
        self.reused = False

    def send(self, exchange: Exchange, request: bytes) -> None:
        self._exchange = exchange
        self._pieces: list[bytes] = []
        self._complete = self._keep = self._answered = False
        self._parser = httptools.HttpResponseParser(self)
        self.transport.write(request)

    def abort(self) -> None:
        self._exchange = None
        self.transport.abort()

    # asyncio calls these

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's own classes are not asyncio's

    def data_received(self, data: bytes) -> None:
        exchange = self._exchange
        if exchange is None:  # an engine that speaks out of turn
            self.transport.close()
            return
        self._answered = True
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._exchange = None
            self.transport.close()
            exchange.on_failure(f"its answer is not HTTP: {error}", answered=True)
            return
        if self._pieces:
            pieces, self._pieces = self._pieces, []
            exchange.on_piece(pieces[0] if len(pieces) == 1 else b"".join(pieces))
        if self._complete:
            self._finish(exchange)

    def connection_lost(self, exc: Exception | None) -> None:
        with contextlib.suppress(ValueError):
            self._upstream.idle.remove(self)
        exchange, self._exchange = self._exchange, None
        if exchange:
            reason = f"it closed the connection{f' ({exc})' if exc else ''}"
            exchange.on_failure(reason, answered=self._answered)

    # httptools calls these

    def on_headers_complete(self) -> None:
        if self._exchange:
            self._exchange.on_head(self._parser.get_status_code())

    def on_body(self, body: bytes) -> None:
        self._pieces.append(body)

    def on_message_complete(self) -> None:
        self._keep = self._parser.should_keep_alive() and not self._complete  # twice: more came than one answer
        self._complete = True

    def _finish(self, exchange: Exchange) -> None:
        self._exchange = None
        if self._keep:
            self.transport.resume_reading()  # paused, perhaps, for a caller who reads slowly
            self.reused = True
            self._upstream.idle.append(self)
        else:
            self.transport.close()
        exchange.on_end()


class Exchange:
    """One request and its answer: `start`, then `piece` until it gives b"". `cancel` in every case, at the end."""

    def __init__(self, upstream: Upstream) -> None:
        self._upstream = upstream
        self._connection: Connection | None = None
        self._queue: deque[bytes] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self._failure = ""
        self._ended = self._answered = False
        self.status = 0

    async def start(self, method: str, path: str, body: bytes) -> None:
        """Send the request and wait for the head of the answer. Raises EngineFailed.

        Sent again only when a connection from the pool died before a byte of an answer came: the engine had closed it
        while it waited there.
        """
        request = self._upstream.head(method, path, len(body)) + body
        while True:
            self._connection = connection = await self._acquire()
            connection.send(self, request)
            while not self.status and not self._ended:
                await self._wait()
            if self.status:
                return
            if self._answered:
                raise EngineFailed(f"the engine went away: {self._failure}")
            if not connection.reused:
                raise Unanswered(f"the engine did not answer: {self._failure}")
            self._ended, self._failure = False, ""

    async def piece(self) -> bytes:
        """The next bytes of the body, b"" after the last. Raises EngineFailed when the engine goes away."""
        while not self._queue:
            if self._failure:
                raise EngineFailed(f"the engine went away: {self._failure}")
            if self._ended:
                return b""
            await self._wait()
        if len(self._queue) == 1:
            return self._queue.popleft()
        joined = b"".join(self._queue)
        self._queue.clear()
        if self._connection and not self._ended:
            self._connection.transport.resume_reading()
        return joined

    async def rest(self, limit_bytes: int = 64 << 20) -> bytes:
        pieces = []
        size = 0
        while piece := await self.piece():
            pieces.append(piece)
            size += len(piece)
            if size > limit_bytes:
                raise EngineFailed(f"the engine's answer is larger than {limit_bytes >> 20} MiB")
        return b"".join(pieces)

    def cancel(self) -> None:
        """Let go. Before the end this closes the connection, which is how an engine learns to stop its work."""
        if self._connection and not self._ended:
            self._connection.abort()
        self._ended = True

    async def _acquire(self) -> Connection:
        while self._upstream.idle:
            connection = self._upstream.idle.pop()
            if not connection.transport.is_closing():
                return connection
        try:
            async with asyncio.timeout(CONNECT_S):
                return await self._upstream.connect()
        except OSError as error:  # TimeoutError among them
            raise Unanswered(f"cannot reach the engine at {self._upstream.url}: {error}") from None

    async def _wait(self) -> None:
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter and not self._waiter.done():
            self._waiter.set_result(None)

    # the connection calls these

    def on_head(self, status: int) -> None:
        self.status = status
        self._wake()

    def on_piece(self, piece: bytes) -> None:
        self._queue.append(piece)
        if len(self._queue) >= HIGH_WATER_PIECES and self._connection:
            self._connection.transport.pause_reading()
        self._wake()

    def on_end(self) -> None:
        self._ended = True
        self._wake()

    def on_failure(self, reason: str, *, answered: bool) -> None:
        self._failure, self._answered, self._ended = reason, answered, True
        self._wake()
