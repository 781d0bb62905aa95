"""The pooled HTTP/1.1 client to engines, on asyncio.Protocol and httptools (llhttp).

It is on every request's way; general clients cost 2.5 to 80 times as much there. It works by callbacks: whoever asks is
a `Sink`, and is told as the answer comes.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
from typing import NamedTuple, Protocol, cast
from urllib.parse import urlsplit

import httptools

from freehold.errors import EngineFailed

CONNECT_S = 10.0
_log = logging.getLogger("freehold.engines")
_DOOR_S = 0.005
# What an engine may still say behind the end of a stream, which its caller does not wait for.
FINISH_S = 1.0
_FINISH_BYTES = 64 << 10


class Sink(Protocol):
    """Whoever asked: told of the head of the answer, of its body in pieces, and of its end or failure, once."""

    connection: Connection | None

    @property
    def wanted(self) -> bool:
        """Somebody still waits: who left while we dialled is not asked for."""
        ...

    def on_head(self, status: int) -> None: ...
    def on_piece(self, piece: bytes) -> None: ...
    def on_end(self) -> None: ...
    def on_failure(self, reason: str, *, answered: bool, sent: bool = True) -> None:
        """`answered`: a byte of its answer had come. `sent`: the engine may have seen the request."""
        ...


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
        self._prefix = "" if self._path else parts.path.rstrip("/")
        self.idle: list[Connection] = []
        self._dialling: set[asyncio.Task[None]] = set()
        self._closed = False
        self._unreached = ""  # why, the last time
        host = parts.netloc.rpartition("@")[2] or "engine"
        key = f"authorization: Bearer {api_key}\r\n" if api_key else ""
        self._headers = f" HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\n{key}"
        self._heads: dict[str, bytes] = {}

    def request(self, method: str, path: str, body: bytes, headers: bytes = b"") -> bytes:
        """`path` is one of a few; `headers`: more of them, each line with its end."""
        line = f"{method} {self._prefix}{path}"
        head = self._heads.get(line) or self._heads.setdefault(line, f"{line}{self._headers}".encode())
        return b"%b%bcontent-length: %d\r\n\r\n%b" % (head, headers, len(body), body)

    def send(self, sink: Sink, request: bytes) -> None:
        """Over a connection that waits, or a new one."""
        while self.idle:
            connection = self.idle.pop()
            if not connection.transport.is_closing():
                connection.send(sink, request)
                return
        self.send_anew(sink, request)

    def send_anew(self, sink: Sink, request: bytes) -> None:
        """Over a new connection. Those that wait are closed: whoever asks for one has just found one of them dead."""
        while self.idle:
            self.idle.pop().transport.abort()
        task = asyncio.get_running_loop().create_task(self._dial(sink, request))
        self._dialling.add(task)
        task.add_done_callback(self._dialling.discard)

    async def fetch(self, method: str, path: str, body: bytes = b"") -> Answer:
        """One whole exchange, for probes. Raises EngineFailed."""
        whole = _Whole()
        self.send(whole, self.request(method, path, body))
        try:
            return await whole.answer
        finally:
            if whole.connection:
                whole.connection.abort()

    def close(self) -> None:
        """No connection goes there any more: what its address names may be somebody else's soon."""
        self._closed = True
        while self.idle:
            self.idle.pop().transport.abort()

    async def _dial(self, sink: Sink, request: bytes) -> None:
        try:
            async with asyncio.timeout(CONNECT_S):
                connection = await self._connect()
        except (OSError, ValueError) as error:  # TimeoutError among them, and a name that can be none of a host
            if (said := str(error)) != self._unreached:  # a start asks four times a second
                self._unreached = said
                _log.warning("cannot reach the engine at %s: %s", self.url, error)  # its address is not for callers
            sink.on_failure("it cannot be reached", answered=False, sent=False)
            return
        if self._closed or not sink.wanted:
            connection.transport.abort()
            sink.on_failure("its run is over", answered=False, sent=False)
        else:
            self._unreached = ""
            connection.send(sink, request)

    async def _connect(self) -> Connection:
        if self._closed:
            raise ConnectionRefusedError("its run is over")
        loop = asyncio.get_running_loop()
        if self._path:
            while True:
                try:
                    _, connection = await loop.create_unix_connection(lambda: Connection(self), self._path)
                    break
                except BlockingIOError:  # its queue is full in a burst; TCP would wait by itself, this has no event
                    await asyncio.sleep(_DOOR_S)
        else:
            _, connection = await loop.create_connection(
                lambda: Connection(self), self._host, self._port, ssl=self._tls
            )
        return connection


