"""Every figure of a deployment can be computed again from its steps, and ends where the deployment says."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from steps import computed, recomputes

from freehold import catalogue
from freehold.catalogue.decide import Decision, Situation, decide
from freehold.catalogue.places import here
from freehold.facts import Card
from freehold.plan.deployment import Deployment
from freehold.plan.explain import assumptions, explain
from freehold.plan.need import Need
from freehold.plan.params import count
from freehold.plan.units import GIB
from freehold.plan.weights import checkpoint_bytes
from freehold.types import Gpu, Host

EVERYTHING = catalogue.load()
KINDS = [
    "llama-3.1-8b", "llama-3.3-70b", "deepseek-r1", "kimi-k2.6", "glm-4.7-flash", "qwen3.5-27b", "qwen3.5-35b-a3b",
    "gemma-4-31b", "gemma-4-e4b", "gpt-oss-120b", "llama-4-scout-17b-16e", "nemotron-3-nano-30b-a3b", "granite-4.2-8b",
    "minimax-m2.5", "glm-5.3",
]  # fmt: skip
FEW = replace(EVERYTHING, models=tuple(catalogue.model(EVERYTHING, name) for name in KINDS))
LAPTOP = Host(name="laptop", cpu="any", cores=8, memory_bytes=64 * GIB, available_bytes=40 * GIB)


def with_cards(name: str, gib: int, number: int = 1) -> Host:
    gpu = Gpu(name=name, memory_bytes=gib * GIB, free_bytes=gib * GIB)
    return Host(
        **{field: getattr(LAPTOP, field) for field in LAPTOP.__struct_fields__ if field != "gpus"}, gpus=(gpu,) * number
    )


MACHINES = {
    "rented": None,
    "laptop": LAPTOP,
    "desktop": with_cards("NVIDIA GeForce RTX 4090", 24),
    "two cards": with_cards("NVIDIA L40S", 45, 2),
    "a card nobody knows": with_cards("NVIDIA Quantum 9", 32),
    "shared memory": with_cards("NVIDIA GB10", 120),
}


def decided(need: Need, machine: str = "rented", known=FEW, **more) -> Decision:
    host = MACHINES[machine]
    at = Situation(here=tuple(here(known, host, 0.7, need, "EUR")) if host else None)
    return decide(known, need, at, every=True, **more)


def steps_of(decision: Decision, plan: Deployment, model=None) -> tuple[str, ...]:
    place = next(place for place in decision.places if place.name == plan.place)
    return explain(plan, model or catalogue.model(EVERYTHING, plan.model), place, decision.need)


def figures(steps: tuple[str, ...]) -> dict[str, float]:
    """The last figure under each name."""
    return {line.partition(":")[0]: computed(line)[1] for line in steps}


FIELDS = {
    "vllm": {
        "weights": "weight_bytes",
        "activations": "activation_bytes",
        "runtime": "other_bytes",
        "CUDA graphs": "graph_bytes",
        "usable": "usable_bytes",
        "a block": "block_bytes",
        "blocks of a request": "request_blocks",
        "requests at once": "requests",
        "tokens in all": "kv_tokens",
    },
    "llamacpp": {
        "weights": "weight_bytes",
        "KV cache of a request": "block_bytes",
        "compute buffers": "activation_bytes",
        "usable": "usable_bytes",
        "left for the KV cache": "pool_bytes",
        "tokens in all": "kv_tokens",
    },
}


def check(decision: Decision, plan: Deployment, model=None) -> None:
    steps = steps_of(decision, plan, model)
    recomputes(steps)
    last = figures(steps)
    for said, field in FIELDS[plan.engine].items():
        at = next(key for key in (f"{said}, by the files", said) if key in last)
        assert last[at] == getattr(plan, field), said
    if plan.engine == "vllm":
        assert last["KV pool"] == pytest.approx(plan.pool_bytes / GIB, rel=1e-6)
        assert last["longest context"] <= last["blocks in the pool"]
    if plan.ceiling is not None and not (model and model.file_bytes):
        assert f"/ {round(last['read for a token']):,}" in " ".join(steps) or plan.engine == "llamacpp"
    for said, figure in (
        ("speed of one request, at most", plan.ceiling),
        ("an hour", plan.hour),
        ("a month", plan.month),
        ("a million tokens", plan.per_million),
    ):
        assert (said in last) == (figure is not None), said
        assert figure is None or last[said] == pytest.approx(figure, rel=2e-6)


needs = st.builds(
    Need,
    context=st.sampled_from([1, 1000, 8192, 131_072]),
    users=st.sampled_from([1, 3, 40, 500]),
    kv_dtype=st.sampled_from(["bf16", "fp8", "nvfp4", "fp32"]),
    kinds=st.sampled_from([(), ("spot",), ("dedicated",), ("on-demand", "spot", "dedicated", "reserved", "owned")]),
    currency=st.sampled_from(["EUR", "USD"]),
    hours_a_day=st.sampled_from([24.0, 8.0, 7.25]),
    rate=st.sampled_from([None, 850.0, 12_345.678]),
    requests_a_day=st.sampled_from([None, 5_000.0, 1e6]),
    prompt_tokens=st.sampled_from([1500.0, 333.25]),
)


@settings(max_examples=60)
@given(needs, st.sampled_from(sorted(MACHINES)), st.randoms(use_true_random=False))
def test_every_step_computes_to_its_figure(need, machine, draw):
    decision = decided(need, machine)
    for plan in draw.sample(decision.choice.plans, min(12, len(decision.choice.plans))):
        check(decision, plan)


@pytest.mark.parametrize(
    ("need", "machine", "wanted"),
    [
        (Need(), "rented", lambda p: p.scheme == "int4-awq" and p.tp == 4),
        (Need(), "rented", lambda p: p.model == "gemma-4-31b" and p.scheme == "bf16"),
        (Need(users=40), "rented", lambda p: p.model == "deepseek-r1" and p.ep == 8),
        (Need(model="kimi-k2.6", users=900), "rented", lambda p: p.ep == 16),
        (Need(model="glm-5.3"), "rented", lambda p: p.pp == 2 and p.tp == 8),
        (Need(users=200, context=32_768), "rented", lambda p: p.replicas > 1),
        (Need(kinds=("spot",), hours_a_day=8.0, cards="8xH200"), "rented", lambda p: p.tp == 8),
        (Need(kinds=("dedicated",), currency="USD"), "rented", lambda p: p.card.startswith("RTX-PRO-4000")),
        (Need(rate=900.0, requests_a_day=2e6), "rented", lambda p: p.replicas > 1 and p.per_million),
        (Need(rate=900.0), "rented", lambda p: p.per_million),
        (Need(), "laptop", lambda p: p.scheme == "gguf-q4_k_m"),
        (Need(users=4), "desktop", lambda p: p.engine == "vllm"),
        (Need(users=4), "desktop", lambda p: 0 < p.gpu_layers < 60),
        (Need(), "two cards", lambda p: p.gpu_layers and p.tp == 2),
        (Need(), "a card nobody knows", lambda p: p.gpu_layers and p.ceiling is None),
        (Need(), "shared memory", lambda p: p.engine == "vllm"),
        (Need(quantization=("gguf-q8_0",)), "shared memory", lambda p: p.engine == "llamacpp"),
    ],
)
def test_each_kind_of_deployment_is_explained(need, machine, wanted):
    decision = decided(need, machine)
    found = [plan for plan in decision.choice.plans if wanted(plan)]
    assert found, [(p.model, p.scheme, p.tp, p.pp, p.ep, p.gpu_layers) for p in decision.choice.plans[:9]]
    for plan in found[:5]:
        check(decision, plan)


def test_memory_that_is_shared_is_counted_once():
    plans = decided(Need(quantization=("gguf-q8_0",)), "shared memory").choice.plans
    assert plans
    assert not any(plan.gpu_layers for plan in plans)


def test_files_are_explained_by_their_size():
    model = catalogue.model(EVERYTHING, "llama-3.1-8b")
    read = replace(model, file_bytes=checkpoint_bytes(count(model), "bf16", model) + 10_000_000)
    decision = decided(Need(cards="1xH100-SXM"), model=read)
    for plan in decision.choice.plans:
        check(decision, plan, read)
        by_files = [line for line in steps_of(decision, plan, read) if "by the files" in line]
        assert bool(by_files) == (plan.scheme == "bf16")
    gguf = replace(read, checkpoint="gguf-q4_k_m", file_bytes=5_000_000_000)
    decision = decided(Need(), "laptop", model=gguf)
    (plan,) = decision.choice.plans
    assert plan.weight_bytes == 5_000_000_000
    check(decision, plan, gguf)


def test_prices_are_named_with_their_source_and_day():
    decision = decided(Need(rate=850.0, rate_source="measured on a Tuesday"))
    for plan in decision.choice.plans[:40]:
        steps = steps_of(decision, plan)
        offer = next(place.offer for place in decision.places if place.name == plan.place)
        hour = next(line for line in steps if line.startswith("an hour"))
        assert f"{offer.id}, {offer.source}, {offer.date or 'undated'}" in hour
        assert ("undated" in hour) == plan.undated
        assert "measured on a Tuesday" in steps[-1]
    assert any(re.fullmatch(r"EUR/USD \d\.\d+ of 20\d\d-\d\d-\d\d, .+", note) for note in decision.notes)


@pytest.mark.parametrize(
    ("need", "machine", "wanted", "said"),
    [
        (Need(), "rented", lambda p: p.tp == 8, "8 cards in one machine: the offer does not say"),
        (Need(kv_dtype="fp8"), "rented", lambda p: p.tp == 1, "fp8 KV cache"),
        (Need(kinds=("spot",)), "rented", lambda p: True, "2 interruptions a day, 10 minutes lost in each"),
        (Need(), "laptop", lambda p: True, "40 GB/s of memory bandwidth, which nobody measured"),
        (Need(), "desktop", lambda p: p.gpu_layers, "95% of each card"),
    ],
)
def test_assumptions_are_listed(need, machine, wanted, said):
    decision = decided(need, machine)
    plan = next(plan for plan in decision.choice.plans if wanted(plan))
    place = next(place for place in decision.places if place.name == plan.place)
    assert said in "\n".join(assumptions(plan, place, need))


def test_a_card_without_bandwidth_has_no_ceiling():
    card = Card(id="X", vendor="AMD", memory_gb=1, memory_bytes=1, memory_source="")
    assert card.bandwidth_gb_s is None
    plans = decided(Need(), "a card nobody knows").choice.plans
    assert {plan.ceiling is None for plan in plans if plan.card} == {True}
    assert {plan.ceiling is None for plan in plans if not plan.card} == {False}
