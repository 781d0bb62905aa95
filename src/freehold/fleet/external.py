"""An endpoint whose engine somebody else runs: held, keyed, metered and recorded like any other, never started.

Its machine is not ours, so it has no account of occupancy.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

from freehold.engines import Engine
from freehold.errors import BadConfig, NotReady
from freehold.fleet.config import Endpoint
from freehold.fleet.ground import Ground
from freehold.fleet.replica import Hold
from freehold.fleet.starting import probe_completion
from freehold.fleet.upstream import Upstream
from freehold.policy.lifecycle import Happening
from freehold.types import ReplicaStatus


class ExternalReplica:
    """The same door as `Replica`."""

    def __init__(self, name: str, endpoint: Endpoint, engine: Engine, ground: Ground) -> None:
        self.name, self.endpoint, self.engine = name, endpoint, engine
        self._ground = ground
        self._held = 0
        self._closed = False
        self._upstream = Upstream(endpoint.url or "", _api_key(name, endpoint))

    def try_hold(self) -> Hold | None:
        if self._closed:
            return None
        self._held += 1
        return Hold(self._upstream, 0, 0.0)

    async def hold(self, wait_seconds: float | None = None) -> Hold:  # noqa: ARG002  the door is Replica's
        """Raises NotReady when an operator stopped it. (`wait_seconds`: there is nothing to wait for.)"""
        if held := self.try_hold():
            return held
        raise NotReady(f"`{self.name}` was stopped by its operator")

    def release(self, hold: Hold, *, served: bool) -> int:  # noqa: ARG002  the door is Replica's
        self._held -= 1
        return 0

    async def is_over(self, run: int) -> bool:  # noqa: ARG002  the door is Replica's
        return False  # nobody here knows

    def post(self, happening: Happening) -> None:
        self._closed = happening == "stop" or (self._closed and happening != "open")

    async def check(self) -> None:
        """Ask it for one real completion. Raises EngineFailed."""
        served_model = self.endpoint.served_model or self.name
        try:
            async with asyncio.timeout(self.endpoint.request_seconds):
                used = await probe_completion(self._upstream, self.name, served_model, self._ground)
        except TimeoutError:
            raise NotReady(f"`{self.name}` did not answer in {self.endpoint.request_seconds:g} s") from None
        self._ground.tell(
            "probe.answered",
            self.name,
            prompt_tokens=used.prompt,
            completion_tokens=used.completion,
            url=self._upstream.url,
        )

    def status(self) -> ReplicaStatus:
        state = "stopped" if self._closed else "external"
        return ReplicaStatus(endpoint=self.name, engine="external", state=state, in_flight=self._held)


def _api_key(name: str, endpoint: Endpoint) -> str | None:
    if endpoint.api_key_file is None:
        return None
    try:
        return Path(endpoint.api_key_file).read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise BadConfig(f"[endpoints.{name}] api_key_file: {error}") from None
