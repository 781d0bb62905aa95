"""Quality against cost: who is best at its price."""

from __future__ import annotations

from collections.abc import Iterable

from msgspec import Struct


class Point(Struct, frozen=True, kw_only=True):
    """A deployment of a model, with what it reached in one cohort and what it costs."""

    model: str
    scheme: str
    where: str
    value: float
    error: float | None = None  # half of the 95 % interval
    cost: float
    undated: bool = False  # of its price nobody said when it was asked
    scored: str = ""  # in words, where the score is of another precision


class Dominated(Struct, frozen=True, kw_only=True):
    """A point that is no better and no cheaper than `by`, and worse in one of the two."""

    point: Point
    by: str  # a member of the front, the cheapest of those that dominate it


class Front(Struct, frozen=True, kw_only=True):
    """`members` by cost; `dominated` are all others."""

    members: tuple[Point, ...]
    dominated: tuple[Dominated, ...]


def dominates(one: Point, other: Point, *, lower_is_better: bool = False) -> bool:
    better = one.value - other.value if not lower_is_better else other.value - one.value
    cheaper = other.cost - one.cost
    return better >= 0 and cheaper >= 0 and (better > 0 or cheaper > 0)


def front(points: Iterable[Point], *, lower_is_better: bool = False) -> Front:
    """Values are compared as printed: that two intervals overlap makes a member no less one."""
    sign = 1 if lower_is_better else -1
    members: list[Point] = []
    dominated: list[Dominated] = []
    for each in sorted(points, key=lambda p: (p.cost, sign * p.value, p.model)):
        over = next((m for m in members if dominates(m, each, lower_is_better=lower_is_better)), None)
        if over is None:
            members.append(each)
        else:
            dominated.append(Dominated(point=each, by=over.model))
    return Front(members=tuple(members), dominated=tuple(dominated))
