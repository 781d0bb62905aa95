"""The fast path: a completion is served by the callbacks of its connection, without a task and without ASGI.

It does what app.py does, with the same passage, in half the time. Everything else, and whatever is
unusual about a completion (an `Expect` header, HTTP/1.0), goes the ordinary way on the same connection. It rests on
insides of uvicorn's httptools protocol: `fits` looks whether they are as it knows them, and tests hold them against
each version; where they are not, the ordinary way serves everything.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from freehold.errors import FreeholdError
from freehold.gateway.app import Gateway, too_large
from freehold.gateway.desk import KINDS, Head
from freehold.gateway.openai import Kind, error_body
from freehold.gateway.passage import JSON, Pairs, Passage, error_headers, unforeseen
from freehold.gateway.protocol import BoundedProtocol, whole
from freehold.types import Key

_log = logging.getLogger("freehold.gateway")
_PATHS: dict[bytes, Kind] = {path.encode(): kind for path, kind in KINDS.items()}
# What this rests on: methods by their parameters, and names that the others of its methods use.
_METHODS = {
    "on_message_begin": [], "on_headers_complete": [], "on_body": ["body"], "on_message_complete": [],
    "connection_lost": ["exc"], "data_received": ["data"], "send_400_response": ["msg"], "shutdown": [],
    "pause_writing": [], "resume_writing": [], "_unset_keepalive_if_required": [], "on_response_complete": [],
}  # fmt: skip
_NAMES = ("url", "headers", "scope", "cycle", "parser", "transport", "expect_100_continue", "server_state", "pipeline")


def fits() -> bool:
    """Whether this uvicorn is one that the fast path knows."""
    source = inspect.getsource(HttpToolsProtocol)
    return all(f"self.{name}" in source for name in _NAMES) and all(
        callable(method := getattr(HttpToolsProtocol, name, None))
        and [*inspect.signature(method).parameters][1:] == parameters
        for name, parameters in _METHODS.items()
    )


class FastProtocol(BoundedProtocol):
    """One connection."""

    gateway: Gateway
    _kind: Kind | None = None  # of the request that is being read here
    _passage: Passage | None = None
    _refused = False  # answered before its body was there, which is thrown away
    _keep = True
    _idle_s = 0.0

    def on_message_begin(self) -> None:
        self._await_head()
        self.url, self.headers, self.expect_100_continue = b"", [], False

    def on_headers_complete(self) -> None:
        parser: Any = self.parser
        kind = _PATHS.get(self.url)
        busy = self._passage is not None or (self.cycle is not None and not self.cycle.response_complete)
        odd = self.expect_100_continue or parser.get_http_version() != "1.1" or parser.get_method() != b"POST"
        if kind is None or busy or odd or parser.should_upgrade():
            if self._passage is not None:
                self.cycle = _InFlight()  # type: ignore[assignment]  so that it waits for its turn
            url, headers, expects = self.url, self.headers, self.expect_100_continue
            HttpToolsProtocol.on_message_begin(self)
            self.url, self.expect_100_continue = url, expects
            self.headers.extend(headers)
            super().on_headers_complete()
            return
        self._await_body()
        self._kind = kind
        self._unset_keepalive_if_required()
        self._parts, self._body_bytes, self._refused, self._keep = [], 0, False, parser.should_keep_alive()
        try:
            self._head: Head = self.gateway.desk.read(self.headers, self.client[0] if self.client else "")
            self._key: Key = self.gateway.desk.key(self._head)  # before anything is read for them
        except FreeholdError as error:
            self._refuse(error)

    def on_body(self, body: bytes) -> None:
        if self._kind is None:
            super().on_body(body)
        elif not self._refused:
            self._parts.append(body)
            self._body_bytes += len(body)
            if self._body_bytes > self.gateway.max_body_bytes:
                self._keep = False
                self._refuse(too_large(self.gateway.max_body_bytes))

    def on_message_complete(self) -> None:
        kind, self._kind = self._kind, None
        if kind is None:
            super().on_message_complete()
            return
        self._reading = ""
        if self._refused:
            return
        parts, self._parts = self._parts, []
        body = parts[0] if len(parts) == 1 else b"".join(parts)
        try:
            self._passage = Passage(self.gateway.desk, self._key, self._head, body, kind)
            self._passage.start(self)
        except FreeholdError as error:
            self._refuse(error)
        except Exception:  # noqa: BLE001  the door of a request: it ends, the daemon goes on
            _log.exception("a request")
            self._refuse(unforeseen())

    def send_400_response(self, msg: str) -> None:
        if self._passage is None:
            super().send_400_response(msg)
        else:
            self._keep = False  # not into the middle of an answer

    def connection_lost(self, exc: Exception | None) -> None:
        passage, self._passage = self._passage, None
        if passage:
            passage.hang_up()
        super().connection_lost(exc)

    def shutdown(self) -> None:
        if self._passage is None:
            super().shutdown()
        self._keep = False

    def sweep(self, now_s: float) -> None:
        if (
            self._idle_s
            and not self._reading
            and self._passage is None
            and now_s - self._idle_s > self.limits.idle_seconds
        ):
            self.transport.close()
        super().sweep(now_s)

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
        self.transport.write(whole(status, headers, body, keep=self._keep))
        self._done()

    def drop(self) -> None:
        self.transport.abort()

    def _refuse(self, error: FreeholdError) -> None:
        self._refused = True
        self.gateway.desk.refused(error)
        self.answer(error.status, (JSON, *error_headers(error)), error_body(error))

    def _done(self) -> None:
        self._passage = None
        self._idle_s = self.loop.time()
        if not self._keep:
            self.transport.close()
        elif self.pipeline:
            self.on_response_complete()  # somebody did not wait for the answer before they asked again
        else:
            self.server_state.total_requests += 1


class _InFlight:
    """What uvicorn sees in place of a request of its own while the fast path answers."""

    response_complete = disconnected = False
    keep_alive = True

    def __init__(self) -> None:
        self.message_event = asyncio.Event()
