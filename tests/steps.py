"""A step's line says `words: sum = figure unit; words`: this computes the sum again."""

from __future__ import annotations

from collections.abc import Iterable

import pytest


def computed(line: str) -> tuple[float, float]:
    """Both sides of a step: words fall away, numbers and + - x / // ( ) stay."""
    left, right = line.partition(";")[0].partition(": ")[2].split(" = ")
    tokens = left.replace(",", "").replace("(", " ( ").replace(")", " ) ").split()
    kept = []
    for token in tokens:
        if token in ("+", "-", "/", "//", "(", ")", "x"):
            kept.append("*" if token == "x" else token)
        elif token.replace(".", "").replace("e-", "").replace("e+", "").isdigit():
            kept.append(token)
    assert {*kept} & {"+", "-", "/", "//", "*"}, f"nothing is computed: {line}"
    return eval(" ".join(kept)), float(right.split()[0].replace(",", "").rstrip(","))


def recomputes(steps: Iterable[str]) -> float:
    """Every line computes to its figure; the last figure."""
    right = float("nan")
    for line in steps:
        left, right = computed(line)
        assert left == pytest.approx(right, rel=2e-5, abs=1e-9), line
    return right
