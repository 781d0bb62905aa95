"""What a predicted or measured speed changes in a decision: who is out, how many replicas, what a token costs."""

from __future__ import annotations

from math import ceil

import pytest
from msgspec.structs import replace
from steps import recomputes

from freehold import catalogue
from freehold.facts import Card, Offer
from freehold.plan.choose import Choice, choose
from freehold.plan.cpu_speed import Memory
from freehold.plan.deployment import Deployment, Place
from freehold.plan.explain import explain
from freehold.plan.need import Need
from freehold.plan.performance import Estimate, Pace, Performance
from freehold.plan.traffic import FILL
from freehold.plan.units import GIB
from freehold.plan.weights import SCHEMES

KNOWN = catalogue.load()
EIGHT = catalogue.model(KNOWN, "llama-3.1-8b")
FP8 = ("fp8",)
HERE = Memory(
    one_gb_s=15, all_gb_s=30, cache_gb_s=40, cache_bytes=32 << 20, cores=8, cpu="of another kind", at_ns=1
)  # fmt: skip


def rented(card: str, price: float = 2.0, cards: int = 8) -> Place:
    offer = Offer(
        id=f"{card}-offer", provider="somebody", card=card, cards=1, kind="on-demand", price=price, date="2026-11-01"
    )
    return Place(name=f"rented {card}", card=found(card), cards=cards, offer=offer)


def found(name: str) -> Card:
    return next(card for card in KNOWN.cards if card.id == name)


def asked(*places: Place, paces: tuple[Pace, ...] = (), digest: str = "", **need: object) -> Choice:
    wanted = replace(Need(model="llama-3.1-8b", quantization=FP8), **need)
    return choose(wanted, [EIGHT], {}, places or (rented("H100-SXM"),), every=True, paces=paces, digest=digest)


def alone(choice: Choice) -> Deployment:
    """The one on a single card."""
    return next(plan for plan in choice.plans if plan.split.cards == 1)


def pace(tpot_s: float, concurrency: int = 1, **of: object) -> Pace:
    time = Estimate(value=tpot_s, low=tpot_s * 0.9, high=tpot_s * 1.1)
    rate = Estimate(value=concurrency / tpot_s, low=1, high=1000)
    measured = Performance(
        concurrency=concurrency, ttft_s=time, tpot_s=time, tokens_per_s=rate, basis="measured", source="20 requests"
    )
    base = Pace(
        model="d" * 64, catalogue="llama-3.1-8b", scheme="fp8", engine="vllm", card="H100-SXM", tp=1, pp=1, host="here",
        prompt_tokens=1500, completion_tokens=500,
        performance=measured,
    )  # fmt: skip
    return replace(base, **of)


def test_a_speed_is_held_against_what_is_likely_and_not_against_the_ceiling():
    plan = alone(asked())
    likely = 1 / plan.performance.tpot_s.value
    assert likely < plan.ceiling
    assert any(each.split.cards == 1 for each in asked(speed=likely - 0.5).plans)
    assert not any(each.split.cards == 1 for each in asked(speed=likely + 0.5).plans)
    refusal = asked(rented("H100-SXM", cards=1), speed=likely + 0.5).refusals[0]
    said = f"speed: about {int(likely * 10) / 10:,.1f} tokens a second of one request are likely, "
    assert refusal.reason == f"{said}{likely + 0.5:g} are asked"


def test_where_a_speed_is_asked_a_known_one_goes_before_an_unknown_one():
    cheap, dear = rented("L40S", price=0.5), rented("H100-SXM", price=9.0)
    assert asked(cheap, dear).plans[0].card == "L40S"
    by_speed = asked(cheap, dear, speed=10.0)
    assert by_speed.plans[0].card == "H100-SXM"
    unknown = next(plan for plan in by_speed.plans if plan.card == "L40S")
    assert (unknown.performance, unknown.unpredicted) == (None, "vllm was never fitted on Ada cards")
    assert unknown.ceiling is not None


def test_the_load_makes_replicas_by_the_likely_rate():
    load = 20_000_000.0
    plan = alone(asked(requests_a_day=load))
    written = load * 500 / 86_400
    assert plan.at_once >= 128  # the more at once, the more in all
    assert 1 < written / plan.performance.tokens_per_s.value <= plan.replicas
    full = alone(asked(users=256, context=2000, requests_a_day=load)).performance.tokens_per_s.value
    assert plan.replicas == pytest.approx(ceil(written / full / FILL), abs=1)
    assert alone(asked(requests_a_day=load, rate=1e9)).replicas == 1  # what the asker says goes first
    assert plan.sequences >= plan.at_once


