"""The roofline: what is fitted, what follows from it, and what nobody can say."""

from __future__ import annotations

import importlib
from functools import cache
from math import isclose, log
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import asdict, replace

from freehold import catalogue
from freehold.facts import Card
from freehold.plan.fitted import FITTED
from freehold.plan.kv import LINEAR, state_bytes
from freehold.plan.params import count
from freehold.plan.performance import STRANGE, Performance, Unpredicted
from freehold.plan.roofline import Constants, Machine, Work, generation_of, look, work
from freehold.plan.serving import Traffic, loop, predict
from freehold.plan.weights import Split

BENCH = Path(__file__).resolve().parents[1] / "bench"
CHAT = Traffic(concurrency=16, prompt_tokens=1024, completion_tokens=512)
# what each set of constants makes of three cases: milliseconds to the first token and for each further one
DENSE, EXPERTS, WIDE = ("llama-3.1-70b", "fp8", 4), ("gpt-oss-120b", "mxfp4-experts", 2), ("qwen3-32b", "bf16", 1)
CARDS = {
    "Hopper": "H200-SXM", "Blackwell": "B200-SXM", "Ampere": "A100-80GB-SXM", "Ada": "L40S",
    "Blackwell RTX": "RTX-PRO-6000-Blackwell",
}  # fmt: skip
GOLDEN = {
    ("sglang", "Hopper"): [586, 9.881, 10070, 90.26, 439.4, 7.897, 5511, 48.36, 1062, 20.44, 24710, 206.2],
    ("trtllm", "Blackwell"): [102.2, 8.282, 1025, 58.67, 54, 4.635, 188.7, 17.09, 168.2, 14.59, 2146, 115.9],
    ("trtllm", "Hopper"): [258.3, 11.41, 2088, 109.1, 208.3, 7.789, 1212, 58.01, 378, 21.68, 4144, 213.6],
    ("trtllm-bench", "Ada"): [455.3, 63.15, 1346, 589.4, 145, 40.33, 394.3, 221.4, 459.1, 173.8, 1129, 672.9],
    ("trtllm-bench", "Ampere"): [1374, 47.72, 3332, 1125, 115.2, 20.47, 339.5, 146.2, 438.2, 83.21, 1272, 572.2],
    ("trtllm-bench", "Blackwell"): [32.72, 8.506, 96.73, 61.76, 8.697, 5.528, 23.11, 19.4, 66.52, 14.52, 199.3, 123.3],
    ("trtllm-bench", "Blackwell RTX"): [629.3, 33.63, 1641, 664.1, 63.94, 13.95, 184.1, 104.5, 293.1, 53.79, 872.5,
    512.4],
    ("trtllm-bench", "Hopper"): [59.75, 14.04, 167.5, 89.98, 39.6, 10.16, 108.5, 56.27, 143.8, 35.27, 397.5, 199.3],
    ("vllm", "Blackwell"): [146.9, 9.448, 2065, 59.78, 75.04, 5.751, 343.6, 19.26, 225.4, 15.33, 3902, 106.1],
    ("servers", "Hopper"): [163.8, 11.77, 1973, 101.3, 108.5, 7.665, 956.7, 48.83, 280.5, 22.98, 4068, 208.9],
    ("vllm", "Hopper"): [164.5, 12.05, 1979, 100.3, 100.9, 8.216, 796.8, 42.8, 275.8, 24.45, 3943, 200.9],
}  # fmt: skip

VLLM = FITTED["vllm", "Hopper"]
CONSTANTS = {key: each.constants for key, each in FITTED.items()} | {("servers", "Hopper"): VLLM.shared}


@cache
def known() -> catalogue.Catalogue:
    return catalogue.load()


def card(name: str) -> Card:
    return next(each for each in known().cards if each.id == name)


@cache
def job(name: str, scheme: str, tp: int = 1, pp: int = 1, ep: int = 1) -> Work:
    model = catalogue.model(known(), name)
    counts = count(model)
    assert counts
    return work(model, counts, scheme, Split(tp, pp, ep))


def tpot(traffic: Traffic = CHAT, of: Work | None = None, on: str = "H100-SXM", slots: float = 1e9) -> float:
    return predicted(traffic, of, on, slots).tpot_s.value


def predicted(traffic: Traffic = CHAT, of: Work | None = None, on: str = "H100-SXM", slots: float = 1e9) -> Performance:
    found = predict(of or job("llama-3.1-8b", "fp8"), "fp8", card(on), traffic, slots=slots)
    assert isinstance(found, Performance), found
    return found


