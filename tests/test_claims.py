"""The page of claims is what the tool says, its arithmetic holds, and a changed fact changes a verdict."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
from msgspec.structs import replace
from steps import recomputes

from freehold import catalogue
from freehold.plan.performance import Estimate, Performance

TOOLS = Path(__file__).parents[1] / "tools"


@pytest.fixture(scope="module")
def claims():
    sys.path.insert(0, str(TOOLS))
    try:
        import claims
    finally:
        sys.path.remove(str(TOOLS))
    return claims


@pytest.fixture(scope="module")
def known(claims):
    return claims.Known(catalogue.load(), catalogue.scores(), catalogue.pairs())


def changed(known, name: str, **fields):
    """What is known, with one model otherwise."""
    models = tuple(replace(m, **fields) if m.id == name else m for m in known.catalogue.models)
    return known._replace(catalogue=replace(known.catalogue, models=models))


def test_the_page_is_what_the_tool_prints(claims, known):
    assert claims.PAGE.read_text() == claims.page(known), "run tools/claims.py"


def test_every_step_computes_to_its_figure(claims, known):
    steps = [step for _, check in claims.CLAIMS for step in check(known).steps if " = " in step]
    assert len(steps) > 60
    recomputes(steps)


def test_every_claim_has_a_verdict_a_reason_steps_and_a_source(claims, known):
    for said, check in claims.CLAIMS:
        found = check(known)
        assert found.verdict in (claims.TRUE, claims.FALSE, claims.PARTLY, claims.UNSUPPORTED), said
        assert found.says, said
        assert found.steps, said
        assert found.source, said
    assert len(claims.CLAIMS) == 20


def test_the_verdicts_are_those_that_were_found_by_hand(claims, known):
    found = [check(known).verdict for _, check in claims.CLAIMS[:11]]
    assert found == [
        *(claims.FALSE, claims.FALSE, claims.FALSE, claims.TRUE, claims.PARTLY, claims.PARTLY),
        *(claims.PARTLY, claims.PARTLY, claims.PARTLY, claims.UNSUPPORTED, claims.UNSUPPORTED),
    ]


def test_a_licence_that_changes_turns_the_verdict(claims, known):
    free = known.model("mistral-large-3-675b-2512").licence
    for version in ("2407", "2411"):
        known = changed(known, f"mistral-large-{version}", licence=free)
    assert claims.mistral_large(known).verdict == claims.TRUE


def test_a_smaller_model_turns_the_verdict(claims, known):
    assert claims.llama_fp8(known).verdict == claims.PARTLY
    assert claims.llama_fp8(changed(known, "llama-3.3-70b", layers=70, dense_layers=70)).verdict == claims.PARTLY
    model = known.model("llama-3.3-70b")
    half = tuple(replace(group, layers=40) for group in model.attention)
    small = changed(known, model.id, layers=40, dense_layers=40, attention=half)
    assert claims.llama_fp8(small).verdict == claims.TRUE
    assert claims.seventy_b(small).verdict == claims.FALSE  # it is no longer 140 GB


def test_without_pairs_nobody_says_what_int8_loses(claims, known):
    lossy = tuple(
        replace(pair, value=0.9 * pair.value) if pair.scheme == "int8" and pair.value else pair for pair in known.pairs
    )
    assert claims.int8(known).verdict == claims.PARTLY  # in the median, by who made the files
    assert claims.int8(known._replace(pairs=lossy)).verdict == claims.FALSE


def test_nearly_lossless_takes_no_bad_benchmark_and_somebody_else_who_measured(claims, known):
    kept = [replace(p, value=p.base_value, maker=False) if p.scheme == "int8" else p for p in known.pairs]
    assert claims.int8(known._replace(pairs=tuple(kept))).verdict == claims.TRUE
    made = [replace(p, maker=True) for p in kept]
    assert claims.int8(known._replace(pairs=tuple(made))).verdict == claims.PARTLY


def test_a_share_that_holds_for_some_loads_is_conditional(claims, known):
    found = claims.kv_overhead(known)
    assert found.verdict == claims.PARTLY
    assert "25 to 37 thousand for llama-3.1-8b" in found.says


def test_the_price_of_a_million_takes_a_predicted_speed_as_it_is(claims, known, monkeypatch):
    """$2.4024 an hour and $0.85 a million mean 785 tokens a second."""

    def fast(low: float, high: float):
        figure = Estimate(value=(low + high) / 2, low=low, high=high)
        return lambda *_: Performance(
            concurrency=64, ttft_s=figure, tpot_s=figure, tokens_per_s=figure, basis="predicted", source="a test"
        )

    for low, high, verdict in (
        (700, 5000, claims.TRUE),
        (700, 900, claims.PARTLY),
        (1, 2, claims.FALSE),
    ):
        monkeypatch.setattr(claims, "tokens_per_s", fast(low, high))
        found = claims.million(known)
        assert found.verdict == verdict
        recomputes(step for step in found.steps if " = " in step)
    assert claims.dearer(known).verdict == claims.TRUE  # 16 cards that do what one does


def test_the_page_names_no_place_that_nobody_else_can_open(claims):
    assert not re.search(r"index id|stored copy|/work/|id \d{8}", claims.PAGE.read_text())
