"""Who runs into a limit is in the trail, but one who does so a thousand times a second does not fill it."""

from __future__ import annotations

import asyncio

from freehold.fleet.ground import Ground

QUIET_S = 60.0


class Limits:
    """At most one event in QUIET_S for each limit, key and endpoint; it says how often since the last."""

    def __init__(self, ground: Ground) -> None:
        self._ground = ground
        self._counts: dict[tuple[str, str, str], int] = {}  # since the last event; keys and endpoints are known ones
        self._timers: dict[tuple[str, str, str], asyncio.TimerHandle] = {}

    def hit(self, limit: str, key: str, endpoint: str = "") -> None:
        what = limit, key, endpoint
        self._counts[what] = self._counts.get(what, 0) + 1
        if what not in self._timers:
            self._tell(what)

    def close(self) -> None:
        """Say what was not said yet."""
        for timer in self._timers.values():
            timer.cancel()
        for what in [what for what, count in self._counts.items() if count]:
            self._say(what)

    def _tell(self, what: tuple[str, str, str]) -> None:
        self._timers.pop(what, None)
        if self._counts.get(what):
            self._say(what)
            self._timers[what] = asyncio.get_running_loop().call_later(QUIET_S, self._tell, what)

    def _say(self, what: tuple[str, str, str]) -> None:
        limit, key, endpoint = what
        self._ground.tell("limit.hit", key, limit=limit, endpoint=endpoint, times=self._counts.pop(what))
