"""Sets of row numbers, as ranges: a deletion speaks of many rows in few words."""

from __future__ import annotations

import bisect
import re
from collections.abc import Iterable, Iterator

_TEXT = re.compile(r"\d{1,18}(-\d{1,18})?(,\d{1,18}(-\d{1,18})?)*")


class Ranges:
    """Numbers, added in any order; in ascending order it is cheap."""

    def __init__(self, numbers: Iterable[int] = ()) -> None:
        self._ranges: list[tuple[int, int]] = []  # ascending; between two of them a number is missing
        for number in numbers:
            self.add(number, number)

    def add(self, first: int, last: int) -> None:
        ranges = self._ranges
        low = bisect.bisect_left(ranges, first - 1, key=lambda each: each[1])
        high = bisect.bisect_right(ranges, last + 1, key=lambda each: each[0])
        if low < high:  # those that it touches become one with it
            first, last = min(first, ranges[low][0]), max(last, ranges[high - 1][1])
        ranges[low:high] = [(first, last)]

    def add_text(self, text: str) -> None:
        """As `str` writes them. Anything else adds nothing."""
        if _TEXT.fullmatch(text):
            for part in text.split(","):
                first, _, last = part.partition("-")
                self.add(*sorted((int(first), int(last or first))))

    def holes(self, first: int, last: int) -> Iterator[tuple[int, int]]:
        """The ranges between these two numbers that are not in it."""
        at = bisect.bisect_left(self._ranges, first, key=lambda each: each[1])
        while first <= last:
            low, high = self._ranges[at] if at < len(self._ranges) else (last + 1, last + 1)
            if first < low:
                yield first, min(last, low - 1)
            first, at = max(first, high + 1), at + 1

    def has(self, number: int) -> bool:
        return not any(self.holes(number, number))

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return iter(self._ranges)

    def __str__(self) -> str:
        return ",".join(f"{first}-{last}" if last > first else f"{first}" for first, last in self._ranges)