def test_a_load_that_is_small_is_answered_few_at_a_time():
    plan = alone(asked(requests_a_day=20_000.0))
    assert (plan.replicas, plan.at_once) == (1, 1)
    half = alone(asked(requests_a_day=1_000_000.0))
    written = 1_000_000 * 500 / 86_400
    assert 1 < half.at_once < 256
    assert half.performance.tokens_per_s.value >= written / half.replicas


def test_a_load_under_a_speed_is_answered_by_fewer_at_once():
    free, fast = (alone(asked(requests_a_day=20_000_000.0, speed=speed)) for speed in (0.0, 100.0))
    assert fast.at_once < free.at_once
    assert fast.replicas > free.replicas
    assert 1 / fast.performance.tpot_s.value >= 100


def test_a_load_where_nobody_knows_the_speed_comes_last_and_needs_what_the_ceiling_says():
    cheap, dear = rented("L40S", price=0.1), rented("H100-SXM", price=9.0)
    plans = asked(cheap, dear, requests_a_day=2_000_000.0).plans
    assert plans[0].card == "H100-SXM"
    unknown = next(plan for plan in plans if plan.card == "L40S" and plan.split.cards == 1)
    assert unknown.per_million is None
    written = 2_000_000 * 500 / 86_400
    assert unknown.replicas * unknown.ceiling * unknown.sequences >= written


def test_without_a_load_a_million_tokens_are_those_of_machines_that_are_never_idle():
    plan = alone(asked(users=64, context=2000))
    assert plan.performance.concurrency == 64
    assert plan.per_million == pytest.approx(plan.hour / (plan.performance.tokens_per_s.value * 3600) * 1e6)
    assert alone(asked()).per_million > 10 * plan.per_million  # one user does not fill a card


def test_what_was_measured_overrides_what_is_predicted():
    measured = alone(asked(paces=(pace(0.5),)))
    assert (measured.performance.basis, measured.performance.tpot_s.value) == ("measured", 0.5)
    assert not any(each.split.cards == 1 for each in asked(paces=(pace(0.5),), speed=10.0).plans)
    other = [plan for plan in asked(paces=(pace(0.5),)).plans if plan.split.cards > 1]
    assert {plan.performance.basis for plan in other} == {"predicted"}


@pytest.mark.parametrize(
    "of", [{"card": "H200-SXM"}, {"scheme": "bf16"}, {"engine": "llamacpp"}, {"tp": 2}, {"catalogue": "qwen3-8b"}]
)
def test_what_was_measured_of_something_else_does_not(of):
    assert alone(asked(paces=(pace(0.5, **of),))).performance.basis == "predicted"


def test_what_was_measured_on_one_card_is_not_that_of_ranks_that_share_experts():
    model = catalogue.model(KNOWN, "glm-4.7-flash")
    known = pace(0.5, catalogue=model.id, card="H200-SXM", scheme=model.checkpoint)
    plans = choose(
        Need(model=model.id, quantization=(model.checkpoint,)), [model], {}, (rented("H200-SXM"),), every=True,
        paces=(known,),
    ).plans  # fmt: skip
    basis = {plan.ep: plan.performance.basis for plan in plans if plan.tp == plan.pp == 1 and plan.performance}
    assert basis.pop(1) == "measured"
    assert set(basis.values()) == {"predicted"}


def test_where_a_speed_is_asked_an_unknown_one_comes_last():
    """The A100 is cheaper, and nobody fitted vLLM there."""
    places = rented("A100-80GB-SXM", price=1.0), rented("H100-SXM")
    wanted = Need(model="llama-3.1-8b", quantization=("fp8",))
    cheap, fast = (choose(replace(wanted, speed=speed), [EIGHT], {}, places).plans[0] for speed in (0.0, 10.0))
    assert (cheap.card, cheap.performance) == ("A100-80GB-SXM", None)
    assert fast.card == "H100-SXM"


def test_files_are_known_by_their_digest():
    assert alone(asked(paces=(pace(0.5),), digest="d" * 64)).performance.basis == "measured"
    assert alone(asked(paces=(pace(0.5),), digest="e" * 64)).performance.basis == "predicted"


