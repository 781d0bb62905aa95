"""The front door: a raw ASGI application, because it is on every request's way."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
from collections.abc import Iterable
from typing import Any

import msgspec

from freehold.errors import BadRequest, FreeholdError, NotFound, QueueFull, TimedOut, TooLarge
from freehold.fleet.fleet import Fleet, unknown_model
from freehold.fleet.upstream import Exchange
from freehold.gateway import openai
from freehold.gateway.keyring import Keyring
from freehold.gateway.passage import Kind, Passage, admit
from freehold.policy.access import may_use

Scope = Any
Receive = Any
Send = Any
Headers = Iterable[tuple[bytes, bytes]]

_KINDS: dict[str, Kind] = {"/v1/chat/completions": "chat", "/v1/completions": "completion"}
_JSON = (b"content-type", b"application/json")
_STREAM = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # or a proxy in front would gather the stream
)
_MODEL = re.compile(r"/v1/models/([^/]+)")
BODIES_BYTES = 512 << 20  # of all requests on their way: who waits for a cold engine waits in our memory
LAST_WORDS_S = 5.0  # a caller who does not read has so long to take an error
_log = logging.getLogger("freehold.gateway")
ROUTES = (*_KINDS, "/v1/models", "/v1/models/{model}", "/healthz")


class Gateway:
    """`app(scope, receive, send)`: what callers reach over TCP."""

    def __init__(self, fleet: Fleet, keyring: Keyring) -> None:
        self._fleet, self._keyring = fleet, keyring
        self._max_body_bytes = fleet.config.server.max_body_mib << 20
        self._bodies_bytes = 0  # of requests on their way
        self._created_s = fleet.ground.clock_ns() // 10**9

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path, method = scope["path"], scope["method"]
        try:
            if kind := _KINDS.get(path):
                _require(method, "POST")
                await self._complete(kind, scope, receive, send)
            else:
                await _reply(send, 200, self._answer(path, scope))
        except FreeholdError as error:
            await _refuse(send, error)

    def _answer(self, path: str, scope: Scope) -> bytes:
        named = _MODEL.fullmatch(path)
        if path not in ROUTES and not named:
            raise NotFound(f"Invalid URL ({scope['method']} {path})")
        _require(scope["method"], "GET")
        if path == "/healthz":
            return b'{"status":"ok"}'
        key = self._keyring.find(_authorization(scope))
        usable = [name for name in self._fleet.endpoints if may_use(key, name)]
        if not named:
            return openai.model_list(usable, self._created_s)
        if named[1] in usable:
            return msgspec.json.encode(openai.model(named[1], self._created_s))
        raise unknown_model(named[1])

    async def _complete(self, kind: Kind, scope: Scope, receive: Receive, send: Send) -> None:
        key = self._keyring.find(_authorization(scope))  # before anything is read for them
        body = await _read(receive, self._max_body_bytes)
        if self._bodies_bytes + len(body) > BODIES_BYTES:
            self._keyring.limits.hit("bytes waiting", key.id)
            raise QueueFull("too much is waiting here already", retry_after_s=5)
        passage = admit(self._fleet, self._keyring, key, body, kind)
        self._bodies_bytes += len(body)
        answer = _Answer(send, passage)
        working = asyncio.create_task(answer.give(scope["path"]))
        leaving = asyncio.create_task(_hang_up(receive))
        try:
            await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        finally:
            leaving.cancel()
            working.cancel()
            await asyncio.wait((working,))
            passage.end()
            self._bodies_bytes -= len(body)
        if not working.cancelled():
            working.result()


class _Answer:
    """Sends one passage's answer; errors too, in whichever way is still open."""

    def __init__(self, send: Send, passage: Passage) -> None:
        self._send, self._passage = send, passage
        self._began = False

    async def give(self, path: str) -> None:
        passage = self._passage
        try:
            async with asyncio.timeout(passage.deadline_seconds):
                exchange = await passage.send(path)
                if exchange.status == 200:
                    await self._relay(exchange)
                else:
                    await self._fail(passage.translate(exchange.status, await exchange.rest()))
        except TimeoutError:
            await self._fail(TimedOut(f"the request took longer than {passage.deadline_seconds:g} s"))
        except FreeholdError as error:
            await self._fail(error)
        except Exception:  # noqa: BLE001  the door of a request: it ends, the daemon goes on
            _log.exception("request %s", self._passage.record.request)
            await self._fail(FreeholdError("something failed that Freehold did not foresee; its log says what"))

    async def _relay(self, exchange: Exchange) -> None:
        passage = self._passage
        if passage.stream:
            await self._begin(200, _STREAM)
        while piece := await exchange.piece():
            if passed := passage.feed(piece):
                await self._send({"type": "http.response.body", "body": passed, "more_body": True})
        last = passage.finish()
        if not passage.stream:
            await self._begin(200, (_JSON, (b"content-length", b"%d" % len(last))))
        await self._send({"type": "http.response.body", "body": last})

    async def _fail(self, error: FreeholdError) -> None:
        """Before the first byte an answer of its own; in the middle of a stream a frame that clients raise from."""
        complete = self._began and self._passage.meter.done  # then how the engine ended does not matter
        self._passage.fail(None if self._began else error.status)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LAST_WORDS_S):
                if complete:
                    await self._send({"type": "http.response.body", "body": b""})
                elif self._began:
                    frame = b"data: %b\n\n" % openai.error_body(error)
                    await self._send({"type": "http.response.body", "body": frame})
                else:
                    await _refuse(self._send, error, self._passage.record.request)

    async def _begin(self, status: int, headers: Headers) -> None:
        self._began = True
        request_id = (b"x-request-id", self._passage.record.request.encode())
        await self._send({"type": "http.response.start", "status": status, "headers": [*headers, request_id]})


async def _hang_up(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _read(receive: Receive, max_bytes: int) -> bytes:
    pieces, size_bytes, more = [], 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise BadRequest("the request's body did not arrive")
        pieces.append(message.get("body", b""))
        size_bytes += len(pieces[-1])
        if size_bytes > max_bytes:
            hint = "server.max_body_mib in freehold.toml raises the limit"
            raise TooLarge(f"the request is larger than {max_bytes >> 20} MiB", hint=hint)
        more = message.get("more_body", False)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def _authorization(scope: Scope) -> bytes | None:
    return next((value for name, value in scope["headers"] if name == b"authorization"), None)


def _require(method: str, only: str) -> None:
    if method != only:
        error = BadRequest(f"Not allowed: {method}", hint=f"this URL takes {only}")
        error.status, error.code = 405, "method_not_allowed"
        raise error


async def _refuse(send: Send, error: FreeholdError, request_id: str | None = None) -> None:
    headers = []
    if error.retry_after_s is not None:
        headers.append((b"retry-after", b"%d" % error.retry_after_s))
    if request_id:
        headers.append((b"x-request-id", request_id.encode()))
    await _reply(send, error.status, openai.error_body(error), headers)


async def _reply(send: Send, status: int, body: bytes, headers: Headers = ()) -> None:
    head = [_JSON, (b"content-length", b"%d" % len(body)), *headers]
    await send({"type": "http.response.start", "status": status, "headers": head})
    await send({"type": "http.response.body", "body": body})
