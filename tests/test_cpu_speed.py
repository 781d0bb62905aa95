"""llama.cpp on a CPU: what makes it slower, who has no figure, and that every constant is what was measured."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from freehold.facts import Attention, Context, LicenceOf, Model, Moe, Parameters
from freehold.plan import cpu_fitted
from freehold.plan.cpu_speed import MIXTURES, TOKENS, Engine, Memory, Work, predict, value_s
from freehold.plan.params import count
from freehold.plan.performance import Performance, Unpredicted

BENCH = Path(__file__).parents[1] / "bench"
MEMORY = Memory(
    one_gb_s=35.0, all_gb_s=45.0, cache_gb_s=100.0, cache_bytes=32 << 20, cores=2, cpu=cpu_fitted.CPU, at_ns=1
)
WORK = Work(requests=1, prompt_tokens=512, context_tokens=512, threads=1)
DENSE = Model(
    id="m", name="m", repo="", family="llama", publisher="", publisher_country="", architecture="llama", layers=16,
    hidden_size=2048, intermediate_size=8192, dense_layers=16, vocab_size=32000, checkpoint="gguf-f16",
    attention=(Attention(kind="full", layers=16, heads=32, kv_heads=8, head_dim=64),),
    parameters=Parameters(method="none"), context=Context(native=8192), licence=LicenceOf(id="unknown"),
)  # fmt: skip
EXPERTS = replace(
    DENSE, dense_layers=0, intermediate_size=0,
    moe=Moe(layers=16, experts=16, experts_per_token=2, intermediate_size=2048),
)  # fmt: skip


def engine(model: Model = DENSE, scheme: str = "gguf-q8_0", memory: Memory = MEMORY) -> Engine:
    counts = count(model)
    assert counts
    return Engine(model, counts, scheme, memory)


def asked(model: Model = DENSE, scheme: str = "gguf-q8_0", memory: Memory | None = MEMORY, work: Work = WORK):
    counts = count(model)
    assert counts
    return predict(model, counts, scheme, memory, work)


# -- what makes it slower --------------------------------------------------------------------------------------------


@given(
    scheme=st.sampled_from(sorted(MIXTURES)),
    requests=st.integers(1, 64),
    context=st.integers(0, 8000),
    more=st.integers(1, 4000),
    model=st.sampled_from((DENSE, EXPERTS)),
)
def test_more_work_takes_longer(scheme, requests, context, more, model):
    of = engine(model, scheme)
    work = replace(WORK, requests=requests, context_tokens=context, prompt_tokens=context + 1)
    step_s = of.step(work).seconds
    assert 0 < step_s < of.step(replace(work, context_tokens=context + more)).seconds
    assert of.prompt_s(work) < of.prompt_s(replace(work, prompt_tokens=context + 1 + more))
    slower = replace(MEMORY, one_gb_s=3.5, all_gb_s=4.5)
    assert step_s < engine(model, scheme, slower).step(work).seconds


@given(kind=st.sampled_from(sorted(cpu_fitted.VALUE_PS)), tokens=st.floats(1, 2000))
def test_between_what_was_timed_times_lie_between(kind, tokens):
    below = max(each for each in TOKENS if each <= tokens)
    above = min((each for each in TOKENS if each >= tokens), default=TOKENS[-1])
    ends = sorted((value_s(kind, below), value_s(kind, above)))
    assert ends[0] * 0.999999 <= value_s(kind, tokens) <= ends[1] * 1.000001


def test_a_table_of_words_is_not_read_whole():
    """Only the head is; a vocabulary that is only read from costs one row a token."""
    wide = replace(DENSE, vocab_size=256_000, output_vocab_size=32_000)
    more_s = engine(wide).step(WORK).seconds - engine().step(WORK).seconds
    assert more_s == pytest.approx((256_000 - 32_000) * cpu_fitted.CHOICE_NS * 1e-9)


@given(st.integers(1, 64))
def test_of_experts_as_many_are_read_as_tokens_pick(tokens):
    reads = list(engine(EXPERTS)._reads(tokens, tokens))[-2:]
    whole = count(EXPERTS).experts.matrices
    touched = sum(read.values for read in reads)
    assert touched == pytest.approx(whole * (1 - (14 / 16) ** tokens))
    assert touched * reads[0].tokens == pytest.approx(whole * 2 / 16 * tokens)  # none computes more than it must


def test_two_threads_are_faster_than_one_and_not_twice_as_fast():
    one, two = (engine().step(replace(WORK, threads=threads)).seconds for threads in (1, 2))
    assert one / 2 < two < one


def test_files_are_as_large_as_they_are():
    """The size of the file counts where it is known: of a step that waits for memory, in full."""
    slow = replace(MEMORY, one_gb_s=0.01, all_gb_s=0.01)
    plain = engine(DENSE, "gguf-q4_k_m", slow)
    whole = plain._filed
    large = Engine(replace(DENSE, file_bytes=2_000_000_000), *plain[1:])
    assert whole == 1.0
    assert large.step(WORK).seconds / plain.step(WORK).seconds == pytest.approx(large._filed, rel=0.02)


# -- what is said ----------------------------------------------------------------------------------------------------


def test_a_figure_has_a_band_and_says_what_it_rests_on():
    found = asked(work=replace(WORK, requests=4))
    assert isinstance(found, Performance)
    assert (found.concurrency, found.basis) == (4, "predicted")
    for each in (found.ttft_s, found.tpot_s, found.tokens_per_s):
        assert 0 < each.low < each.value < each.high
    assert found.tokens_per_s.value == pytest.approx(4 / found.tpot_s.value)
    assert "xllamacpp" in found.source
    assert "never fitted" not in found.source


@pytest.mark.parametrize(
    ("model", "memory", "said"),
    [
        (DENSE, replace(MEMORY, cpu="Xeon"), "never fitted: the CPU Xeon"),
        (
            replace(DENSE, attention=(replace(DENSE.attention[0], kind="sliding", window=256),)),
            MEMORY,
            "never fitted: attention of the kind sliding",
        ),
    ],
)
def test_what_was_never_fitted_has_a_wider_band(model, memory, said):
    known, strange = asked(), asked(model, memory=memory)
    assert said in strange.source
    widths = [each.tpot_s.high / each.tpot_s.low for each in (known, strange)]
    assert widths[1] == pytest.approx(4 * widths[0])


def test_there_is_no_figure_without_a_measured_memory_or_a_timed_kernel():
    assert asked(memory=None) == Unpredicted(reason="nobody measured this machine's memory: freehold doctor")
    assert asked(scheme="mxfp4") == Unpredicted(reason="no kernel of llama.cpp for MXFP4 was timed")


# -- against what was measured ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    """The bench, the rows that it kept, and what it predicts."""
    sys.path.insert(0, str(BENCH))
    try:
        import cpu_speed as found
    finally:
        sys.path.remove(str(BENCH))
    rows = [row for row in json.loads(found.KEPT.read_text())["found"]["rows"] if found._undisturbed(row)]
    return found, rows, found.Models(tmp_path_factory.mktemp("hollow"))


def test_models_that_were_not_fitted_are_within_a_fifth(bench):
    found, rows, models = bench
    tested = [row for row in rows if found._is(row, found.TESTED)]
    assert {row["model"] for row in tested} >= {"demo-f16", "one-f16", "one-q8_0", "one-q4_k_m"}
    errors = [abs(models.predicted(row)[1] / row["tpot_ms"] - 1) for row in tested]
    assert sum(errors) / len(errors) < 0.15
    alone = [e for e, row in zip(errors, tested, strict=True) if row["requests"] == row["threads"] == 1]
    assert max(alone) < 0.2
    within = [row["tpot_ms"] / models.predicted(row)[1] for row in tested]
    low, high = cpu_fitted.TPOT_BAND
    assert sum(low <= each <= high for each in within) / len(within) >= 0.8


def test_every_constant_is_the_best_there_is(bench, monkeypatch):
    """A tenth more or less of any of them, and what was measured is missed by more."""
    found, rows, models = bench
    fitted = [row for row in rows if found._is(row, found.FITTED)]
    numbers: list[Any] = [(vars(cpu_fitted), name, fitted) for name in found.MEANINGS]
    for kind, values in cpu_fitted.VALUE_PS.items():
        monkeypatch.setitem(cpu_fitted.VALUE_PS, kind, list(values))
        those = [row for row in fitted if kind in found.random_gguf.MIXTURES[row["model"].partition("-")[2]]]
        numbers += [(cpu_fitted.VALUE_PS[kind], at, those) for at in range(len(values))]
        numbers += [(cpu_fitted.ROW_NS, kind, those)] if kind in cpu_fitted.ROW_NS else []
    for holder, key, those in numbers:
        best, value = found.square(found.misses(those, models)), holder[key]
        for factor in (0.9, 1.1):
            holder[key] = value * factor
            worse = found.square(found.misses(those, models))
            holder[key] = value
            assert worse > best, (key, factor)
