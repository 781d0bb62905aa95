"""Who runs into a limit is in the trail, but one who does so a thousand times a second does not fill it."""

from __future__ import annotations

from collections import Counter

from freehold.fleet.ground import Ground

QUIET_NS = 60 * 10**9


class Limits:
    """At most one event in QUIET_NS for each limit, key and endpoint; it says how often since the last."""

    def __init__(self, ground: Ground) -> None:
        self._ground = ground
        self.times: Counter[str] = Counter()  # since the start, by the limit
        # Times since the last event, and when that was. Keys and endpoints are known ones: it does not grow.
        self._hits: dict[tuple[str, str, str], tuple[int, int]] = {}

    def hit(self, limit: str, key: str, endpoint: str = "") -> None:
        self.times[limit] += 1
        what, now_ns = (limit, key, endpoint), self._ground.clock_ns()
        times, told_ns = self._hits.get(what, (0, -QUIET_NS))
        self._hits[what] = times + 1, told_ns
        if now_ns >= told_ns + QUIET_NS:
            self._tell(what)

    def close(self) -> None:
        """Say what was not said yet."""
        for what in [what for what, (times, _) in self._hits.items() if times]:
            self._tell(what)

    def _tell(self, what: tuple[str, str, str]) -> None:
        limit, key, endpoint = what
        self._ground.tell("limit.hit", key, limit=limit, endpoint=endpoint, times=self._hits[what][0])
        self._hits[what] = 0, self._ground.clock_ns()