def figures(engine: str, generation: str, constants: Constants) -> list[float]:
    fitted = FITTED.get((engine, generation), VLLM)
    found = []
    for name, scheme, tp in (DENSE, EXPERTS, WIDE):
        machine = Machine(card(CARDS[generation]), constants, job(name, scheme, tp))
        for traffic in (CHAT, replace(CHAT, concurrency=512.0)):
            timing = loop(machine, (fitted.first_ms, fitted.queue), traffic, 1e9)
            found += [timing.ttft_s * 1e3, timing.tpot_s * 1e3]
    return [float(f"{each:.4g}") for each in found]


# -- constants -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("engine", "generation"), sorted(CONSTANTS))
def test_the_constants_give_what_they_gave_when_they_were_fitted(engine, generation):
    assert figures(engine, generation, CONSTANTS[engine, generation]) == GOLDEN[engine, generation]


@pytest.mark.parametrize("name", Constants.__struct_fields__)
@pytest.mark.parametrize(("engine", "generation"), sorted(CONSTANTS))
def test_a_tenth_more_or_less_of_any_constant_is_noticed(engine, generation, name):
    """By the test above. What the card computes in itself needs no `weight_only`: there it is seen on another card."""
    constants = CONSTANTS[engine, generation]
    if name == "weight_only" and card(CARDS[generation]).fp4_tflops:
        return
    for factor in (0.9, 1.1):
        changed = replace(constants, **{name: asdict(constants)[name] * factor})
        assert figures(engine, generation, changed) != GOLDEN[engine, generation]


def test_what_no_row_was_fitted_of_goes_by_what_servers_share_and_says_so():
    known, other = (job(name, "fp8").model for name in ("llama-3.1-8b", "mistral-small-24b-2501"))
    assert VLLM.constants_of(known) is VLLM.constants
    assert VLLM.constants_of(other) is VLLM.shared
    assert "1,648 rows of all servers and cards" in predicted(of=job(other.id, "fp8")).source
    assert "383 rows of vllm" in predicted(of=job(known.id, "fp8")).source
    offline = FITTED["trtllm-bench", "Hopper"]
    assert offline.constants_of(other) is offline.constants


@pytest.fixture
def bench(monkeypatch):
    """Its modules, by name."""
    monkeypatch.syspath_prepend(str(BENCH))
    return importlib.import_module


def test_the_script_writes_the_constants_as_they_are(bench, monkeypatch, tmp_path):
    script = bench("fit_speed")
    shipped = script.OUT.read_text()
    monkeypatch.setattr(script, "OUT", tmp_path / "fitted.py")
    script.write({id(each): each for each in FITTED.values()}.values())
    assert script.OUT.read_text() == shipped


def test_a_model_left_out_is_predicted_by_what_the_others_share(bench):
    script = bench("fit_speed")
    (sglang,) = [each for each in script.groups(script.read(script.FILES[1])[0]) if each.engine == "sglang"]
    few = sglang._replace(cases=tuple(case for case in sglang.cases if case.model != "qwen3-32b")[::3])
    left, others = ([c for c in few.cases if (c.model == "llama-3.1-8b") is which] for which in (True, False))
    assert script.shared(few.cases, "llama-3.1-8b") == script.fit(others)
    found = script.study(few, {"": VLLM.shared, "llama-3.1-8b": VLLM.constants}, 1648)
    assert (found.fitted.shared, found.fitted.shared_rows, found.fitted.rows) == (VLLM.shared, 1648, len(few.cases))
    (model,) = found.models  # of the other there are too few rows
    assert model == "llama-3.1-8b"
    missed = [miss for miss in found.models[model] if miss.quantity == "tpot_s"]
    times = [script.answer(case, VLLM.constants, script.FIRST).tpot_s / case.tpot_s for case in left]
    assert [miss.log for miss in missed] == [log(each) for each in times]


def test_the_published_rows_are_as_far_off_as_the_documents_say(bench):
    table = bench("speed_accuracy").report(None, show=False)
    assert table["TensorRT-LLM 0.17 and 0.20 tokens a second, fitted rows"]["mean"] <= 7
    assert table["TensorRT-LLM 1.x tokens a second, fitted rows"]["mean"] <= 20
    times = table["serving: time per token, fitted rows"]
    assert times["rows"] == 1648
    assert times["mean"] <= 15
    assert 80 <= times["in_band"] <= 90


def test_every_band_holds_its_own_figure():
    for fitted in FITTED.values():
        for bands in fitted.bands.values():
            for band in (bands.ttft, bands.tpot, bands.tokens_per_s):
                assert 0 < band.low <= 1 <= band.high


# -- what follows from physics ----------------------------------------------------------------------------------------

ASKED = st.builds(
    Traffic,
    concurrency=st.integers(1, 512),
    prompt_tokens=st.integers(1, 32_768),
    completion_tokens=st.integers(1, 8192),
)


