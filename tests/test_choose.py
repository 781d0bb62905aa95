"""Choosing: nothing is lost, nothing grows where more is asked, and the order is the one that is printed."""

from __future__ import annotations

import math
import re
from itertools import pairwise

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from freehold import catalogue
from freehold.catalogue.places import places
from freehold.errors import BadRequest
from freehold.facts import Card, Offer
from freehold.plan import choose as choosing
from freehold.plan.choose import Choice, choose
from freehold.plan.deployment import Place, machines
from freehold.plan.need import Need, check
from freehold.plan.search import largest, spots, tier
from freehold.plan.units import GIB
from freehold.plan.vllm import Settings
from freehold.policy.law import Rules
from freehold.types import Objection, Ruling

EVERYTHING = catalogue.load()
CARDS = {card.id: card for card in EVERYTHING.cards}
FEW = [  # one of each kind: dense, latent, hybrid, sliding, chunked, experts, 4 bits as shipped, without formulas
    catalogue.model(EVERYTHING, name)
    for name in (
        "qwen3-0.6b", "llama-3.1-8b", "llama-3.3-70b", "deepseek-r1", "glm-4.7-flash", "qwen3.5-27b", "qwen3.5-35b-a3b",
        "gemma-4-31b", "gpt-oss-20b", "gpt-oss-120b", "llama-4-scout-17b-16e", "kimi-k2.6", "nemotron-3-nano-30b-a3b",
        "qwen3-coder-30b-a3b", "deepseek-v4-flash",
    )
]  # fmt: skip
RENTED, _ = places(EVERYTHING, Need(), Rules(), {})
LAPTOP = Place(name="laptop", card=None, cards=1, machines=1, ram_bytes=20 * GIB)
DESKTOP = replace(LAPTOP, name="desktop", card=CARDS["RTX-4090"], ram_bytes=40 * GIB)


def chosen(need: Need, where=RENTED, models=FEW, **more) -> Choice:
    return choose(need, models, {}, where, **more)


def served(choice: Choice) -> set[str]:
    return {plan.model for plan in choice.plans}


needs = st.builds(
    Need,
    context=st.sampled_from([1, 2048, 8192, 32_768, 131_072, 1_000_000]),
    users=st.sampled_from([1, 7, 40, 300, 5_000]),
    speed=st.sampled_from([0.0, 0.0, 20.0, 100.0, 1_000.0]),
    budget=st.sampled_from([None, None, 200.0, 2_000.0, 30_000.0]),
    kv_dtype=st.sampled_from(["bf16", "fp8"]),
    vllm=st.sampled_from(["0.26", "0.19", "0.32"]),
    hours_a_day=st.sampled_from([8.0, 24.0]),
)
wheres = st.sampled_from(
    [
        RENTED,
        RENTED[::3],
        [LAPTOP],
        [DESKTOP],
        [Place(name="own", card=CARDS["H100-SXM"], cards=8, machines=2)],
        [Place(name="one", card=CARDS["L40S"], cards=1, machines=1), LAPTOP],
    ]
)


@settings(max_examples=50)
@given(needs, wheres)
def test_every_model_is_a_plan_or_a_refusal(need, where):
    choice = chosen(need, where)
    refused = [refusal.subject for refusal in choice.refusals]
    assert sorted([plan.model for plan in choice.plans] + refused) == sorted(model.id for model in FEW)
    assert all(
        refusal.reason and (not refusal.steps or refusal.steps[0] == refusal.reason) for refusal in choice.refusals
    )


@pytest.mark.parametrize("need", [Need(), Need(task="coding", users=40, budget=900.0), Need(context=2_000_000)])
def test_every_model_of_the_catalogue_is_a_plan_or_a_refusal(need):
    choice = chosen(need, models=EVERYTHING.models)
    assert len(choice.plans) + len(choice.refusals) == len(EVERYTHING.models)
    assert served(choice) | {each.subject for each in choice.refusals} == {model.id for model in EVERYTHING.models}


