"""The scores that ship with the package, as scores.json has them: grouped by cohort, with each text once."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import msgspec
from msgspec import Struct

from freehold.facts import Benchmark, Cohort, Score
from freehold.plan.scores import Scores


class Line(Struct, frozen=True, kw_only=True, array_like=True, omit_defaults=True):
    """A Score as scores.json has it; source and note are numbers of its texts."""

    model: str
    value: float
    error: float | None = None
    date: str = ""
    source: int = 0
    note: int = 0
    served: str = ""
    trust: Literal["high", "medium", "low"] = "high"


class Board(Struct, frozen=True, kw_only=True):
    """A cohort with its scores."""

    cohort: Cohort
    lines: tuple[Line, ...]


class _Scores(Struct, frozen=True, kw_only=True):
    benchmarks: tuple[Benchmark, ...]
    texts: tuple[str, ...]
    boards: tuple[Board, ...]


def scores() -> Scores:
    """Read what is known of quality; apart from the rest, for only some ask."""
    read = msgspec.json.decode((Path(__file__).parent / "data" / "scores.json").read_bytes(), type=_Scores)
    return Scores(
        benchmarks={each.name: each for each in read.benchmarks},
        cohorts={board.cohort.id: board.cohort for board in read.boards},
        by_cohort={
            board.cohort.id: [
                Score(
                    cohort=board.cohort.id, model=each.model, value=each.value, error=each.error, served=each.served,
                    date=each.date, source=read.texts[each.source], note=read.texts[each.note], trust=each.trust,
                )
                for each in board.lines
            ]
            for board in read.boards
        },
    )  # fmt: skip
