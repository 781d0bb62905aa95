"""What vLLM is started with on this machine: never more than is there, and what is advised does fit."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from freehold import catalogue
from freehold.plan import vllm
from freehold.plan.llamacpp import RESERVE_BYTES
from freehold.plan.params import count
from freehold.plan.units import GIB
from freehold.plan.vllm_fit import CPU_BLOCK_TOKENS, CPU_PROCESSES_BYTES, Asked, fit
from freehold.plan.weights import Split
from freehold.types import Build, Host, Plan, Refusal

EVERYTHING = catalogue.load()
COUNTED = [model for model in EVERYTHING.models if model.ready and count(model)]
CARDS = [card for card in EVERYTHING.cards if card.vendor == "NVIDIA"]
MODEL = catalogue.model(EVERYTHING, "llama-3.1-8b")
H100 = next(card for card in CARDS if card.id == "H100-SXM")


def build(weight_bytes: int, context: int = 131_072) -> Build:
    return Build(
        name="b", format="safetensors", architecture="llama", precision="BF16", weight_bytes=weight_bytes, layers=32,
        kv_heads=8, key_dim=128, value_dim=128, hidden_size=4096, vocabulary=128_256, context=context,
    )  # fmt: skip


def host(available_bytes: int) -> Host:
    return Host(name="here", cpu="any", cores=8, memory_bytes=1 << 42, available_bytes=available_bytes)


def fitted(one: Build, model, where: Host, asked: Asked) -> Plan | Refusal:
    """The plan, whose parts must add up to no more than may be used."""
    found = fit(one, model, where, asked)
    if isinstance(found, Plan):
        assert found.total_bytes <= found.available_bytes
        assert found.requests_that_fit >= 1
        assert 1 <= found.context <= min(asked.context, one.context)
        assert asked.longest or found.context == asked.context
    return found


settings_ = st.builds(
    vllm.Settings,
    version=st.just((0, 32, 0)),
    sequences=st.integers(1, 512),
    batched_tokens=st.sampled_from([None, 512, 8192]),
    kv_dtype=st.sampled_from(["bf16", "fp16", "fp8"]),
    speculative=st.sampled_from([0, 3]),
)
on_cpu = st.builds(
    Asked,
    context=st.integers(1, 1 << 18),
    longest=st.booleans(),
    parallel=st.integers(1, 256),
    settings=settings_.map(lambda each: replace(each, block_tokens=CPU_BLOCK_TOKENS)),
)
on_cards = st.builds(
    Asked,
    context=st.integers(1, 1 << 18),
    longest=st.booleans(),
    parallel=st.integers(1, 512),
    settings=settings_,
    split=st.sampled_from([Split(), Split(2), Split(4), Split(2, 2)]),
    card=st.sampled_from(CARDS),
)
weights = st.integers(1 << 20, 1 << 35)


@given(weights, on_cpu, st.integers(1 << 32, 1 << 38))
def test_on_a_cpu_it_takes_what_its_requests_can_use_at_most(weight_bytes, asked, available_bytes):
    found = fitted(build(weight_bytes, context=1 << 18), None, host(available_bytes), asked)
    if isinstance(found, Refusal):
        return
    assert found.total_bytes <= available_bytes - RESERVE_BYTES
    assert found.weight_bytes + CPU_PROCESSES_BYTES == found.total_bytes - found.kv_bytes
    assert found.requests_that_fit <= asked.parallel
    block = found.kv_bytes_per_token * CPU_BLOCK_TOKENS
    each = -(-found.context // CPU_BLOCK_TOKENS)
    blocks = found.kv_bytes // block
    assert each + 1 <= blocks <= asked.parallel * each + 1, "one block is never given to anybody"
    if found.requests_that_fit == asked.parallel:
        assert found.kv_bytes == (asked.parallel * each + 1) * block


@given(weights, st.sampled_from(COUNTED), on_cards, st.floats(0.02, 1))
def test_on_cards_it_agrees_with_the_planner_and_leaves_others_theirs(weight_bytes, model, asked, free):
    free_bytes = int(free * asked.card.memory_bytes)
    asked = replace(asked, free_bytes=free_bytes)
    found = fitted(build(weight_bytes), model, host(0), asked)
    if isinstance(found, Refusal):
        return
    assert found.available_bytes <= found.card_share * asked.card.memory_bytes <= free_bytes
    assert found.card_share <= asked.settings.share()
    settings = replace(asked.settings, utilisation=found.card_share)
    each = -(-weight_bytes // asked.split.cards)
    rank = vllm.rank(model, each, "bf16", asked.card, settings, split=asked.split)
    assert (found.kv_bytes, found.weight_bytes) == (rank.pool_bytes, each)
    assert found.total_bytes == found.available_bytes == rank.usable_bytes
    assert (found.tp, found.pp, found.card) == (asked.split.tp, asked.split.pp, asked.card.id)


@given(weights, st.sampled_from(COUNTED), on_cards)
def test_the_longest_is_the_longest(weight_bytes, model, asked):
    one, where = build(weight_bytes, context=1 << 18), host(0)
    found = fitted(one, model, where, replace(asked, longest=True))
    if isinstance(found, Refusal):
        return
    assert fitted(one, model, where, replace(asked, context=found.context, longest=False)) == found
    if found.context < asked.context:
        longer = replace(asked, context=found.context + 1, longest=False)
        assert isinstance(fitted(one, model, where, longer), Refusal)


@given(weights, on_cpu, st.integers(2 * GIB, 1 << 36))
def test_on_a_cpu_too(weight_bytes, asked, available_bytes):
    one, where = build(weight_bytes, context=1 << 18), host(available_bytes)
    found = fitted(one, None, where, replace(asked, longest=True))
    if isinstance(found, Refusal):
        return
    if found.context < asked.context:
        longer = replace(asked, context=found.context + 1, longest=False)
        assert isinstance(fitted(one, None, where, longer), Refusal)


@given(weights, st.sampled_from(COUNTED), on_cards, st.floats(0.02, 1), st.floats(0.02, 1))
def test_who_follows_the_advice_gets_a_plan(weight_bytes, model, asked, free, share):
    settings = replace(asked.settings, utilisation=round(share, 3))
    asked = replace(asked, settings=settings, free_bytes=int(free * asked.card.memory_bytes), longest=False)
    one = build(weight_bytes, context=1 << 18)
    found = fitted(one, model, host(0), asked)
    if isinstance(found, Refusal) and (advised := re.match(r"card_share = ([\d.]+), or none", found.hint)):
        assert settings.utilisation * asked.card.memory_bytes > asked.free_bytes
        asked = replace(asked, settings=replace(settings, utilisation=float(advised[1])))
        found = fitted(one, model, host(0), asked)
        assert isinstance(found, Plan) or "card_share" not in found.hint
    if isinstance(found, Refusal) and (advised := re.search(r"this fits: a context of ([\d,]+);", found.hint)):
        shorter = replace(asked, context=int(advised[1].replace(",", "")))
        assert isinstance(fitted(one, model, host(0), shorter), Plan)
        assert fitted(one, model, host(0), replace(asked, longest=True)).context == shorter.context


# by hand

BLOCK = 128 * 32 * 8 * 256 * 2  # tokens x layers x heads x key and value x bytes
CPU = Asked(context=1024, parallel=4, settings=vllm.Settings(block_tokens=CPU_BLOCK_TOKENS))
BESIDE = GIB + CPU_PROCESSES_BYTES + RESERVE_BYTES


def test_a_cache_by_hand():
    plan = fit(build(GIB), None, host(BESIDE + 1000 * BLOCK), CPU)
    assert isinstance(plan, Plan)
    assert (plan.kv_bytes, plan.kv_bytes_per_token) == ((4 * 8 + 1) * BLOCK, BLOCK // 128)
    assert (plan.requests_that_fit, plan.threads, plan.card, plan.card_share) == (4, 0, "", 0.0)
    tight = fit(build(GIB), None, host(BESIDE + 9 * BLOCK), CPU)
    assert isinstance(tight, Plan)
    assert (tight.kv_bytes, tight.requests_that_fit) == (9 * BLOCK, 1)


def test_one_block_less_than_a_request_and_the_one_that_nobody_gets_is_refused_with_what_fits():
    """vLLM counts so too: kv_cache_utils.py of 0.32.0 checks the memory without that block."""
    where = host(BESIDE + 9 * BLOCK - 1)
    refusal = fit(build(GIB), None, where, CPU)
    assert isinstance(refusal, Refusal)
    assert "one request of 1,024 tokens needs more" in refusal.reason
    assert refusal.hint == 'this fits: a context of 896; or context = "auto"'
    plan = fit(build(GIB), None, where, replace(CPU, longest=True))
    assert isinstance(plan, Plan)
    assert plan.context == 896


def test_without_room_for_a_cache_it_is_the_weights_that_are_too_large():
    refusal = fit(build(GIB), None, host(BESIDE + BLOCK), replace(CPU, longest=True))
    assert isinstance(refusal, Refusal)
    assert "before any KV cache" in refusal.reason


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"context": 200_000}, "trained for 131,072"),
        ({"card": H100}, "layers of its architecture are not known"),
    ],
)
def test_what_cannot_be(changes, reason):
    refusal = fit(build(GIB), None, host(1 << 40), replace(CPU, **changes))
    assert isinstance(refusal, Refusal)
    assert reason in refusal.reason
    assert refusal.hint


def test_a_share_that_others_hold_is_refused_before_vllm_does():
    asked = Asked(context=8192, parallel=64, settings=vllm.Settings(utilisation=0.9), card=H100,
                  free_bytes=H100.memory_bytes // 2)  # fmt: skip
    refusal = fit(build(15 * GIB), MODEL, host(0), asked)
    assert isinstance(refusal, Refusal)
    assert refusal.subject == "b on 1 x H100-SXM"
    assert refusal.hint == "card_share = 0.49, or none; nvidia-smi shows who else is there"
    plan = fit(build(15 * GIB), MODEL, host(0), replace(asked, settings=vllm.Settings()))
    assert isinstance(plan, Plan)
    assert plan.card_share == 0.49


def test_a_gguf_is_for_another_engine():
    refusal = fit(replace(build(GIB), format="gguf"), None, host(1 << 40), CPU)
    assert isinstance(refusal, Refusal)
    assert refusal.hint == "use llamacpp for GGUF files"


def test_the_step_is_that_of_vllm_s_defaults():
    """0.32.0, engine/arg_utils.py: 16,384 tokens from 160 GiB up, 8,192 from 70, else 2,048."""
    new = vllm.Settings(version=(0, 32, 0))
    for gib, tokens in ((45, 2048), (79, 8192), (141, 8192), (179, 16_384)):
        assert new.step_tokens(replace(H100, memory_bytes=gib * GIB)) == tokens
