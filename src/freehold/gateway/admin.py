"""The operator's door: a Unix socket in a folder of the owner's.

Who asks is told by the kernel (SO_PEERCRED), and is the actor of the event that follows.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Annotated, TypeVar

import msgspec
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from freehold.errors import BadRequest, FreeholdError
from freehold.fleet.config import Allowance
from freehold.fleet.fleet import Fleet
from freehold.fleet.roster import Alias
from freehold.fleet.route import Route as FleetRoute
from freehold.gateway.alone import Report, record
from freehold.gateway.custody import checkpoint
from freehold.gateway.exposition import Exposition
from freehold.gateway.keyring import Keyring
from freehold.ledger.deletion import Deletion, What
from freehold.policy.access import state
from freehold.types import Event

_T = TypeVar("_T")
_Moment = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
_Span = Annotated[int, msgspec.Meta(ge=0, le=36525 * 86_400)]


class Expiry(msgspec.Struct):
    """When a key ends."""

    expires_ns: _Moment | None = None  # by the daemon's clock, which the asker's may not agree with: see expires_s
    expires_s: _Span | None = None  # from now

    def at_ns(self, now_ns: int) -> int | None:
        return self.expires_ns if self.expires_s is None else now_ns + self.expires_s * 10**9


class KeyAsk(Expiry, kw_only=True):
    """What `freehold keys create` sends."""

    name: str
    endpoints: tuple[str, ...] = ()
    content_days: Annotated[int, msgspec.Meta(ge=1, le=36500)] | None = None
    group: str = ""
    limits: Allowance = Allowance()


class RotateAsk(Expiry):
    """What `freehold keys rotate` sends."""

    overlap_s: _Span = 86_400


class DeletionAsk(msgspec.Struct):
    """What `freehold audit delete` sends."""

    what: tuple[What, ...]
    before_ns: _Moment
    key: str | None = None


class AdapterAsk(msgspec.Struct):
    """What `freehold adapters add` sends."""

    name: str
    path: str
    percent: Annotated[int, msgspec.Meta(ge=1, le=100)] = 100


class ShareAsk(msgspec.Struct):
    """What `freehold adapters share` sends."""

    percent: Annotated[int, msgspec.Meta(ge=0, le=100)]


class Admin:
    """What the command line asks of the daemon. Answers are JSON; that of `up` JSON lines."""

    def __init__(
        self,
        fleet: Fleet,
        keyring: Keyring,
        exposition: Exposition,
        about: dict[str, object],
        shut_down: Callable[[], None],
    ) -> None:
        self._fleet, self._keyring, self._exposition = fleet, keyring, exposition
        self._about, self._shut_down = about, shut_down

    def app(self) -> Starlette:
        routes = (
            ("GET", "/status", self.status),
            ("GET", "/metrics", self.metrics),
            ("POST", "/up", self.up),
            ("POST", "/endpoints/{name}/stop", self.stop),
            ("GET", "/adapters", self.adapters),
            ("POST", "/endpoints/{name}/adapters", self.add_adapter),
            ("POST", "/endpoints/{name}/adapters/{adapter}/share", self.share_adapter),
            ("POST", "/endpoints/{name}/adapters/{adapter}/rollback", self.roll_back_adapter),
            ("DELETE", "/endpoints/{name}/adapters/{adapter}", self.remove_adapter),
            ("GET", "/keys", self.keys),
            ("POST", "/keys", self.create_key),
            ("POST", "/keys/{name}/rotate", self.rotate_key),
            ("DELETE", "/keys/{name}", self.revoke_key),
            ("POST", "/events", self.event),
            ("POST", "/flush", self.flush),
            ("POST", "/counts", self.counts),
            ("POST", "/deletions", self.delete),
            ("POST", "/checkpoints", self.checkpoint),
            ("POST", "/shutdown", self.shutdown),
        )
        return Starlette(
            routes=[Route(path, do, methods=[method]) for method, path, do in routes],
            exception_handlers={FreeholdError: _refuse},
        )

    async def status(self, request: Request) -> Response:
        if "wide" in request.query_params:
            await self._fleet.save_counts()  # reads the engines' metrics, which are up to 5 s old otherwise
        return _json({**self._about, "endpoints": self._fleet.status()})

    async def metrics(self, request: Request) -> Response:
        return await self._exposition.answer(request)

    async def up(self, request: Request) -> Response:
        names = request.query_params.getlist("endpoint") or list(self._fleet.endpoints)
        full = "full" in request.query_params
        for name in names:
            self._fleet.ground.tell("endpoint.up", self._fleet.find(name).name, actor=_actor(request))
        return StreamingResponse(_bring_up(self._fleet, names, full=full), media_type="application/x-ndjson")

    async def stop(self, request: Request) -> Response:
        member = self._fleet.find(request.path_params["name"])
        self._fleet.ground.tell("endpoint.stop", member.name, actor=_actor(request))
        member.post("stop")
        return _json({"stopping": member.name})

    async def adapters(self, _: Request) -> Response:
        routes = [self._fleet.find(name) for name in self._fleet.endpoints]
        return _json(
            [
                {"endpoint": route.name, "name": name, "alias": alias, "replicas": _having(route, alias)}
                for route in routes
                for name, alias in route.roster.aliases.items()
            ]
        )

    async def add_adapter(self, request: Request) -> Response:
        ask = await _body(request, AdapterAsk)
        changer = self._fleet.adapters(request.path_params["name"])
        return _json(await changer.add(ask.name, Path(ask.path), ask.percent, _actor(request)))

    async def share_adapter(self, request: Request) -> Response:
        ask, at = await _body(request, ShareAsk), request.path_params
        return _json(await self._fleet.adapters(at["name"]).share(at["adapter"], ask.percent, _actor(request)))

    async def roll_back_adapter(self, request: Request) -> Response:
        at = request.path_params
        return _json(await self._fleet.adapters(at["name"]).roll_back(at["adapter"], _actor(request)))

    async def remove_adapter(self, request: Request) -> Response:
        at = request.path_params
        await self._fleet.adapters(at["name"]).remove(at["adapter"], _actor(request))
        return _json({})

    async def keys(self, _: Request) -> Response:
        now_ns, accounts = self._fleet.ground.clock_ns(), self._keyring.accounts
        listed = self._keyring.list()
        shown = [{"state": state(key, now_ns), "limits": accounts.levels(key, now_ns)} for key in listed]
        return _json([msgspec.structs.asdict(key) | more for key, more in zip(listed, shown, strict=True)])

    async def create_key(self, request: Request) -> Response:
        ask = await _body(request, KeyAsk)
        key, secret = await self._keyring.create(
            ask.name, ask.endpoints, ask.at_ns(self._fleet.ground.clock_ns()), _actor(request),
            content_days=ask.content_days, group=ask.group, grant=ask.limits.grant,
        )  # fmt: skip
        return _json({"key": key, "secret": secret})

    async def rotate_key(self, request: Request) -> Response:
        ask, name = await _body(request, RotateAsk), request.path_params["name"]
        expires_ns = ask.at_ns(self._fleet.ground.clock_ns())
        rotated = await self._keyring.rotate(name, ask.overlap_s * 10**9, _actor(request), expires_ns=expires_ns)
        return _json(dict(zip(("key", "secret", "old_until_ns"), rotated, strict=True)))

    async def revoke_key(self, request: Request) -> Response:
        return _json(await self._keyring.revoke(request.path_params["name"], _actor(request)))

    async def event(self, request: Request) -> Response:
        await record(self._fleet.ground.book, await _body(request, Report), _actor(request))
        return _json({})

    async def flush(self, _: Request) -> Response:
        """Everything that has happened is in the book, and bound to its chain, when this is answered."""
        self._fleet.save_occupancy()
        await self._fleet.ground.book.seal()
        return _json({})

    async def counts(self, _: Request) -> Response:
        """What the engines have counted by now is in the book when this is answered."""
        await self._fleet.save_counts()
        await self._fleet.ground.book.flush()
        return _json({})

    async def delete(self, request: Request) -> Response:
        ask = await _body(request, DeletionAsk)
        keys = self._keyring.named(ask.key) if ask.key else None
        if keys and "events" in ask.what:
            raise BadRequest("events are of no key", hint="--key goes with --usage and --content")
        why = f"asked for{f', of the key {ask.key}' if ask.key else ''}"
        deletions = [
            Deletion(what=w, before_ns=ask.before_ns, actor=_actor(request), why=why, keys=keys) for w in ask.what
        ]
        return _json({"deleted": await self._fleet.ground.book.delete(*deletions)})

    async def checkpoint(self, _: Request) -> Response:
        return _json(await checkpoint(self._fleet.ground))

    async def shutdown(self, request: Request) -> Response:
        self._fleet.ground.tell("daemon.shutdown", "freehold", actor=_actor(request))
        self._shut_down()
        return _json({"in_flight": self._fleet.ground.book.journal.in_flight})


def _having(route: FleetRoute, alias: Alias) -> int:
    """How many replicas have its current version now; none of those that do not run."""
    return sum(alias.current.adapter.name in replica.adapters for replica in route.replicas)


async def _body(request: Request, kind: type[_T]) -> _T:
    try:
        return msgspec.json.decode(await request.body(), type=kind)
    except msgspec.DecodeError as error:
        raise BadRequest(f"not what is expected here: {error}") from None


async def _refuse(_: Request, error: Exception) -> Response:
    assert isinstance(error, FreeholdError)  # noqa: S101  registered for nothing else
    said = {"error": {"message": str(error), "hint": error.hint, "exit_code": error.exit_code}}
    return Response(msgspec.json.encode(said), status_code=error.status, media_type="application/json")


async def _bring_up(fleet: Fleet, names: list[str], *, full: bool) -> AsyncIterator[bytes]:
    """Every event until all are up; then one line for each: {"up": name} or {"failed": name, "error": ...}."""
    with fleet.ground.listening() as news:
        starting = {asyncio.create_task(fleet.up(name, full=full)): name for name in names}
        listen = asyncio.ensure_future(news.get())
        try:
            while pending := [task for task in starting if not task.done()]:
                await asyncio.wait((listen, *pending), return_when=asyncio.FIRST_COMPLETED)
                if listen.done():
                    yield _line(listen.result())
                    listen = asyncio.ensure_future(news.get())
            if listen.done():
                yield _line(listen.result())
            while not news.empty():
                yield _line(news.get_nowait())
        finally:
            for task in (listen, *starting):
                task.cancel()
    for task, name in starting.items():
        error = task.exception()
        if error is None:
            yield _line({"up": name})
        elif isinstance(error, FreeholdError):
            yield _line({"failed": name, "error": str(error), "hint": error.hint, "exit_code": error.exit_code})
        else:
            raise error


def _line(what: Event | dict[str, object]) -> bytes:
    return msgspec.json.encode(what) + b"\n"


def _json(what: object) -> Response:
    return Response(msgspec.json.encode(what), media_type="application/json")


def _actor(request: Request) -> str:
    return request.client.host if request.client else "unknown"
