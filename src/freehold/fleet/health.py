"""Whether a replica still answers: asked by ourselves, whoever else asks it."""

from __future__ import annotations

import asyncio
from typing import Protocol

from freehold.errors import EngineFailed
from freehold.fleet.ground import Ground
from freehold.fleet.route import Route
from freehold.fleet.upstream import Upstream
from freehold.policy.balance import Circuit

PROBE_S = 2.0
PATIENCE_S = 2.0  # a probe without an answer has failed


class Watched(Protocol):
    name: str
    route: Route


async def watch(replica: Watched, upstream: Upstream, path: str, circuit: Circuit, ground: Ground) -> None:
    """Until cancelled. Any answer but a server's error counts: not every server has this path."""
    while True:
        await asyncio.sleep(PROBE_S)
        try:
            async with asyncio.timeout(PATIENCE_S):
                status = (await upstream.fetch("GET", path)).status
            failure = f"status {status}" if status >= 500 else ""
        except TimeoutError:
            failure = f"no answer in {PATIENCE_S:g} s"
        except EngineFailed as error:
            failure = str(error)
        if failure:
            if circuit.failed():
                tell_down(replica, ground, failure)
        elif circuit.answered():
            ground.tell("replica.answers", replica.route.name, replica=replica.name)
            replica.route.admit()


def tell_down(replica: Watched, ground: Ground, why: str) -> None:
    """Nobody is sent there until a probe is answered."""
    ground.tell("replica.silent", replica.route.name, replica=replica.name, why=why)
    replica.route.lost(replica.route.not_ready(f"`{replica.route.name}` does not answer now"))