class Connection(asyncio.Protocol):
    """One connection: serves one exchange after the other and goes back to its upstream's pool between them."""

    transport: asyncio.Transport

    def __init__(self, upstream: Upstream) -> None:
        self._upstream = upstream
        self._sink: Sink | None = None
        self._request = b""
        self._reused = False

    def send(self, sink: Sink, request: bytes) -> None:
        self._sink, self._request = sink, request
        sink.connection = self  # from here to `_leave`, and no longer
        self._pieces: list[bytes] = []
        self._complete = self._keep = self._answered = False
        self._status = 0
        if not self._reused:  # else it has read whole answers only, and goes on behind the last
            self._parser = httptools.HttpResponseParser(self)
        self.transport.write(request)

    def abort(self) -> None:
        """Nobody waits for the answer any more: closing is how an engine learns to stop its work."""
        self._leave()
        self.transport.abort()

    def let_finish(self) -> None:
        """The answer is over for its caller. If the engine ends it soon, the connection serves the next one."""
        if self._leave() and not self._complete:
            self._sink = _Finishing(self)
            self.transport.resume_reading()

    # asyncio calls these

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's own classes are not asyncio's

    def data_received(self, data: bytes) -> None:
        if self._sink is None:  # an engine that speaks out of turn
            self.transport.close()
            return
        self._answered, self._request = True, b""
        broken = None
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            broken, self._keep = error, False
        if pieces := self._pieces:  # what came before it broke, too
            self._pieces = []
            if sink := self._sink:
                sink.on_piece(pieces[0] if len(pieces) == 1 else b"".join(pieces))
        if self._complete:
            self._finish()
        elif broken:
            self._fail(f"its answer is not HTTP: {broken}")
            self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        with contextlib.suppress(ValueError):
            self._upstream.idle.remove(self)
        if self._reused and not self._answered and (sink := self._leave()):
            self._upstream.send_anew(sink, self._request)  # the engine had closed it while it waited in the pool
        else:
            self._fail(f"it closed the connection{f' ({exc})' if exc else ''}")

    # httptools calls these

    def on_message_begin(self) -> None:
        self._keep = False  # unless this one is whole; what comes behind that is nobody's

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        if status >= 200 and not self._status:  # before there may be others, such as 103
            self._status = status
            if self._sink:
                self._sink.on_head(status)

    def on_body(self, body: bytes) -> None:
        if not self._complete:
            self._pieces.append(body)

    def on_message_complete(self) -> None:
        if self._status and not self._complete:
            self._complete, self._keep = True, self._parser.should_keep_alive()

    def _finish(self) -> None:
        sink = self._leave()
        if self._keep:
            self.transport.resume_reading()  # paused, perhaps, for a caller who reads slowly
            self._reused = True
            self._upstream.idle.append(self)
        else:
            self.transport.close()
        if sink:
            sink.on_end()

    def _fail(self, reason: str) -> None:
        if sink := self._leave():
            sink.on_failure(reason, answered=self._answered)

    def _leave(self) -> Sink | None:
        """Whose it was; it may soon be somebody else's, whom nobody must disturb who has it from before."""
        sink, self._sink = self._sink, None
        if sink:
            sink.connection = None
        return sink


class _Whole:
    """Keeps the answer until it is whole."""

    LIMIT_BYTES = 64 << 20

    def __init__(self) -> None:
        self.connection: Connection | None = None
        self.answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._status, self._body = 0, bytearray()

    @property
    def wanted(self) -> bool:
        return not self.answer.done()

    def on_head(self, status: int) -> None:
        self._status = status

    def on_piece(self, piece: bytes) -> None:
        self._body += piece
        if len(self._body) > self.LIMIT_BYTES and self.connection:
            self.connection.abort()
            self.on_failure(f"its answer is larger than {self.LIMIT_BYTES >> 20} MiB", answered=True)

    def on_end(self) -> None:
        if not self.answer.done():
            self.answer.set_result(Answer(self._status, bytes(self._body)))

    def on_failure(self, reason: str, *, answered: bool, sent: bool = True) -> None:  # noqa: ARG002
        if not self.answer.done():
            what = "the engine went away" if answered else "the engine did not answer"
            self.answer.set_exception(EngineFailed(f"{what}: {reason}"))


class _Finishing:
    """Nobody reads what still comes, and it must not come for ever."""

    wanted = False

    def __init__(self, connection: Connection) -> None:
        self.connection: Connection | None = connection
        self._left_bytes = _FINISH_BYTES
        self._late = asyncio.get_running_loop().call_later(FINISH_S, self._end)

    def on_head(self, status: int) -> None: ...

    def on_piece(self, piece: bytes) -> None:
        self._left_bytes -= len(piece)
        if self._left_bytes < 0:
            self._end()

    def on_end(self) -> None:
        self._late.cancel()

    def on_failure(self, reason: str, *, answered: bool, sent: bool = True) -> None:  # noqa: ARG002  nobody asks
        self._late.cancel()

    def _end(self) -> None:
        self._late.cancel()
        if self.connection:
            self.connection.abort()
