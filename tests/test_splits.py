"""How a model is split over cards, and how many of which cards that takes."""

from __future__ import annotations

import pytest
from msgspec.structs import replace
from test_choose import CARDS, DESKTOP, EIGHT, EVERYTHING, RENTED, chosen

from freehold import catalogue
from freehold.catalogue.places import places
from freehold.plan.deployment import Place
from freehold.plan.need import Need
from freehold.plan.units import GIB
from freehold.policy.law import Rules


def test_more_at_once_than_an_engine_computes_take_another_replica():
    small = [catalogue.model(EVERYTHING, "qwen3-0.6b")]
    (plan,) = chosen(Need(users=3000, context=64), EIGHT, small).plans
    assert (plan.replicas, plan.sequences, plan.requests > 3 * 1024) == (3, 1024, True)


def test_heads_and_groups_of_scales_are_split_evenly_or_not_at_all():
    model = catalogue.model(EVERYTHING, "llama-3.1-8b")
    odd = replace(model, attention=(replace(model.attention[0], heads=28, kv_heads=4),))
    assert {plan.tp for plan in chosen(Need(), EIGHT, [odd], every=True).plans} == {1, 2, 4}
    moe = catalogue.model(EVERYTHING, "qwen3-coder-30b-a3b")  # experts are 768 wide: six groups of 128
    split = {(plan.scheme, plan.tp) for plan in chosen(Need(), EIGHT, [moe], every=True).plans}
    assert {tp for scheme, tp in split if scheme == "int4-awq"} == {1, 2}
    assert {tp for scheme, tp in split if scheme == "bf16"} == {1, 2, 4, 8}


def test_a_card_too_small_for_a_layer_is_not_used():
    card = replace(CARDS["RTX-4090"], memory_bytes=GIB // 4)
    for plan in chosen(Need(), [replace(DESKTOP, card=card)]).plans:
        assert (plan.engine, plan.card, plan.cards, plan.gpu_layers, plan.tp) == ("llamacpp", "", 0, 0, 1)
        assert plan.usable_bytes == DESKTOP.ram_bytes


def test_experts_share_the_links_of_one_machine():
    model = [catalogue.model(EVERYTHING, "deepseek-r1")]
    split = {plan.ep for plan in chosen(Need(model="deepseek-r1"), RENTED, model, every=True).plans}
    assert split == {1, 8, 16, 32}
    alone = [Place(name="single", card=CARDS["B200-SXM"], cards=1)]
    assert not chosen(Need(model="deepseek-r1"), alone, model).plans, "not over 32 machines of one card"


@pytest.mark.parametrize("cards", [1, 5, 8, 12, 16, 24])
def test_of_rented_cards_no_more_are_used_than_were_named(cards):
    need = Need(cards=f"{cards}xH200", kinds=("on-demand",))
    where, _ = places(EVERYTHING, need, Rules(), {})
    for users in (1, 60):
        many = chosen(replace(need, users=users, context=32_768), where, every=True).plans
        assert many
        assert max(plan.cards for plan in many) <= cards
    named = replace(need, model="deepseek-r1")
    assert {plan.pp for plan in chosen(named, where, every=True).plans} >= ({2} if cards >= 16 else set())
