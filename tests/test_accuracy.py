"""The planner against what engines printed: the bounds that were promised, kept on every change."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[1] / "bench"


@pytest.fixture(scope="module")
def scored():
    """Errors in per cent by quantity, their summary, and the rows without an answer."""
    sys.path.insert(0, str(BENCH))
    try:
        import accuracy
    finally:
        sys.path.remove(str(BENCH))
    with (BENCH / "data" / "memory_cases.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    errors, unanswered = accuracy.score(rows)
    return rows, accuracy.summary(errors), unanswered


@pytest.mark.parametrize(
    ("quantity", "statistic", "bound_pct"),
    [
        ("vLLM: KV tokens, given the pool", "median", 0.05),
        ("vLLM: requests at length L, given the pool", "median", 0.05),
        ("vLLM: weights from dimensions", "median", 0.5),
        ("vLLM: weights from dimensions", "p90", 4),
        ("vLLM: pool from scratch, same machine (H100, 0.19.0)", "mean", 1),
        ("vLLM: pool from scratch, other machines", "median", 1),
        ("llama.cpp: weights from the file", "median", 0.1),
        ("llama.cpp: KV and state buffers", "median", 0.1),
        ("llama.cpp: compute buffer", "median", 0.1),
    ],
)
def test_errors_stay_within_their_bounds(scored, quantity, statistic, bound_pct):
    _, table, _ = scored
    assert table[quantity][statistic] <= bound_pct
    assert table[quantity]["cases"] >= 30


@pytest.mark.parametrize("quantity", ["KV tokens, given the pool", "requests at length L, given the pool"])
def test_19_of_20_cases_are_within_one_per_cent(scored, quantity):
    _, table, _ = scored
    assert table[f"vLLM: {quantity}"]["within_1"] >= 95


def test_every_row_is_answered_or_listed_with_its_reason(scored):
    rows, _, unanswered = scored
    assert len(rows) == 188
    assert len(unanswered) <= 19
    assert set(unanswered) <= {row["case_id"] for row in rows}
    assert all(unanswered.values())