@settings(max_examples=50)
@given(needs, wheres)
@example(Need(users=200, context=8192, vllm="0.32"), RENTED)  # from 160 GiB up it computes more tokens in one step
def test_a_plan_holds_what_is_asked(need, where):
    by_name = {place.name: place for place in where}
    for plan in chosen(need, where, every=True).plans:
        place = by_name[plan.place]
        assert plan.requests >= need.users
        assert plan.longest >= need.context
        taken = plan.weight_bytes + plan.activation_bytes + plan.other_bytes + plan.graph_bytes
        assert taken + plan.pool_bytes == plan.usable_bytes
        assert plan.pool_bytes >= 0
        if plan.engine == "vllm":
            each = -(-need.users // (plan.replicas * plan.ep))
            assert plan.pool_bytes >= each * plan.request_blocks * plan.block_bytes
        if need.speed:
            assert plan.ceiling >= need.speed
        if need.budget is not None:
            assert plan.month <= need.budget
        if place.machines is not None:
            assert plan.cards <= place.machines * place.cards


def more_of(need: Need, field: str) -> Need:
    harder = {
        "users": need.users * 3,
        "context": need.context * 4,
        "speed": need.speed * 3 + 30,
        "budget": (need.budget or 5_000.0) / 4,
        "quantization": ("bf16", "gguf-q4_k_m"),
    }
    return replace(need, **{field: harder[field]})


@settings(max_examples=80)
@given(needs, wheres, st.sampled_from(["users", "context", "speed", "budget", "quantization"]))
def test_asking_for_more_never_yields_more_models(need, where, field):
    assert served(chosen(more_of(need, field), where)) <= served(chosen(need, where))


@settings(max_examples=60)
@given(needs, st.integers(0, 1 << 30))
def test_fewer_places_and_fewer_cards_never_yield_more_models(need, kept):
    fewer = [place for at, place in enumerate(RENTED) if kept >> at % 30 & 1]
    assert served(chosen(need, fewer)) <= served(chosen(need))
    for name in ("H100-SXM", "L40S"):
        found = [
            served(chosen(need, [Place(name="own", card=CARDS[name], cards=cards, machines=1)]))
            for cards in (1, 2, 4, 8)
        ]
        assert all(fewer <= more for fewer, more in pairwise(found))


def ways(choice: Choice) -> set[tuple]:
    return {(p.model, p.engine, p.scheme, p.tp, p.pp, p.ep, p.replicas, p.place) for p in choice.plans}


@pytest.mark.parametrize(
    ("where", "users"),
    [
        (Place(name="own", card=CARDS["H100-SXM"], cards=8, machines=1), 1),
        (Place(name="own", card=CARDS["H100-SXM"], cards=8, machines=1), 12),
        (LAPTOP, 1),
        (LAPTOP, 3),
    ],
    ids=["8xH100", "8xH100 for 12", "laptop", "laptop for 3"],
)
def test_longest_is_what_could_be_asked_and_not_a_token_more(where, users):
    """And on the laptop, as many requests as are named could be asked for, and not one more."""
    need = Need(users=users, context=4096)
    for plan in chosen(need, [where]).plans:
        model = catalogue.model(EVERYTHING, plan.model)
        way = {each for each in ways(chosen(need, [where], [model], every=True)) if each[:3] == ways_of(plan)}
        again = chosen(replace(need, context=plan.longest), [where], [model], every=True)
        assert way & ways(again), plan
        if plan.longest < (model.context.extended or model.context.native):
            beyond = chosen(replace(need, context=plan.longest + 1), [where], [model], every=True)
            assert exactly(plan) not in ways(beyond)
        if plan.engine == "llamacpp":
            most = replace(need, users=plan.requests)
            assert exactly(plan) in ways(chosen(most, [where], [model], every=True))
            most = replace(need, users=plan.requests + 1)
            assert exactly(plan) not in ways(chosen(most, [where], [model], every=True))


def ways_of(plan) -> tuple:
    return plan.model, plan.engine, plan.scheme


def exactly(plan) -> tuple:
    return plan.model, plan.engine, plan.scheme, plan.tp, plan.pp, plan.ep, plan.replicas, plan.place


# -- order -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("every", [False, True])
@pytest.mark.parametrize("task", ["", "coding"])
def test_the_order_is_the_one_that_is_printed(task, every):
    by_id, newest = {model.id: model for model in FEW}, max(model.released for model in FEW)

    def key(plan):
        model = by_id[plan.model]
        made_for = task == "coding" and "Coder" in model.name
        recent = model.released > f"{int(newest[:4]) - 1}{newest[4:]}"
        half_doublings = round(2 * math.log2(model.parameters.total))
        day = int(model.released.replace("-", ""))
        finer = tier(plan.scheme, model.checkpoint)
        return -made_for, -recent, -half_doublings, -day, finer, plan.undated, plan.month

    plans = chosen(Need(task=task), every=every).plans
    assert list(plans) == sorted(plans, key=key)
    assert [plans[0].model == "qwen3-coder-30b-a3b"] == [task == "coding"]
    for word in ("task", "twelve months", "size class", "newer", "precision", "dated", "cost"):
        assert word in choosing.ORDER


def test_of_one_model_the_finest_precision_then_a_dated_price_then_the_cheapest():
    one, every = chosen(Need(users=4)).plans, chosen(Need(users=4), every=True).plans
    for best in one:
        model = catalogue.model(EVERYTHING, best.model)
        same = [(tier(p.scheme, model.checkpoint), p.undated, p.month, p.cards) for p in every if p.model == best.model]
        assert (tier(best.scheme, model.checkpoint), best.undated, best.month, best.cards) == min(same)


@pytest.mark.parametrize(
    ("scheme", "own", "expected"),
    [
        ("int4-experts", "int4-experts", 0),
        ("fp8", "bf16", 0),
        ("gguf-q6_k", "bf16", 0),
        ("int4-awq", "bf16", 1),
        ("gguf-q4_k_m", "bf16", 1),
        ("gguf-q3_k_m", "bf16", 2),
    ],
)
def test_what_is_shipped_is_as_fine_as_it_gets(scheme, own, expected):
    assert tier(scheme, own) == expected


# -- places and prices -------------------------------------------------------------------------------------------------


def rented(price: float, cards: int = 1, **more) -> Place:
    offer = Offer(
        id=f"{price}", provider="any", card="H100-SXM", cards=cards, kind="on-demand", price=price, date="2026-10-01"
    )
    offer = replace(offer, **{key: more.pop(key) for key in ("date", "kind") if key in more})
    return Place(**{"name": offer.id, "card": CARDS["H100-SXM"], "offer": offer, **more})


@pytest.mark.parametrize(
    ("per_machine", "number", "cards", "room"),
    [(8, 1, 1, 8), (8, 1, 8, 1), (8, 1, 16, 0), (8, 2, 16, 1), (8, 3, 2, 12), (6, 2, 4, 2), (4, 4, 8, 2), (4, 3, 8, 1)],
)
def test_small_replicas_share_a_machine_and_large_ones_take_whole_ones(per_machine, number, cards, room):
    place = Place(name="own", card=CARDS["H100-SXM"], cards=per_machine, machines=number)
    assert place.replicas(cards) == room
    assert replace(place, machines=None).replicas(cards) == 256 // cards


@pytest.mark.parametrize(
    ("sold", "cards", "replicas", "bought"),
    [(1, 1, 3, 3), (1, 4, 2, 8), (8, 1, 3, 1), (8, 4, 3, 2), (8, 8, 3, 3), (8, 16, 2, 4), (6, 4, 3, 3)],
)
def test_replicas_share_what_is_sold_whole(sold, cards, replicas, bought):
    place = rented(10.0, sold)
    assert machines(place.offer, cards, replicas) == bought
    assert place.hour(cards, replicas) == 10.0 * bought
    assert replace(place, rate=0.5).hour(cards, replicas) == 5.0 * bought
    assert rented(10.0, sold, kind="spot").hour(cards, replicas) > 10.0 * bought
    assert replace(place, offer=None).hour(cards, replicas) is None


def seen(*where: Place, need: Need = Need()) -> set[str]:  # noqa: B008  it is frozen
    return {spot.place.name for spot in spots(where, need, Settings())}


def test_of_the_same_card_only_what_could_be_cheapest_is_looked_at():
    assert seen(rented(3), rented(2), rented(4)) == {"2"}
    assert seen(rented(3), rented(2, date="")) == {"3"}, "a dated price is believed first"
    assert seen(rented(3), rented(2, date=""), need=Need(budget=1e6)) == {"3", "2"}, "unless a budget asks"
    assert seen(rented(3), rented(16, 8)) == {"3", "16"}, "eight at once are cheaper"
    assert seen(rented(3), rented(25, 8)) == {"3"}
    assert seen(rented(3), rented(2, machines=1)) == {"3", "2"}, "one machine may be too few"
    assert seen(rented(3), rented(2, offer=None, name="unpriced")) == {"3"}
    dedicated = rented(2, kind="dedicated")
    assert seen(rented(3), dedicated) == {"2"}
    assert seen(rented(3), dedicated, need=Need(hours_a_day=8)) == {"3"}, "it is paid at night, too"
    assert seen(LAPTOP) == set()


# -- reasons -----------------------------------------------------------------------------------------------------------

ONE = [Place(name="one", card=CARDS["H100-SXM"], cards=1, machines=1)]
EIGHT = [replace(ONE[0], cards=8)]
UNRATED = [replace(ONE[0], card=Card(id="X1", vendor="AMD", memory_gb=85, memory_bytes=79 * GIB, memory_source=""))]


@pytest.mark.parametrize(
    ("need", "where", "name", "reason"),
    [
        (Need(budget=10.0), RENTED, "llama-3.3-70b", r"budget: the cheapest that fits costs [\d,]+ EUR a month"),
        (Need(budget=1e6), ONE, "llama-3.1-8b", "budget: nobody said what the machines cost"),
        (Need(speed=900.0), ONE, "llama-3.1-8b", r"speed: at most [\d.,]+ tokens a second of one request, 900 are"),
        (Need(speed=1.0), UNRATED, "llama-3.1-8b", "speed: nobody said how fast the memory of X1 is"),
        (Need(users=500), ONE, "llama-3.1-8b", "users: 500 at once are asked, the cards hold [1-9]"),
        (Need(users=9000, context=64), EIGHT, "qwen3-0.6b", "users: 9,000 at once are asked, the cards hold 8,192 of"),
        (Need(requests_a_day=1e9, rate=100.0), EIGHT, "qwen3-0.6b", "load: it keeps 72,338 replicas busy, .* for 8"),
        (Need(requests_a_day=1e6, rate=100.0), [LAPTOP], "qwen3-0.6b", "load: it keeps 73 replicas busy, .* for 1"),
        (Need(), ONE, "deepseek-r1", r"memory: .* on 1 x H100-SXM lacks [\d.,]+ GiB for requests of 8,192 tokens"),
        (Need(), [LAPTOP], "llama-3.3-70b", "memory: GGUF Q3_K_M in 20.00 GiB lacks .* GiB"),
        (Need(), [], "llama-3.1-8b", "place: no machine is left"),
        (Need(context=200_000), ONE, "llama-3.1-8b", "context: at most 131,072 tokens, 200,000 are asked"),
        (Need(min_size=10.0), ONE, "llama-3.1-8b", "size: 8.0 billion parameters, at least 10 are asked"),
        (Need(max_size=5.0), ONE, "llama-3.1-8b", "size: 8.0 billion parameters, at most 5 are asked"),
        (Need(task="vision"), ONE, "llama-3.1-8b", "task: it reads no images"),
        (Need(task="audio"), ONE, "llama-3.1-8b", "task: it hears no audio"),
        (Need(), ONE, "deepseek-v4-flash", "memory unknown: "),
    ],
)
def test_the_nearest_reason_is_given(need, where, name, reason):
    choice = chosen(need, where, [catalogue.model(EVERYTHING, name)])
    (refusal,) = choice.refusals
    assert not choice.plans
    assert re.match(reason, refusal.reason), refusal.reason


def test_the_law_speaks_first_with_its_clause_and_what_would_help():
    objection = Objection(rule="licence-x", reason="not allowed", clause="section 2", source="LICENCE", hint="ask")
    model = catalogue.model(EVERYTHING, "llama-3.1-8b")
    choice = choose(Need(min_size=10.0), [model], {model.id: Ruling(objections=(objection,))}, ONE)
    (refusal,) = choice.refusals
    assert refusal.reason == "not allowed [section 2; LICENCE]"
    assert refusal.hint == "ask"
    assert len(refusal.steps) == 2
    assert choice.considered == 0


@pytest.mark.parametrize("low", [0, 1, 7])
@pytest.mark.parametrize("limit", [7, 8, 90, 100])
def test_the_largest_that_fits(low, limit):
    assert largest(low, 100, lambda number: number <= limit) == limit


# -- what makes no sense -----------------------------------------------------------------------------------------------

WRONG = [
    *(("context", value) for value in (0, -1, 10**9)),
    *(("users", value) for value in (0, -3, 10**7)),
    *(("speed", value) for value in (-1.0, math.nan, math.inf)),
    *(("budget", value) for value in (-1.0, math.nan, math.inf)),
    *(("hours_a_day", value) for value in (0.0, 25.0, math.nan)),
    *(("requests_a_day", value) for value in (-1.0, math.nan)),
    *(("prompt_tokens", value) for value in (-1.0, math.inf)),
    *(("completion_tokens", value) for value in (0.0, math.nan)),
    *(("rate", value) for value in (0.0, -5.0, math.nan)),
    *(("min_size", value) for value in (-1.0, math.nan)),
    *(("max_size", value) for value in (-1.0, math.inf)),
]


@pytest.mark.parametrize(("field", "value"), WRONG)
def test_absurd_needs_are_refused_with_the_valid_range(field, value):
    with pytest.raises(BadRequest, match=f"{field} is .*, but must be from .* to ") as refused:
        check(Need(**{field: value}))
    assert "give --" in refused.value.hint


@pytest.mark.parametrize(
    ("need", "both"),
    [
        (Need(min_size=80.0, max_size=60.0), "min_size 80 and max_size 60 contradict each other"),
        (Need(quantization=("fp9",)), "quantization 'fp9' is not one of those known"),
        (Need(kv_dtype="int3"), "kv_dtype 'int3' is not one of those known"),
        (Need(vllm="newest"), "vllm 'newest' is not a version that was looked at"),
        (Need(vllm="0.5.4"), "vllm '0.5.4' is not a version that was looked at"),
    ],
)
def test_needs_that_contradict_themselves(need, both):
    with pytest.raises(BadRequest, match=both) as refused:
        check(need)
    assert refused.value.hint


def test_an_older_vllm_leaves_another_pool():
    model = catalogue.model(EVERYTHING, "qwen3-8b")
    many = Need(users=256, context=512)
    old, new = (choose(replace(many, vllm=version), [model], {}, ONE).plans[0] for version in ("0.16", "0.26"))
    assert old.activation_bytes > new.activation_bytes
    assert (old.graph_bytes, new.graph_bytes > 0) == (0, True)
