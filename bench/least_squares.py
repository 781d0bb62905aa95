"""Least squares by Levenberg and Marquardt, for positive constants that are coupled: one at a time would not do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import exp
from typing import Any

LARGEST_STEP = 0.5  # of a logarithm
ENOUGH = 1e-5  # of the sum of squares, by which a step makes it less
GIVE_UP = 1e6


def least_squares(knobs: Sequence[tuple[Any, Any]], misses: Callable[[], list[float]]) -> None:
    """Turn the constants, each a holder and a key or index in it, until `misses` has the least sum of squares."""
    damping, errors, better_by = 1.0, misses(), 1.0
    while better_by > ENOUGH:
        slopes = [_slope(holder, key, errors, misses) for holder, key in knobs]
        normal = [[_product(one, other) for other in slopes] for one in slopes]
        wanted, before = [-_product(one, errors) for one in slopes], [holder[key] for holder, key in knobs]
        better_by = 0.0
        while better_by <= 0:
            damped = [[*row[:at], row[at] + damping / 100, *row[at + 1 :]] for at, row in enumerate(normal)]
            for (holder, key), value, step in zip(knobs, before, solve(damped, wanted), strict=True):
                holder[key] = value * exp(min(max(step, -LARGEST_STEP), LARGEST_STEP))
            now = misses()
            better_by = 1 - square(now) / square(errors)
            if better_by <= 0:
                for (holder, key), value in zip(knobs, before, strict=True):
                    holder[key] = value
                damping *= 3
                if damping > GIVE_UP:
                    return
        print(f"mean square {square(now) / len(now):.5f}", flush=True)
        errors, damping = now, damping / 2


def square(values: Sequence[float]) -> float:
    return _product(values, values)


def _product(one: Sequence[float], other: Sequence[float]) -> float:
    return sum(a * b for a, b in zip(one, other, strict=True))


def _slope(holder: Any, key: Any, errors: list[float], misses: Callable[[], list[float]]) -> list[float]:
    value = holder[key]
    holder[key] = value * exp(0.001)
    moved = misses()
    holder[key] = value
    return [(after - before) * 1000 for after, before in zip(moved, errors, strict=True)]


def solve(matrix: list[list[float]], right: list[float]) -> list[float]:
    """Gauss, for a matrix that is symmetric and positive."""
    rows = [[*row, value] for row, value in zip(matrix, right, strict=True)]
    for at, row in enumerate(rows):
        for lower in rows[at + 1 :]:
            factor = lower[at] / row[at]
            for column in range(at, len(row)):
                lower[column] -= factor * row[column]
    found = [0.0] * len(rows)
    for at in reversed(range(len(rows))):
        found[at] = (rows[at][-1] - _product(rows[at][at + 1 : -1], found[at + 1 :])) / rows[at][at]
    return found