@given(ASKED, st.integers(1, 64))
@settings(max_examples=60)
def test_more_at_once_is_slower_for_each_and_faster_for_all(asked, more):
    crowded = replace(asked, concurrency=asked.concurrency + more)
    one, many = predicted(asked), predicted(crowded)
    assert many.tpot_s.value >= one.tpot_s.value * 0.999
    assert many.tokens_per_s.value >= one.tokens_per_s.value * 0.999


@given(ASKED, st.integers(1, 16_384))
@settings(max_examples=60)
def test_longer_prompts_are_slower(asked, more):
    longer = replace(asked, prompt_tokens=asked.prompt_tokens + more)
    assert predicted(longer).ttft_s.value > predicted(asked).ttft_s.value
    assert tpot(longer) > tpot(asked) * 0.999


@given(ASKED, st.floats(0, 1), st.floats(0, 1))
@settings(max_examples=60)
def test_what_is_cached_is_not_computed(asked, one, other):
    less, more = sorted((one, other))
    first = [predicted(replace(asked, prefix_hit=hit)).ttft_s.value for hit in (less, more)]
    assert first[1] <= first[0]


@given(st.floats(0, 1), st.floats(0, 1), st.integers(1, 5))
@settings(max_examples=60)
def test_the_better_guesses_are_the_faster(one, other, drafted):
    worse, better = sorted((one, other))
    asked = Traffic(concurrency=1, prompt_tokens=500, completion_tokens=500, draft_tokens=drafted)
    assert tpot(replace(asked, acceptance=better)) <= tpot(replace(asked, acceptance=worse)) * 1.0001


def test_guesses_that_are_all_right_write_as_many_tokens_a_step():
    asked = Traffic(concurrency=1, prompt_tokens=10, completion_tokens=600, draft_tokens=2, acceptance=1.0)
    assert asked.tokens_a_step == 3
    assert replace(asked, acceptance=0.0).tokens_a_step == 1
    assert isclose(replace(asked, acceptance=0.5).tokens_a_step, 1.75)
    assert tpot(asked) < tpot(replace(asked, draft_tokens=0)) / 2.5


def test_who_waits_for_a_slot_waits_for_its_first_token():
    asked = replace(CHAT, concurrency=64)
    free, short = predicted(asked), predicted(asked, slots=16)
    assert short.ttft_s.value > 3 * free.ttft_s.value
    assert short.tpot_s.value < free.tpot_s.value  # fewer at once


def test_experts_are_read_as_the_batch_touches_them():
    of, each = job("qwen3-30b-a3b", "bf16"), look(job("qwen3-30b-a3b", "bf16"), 1000)
    machine = Machine(card("H100-SXM"), FITTED["vllm", "Hopper"].constants, of)
    one, many = machine.decode(each, 1).reading, machine.decode(each, 1000).reading
    whole = (of.weight_bytes + of.expert_bytes) / (machine.bandwidth * machine.fit.memory)
    assert one < whole / 8
    assert isclose(many, whole, rel_tol=1e-3)


def test_latents_are_read_once_for_all_heads_and_windows_end():
    mla, plain = look(job("deepseek-v3", "fp8-block"), 8192), look(job("llama-3.1-70b", "fp8"), 8192)
    assert mla.cache_bytes == 61 * (512 + 64) * 2 * 8192
    assert plain.cache_bytes == 80 * 2 * 8 * 128 * 2 * 8192
    gpt, half = job("gpt-oss-120b", "mxfp4-experts"), 36 // 2 * 2 * 8 * 64 * 2
    assert look(gpt, 8192).cache_bytes == half * (8192 + 128)
    assert mla.flops == 61 * 2 * 128 * (2 * 512 + 64) * 8192  # on the latents: their keys, and they as values


def test_a_state_is_read_and_written_however_long_the_context():
    of = job("qwen3.5-27b", "fp8")
    states = sum(g.layers * state_bytes(g) for g in of.model.attention if g.kind in LINEAR)
    assert states
    assert look(of, 0).cache_bytes == 2 * states


def test_an_indexer_reads_its_keys_of_all_tokens_and_latents_of_few():
    short, long = (look(job("deepseek-v3.2", "fp8-block"), n).cache_bytes for n in (2048, 20_480))
    assert short < long < 4 * short


def test_a_pipeline_writes_more_and_no_token_faster():
    deep, flat = job("llama-3.1-405b", "fp8", 8, 2), job("llama-3.1-405b", "fp8", 8)
    one, other = predicted(of=deep), predicted(of=flat)
    assert one.tokens_per_s.value > other.tokens_per_s.value
    alone = replace(CHAT, concurrency=1)
    assert isclose(tpot(alone, deep), tpot(alone, flat), rel_tol=1e-6)


