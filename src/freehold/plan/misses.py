"""What came nearest, of a model that no deployment serves."""

from __future__ import annotations

from collections.abc import Iterator
from math import ceil, floor

from freehold.facts import Card
from freehold.plan.need import Need
from freehold.plan.units import size


class Misses:
    """What came nearest, for a model that is refused."""

    def __init__(self) -> None:
        self.short: tuple[int, str] | None = None  # bytes that lacked, and where
        self.fastest: float | None = None  # of those that cannot be fast enough
        self.likely: float | None = None  # of those that could be, and are not
        self.cheapest: float | None = None  # of those too dear
        self.unpriced = False  # under a budget, a place of which nobody said what it costs
        self.unrated = ""  # under a speed floor, a card of which nobody said how fast its memory is
        self.most = 0  # requests, where there were too few cards
        self.room: tuple[int, int] | None = None  # replicas that there is room for, and that the load keeps busy

    def lacks(self, lack: int, where: str) -> None:
        if self.short is None or lack < self.short[0]:
            self.short = lack, where

    def slow(self, ceiling: float | None, least: float, card: Card | None) -> bool:
        """Whether it cannot be fast enough, or nobody knows."""
        if least and ceiling is None and card is not None:
            self.unrated = card.id
        elif ceiling is not None and ceiling < least:
            self.fastest = max(self.fastest or 0.0, ceiling)
        else:
            return False
        return True

    def reasons(self, need: Need) -> Iterator[str]:
        """The nearest to letting it in first: cost, speed, users, load, memory."""
        if self.cheapest is not None:
            yield f"budget: the cheapest that fits costs {ceil(self.cheapest):,} {need.currency} a month"
        if self.unpriced:
            yield "budget: nobody said what the machines cost"
        if self.likely is not None:
            likely = floor(self.likely * 10) / 10
            yield f"speed: about {likely:,.1f} tokens a second of one request are likely, {need.speed:g} are asked"
        elif self.fastest is not None:
            fastest = floor(self.fastest * 10) / 10
            yield f"speed: at most {fastest:,.1f} tokens a second of one request, {need.speed:g} are asked"
        if self.unrated:
            yield f"speed: nobody said how fast the memory of {self.unrated} is"
        if self.most:
            yield f"users: {need.users:,} at once are asked, the cards hold {self.most:,} of {need.context:,} tokens"
        if self.room:
            yield f"load: it keeps {self.room[1]:,} replicas busy, there is room for {self.room[0]:,}"
        if self.short:
            yield f"memory: {self.short[1]} lacks {size(self.short[0])} for requests of {need.context:,} tokens"
