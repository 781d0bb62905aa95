"""Who goes next when replicas are full: pure."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Hashable
from operator import itemgetter
from typing import Generic, TypeVar

_T = TypeVar("_T")


class FairQueue(Generic[_T]):
    """Higher priority first; within one, keys take turns (start-time fair queueing, Goyal et al. 1996).

    Each of a key's requests is one turn later than its last, and none is earlier than the turn that is being served,
    so that a key that waits behind its own hundred requests delays nobody else's first. Those who wait for the same are
    in one lane, where nobody overtakes; who waits for something else passes them.
    """

    def __init__(self) -> None:
        self._lanes: dict[Hashable, list[tuple[int, int, int, _T]]] = {}  # heaps
        self._last: dict[str, int] = {}  # the turn of each key's latest
        self._now = self._count = 0
        self._numbers: dict[int, int] = {}  # of each that waits, by its id; what is only in a heap has left

    def __len__(self) -> int:
        return len(self._numbers)

    def push(self, lane: Hashable, key: str, priority: int, item: _T) -> None:
        turn = self._last[key] = max(self._last.get(key, 0) + 1, self._now)
        self._count += 1
        self._numbers[id(item)] = self._count
        heapq.heappush(self._lanes.setdefault(lane, []), (-priority, turn, self._count, item))

    def remove(self, item: _T) -> None:
        """Nothing when it is not there."""
        self._numbers.pop(id(item), None)
        self._forget_when_empty()

    def take(self, serve: Callable[[_T], bool]) -> None:
        """Offer them in their order. Whom `serve` does not serve keeps its place, and its lane waits behind it."""
        heaps = list(self._lanes.values())
        while heaps := [heap for heap in heaps if self._begins_with_who_waits(heap)]:
            heap = min(heaps, key=itemgetter(0))
            _, turn, number, item = entry = heapq.heappop(heap)
            del self._numbers[id(item)]  # before it is told: it may ask again at once
            if serve(item):
                self._now = max(self._now, turn)
            else:
                self._numbers[id(item)] = number
                heapq.heappush(heap, entry)
                heaps = [other for other in heaps if other is not heap]
        self._forget_when_empty()

    def clear(self) -> list[_T]:
        """All of them, in their order."""
        everyone: list[_T] = []
        self.take(lambda item: everyone.append(item) or True)
        return everyone

    def _begins_with_who_waits(self, heap: list[tuple[int, int, int, _T]]) -> bool:
        while heap and self._numbers.get(id(heap[0][3])) != heap[0][2]:
            heapq.heappop(heap)
        return bool(heap)

    def _forget_when_empty(self) -> None:
        if not self._numbers:
            self._lanes.clear()
            self._last.clear()
            self._now = 0
