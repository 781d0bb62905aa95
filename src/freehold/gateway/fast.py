"""The fast path: a completion is served by the callbacks of its connection, without a task and without ASGI.

It does what app.py does, with the same passage, in half the time. Everything else, and whatever is
unusual about a completion (an `Expect` header, HTTP/1.0), goes the ordinary way on the same connection. Where uvicorn
is not as it `fits` this, the ordinary way serves everything.
"""

from __future__ import annotations

import logging
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from freehold.errors import FreeholdError
from freehold.gateway.app import Gateway, too_large
from freehold.gateway.caller import Pairs, told, unforeseen
from freehold.gateway.desk import KINDS, Head
from freehold.gateway.openai import Kind
from freehold.gateway.passage import Passage
from freehold.gateway.protocol import BoundedProtocol, Turn, whole
from freehold.types import Key

_log = logging.getLogger("freehold.gateway")
_PATHS: dict[bytes, Kind] = {path.encode(): kind for path, kind in KINDS.items()}


class FastProtocol(BoundedProtocol):
    """One connection."""

    gateway: Gateway
    _kind: Kind | None = None  # of the request that is being read here
    _passage: Passage | None = None
    _body: bytes | bytearray = b""
    _idle_s = 0.0  # since when nothing was asked here; 0: uvicorn watches that

    def on_message_begin(self) -> None:
        self._await_head()
        self.url, self.headers, self.expect_100_continue = b"", [], False

    def on_headers_complete(self) -> None:
        parser: Any = self.parser
        self._idle_s = 0.0
        kind = _PATHS.get(self.url)
        busy = self.cycle is not None and not self.cycle.response_complete
        odd = self.expect_100_continue or parser.get_http_version() != "1.1" or parser.get_method() != b"POST"
        if kind is None or busy or odd or parser.should_upgrade():
            url, headers, expects = self.url, self.headers, self.expect_100_continue
            HttpToolsProtocol.on_message_begin(self)
            self.url, self.expect_100_continue = url, expects
            self.headers.extend(headers)
            super().on_headers_complete()
            return
        self._await_body()
        self._kind, self._body = kind, b""
        self._turn = self.cycle = Turn(parser.should_keep_alive())  # type: ignore[assignment]  it looks like theirs
        try:
            self._head: Head = self.gateway.desk.read(self.headers, self.client[0] if self.client else "")
            self._key: Key = self.gateway.desk.key(self._head)  # before anything is read for them
        except FreeholdError as error:
            self._refuse(error)

    def on_body(self, body: bytes) -> None:
        if self._kind is None:
            super().on_body(body)
        elif not self._turn.response_complete:
            if self._body and isinstance(self._body, bytes):
                self._body = bytearray(self._body)  # no list of pieces: a caller can make them of a byte each
            self._body += body
            if len(self._body) > self.gateway.max_body_bytes:
                self._turn.keep_alive = False
                self._refuse(too_large(self.gateway.max_body_bytes))

    def on_message_complete(self) -> None:
        kind, self._kind = self._kind, None
        if kind is None:
            super().on_message_complete()
            return
        self._reading = ""
        if self._turn.response_complete:  # refused before its body was there, which is thrown away
            return
        body, self._body = bytes(self._body), b""
        try:
            self._passage = Passage(self.gateway.desk, self._key, self._head, body, kind)
        except FreeholdError as error:
            self._refuse(error)
        except Exception:  # noqa: BLE001  the door of a request: it ends, the daemon goes on
            _log.exception("a request")
            self._refuse(unforeseen())
        else:
            if self.flow.write_paused:  # they have not read the answer before this
                self._passage.pause()
            self._passage.start(self)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if self._passage:
            self._passage.hang_up()

    def sweep(self, now_s: float) -> None:
        super().sweep(now_s)
        if self._idle_s and not self._reading and now_s - self._idle_s > self.limits.idle_seconds:
            self.transport.close()

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._passage:
            self._passage.pause()

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._passage:
            self._passage.resume()

    # the passage calls these

    def begin(self, status: int, headers: Pairs) -> None:
        lines = b"".join([b"%b: %b\r\n" % pair for pair in headers])
        self.transport.write(b"%b%btransfer-encoding: chunked\r\n\r\n" % (STATUS_LINE[status], lines))

    def write(self, piece: bytes) -> None:
        self.transport.write(b"%x\r\n%b\r\n" % (len(piece), piece))

    def end(self, piece: bytes) -> None:
        self.transport.write((b"%x\r\n%b\r\n0\r\n\r\n" % (len(piece), piece)) if piece else b"0\r\n\r\n")
        self._done()

    def answer(self, status: int, headers: Pairs, body: bytes) -> None:
        self.transport.write(whole(status, headers, body, keep=self._turn.keep_alive))
        self._done()

    def drop(self) -> None:
        self.transport.abort()

    def _refuse(self, error: FreeholdError) -> None:
        self._body = b""
        self.gateway.desk.refused(error)
        self.answer(*told(error))

    def _done(self) -> None:
        self._passage, self._turn.response_complete = None, True
        if not self._turn.keep_alive:
            self.transport.close()
        elif self.pipeline:
            self.on_response_complete()  # somebody did not wait for the answer before they asked again
        else:
            self._idle_s = self.loop.time()