def test_what_was_measured_of_a_short_load_is_shown_in_proportion():
    plain = alone(asked())
    short = pace(0.004, prompt_tokens=24.0, completion_tokens=60.0)
    plan = alone(asked(paces=(short,)))
    assert plan.performance.basis == "measured"
    assert plan.performance.tpot_s.value > 0.004  # prompts of 1,500 tokens take longer
    assert plan.performance.ttft_s.value > short.performance.ttft_s.value
    assert f"of which {1 / plain.performance.tpot_s.value:,.3g} tokens/s" in plan.performance.source
    same = alone(asked(prompt_tokens=24.0, completion_tokens=60.0, paces=(short,)))
    assert same.performance.tpot_s.value == pytest.approx(0.004)


def test_no_band_goes_beyond_what_a_card_can_read():
    for need in ({}, {"users": 64, "context": 2000}, {"draft_tokens": 3, "acceptance": 0.8}):
        for plan in asked(rented("H100-SXM"), rented("B200-SXM"), **need).plans:
            if plan.performance:
                assert 1 / plan.performance.tpot_s.low <= plan.ceiling * 1.0001


def test_measured_at_another_concurrency_is_another_case():
    assert alone(asked(paces=(pace(0.5, concurrency=64),))).performance.basis == "predicted"
    assert alone(asked(users=64, context=2000, paces=(pace(0.5, concurrency=64),))).performance.basis == "measured"


def test_prompts_that_do_not_fit_are_shortened_with_their_answers():
    short = alone(asked(context=200)).performance
    assert short.ttft_s.value < alone(asked(context=8192)).performance.ttft_s.value


def test_cached_prefixes_and_guesses_are_inputs():
    plain = alone(asked()).performance
    assert alone(asked(prefix_hit=0.9)).performance.ttft_s.value < plain.ttft_s.value
    assert alone(asked(draft_tokens=3, acceptance=0.8)).performance.tpot_s.value < plain.tpot_s.value / 2


@pytest.mark.parametrize("need", [{}, {"users": 100}, {"draft_tokens": 3, "acceptance": 0.7, "prefix_hit": 0.5}])
@pytest.mark.parametrize("name", ["llama-3.1-8b", "qwen3-30b-a3b", "deepseek-v3", "gpt-oss-120b", "qwen3.5-35b-a3b"])
def test_every_step_of_a_prediction_computes_to_its_figure(name, need):
    model = catalogue.model(KNOWN, name)
    wanted = replace(Need(model=name), **need)
    place = rented("H200-SXM", cards=8)
    plan = next(p for p in choose(wanted, [model], {}, (place,), every=True).plans if p.performance)
    lines = [line for line in explain(plan, model, place, wanted) if " = " in line]
    assert any(line.startswith("time per token: ") for line in lines)
    recomputes(lines)
    last = next(line for line in lines if line.startswith("time per token: "))
    assert recomputes([last]) == pytest.approx(plan.performance.tpot_s.value, rel=1e-5)


def test_this_machine_is_predicted_once_its_memory_was_measured():
    place = Place(name="here", card=None, cards=1, machines=1, ram_bytes=20 * GIB)
    wanted = Need(model="llama-3.1-8b", quantization=("gguf-q4_k_m",))
    (plain,) = choose(wanted, [EIGHT], {}, (place,)).plans
    assert plain.unpredicted == "nobody measured this machine's memory: freehold doctor"
    (plan,) = choose(wanted, [EIGHT], {}, (replace(place, memory=HERE),)).plans
    assert plan.performance.basis == "predicted"
    assert 1 / plan.performance.tpot_s.value < plan.ceiling * 1.05
    lines = [line for line in explain(plan, EIGHT, replace(place, memory=HERE), wanted) if " = " in line]
    recomputes(lines)
    assert any(line.startswith("a step on the CPU: ") for line in lines)
    desktop = replace(place, memory=HERE, card=found("RTX-4090"))
    (mixed,) = choose(replace(wanted, quantization=("gguf-q8_0",)), [EIGHT], {}, (desktop,)).plans
    assert mixed.unpredicted == "llama.cpp on cards was never fitted"


def test_every_precision_that_is_planned_is_computed_in_something():
    from freehold.plan.roofline import computed_in

    for name, scheme in SCHEMES.items():
        for rate in (scheme.attention, scheme.dense, scheme.experts, scheme.head):
            assert computed_in(rate, name) in ("bf16", "fp8", "int8", "fp4", "mxfp4", "int4")
