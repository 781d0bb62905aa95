"""Sets of row numbers, as ranges: a deletion speaks of many rows in few words."""

from __future__ import annotations

import bisect
import re
from collections.abc import Iterable, Iterator

_TEXT = re.compile(r"\d{1,18}(-\d{1,18})?(,\d{1,18}(-\d{1,18})?)*")


class Ranges:
    """Numbers, added in any order; in ascending order it is cheap."""

    def __init__(self, numbers: Iterable[int] = ()) -> None:
        self._ranges: list[tuple[int, int]] = []
        for number in numbers:
            self.add(number, number)

    def add(self, first: int, last: int) -> None:
        ranges = self._ranges
        at = bisect.bisect_left(ranges, (first, last))
        while at > 0 and ranges[at - 1][1] >= first - 1:
            at -= 1
            low, high = ranges.pop(at)
            first, last = min(first, low), max(last, high)
        while at < len(ranges) and ranges[at][0] <= last + 1:
            last = max(last, ranges.pop(at)[1])
        ranges.insert(at, (first, last))

    def add_text(self, text: str) -> None:
        """As `str` writes them. Anything else adds nothing."""
        if _TEXT.fullmatch(text):
            for part in text.split(","):
                first, _, last = part.partition("-")
                self.add(int(first), int(last or first))

    def without(self, others: Ranges) -> Iterator[tuple[int, int]]:
        """The ranges of what is here and not there."""
        for low, high in self._ranges:
            at = max(0, bisect.bisect_right(others._ranges, (low, 2**63)) - 1)
            for first, last in others._ranges[at:]:
                if last < low:
                    continue
                if first > high:
                    break
                if first > low:
                    yield low, first - 1
                low = last + 1  # noqa: PLW2901  what is left of it
            if low <= high:
                yield low, high

    def __contains__(self, number: int) -> bool:
        at = bisect.bisect_right(self._ranges, (number, 2**63)) - 1
        return at >= 0 and self._ranges[at][1] >= number

    def __len__(self) -> int:
        return sum(last - first + 1 for first, last in self._ranges)

    def __str__(self) -> str:
        return ",".join(f"{first}-{last}" if last > first else f"{first}" for first, last in self._ranges)