@pytest.mark.parametrize("of", [job("llama-3.1-8b", "fp8"), job("llama-3.1-405b", "fp8", 8, 2)], ids=["one", "deep"])
@pytest.mark.parametrize("crowd", [2, 64])
def test_no_more_prompts_are_answered_than_computed(of, crowd):
    """Where answers are short, the cards do nothing but prompts, and who asks waits for those of the others."""
    asked = Traffic(concurrency=crowd, prompt_tokens=8000, completion_tokens=1)
    found = loop(Machine(card("H100-SXM"), FITTED["vllm", "Hopper"].constants, of), (0, 0), asked, 1e9)
    least_s = (1 + (crowd - 1) / of.split.pp) * found.prompt_s
    assert least_s < found.cycle_s < 1.2 * least_s
    assert isclose(found.tokens_per_s, crowd / found.cycle_s)
    assert isclose(found.ttft_s + found.written_s, found.cycle_s, rel_tol=0.05)


def test_one_request_does_not_keep_every_rank_busy():
    of, asked = job("deepseek-v3", "fp8-block", ep=8), replace(CHAT, concurrency=1)
    one = predicted(asked, of, "H200-SXM")
    assert one.tokens_per_s.value < 1 / one.tpot_s.value
    eight = predicted(replace(CHAT, concurrency=8), of, "H200-SXM")
    assert one.tpot_s.value < 0.8 * eight.tpot_s.value  # whose experts are others


def test_what_is_not_cached_looks_back_at_what_is():
    fresh = Traffic(concurrency=1, prompt_tokens=8000, completion_tokens=1)
    rest = replace(fresh, prompt_tokens=80_000, prefix_hit=0.9)
    assert predicted(rest).ttft_s.value > 1.5 * predicted(fresh).ttft_s.value


def test_only_the_last_token_of_a_prompt_needs_the_head():
    of = job("llama-3.1-8b", "bf16")
    machine = Machine(card("H100-SXM"), FITTED["vllm", "Hopper"].constants, of)
    flops = of.flops[0][1] - 2 * 128_256 * 4096
    assert isclose(machine.prefill(1, 1), flops / 989e12 / machine.fit.prefill, rel_tol=1e-3)


def test_cards_without_a_link_are_slower_together():
    here = card("H100-SXM")
    apart = replace(here, link_gb_s=None)
    of, fit = job("llama-3.1-70b", "fp8", 4), FITTED["vllm", "Hopper"].constants
    assert Machine(apart, fit, of).prefill(4096, 4096) > 1.5 * Machine(here, fit, of).prefill(4096, 4096)


# -- what nobody can say ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "scheme", "on", "why"),
    [
        ("llama-3.1-8b", "fp8", "L40S", "vllm was never fitted on Ada cards"),
        ("llama-3.1-8b", "bf16", "A100-80GB-SXM", "vllm was never fitted on Ampere cards"),
        ("llama-3.1-8b", "bf16", "MI300X", "vllm was never fitted on such cards"),
        ("llama-3.1-8b", "int4-awq", "H100-SXM", "vllm on Hopper cards was never fitted in int4-awq"),
        ("llama-3.1-8b", "fp8", "H100-NVL", "nobody said how fast H100-NVL reads and computes"),
    ],
)
def test_what_was_never_fitted_is_unknown(name, scheme, on, why):
    found = predict(job(name, scheme), scheme, card(on), CHAT, slots=16)
    assert found == Unpredicted(reason=why)


def test_a_model_that_was_not_fitted_has_a_wider_band_and_says_so():
    fitted, other = predicted(of=job("llama-3.1-8b", "fp8")), predicted(of=job("qwen3-14b", "fp8"))
    assert "this model's dimensions are among them" in fitted.source
    assert "are of other dimensions than this model's" in other.source

    def width(found: Performance) -> float:
        return found.tpot_s.high / found.tpot_s.value

    assert width(other) > width(fitted)
    hybrid = predicted(of=job("qwen3.5-27b", "fp8"))
    assert "never fitted: attention of the kind gated_deltanet, so the band is wider" in hybrid.source
    assert isclose(width(hybrid), STRANGE * width(other))


def test_several_machines_were_never_fitted():
    for of in (job("llama-3.1-405b", "fp8", 8, 2), job("deepseek-v3", "fp8-block", ep=16)):
        assert "several machines" in predicted(of=of, on="H200-SXM").source
    assert "several machines" not in predicted(of=job("deepseek-v3", "fp8-block", ep=8), on="H200-SXM").source


def test_generations_are_told_by_what_cards_can_do():
    names = ("A100-80GB-SXM", "L40S", "H100-SXM", "B300-SXM", "RTX-PRO-6000-Blackwell", "MI300X", "T4")
    found = [generation_of(card(name)) for name in names]
    assert found == ["Ampere", "Ada", "Hopper", "Blackwell", "Blackwell RTX", "", ""]
