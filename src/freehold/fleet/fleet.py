"""All endpoints of this machine, and who owns them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping, Sequence

from freehold.engines import Launchable, engine
from freehold.errors import BadConfig, FreeholdError, NotReady, Refused, Unknown
from freehold.fleet.config import Config, Endpoint
from freehold.fleet.external import ExternalReplica
from freehold.fleet.ground import Ground
from freehold.fleet.permission import permissions
from freehold.fleet.replica import Replica
from freehold.fleet.route import Route
from freehold.fleet.starting import Start
from freehold.fleet.trust import Trust
from freehold.types import ReplicaStatus

SAVE_OCCUPANCY_S = 5.0
REREAD_S = 1.0  # how often it is looked whether weights are due
_NEVER_NS = 1 << 62


class Fleet:
    """Replicas by endpoint. `run` owns them until it is cancelled."""

    def __init__(self, config: Config, ground: Ground, starts_s: Mapping[str, Sequence[float]] | None = None) -> None:
        """`starts_s`: how long the last starts of each endpoint took, as the book knows them."""
        self.config, self.ground = config, ground
        self._starts_s = starts_s or {}
        self._permissions = permissions(config, ground)
        self._trusts: dict[str, Trust] = {}
        self._routes: dict[str, Route] = {}
        self._members: list[Replica | ExternalReplica] = []
        self._local: dict[str, Replica] = {}
        for name, endpoint in config.endpoints.items():
            self._add(name, endpoint)

    @property
    def endpoints(self) -> tuple[str, ...]:
        return tuple(self._routes)

    def find(self, name: str) -> Route:
        """Raises Unknown, in the words OpenAI's clients know."""
        try:
            return self._routes[name]
        except KeyError:
            raise unknown_model(name) from None

    async def up(self, name: str, *, full: bool = False) -> None:
        """Open it and wait until it answers; `full`: every byte of its weights is read again, however they look.

        Raises what kept it from starting.
        """
        route = self.find(name)
        if full and (trust := self._trusts.get(name)):
            trust.expire()
        local = self._local.get(name)
        if local is None or route.refusal(self.ground.clock_ns()):
            self._permissions[name].require()
        route.post("open")
        if local is None:
            for member in route.allowed(()):
                if isinstance(member, ExternalReplica):
                    await member.check()
            return
        try:
            route.release(await route.hold(local.endpoint.start_seconds), served=False)
        except NotReady as error:
            raise local.reason or error from None
        if full:
            await self._reread(local)  # it ran already: else its start has read them

    def refuse_waiting(self) -> None:
        """The daemon ends: who waits for an engine waits in vain."""
        for route in self._routes.values():
            route.refuse(NotReady(f"`{route.name}` is shutting down", retry_after_s=5))

    def status(self) -> list[ReplicaStatus]:
        return [member.status() for member in self._members]

    async def run(self) -> None:
        """Every owner, and the account of occupancy on its way to the book."""
        try:
            async with asyncio.TaskGroup() as tasks:
                for member in self._members:
                    tasks.create_task(member.own(), name=f"own {member.name}")
                tasks.create_task(self._reread_when_due(), name="weights")
                while True:
                    await asyncio.sleep(SAVE_OCCUPANCY_S)
                    self.save_occupancy()
                    await self.save_counts()
        finally:
            self.save_occupancy()

    async def _reread_when_due(self) -> None:
        """What is served is read again on a schedule; what is not is read at its next start."""
        while True:
            await asyncio.sleep(REREAD_S)
            for name, trust in self._trusts.items():
                member = self._local[name]
                if member.serving and trust.due:
                    with contextlib.suppress(FreeholdError):  # it is closed by now, and that is in the book
                        await self._reread(member)

    async def _reread(self, member: Replica) -> None:
        """Raises why the weights are not, or not known to be, what they were: nobody is served from them any more."""
        run = member.serving or 0
        try:
            await self._trusts[member.name].reread()
        except Exception as error:  # noqa: BLE001  the door of rereading: what cannot be read, whatever for, is not served
            why = error if isinstance(error, FreeholdError) else _unread(member.name, error)
            member.close(run, why)
            raise why from None

    async def save_counts(self, *, final: bool = False) -> None:
        """What engines of our own have counted so far. `final`: they are asked nothing any more, and end."""
        for replica in self._local.values():
            if replica.serving:
                await replica.save_counts(final=final and not replica.slots.held)

    def save_occupancy(self) -> None:
        self.ground.book.save_occupancy(*self.ground.occupancy.take(self.ground.clock_ns()))

    def _add(self, name: str, endpoint: Endpoint) -> None:
        kind, permission = engine(endpoint.engine), self._permissions[name]
        route = self._routes[name] = Route(name, endpoint, permission, kind)
        if endpoint.engine == "external":
            for replica, place in zip(endpoint.replica_names(name), endpoint.places, strict=True):
                self._members.append(ExternalReplica(replica, route, place, kind, self.ground))
            return
        if not isinstance(kind, Launchable):
            raise BadConfig(f"[endpoints.{name}] Freehold cannot start the engine `{endpoint.engine}`")
        hours = self.config.weights.verify_hours
        lasts_ns = round(hours * 3600e9) or _NEVER_NS
        trust = Trust(name, endpoint, self.ground, permission, rules=self.config.policy, lasts_ns=lasts_ns)
        start = Start(name, endpoint, kind, trust, self.ground)
        drain_seconds, starts_s = self.config.server.drain_seconds, self._starts_s.get(name, ())
        self._trusts[name] = trust
        self._local[name] = Replica(route, start, self.ground, drain_seconds, starts_s=starts_s)
        self._members.append(self._local[name])


def _unread(name: str, error: Exception) -> Refused:
    message = f"the weights of `{name}` could not be read again: {type(error).__name__}: {error}"
    return Refused(message, hint=f"is the disk full, or failing? then: freehold up {name}")


def unknown_model(name: str) -> Unknown:
    return Unknown(f"The model `{name}` does not exist or you do not have access to it.", param="model")
