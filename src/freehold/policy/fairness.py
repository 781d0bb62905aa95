"""Who goes next when replicas are full: pure."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import Generic, TypeVar

_T = TypeVar("_T")


class FairQueue(Generic[_T]):
    """Higher priority first; within one, keys take turns (start-time fair queueing, Goyal et al. 1996).

    Each of a key's requests is one turn later than its last, and none is earlier than the turn that is being served,
    so that a key that waits behind its own hundred requests delays nobody else's first.
    """

    def __init__(self) -> None:
        self._heap: list[tuple[int, int, int, _T]] = []
        self._last: dict[str, int] = {}  # the turn of each key's latest
        self._now = self._count = 0
        self._gone: set[int] = set()
        self._places: dict[int, int] = {}  # id of an item: its number

    def __len__(self) -> int:
        return len(self._places)

    def push(self, key: str, priority: int, item: _T) -> None:
        turn = self._last[key] = max(self._last.get(key, 0) + 1, self._now)
        self._count += 1
        self._places[id(item)] = self._count
        heapq.heappush(self._heap, (-priority, turn, self._count, item))

    def remove(self, item: _T) -> None:
        """Nothing when it is not there."""
        if (number := self._places.pop(id(item), None)) is not None:
            self._gone.add(number)
            self._forget_when_empty()

    def take(self, serve: Callable[[_T], bool | None]) -> None:
        """Offer them in their order.

        `serve` says True: served; None: this one has to wait, others may pass; False: nobody more can be served now.
        """
        passed = []
        while self._heap:
            entry = heapq.heappop(self._heap)
            _, turn, number, item = entry
            if number in self._gone:
                self._gone.discard(number)
                continue
            del self._places[id(item)]  # before it is told: it may ask again at once
            served = serve(item)
            if served:
                self._now = max(self._now, turn)
                continue
            self._places[id(item)] = number
            passed.append(entry)
            if served is False:
                break
        for entry in passed:
            heapq.heappush(self._heap, entry)
        self._forget_when_empty()

    def clear(self) -> list[_T]:
        """All of them, in their order."""
        everyone = [item for *_, number, item in sorted(self._heap, key=lambda e: e[:3]) if number not in self._gone]
        self._heap.clear()
        self._places.clear()
        self._forget_when_empty()
        return everyone

    def _forget_when_empty(self) -> None:
        if not self._places:
            self._heap.clear()
            self._last.clear()
            self._gone.clear()
            self._now = 0
