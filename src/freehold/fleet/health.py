"""Whether a replica still answers: by what became of its requests, and by probes of our own, whoever else asks it."""

from __future__ import annotations

import asyncio
import math

from freehold.errors import EngineFailed
from freehold.fleet.ground import Ground
from freehold.fleet.route import Route
from freehold.fleet.slots import Slots
from freehold.fleet.upstream import Upstream
from freehold.policy.balance import Circuit

PROBE_S = 2.0  # from the beginning of one to that of the next
PATIENCE_S = 2.0  # a probe without an answer has failed
# So many in a row, half a minute: an engine of ours that lives and does not answer is stopped, and started anew.
HUNG_PROBES = 15


class Health(Circuit):
    """The circuit of one replica, with what follows when it opens and closes."""

    def __init__(self, name: str, route: Route, slots: Slots, ground: Ground) -> None:
        super().__init__()
        self._name, self._route, self._slots, self._ground = name, route, slots, ground

    def fail(self, why: str = "requests were not answered") -> None:
        """Nobody is sent there after some of these, until something is answered."""
        if self.failed():
            self._slots.narrow()
            self._ground.tell("replica.silent", self._route.name, replica=self._name, why=why)
            self._route.lost(self._route.not_ready(f"`{self._route.name}` does not answer now"))

    def recover(self) -> None:
        if self.answered():
            self._ground.tell("replica.answers", self._route.name, replica=self._name)
            self._route.admit()

    async def watch(self, upstream: Upstream, path: str, hung_probes: float = math.inf) -> None:
        """Probe it until so many in a row were not answered, nor anything else meanwhile."""
        clock, silent, took_s = asyncio.get_running_loop().time, 0, 0.0
        while silent < hung_probes:
            await asyncio.sleep(max(0.0, PROBE_S - took_s))
            began_s = clock()
            why = await _probe(upstream, path)
            took_s = clock() - began_s
            if why:
                silent = silent + 1 if self.failures else 1  # no failures: a request was answered meanwhile
                self.fail(why)
            else:
                silent = 0
                self.recover()


async def _probe(upstream: Upstream, path: str) -> str:
    """Why it failed, or nothing. Any answer but a server's error is one: not every server has this path."""
    try:
        async with asyncio.timeout(PATIENCE_S):
            status = (await upstream.fetch("GET", path)).status
    except TimeoutError:
        return f"no answer in {PATIENCE_S:g} s"
    except EngineFailed as error:
        return str(error)
    return f"status {status}" if status >= 500 else ""
