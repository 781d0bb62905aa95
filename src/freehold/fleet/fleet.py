"""All endpoints of this machine, and who owns them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping, Sequence

from msgspec.structs import replace

from freehold.engines import Launchable, engine
from freehold.errors import BadConfig, BadRequest, FreeholdError, NotReady, Unknown
from freehold.fleet.adapters import Adapters
from freehold.fleet.config import Config, Endpoint
from freehold.fleet.external import ExternalReplica
from freehold.fleet.ground import Ground
from freehold.fleet.permission import permissions
from freehold.fleet.pool import Pool
from freehold.fleet.roster import Alias
from freehold.fleet.route import Route
from freehold.fleet.trust import Trust
from freehold.types import ReplicaStatus

SAVE_OCCUPANCY_S = 5.0
REREAD_S = 1.0  # how often it is looked whether weights are due
_NEVER_NS = 1 << 62


class Fleet:
    """Replicas by endpoint. `run` owns them until it is cancelled."""

    def __init__(
        self,
        config: Config,
        ground: Ground,
        starts_s: Mapping[str, Sequence[float]] | None = None,
        adapters: Mapping[str, dict[str, Alias]] | None = None,
    ) -> None:
        """As the book knows them: how long the last starts of each endpoint took, and what adapters it has."""
        self.config, self.ground = config, ground
        self._starts_s, self._adapters = starts_s or {}, adapters or {}
        self._permissions = permissions(config, ground)
        self._routes: dict[str, Route] = {}
        self._pools: dict[str, Pool] = {}
        self._changers: dict[str, Adapters] = {}
        self._external: list[ExternalReplica] = []
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

    def adapters(self, name: str) -> Adapters:
        """Of an endpoint that Freehold starts. Raises Unknown, BadRequest."""
        route = self.find(name)
        if name not in self._changers:
            raise BadRequest(f"`{route.name}` is external: its adapters are not Freehold's", hint="ask who runs it")
        return self._changers[name]

    async def up(self, name: str, *, full: bool = False) -> None:
        """Open it and wait until it answers; `full`: every byte of its weights is read again, however they look.

        Raises what kept it from starting.
        """
        route, pool = self.find(name), self._pools.get(name)
        if pool is None or route.refusal(self.ground.clock_ns()):
            self._permissions[name].require()
        if pool:
            await pool.up(full=full)
            return
        route.post("open")
        for member in route.allowed(()):
            if isinstance(member, ExternalReplica):
                await member.check()

    def refuse_waiting(self) -> None:
        """The daemon ends: who waits for an engine waits in vain."""
        for route in self._routes.values():
            route.refuse(NotReady(f"`{route.name}` is shutting down", retry_after_s=5))

    def status(self) -> list[ReplicaStatus]:
        ours = {name: [replica.status() for replica in pool.replicas] for name, pool in self._pools.items()}
        return [each for name in self._routes for each in ours.get(name) or self._external_status(name)]

    def _external_status(self, name: str) -> list[ReplicaStatus]:
        return [member.status() for member in self._external if member.route.name == name]

    async def run(self) -> None:
        """Every owner, and the account of occupancy on its way to the book."""
        try:
            async with asyncio.TaskGroup() as tasks:
                for member in self._external:
                    tasks.create_task(member.own(), name=f"own {member.name}")
                for pool in self._pools.values():
                    tasks.create_task(pool.own(), name=f"own {pool.name}")
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
            for pool in self._pools.values():
                if pool.trust.due and pool.serving:
                    with contextlib.suppress(FreeholdError):  # it is closed by now, and that is in the book
                        await pool.reread()

    async def save_counts(self, *, final: bool = False) -> None:
        """What engines of our own have counted so far. `final`: they are asked nothing any more, and end."""
        serving = [replica for pool in self._pools.values() for replica in pool.replicas if replica.serving]
        await asyncio.gather(*(each.save_counts(final=final and not each.slots.held) for each in serving))

    def save_occupancy(self) -> None:
        self.ground.book.save_occupancy(*self.ground.occupancy.take(self.ground.clock_ns()))

    def _add(self, name: str, endpoint: Endpoint) -> None:
        kind, permission = engine(endpoint.engine), self._permissions[name]
        route = self._routes[name] = Route(name, endpoint, permission, kind)
        if endpoint.engine == "external":
            for replica, place in zip(endpoint.replica_names(name), endpoint.places, strict=True):
                self._external.append(ExternalReplica(replica, route, place, kind, self.ground))
            return
        if not isinstance(kind, Launchable):
            raise BadConfig(f"[endpoints.{name}] Freehold cannot start the engine `{endpoint.engine}`")
        route.roster.aliases.update(self._adapters.get(name, {}))
        lasts_ns = round(self.config.weights.verify_hours * 3600e9) or _NEVER_NS
        about = {"rules": self.config.policy, "lasts_ns": lasts_ns}
        trust, draft = Trust(name, endpoint, self.ground, permission, **about), None
        if endpoint.draft:
            of_draft = replace(endpoint, weights=endpoint.draft, pin=None)
            draft = Trust(name, of_draft, self.ground, None, **about)
        starts_s, drain_seconds = self._starts_s.get(name, ()), self.config.server.drain_seconds
        pool = Pool(route, kind, (trust, draft), self.ground, drain_seconds, starts_s=starts_s)
        self._pools[name], self._changers[name] = pool, Adapters(pool)


def unknown_model(name: str) -> Unknown:
    return Unknown(f"The model `{name}` does not exist or you do not have access to it.", param="model")
