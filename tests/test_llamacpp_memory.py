"""Memory: the arithmetic by hand, what the engine printed, and what must hold for every model and machine."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from freehold.facts import Attention, Context, LicenceOf, Model, Parameters
from freehold.plan.llamacpp import Offload, compute_bytes, fit, kv_buffers, kv_bytes_per_token, offload
from freehold.plan.units import GIB, size
from freehold.types import Build, Gpu, Host, Plan, Refusal

MIB = 1 << 20
TINY = Build(
    name="tiny", format="gguf", architecture="llama", precision="F16", weight_bytes=10_573_632, layers=4, kv_heads=2,
    key_dim=64, value_dim=64, hidden_size=256, vocabulary=4096, context=2048, weights_source="size of the GGUF file",
)  # fmt: skip
HOST = Host(name="box", cpu="a CPU", cores=2, memory_bytes=8 * GIB, available_bytes=4 * GIB)


def build(shape) -> Build:
    layers, hidden, kv_heads, head_dim, vocabulary, context = shape
    return replace(
        TINY, layers=layers, hidden_size=hidden, kv_heads=kv_heads, key_dim=head_dim, value_dim=head_dim,
        vocabulary=vocabulary, context=context,
    )  # fmt: skip


# layers, hidden, kv heads, head size, vocabulary, trained context; requests, context; printed by xllamacpp
# 2026.10.11549 for models of random weights: KV buffer and compute buffer in MiB. Feed-forward width: 3 to 4 x hidden.
PRINTED = [
    ((4, 256, 2, 64, 4096, 2048), 1, 100, 0.50, 1.42),
    ((4, 256, 2, 64, 4096, 2048), 1, 2048, 4.00, 9.02),
    ((4, 256, 2, 64, 4096, 2048), 2, 1024, 4.00, 8.02),
    ((4, 256, 2, 64, 4096, 2048), 3, 300, 3.00, 7.53),
    ((4, 256, 2, 64, 4096, 2048), 8, 512, 8.00, 7.52),
    ((6, 512, 4, 64, 32000, 131072), 1, 4096, 24.00, 18.02),
    ((6, 512, 4, 64, 32000, 131072), 4, 8192, 192.00, 22.02),
    ((6, 512, 4, 64, 32000, 131072), 8, 512, 24.00, 14.52),
    ((6, 512, 4, 64, 32000, 131072), 1, 65536, 384.00, 78.02),
    ((3, 256, 1, 128, 512, 8192), 2, 4096, 12.00, 11.02),
    ((2, 1024, 8, 128, 1024, 4096), 4, 1024, 32.00, 35.02),
]


@pytest.mark.parametrize(("shape", "parallel", "context", "kv_mib", "compute_mib"), PRINTED)
def test_kv_cache_equals_and_compute_buffer_bounds_what_the_engine_printed(
    shape, parallel, context, kv_mib, compute_mib
):
    plan = fit(build(shape), HOST, context=context, parallel=parallel, threads=1)
    assert isinstance(plan, Plan)
    assert plan.kv_bytes == kv_mib * MIB
    assert plan.compute_bytes / MIB >= compute_mib - 0.03  # the engine adds some index tensors


# Compute buffers of releases that kept logits for every token, from public start-up logs: vocabulary, hidden, step, MiB
LOGGED = [(128256, 8192, 512, 266.5), (151936, 2048, 512, 300.75), (201088, 2880, 1024, 796.75)]


@pytest.mark.parametrize(("vocabulary", "hidden", "ubatch", "mib"), LOGGED)
def test_compute_buffer_of_earlier_releases(vocabulary, hidden, ubatch, mib):
    assert mib * MIB <= compute_bytes(vocabulary, hidden, 0, ubatch) <= 1.025 * mib * MIB


# Public figures: bytes a token in f16
KNOWN = [
    ("Llama-3.1-8B", (32, 4096, 8, 128, 128256, 131072), 131_072),
    ("Llama-3.3-70B", (80, 8192, 8, 128, 128256, 131072), 327_680),
    ("Qwen3-30B-A3B", (48, 2048, 4, 128, 151936, 40960), 98_304),
]


@pytest.mark.parametrize(("_name", "shape", "per_token"), KNOWN)
def test_kv_bytes_per_token_of_known_models(_name, shape, per_token):
    assert kv_bytes_per_token(build(shape)) == per_token


def test_a_plan_expands_every_number_into_its_arithmetic():
    plan = fit(TINY, HOST, context=1000, parallel=2, threads=1)
    assert plan == Plan(
        build="tiny",
        host="box",
        context=1000,
        parallel=2,
        threads=1,
        weight_bytes=10_573_632,
        kv_bytes_per_token=2048,
        kv_bytes=2048 * 1024 * 2,
        compute_bytes=(4096 + 256) * 512 * 4 + 1024 * 512 * 2,
        available_bytes=3 * GIB,
        requests_that_fit=(3 * GIB - 10_573_632 - 9_961_472) // (2048 * 1024),
        steps=(
            "Weights: 10.08 MiB, size of the GGUF file",
            (
                "KV cache: 4 layers x 2 heads x (64 K + 64 V values) x 2 bytes = 2,048 bytes a token, at most: "
                "its layers are not known"
            ),
            "KV cache: 2.00 MiB x 2 requests = 4.00 MiB",
            (
                "Compute buffer: at most (4,096 vocabulary + 256 hidden) x 512 tokens x 4 bytes + "
                "mask 1,024 x 512 x 2 bytes = 9.50 MiB"
            ),
            "Total: 23.58 MiB",
            ("May be used: 4.00 GiB available of 8.00 GiB RAM - 1.00 GiB reserve = 3.00 GiB"),
            "Requests that fit: (may be used - weights - compute) / 2.00 MiB = 1,526, with 1,000 tokens each",
            "Threads: 1 of 2 physical cores",
        ),
    )
    assert not any("GB" in step for step in plan.steps)


def test_gpus_are_named_as_unused():
    gpu = Gpu(name="NVIDIA L4", memory_bytes=24 * GIB, free_bytes=23 * GIB)
    plan = fit(TINY, replace(HOST, gpus=(gpu,)), context=512, parallel=1, threads=1)
    assert "1 x NVIDIA L4 not used" in plan.steps[-1]
    assert plan.available_bytes == 3 * GIB


LARGE = replace(TINY, weight_bytes=2 * GIB, layers=32, kv_heads=8, key_dim=128, value_dim=128, context=131072)


@pytest.mark.parametrize(
    ("candidate", "wanted", "reason", "hint"),
    [
        (TINY, (2049, 1), "the model was trained for 2,048", "a context of at most 2,048"),
        (replace(TINY, format="safetensors"), (512, 1), "GGUF only", "use a GGUF build"),
        (TINY, (0, 1), "at least 1", ""),
        (TINY, (512, 0), "at least 1", ""),
        (LARGE, (4096, 4), "4.01 GiB, but", "parallel 1 at this context, or a context of 1,792 for 4 at once"),
        (LARGE, (131072, 1), "18.13 GiB, but", "a context of 7,936 for 1 at once"),
        (replace(TINY, weight_bytes=4 * GIB), (512, 1), "4.01 GiB, but", "smaller or more quantised build"),
    ],
)
def test_refusals_say_why_and_what_would_fit(candidate, wanted, reason, hint):
    context, parallel = wanted
    refusal = fit(candidate, HOST, context=context, parallel=parallel, threads=1)
    assert isinstance(refusal, Refusal)
    assert reason in refusal.reason
    assert hint in refusal.hint


builds = st.builds(
    replace,
    st.just(LARGE),
    weight_bytes=st.integers(MIB, 4 * GIB),
    layers=st.integers(1, 128),
    kv_heads=st.integers(1, 32),
    vocabulary=st.integers(100, 300_000),
    hidden_size=st.integers(64, 16_384),
)
hosts = st.builds(replace, st.just(HOST), available_bytes=st.integers(0, 64 * GIB))
contexts, counts = st.integers(1, 131072), st.integers(1, 64)


def requests_that_fit(*args, **wanted) -> int:
    answer = fit(*args, **wanted, threads=1)
    return answer.requests_that_fit if isinstance(answer, Plan) else 0


@settings(derandomize=True)
@given(builds, hosts, contexts, contexts, counts)
def test_more_context_never_fits_better(candidate, host, one, other, parallel):
    shorter, longer = sorted((one, other))
    assert requests_that_fit(candidate, host, context=shorter, parallel=parallel) >= requests_that_fit(
        candidate, host, context=longer, parallel=parallel
    )


@settings(derandomize=True)
@given(builds, hosts, contexts, counts)
def test_what_is_planned_fits_and_more_memory_keeps_it_so(candidate, host, context, parallel):
    plan = fit(candidate, host, context=context, parallel=parallel, threads=1)
    if isinstance(plan, Plan):
        assert plan.total_bytes <= plan.available_bytes < host.available_bytes
        assert plan.requests_that_fit >= parallel
        larger = replace(host, available_bytes=host.available_bytes + GIB)
        assert isinstance(fit(candidate, larger, context=context, parallel=parallel, threads=1), Plan)


@settings(derandomize=True)
@given(builds, hosts, contexts, counts)
def test_what_a_refusal_recommends_fits(candidate, host, context, parallel):
    refusal = fit(candidate, host, context=context, parallel=parallel, threads=1)
    if isinstance(refusal, Refusal) and "these fit" in refusal.hint:
        for way in refusal.hint.removeprefix("these fit: ").split(", or "):
            words = way.replace(",", "").split()
            fewer, shorter = (int(words[1]), context) if words[0] == "parallel" else (parallel, int(words[3]))
            assert isinstance(fit(candidate, host, context=shorter, parallel=fewer, threads=1), Plan)


@pytest.mark.parametrize(
    ("count", "shown"),
    [(0, "0.00 MiB"), (MIB, "1.00 MiB"), (10**9, "953.67 MiB")],
)
def test_sizes_are_shown_in_powers_of_two(count, shown):
    assert size(count) == shown


def test_layers_go_to_the_cards_while_these_hold_them():
    """Two requests of 1,000 tokens: 1,024 cells each. Four layers of 256 MiB and 2 KiB a token; by hand."""
    weights, kept = GIB, 2 * 1024 * 4 * 2 * 128 * 2
    layer = (weights + kept) / 4
    group = Attention(kind="full", layers=4, heads=4, kv_heads=2, head_dim=64)
    model = Model(
        id="", name="", repo="", family="", publisher="", publisher_country="", architecture="", layers=4,
        hidden_size=256, vocab_size=8192, attention=(group,), context=Context(native=4096),
        parameters=Parameters(method="none"), licence=LicenceOf(id=""),
    )  # fmt: skip
    compute = (8192 + 256) * 512 * 4 + 1024 * 512 * 2
    asked = {"context": 1000, "users": 2, "ram_bytes": GIB}
    none = offload(model, weights, **asked)
    assert none == Offload(0, weights + kept + compute - GIB, compute, GIB)
    card = int((layer + compute) / 0.95) + 1
    one = offload(model, weights, **asked, card_bytes=card, cards=1)
    assert one == Offload(1, round(3 * layer) + compute - GIB, 2 * compute, GIB + int(0.95 * card))
    assert offload(model, weights, **asked, card_bytes=card - 2, cards=1) == none
    assert offload(model, weights, **asked, card_bytes=card, cards=3).gpu_layers == 3
    assert offload(model, weights, **asked, card_bytes=card, cards=9).gpu_layers == 4
    sliding = replace(model, attention=(replace(group, kind="sliding", window=100),))
    each = kv_buffers(sliding.attention, 1000)
    assert offload(sliding, weights, **asked).lack_bytes == weights + 2 * each + compute - GIB, "windows of their own"


# gemma2 and gemma3 of random weights, window 256, 2 heads of 64: layers that keep all and that slide, context of all,
# sequences; MiB of all KV buffers as the pinned release printed them
WINDOWED = [((3, 3), 4096, 1, 6.00 + 1.125), ((1, 5), 4096, 1, 2.00 + 1.875), ((3, 3), 8192, 2, 12.00 + 2.25)]


@pytest.mark.parametrize(("layers", "context", "sequences", "mib"), WINDOWED)
def test_layers_with_a_window_keep_it_and_one_step(layers, context, sequences, mib):
    whole = Attention(kind="full", layers=layers[0], heads=4, kv_heads=2, head_dim=64)
    sliding = Attention(kind="sliding", layers=layers[1], heads=4, kv_heads=2, head_dim=64, window=256)
    assert kv_buffers((whole, sliding), context, sequences=sequences, unified=False) == mib * MIB
