"""The account of what this machine's time was used for.

Every stretch of time between two changes is shared equally among the replicas that were up, or is `vacant`. Costs are
differences of one running total, so the rows add up to host-seconds x price exactly, whatever the rounding.
"""

from __future__ import annotations

import uuid
from collections import defaultdict
from typing import Any, Literal

from freehold.policy.price import NS_PER_HOUR, machine_pico, split

Phase = Literal["starting", "serving", "idle", "stopping"]
VACANT = ("", "vacant")


class Occupancy:
    """One owner: the event loop. All times are handed in, in nanoseconds since 1970."""

    def __init__(self, host: str, currency: str, pico_per_hour: int, now_ns: int) -> None:
        self._id, self._host, self._currency = uuid.uuid4().hex, host, currency
        self._pico_per_hour = pico_per_hour
        self._began_ns = self._last_ns = now_ns
        self._phases: dict[str, Phase] = {}
        self._held: dict[str, int] = defaultdict(int)
        self._shares: dict[str, float] = defaultdict(float)  # pico one request on this endpoint has cost so far
        self._rows: dict[tuple[str, str, int], list[int]] = {}

    def enter(self, endpoint: str, phase: Phase | None, now_ns: int) -> None:
        """`endpoint`'s replica is in this phase from now on; None: it is gone."""
        self._settle(now_ns)
        if phase is None:
            self._phases.pop(endpoint, None)
        else:
            self._phases[endpoint] = phase

    def hold(self, endpoint: str, now_ns: int) -> float:
        """A request begins; returns a mark for `release`."""
        self._settle(now_ns)
        self._held[endpoint] += 1
        self._phases[endpoint] = "serving"
        return self._shares[endpoint]

    def release(self, endpoint: str, mark: float, now_ns: int) -> int:
        """A request ends; returns its share, in pico, of what the machine cost while it was served.

        Requests served at the same moment share that moment equally, so all shares add up to the serving cost (but
        for rounding: the exact account is that of the phases).
        """
        self._settle(now_ns)
        self._held[endpoint] -= 1
        if not self._held[endpoint] and self._phases.get(endpoint) == "serving":
            self._phases[endpoint] = "idle"
        return round(self._shares[endpoint] - mark)

    def take(self, now_ns: int) -> tuple[tuple[Any, ...], list[tuple[Any, ...]]]:
        """The tenure so far, and what was added since the last call, as rows for the book."""
        self._settle(now_ns)
        rows, self._rows = self._rows, {}
        lasted_ns = self._last_ns - self._began_ns
        tenure = (self._id, self._host, self._currency, self._pico_per_hour, self._began_ns, lasted_ns)
        return tenure, [(self._id, *key, *amounts) for key, amounts in rows.items()]

    def _settle(self, now_ns: int) -> None:
        """Account for the time since the last change, cut at the full hours."""
        while (lasted_ns := now_ns - self._last_ns) > 0:
            hour_ns = self._last_ns // NS_PER_HOUR * NS_PER_HOUR
            self._spread(hour_ns, min(lasted_ns, hour_ns + NS_PER_HOUR - self._last_ns))

    def _spread(self, hour_ns: int, lasted_ns: int) -> None:
        before_ns = self._last_ns - self._began_ns
        pico = machine_pico(self._pico_per_hour, before_ns + lasted_ns) - machine_pico(self._pico_per_hour, before_ns)
        here = list(self._phases.items()) or [VACANT]
        for (endpoint, phase), share, share_ns in zip(
            here, split(pico, len(here)), split(lasted_ns, len(here)), strict=True
        ):
            row = self._rows.setdefault((endpoint, phase, hour_ns), [0, 0])
            row[0] += share_ns
            row[1] += share
            if phase == "serving" and (held := self._held[endpoint]):
                self._shares[endpoint] += share / held
        self._last_ns += lasted_ns
