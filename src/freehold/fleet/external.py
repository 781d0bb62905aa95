"""A replica that somebody else runs: held, keyed, metered and recorded like any other, never started.

Its machine is not ours, so it has no account of occupancy.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path

from freehold.engines import Engine
from freehold.errors import BadConfig, NotReady
from freehold.fleet.config import Place
from freehold.fleet.ground import Ground
from freehold.fleet.health import PROBE_S, Health
from freehold.fleet.probing import Asked, probe_completion
from freehold.fleet.route import Asker, Hold, Route
from freehold.fleet.slots import Slots
from freehold.fleet.upstream import Upstream
from freehold.policy.lifecycle import Happening
from freehold.types import ReplicaStatus


class ExternalReplica:
    """The same door as `Replica`."""

    closed = coming = False

    def __init__(self, name: str, route: Route, place: Place, engine: Engine, ground: Ground) -> None:
        self.name, self.endpoint, self.engine, self.route = name, route.endpoint, engine, route
        self.slots = Slots(route.endpoint.slots)
        self.ready_ns = ground.clock_ns()
        self.site = len(route.replicas)
        self.adapters: Mapping[str, Mapping[str, object]] = {}
        configured = route.endpoint.context
        self.context = configured if isinstance(configured, int) else None
        self._ground = ground
        self._health = Health(name, route, self.slots, ground)
        self._upstream = Upstream(place.url, _api_key(name, place))
        route.join(self)

    @property
    def usable(self) -> bool:
        return not self.closed and not self._health.open

    def hold(self, asker: Asker) -> Hold | None:
        slot, same = self.slots.take(asker.group, asker.choices)
        return Hold(self, self._upstream, 0, 0.0, asker.choices, asker.group, slot, same)

    def wake(self) -> None:
        """It is not ours to start."""

    def release(self, hold: Hold, *, served: bool) -> int:  # noqa: ARG002  the door is Replica's
        self.slots.give(hold.slot, hold.choices)
        return 0

    def answering(self, hold: Hold, status: int) -> None:  # noqa: ARG002  the door is Replica's
        if self._health.failures:
            self._health.recover()
        if self.slots.widen() and self.route.waiting:
            self.route.admit()

    def unanswered(self, run: int) -> None:  # noqa: ARG002  the door is Replica's
        self._health.fail()

    def retry_after_s(self) -> int:
        return round(PROBE_S)

    def progress(self) -> None:
        """Nothing is on its way here."""

    def post(self, happening: Happening) -> None:
        if happening == "stop":
            self.closed = True
            self.route.lost(self.route.stopped())
        elif happening == "open":
            self.closed = False
            self.route.admit()

    async def own(self) -> None:
        """Ask it again and again whether it answers, until cancelled."""
        await self._health.watch(self._upstream, self.engine.ready_path)

    async def check(self) -> None:
        """Ask it for one real completion. Raises EngineFailed."""
        served_model = self.endpoint.served_model or self.route.name
        try:
            async with asyncio.timeout(self.endpoint.request_seconds):
                asked = Asked(self._upstream, self.route.name, self.name)
                used = (await probe_completion(asked, {"model": served_model}, self._ground)).tokens
        except TimeoutError:
            raise NotReady(f"`{self.name}` did not answer in {self.endpoint.request_seconds:g} s") from None
        self._ground.tell(
            "probe.answered",
            self.route.name,
            replica=self.name,
            prompt_tokens=used.prompt,
            completion_tokens=used.completion,
            url=self._upstream.url,
        )

    def status(self) -> ReplicaStatus:
        state = "stopped" if self.closed else "external"
        return ReplicaStatus(
            endpoint=self.route.name,
            replica=self.name,
            engine="external",
            state=state,
            in_flight=self.slots.held,
            waiting=self.route.waiting if self.route.replicas[0] is self else 0,
            slots=self.slots.count,
            answers=not self._health.open,
        )


def _api_key(name: str, place: Place) -> str | None:
    if place.api_key_file is None:
        return None
    try:
        return Path(place.api_key_file).read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise BadConfig(f"[endpoints.{name}] api_key_file: {error}") from None
