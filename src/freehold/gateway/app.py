"""The front door as a raw ASGI application: what always works. fast.py serves the same requests without a task each."""

from __future__ import annotations

import asyncio
import re
from collections import deque
from typing import Any

import msgspec

from freehold.errors import BadRequest, FreeholdError, NotFound, TooLarge
from freehold.fleet.fleet import unknown_model
from freehold.gateway import openai
from freehold.gateway.caller import JSON, Pairs, told
from freehold.gateway.desk import KINDS, Desk
from freehold.gateway.openai import Kind
from freehold.gateway.openapi import OPENAPI
from freehold.gateway.passage import Passage

Scope = Any
Receive = Any
Send = Any

_MODEL = re.compile(r"/v1/models/([^/]+)")
HIGH_WATER_PIECES = 64
ROUTES = (*KINDS, "/v1/models", "/v1/models/{model}", "/healthz", "/openapi.json")


class Gateway:
    """`app(scope, receive, send)`: what callers reach over TCP."""

    def __init__(self, desk: Desk) -> None:
        self.desk = desk
        self.max_body_bytes = desk.fleet.config.server.max_body_mib << 20
        self._created_s = desk.ground.clock_ns() // 10**9

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path, method = scope["path"], scope["method"]
        try:
            if kind := KINDS.get(path):
                _require(method, "POST")
                await self._complete(kind, scope, receive, send)
            else:
                await _reply(send, 200, (JSON,), self._answer(path, scope))
        except FreeholdError as error:
            self.desk.refused(error)
            await _reply(send, *told(error))

    def _answer(self, path: str, scope: Scope) -> bytes:
        named = _MODEL.fullmatch(path)
        if path not in ROUTES and not named:
            raise NotFound(f"Invalid URL ({scope['method']} {path})")
        _require(scope["method"], "GET")
        if path == "/healthz":
            return b'{"status":"ok"}'
        if path == "/openapi.json":
            return OPENAPI
        key, desk = self.desk.key(self.desk.read(scope["headers"], _peer(scope))), self.desk
        usable = desk.usable(key)
        if not named:
            return openai.model_list(usable, self._created_s)
        if named[1] in usable:
            return msgspec.json.encode(openai.model(named[1], self._created_s))
        raise unknown_model(named[1])

    async def _complete(self, kind: Kind, scope: Scope, receive: Receive, send: Send) -> None:
        head = self.desk.read(scope["headers"], _peer(scope))
        key = self.desk.key(head)  # before anything is read for them
        body = await _read(receive, self.max_body_bytes)
        caller = _Asgi(send, Passage(self.desk, key, head, body, kind))
        leaving = asyncio.create_task(_hang_up(receive))
        leaving.add_done_callback(lambda _: caller.left())
        try:
            await caller.relay()
        finally:
            leaving.cancel()
            caller.passage.hang_up()


class _Asgi:
    """Hands on what a passage says, as fast as its caller reads."""

    def __init__(self, send: Send, passage: Passage) -> None:
        self._send, self.passage = send, passage
        self._messages: deque[dict[str, Any]] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self._over = self._paused = False
        self._relaying = asyncio.current_task()

    async def relay(self) -> None:
        self.passage.start(self)
        while True:
            while self._messages:
                await self._send(self._messages.popleft())
            if self._over:
                return
            if self._paused:
                self._paused = False
                self.passage.resume()
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter

    def left(self) -> None:
        self._over = True
        self._messages.clear()
        self._wake()

    # the passage calls these

    def begin(self, status: int, headers: Pairs) -> None:
        self._say({"type": "http.response.start", "status": status, "headers": headers})

    def write(self, piece: bytes) -> None:
        self._say({"type": "http.response.body", "body": piece, "more_body": True})
        if len(self._messages) >= HIGH_WATER_PIECES and not self._paused:
            self._paused = True
            self.passage.pause()

    def end(self, piece: bytes) -> None:
        self._over = True
        self._say({"type": "http.response.body", "body": piece})

    def answer(self, status: int, headers: Pairs, body: bytes) -> None:
        self.begin(status, (*headers, (b"content-length", b"%d" % len(body))))
        self.end(body)

    def drop(self) -> None:
        if self._relaying:
            self._relaying.cancel()

    def _say(self, message: dict[str, Any]) -> None:
        self._messages.append(message)
        self._wake()

    def _wake(self) -> None:
        if self._waiter and not self._waiter.done():
            self._waiter.set_result(None)


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
            raise too_large(max_bytes)
        more = message.get("more_body", False)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def too_large(max_bytes: int) -> TooLarge:
    hint = "server.max_body_mib in freehold.toml raises the limit"
    return TooLarge(f"the request is larger than {max_bytes >> 20} MiB", hint=hint)


def _peer(scope: Scope) -> str:
    return scope["client"][0] if scope["client"] else ""


def _require(method: str, only: str) -> None:
    if method != only:
        error = BadRequest(f"Not allowed: {method}", hint=f"this URL takes {only}")
        error.status, error.code, error.headers = 405, "method_not_allowed", ((b"allow", only.encode()),)
        raise error


async def _reply(send: Send, status: int, headers: Pairs, body: bytes) -> None:
    head = [*headers, (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": head})
    await send({"type": "http.response.body", "body": body})
