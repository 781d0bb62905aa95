"""Memory under vLLM: the figures that real engines printed, and what must hold for every model and card."""

from __future__ import annotations

from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from freehold import catalogue
from freehold.facts import Attention, Card, Indexer, Moe
from freehold.plan import kv, vllm
from freehold.plan.params import count
from freehold.plan.units import GIB
from freehold.plan.weights import NOT_SPLIT, Split, held_bytes

EVERYTHING = catalogue.load()
COUNTED = [model for model in EVERYTHING.models if model.ready and count(model)]
CARDS = {card.id: card for card in EVERYTHING.cards}
H100, B200, GB10 = 8192, 8192, 2048  # tokens that vLLM computes in one step there


class Log(NamedTuple):
    """What one start of vLLM printed: bench/data/memory_cases.csv has where."""

    model: str
    version: tuple[int, int, int]
    tp: int
    step_tokens: int
    pool_gib: float
    kv_tokens: int
    length: int
    requests: float
    asked: tuple[tuple[str, object], ...] = ()


LOGS = {
    "V164 dense, grouped queries": Log("llama-3.1-8b", (0, 19, 0), 1, H100, 58.11, 476_000, 8192, 58.11),
    "V163 FP8 cache": Log("llama-3.1-8b", (0, 19, 0), 1, H100, 58.11, 952_032, 8192, 116.21, (("kv_dtype", "fp8"),)),
    "V167 float32": Log("llama-3.1-8b", (0, 19, 0), 1, H100, 42.8, 175_296, 8192, 21.4, (("kv_dtype", "fp32"),)),
    "V172 two cards": Log("llama-3.1-8b", (0, 19, 0), 2, H100, 63.76, 1_044_688, 8192, 127.53),
    "V168 short requests": Log("llama-3.1-8b", (0, 19, 0), 1, H100, 58.11, 476_016, 2048, 232.43),
    "V185 sliding windows": Log("gpt-oss-20b", (0, 19, 0), 1, H100, 58.47, 1_277_184, 8192, 155.75),
    "V187 sliding windows, two cards": Log("gpt-oss-20b", (0, 19, 0), 2, H100, 59.32, 2_591_776, 8192, 316.07),
    "V143 linear attention, four cards": Log("qwen3.5-27b", (0, 19, 0), 4, 2048, 7.47, 122_304, 32_768, 13.87),
    "V217 linear attention": Log("qwen3.5-9b", (0, 18, 0), 1, 2048, 15.85, 129_360, 8192, 51.74),
    "V100 two sizes of heads": Log("gemma-4-31b", (0, 22, 1), 1, GB10, 22.64, 62_221, 8192, 7.6),
    "V118 NVFP4 cache": Log(
        "gemma-4-12b", vllm.VERSION, 1, 4096, 41.25, 709_924, 8192, 86.66, (("kv_dtype", "nvfp4"),)
    ),
    "V023 one latent for all heads": Log(
        "deepseek-r1-0528", (0, 19, 1), 4, B200, 62.24, 1_901_888, 163_840, 11.61, (("kv_dtype", "fp8"),)
    ),
    "V025 the latent is not split": Log(
        "deepseek-r1-0528", (0, 19, 1), 8, B200, 108.18, 3_305_920, 163_840, 20.18, (("kv_dtype", "fp8"),)
    ),
    "V051 a draft layer, large blocks": Log(
        "minimax-m2.5", (0, 21, 0), 8, 8192, 191.72, 12_762_144, 196_608, 64.91,
        (("kv_dtype", "fp8"), ("speculative", 3), ("draft_layers", 1), ("block_tokens", 32)),
    ),
}  # fmt: skip


@pytest.mark.parametrize("log", LOGS.values(), ids=LOGS)
def test_tokens_and_requests_are_those_that_vllm_printed(log):
    """The pool is printed to 0.01 GiB and the requests to 0.01: more than half of either, and 0.02 %, is an error."""
    settings = vllm.Settings(version=log.version, **dict(log.asked))
    layout = vllm.layout(catalogue.model(EVERYTHING, log.model).attention, settings, Split(log.tp))
    requests = layout.requests(log.pool_gib * GIB, log.length, log.step_tokens)
    due = 0.005 / log.pool_gib + 2e-4
    assert requests == pytest.approx(log.requests, abs=0.005 + due * log.requests)
    tokens = layout.blocks(log.pool_gib * GIB) // sum(n for _, n, _ in layout.groups) * layout.block_tokens
    if log.version > (0, 20, 0):
        tokens = requests * log.length
    assert tokens == pytest.approx(log.kv_tokens, rel=due)


LOADED = [  # case, model, precision, (tp, pp, ep), GiB that one card loaded
    ("V164", "llama-3.1-8b", "bf16", (1, 1, 1), 14.99),
    ("V165", "llama-3.1-8b", "fp8", (1, 1, 1), 8.49),
    ("V167", "llama-3.1-8b", "fp32", (1, 1, 1), 29.98),
    ("V172", "llama-3.1-8b", "bf16", (2, 1, 1), 7.51),
    ("V003", "llama-3.1-8b", "bf16", (1, 4, 1), 4.26),
    ("V201", "llama-3.1-8b", "int4-gptq", (1, 1, 1), 5.38),
    ("V023", "deepseek-r1-0528", "nvfp4", (4, 1, 1), 94.08),
    ("V052", "kimi-k2.7-code", "mxfp4", (4, 1, 1), 130.42),
    ("V143", "qwen3.5-27b", "bf16", (4, 1, 1), 13.01),
]


@pytest.mark.parametrize(("case", "name", "scheme", "split", "gib"), LOADED, ids=[row[0] for row in LOADED])
def test_weights_are_those_that_vllm_loaded(case, name, scheme, split, gib):
    model = catalogue.model(EVERYTHING, name)
    assert held_bytes(count(model), scheme, model, Split(*split)) / GIB == pytest.approx(gib, rel=0.012)


def test_the_pool_of_one_h100_from_scratch():
    """V164 to V172: 58.11 GiB on one card, 63.76 on each of two."""
    model, seen = catalogue.model(EVERYTHING, "llama-3.1-8b"), round(79.19 * GIB)
    card = replace(CARDS["H100-SXM"], memory_bytes=seen)
    settings = vllm.Settings(version=(0, 19, 0), utilisation=0.95)
    for tp, printed in ((1, 58.11), (2, 63.76)):
        pool = rank(model, "bf16", card, settings, Split(tp)).pool_bytes
        assert pool / GIB == pytest.approx(printed, rel=0.01)


def rank(model, scheme, card, settings, split=NOT_SPLIT):
    return vllm.rank(model, held_bytes(count(model), scheme, model, split), scheme, card, settings, split=split)


# -- what must hold for all --------------------------------------------------------------------------------------------

models = st.sampled_from(COUNTED)
two_lengths = st.tuples(st.integers(1, 1 << 20), st.integers(1, 1 << 20)).map(sorted)
two_crowds = st.tuples(st.integers(1, 4096), st.integers(1, 4096)).map(sorted)
pools = st.integers(GIB // 8, 1 << 42)
settings_ = st.builds(
    vllm.Settings,
    kv_dtype=st.sampled_from(["bf16", "fp8", "nvfp4"]),
    speculative=st.sampled_from([0, 1, 3]),
    version=st.sampled_from([(0, 8, 0), vllm.VERSION]),
    block_tokens=st.sampled_from([16, 32, 64]),
)
tps = st.sampled_from([1, 2, 4, 8])


@given(models, settings_, tps, pools, two_lengths)
def test_a_longer_context_never_needs_fewer_blocks(model, settings, tp, pool, lengths):
    layout, (short, long) = vllm.layout(model.attention, settings, Split(tp)), lengths
    assert 1 <= layout.blocks_per_request(short, 8192) <= layout.blocks_per_request(long, 8192)
    assert layout.requests(pool, short, 8192) >= layout.requests(pool, long, 8192)


@given(models, settings_, tps, pools, two_crowds)
def test_longest_is_the_longest_and_shrinks_with_users(model, settings, tp, pool, crowds):
    layout, (few, many), limit = vllm.layout(model.attention, settings, Split(tp)), crowds, 1 << 22
    longest = layout.longest(pool, few, 8192, limit)
    assert layout.longest(pool, many, 8192, limit) <= longest
    if longest:
        assert layout.requests(pool, longest, 8192) >= few
    if longest < limit:
        assert layout.blocks(pool) // layout.blocks_per_request(longest + 1, 8192) < few


@given(models, tps)
def test_a_narrower_cache_and_more_cards_never_need_more(model, tp):
    sizes = [kv.kv_bytes_per_token(model, dtype, tp) for dtype in ("fp32", "bf16", "fp8", "nvfp4")]
    assert sizes == sorted(sizes, reverse=True)
    assert kv.kv_bytes_per_token(model, "bf16", 2 * tp) <= sizes[1]
    narrow, wide = (kv.kv_bytes_per_token(model, "bf16", n, windowed=True) for n in (tp, 2 * tp))
    assert wide <= narrow


@given(models, st.sampled_from(sorted(CARDS)), st.integers(0, 1 << 36), st.sampled_from([8, 64, 256, 1024]))
def test_a_larger_card_and_fewer_sequences_leave_more_for_the_cache(model, name, more, sequences):
    """Under the same settings: vLLM's defaults allow more at once on cards from 70 GiB up."""
    card = CARDS[name]
    larger = replace(card, memory_bytes=card.memory_bytes + more)
    fixed = vllm.Settings(sequences=sequences, batched_tokens=8192)
    one, other = (rank(model, "bf16", each, fixed) for each in (card, larger))
    assert other.pool_bytes >= one.pool_bytes
    busier = replace(fixed, sequences=2 * sequences)
    assert rank(model, "bf16", card, busier).pool_bytes <= one.pool_bytes


@given(models, st.sampled_from(["fp8", "int8", "int4-awq", "nvfp4"]), tps)
def test_what_a_rank_holds_adds_up(model, scheme, tp):
    card = CARDS["H200-SXM"]
    found = rank(model, scheme, card, vllm.Settings(), Split(tp))
    parts = (found.weight_bytes, found.activation_bytes, found.other_bytes, found.graph_bytes)
    assert sum(parts) + found.pool_bytes == found.usable_bytes == int(0.92 * card.memory_bytes)
    assert min(parts) > 0


# -- by hand -----------------------------------------------------------------------------------------------------------

PLAIN = vllm.Settings()
FULL = Attention(kind="full", layers=10, heads=8, kv_heads=4, head_dim=64)
SLIDING = Attention(kind="sliding", layers=30, heads=8, kv_heads=4, head_dim=64, window=1024)
LINEAR = Attention(
    kind="gated_deltanet", layers=30, key_heads=2, value_heads=4, key_head_dim=8, value_head_dim=8, conv_kernel=4
)
LATENT = Attention(
    kind="mla", layers=4, heads=8, kv_lora_rank=512, qk_nope_head_dim=128, qk_rope_head_dim=64, v_head_dim=128
)


def test_a_cache_by_hand():
    one = vllm.layout([FULL], PLAIN)
    assert (one.block_bytes, one.blocks_per_request(100, 8192)) == (16 * 10 * 4 * 128 * 2, 7)
    assert vllm.layout([FULL], PLAIN, Split(8)).block_bytes == 16 * 10 * 1 * 128 * 2, "a head at least on every card"
    mixed = vllm.layout([SLIDING, FULL], PLAIN)  # three groups of ten sliding layers, one of ten full ones
    assert mixed.block_bytes == 16 * 10 * 4 * 128 * 2
    assert mixed.blocks_per_request(100_000, 2048) == 3 * (-(-(1023 + 2048) // 16) + 1) + 6250
    whole = vllm.layout([SLIDING, FULL], vllm.Settings(version=(0, 8, 5)))
    assert whole.blocks_per_request(1600, 2048) * whole.block_bytes == 1600 * 40 * 4 * 128 * 2
    assert vllm.layout([LATENT], PLAIN, Split(8)).block_bytes == 16 * 4 * 576 * 2
    assert vllm.layout([LATENT], PLAIN, Split(pp=2)).block_bytes == 16 * 2 * 576 * 2
    assert vllm.layout([FULL], vllm.Settings(draft_layers=1)).block_bytes == 16 * 11 * 4 * 128 * 2


def test_a_state_by_hand():
    state = (2 * 2 * 8 + 4 * 8) * 3 * 2 + 4 * 8 * 8 * 4
    assert kv.state_bytes(LINEAR) == state
    assert kv.state_bytes(LINEAR, tp=2) == state // 2
    mixed = vllm.layout([LINEAR, FULL], PLAIN)
    assert mixed.block_tokens % 16 == 0
    assert mixed.block_tokens * 4 * 128 * 2 >= state, "a page of keys and values holds a state"
    assert mixed.blocks_per_request(1, 8192) == 3 + 1
    assert mixed.blocks_per_request(mixed.block_tokens * 5, 8192) == 3 + 5


@pytest.mark.parametrize(
    ("memory_gib", "name", "step_tokens", "sequences"),
    [
        (79, "H100-SXM", 8192, 1024),
        (79, "A100-80GB-SXM", 2048, 256),
        (45, "L40S", 2048, 256),
        (120, "GB10", 2048, 256),
    ],
)
def test_defaults_depend_on_the_card(memory_gib, name, step_tokens, sequences):
    card = Card(
        id=name, vendor="NVIDIA", memory_gb=0, memory_bytes=memory_gib * GIB, memory_source="", unified=name == "GB10"
    )
    assert (vllm.Settings().step_tokens(card), vllm.Settings().at_once(card)) == (step_tokens, sequences)


@pytest.mark.parametrize(("version", "share"), [((0, 21, 9), 0.9), ((0, 22, 0), 0.92), ((0, 26, 0), 0.92)])
def test_the_share_of_a_card_depends_on_the_version(version, share):
    assert vllm.Settings(version=version).share() == share
    assert vllm.Settings(version=version, utilisation=0.5).share() == 0.5


def graph_bytes(asked, card, tp):
    sizes, each = vllm.graphs(asked, card, tp)
    return round(sizes * each * GIB)


@pytest.mark.parametrize(
    ("sequences", "sizes"), [(1, 2), (8, 5), (64, 19), (124, 34), (130, 35), (256, 51), (1024, 51)]
)
def test_graphs_are_captured_for_so_many_batch_sizes(sequences, sizes):
    """1, 2, 4, then every 8 below 256, then every 16 up to 512; at most twice the sequences."""
    asked, card = vllm.Settings(sequences=sequences), CARDS["H100-SXM"]
    assert graph_bytes(asked, card, tp=1) == round(0.8 * GIB * sizes / 51)
    assert graph_bytes(asked, card, tp=2) == round(1.2 * GIB * sizes / 51)
    assert graph_bytes(asked, CARDS["MI300X"], tp=2) == round(0.14 * GIB * sizes)
    for off in (replace(asked, eager=True), replace(asked, version=(0, 20, 9))):
        assert graph_bytes(off, card, tp=1) == 0


@pytest.mark.parametrize(("tp", "ep", "width"), [(1, 1, 256), (4, 1, 64), (1, 8, 256)])
def test_activations_by_hand(tp, ep, width):
    moe = Moe(layers=2, experts=16, experts_per_token=2, intermediate_size=256)
    model = replace(
        catalogue.model(EVERYTHING, "llama-3.1-8b"), hidden_size=384, intermediate_size=1024, vocab_size=1000, moe=moe
    )
    few, card = vllm.Settings(sequences=8), CARDS["H100-SXM"]
    many = replace(few, sequences=4096)
    prefill, sampler = 2 * 8192 * (2 * 1024 / tp + 2.5 * 384), 15 * 4096 * 1000 + 2 * 384 * 8192
    fused = 2 * 8192 * 2 * (max(2 * width, 384) + width)
    split = Split(tp, ep=ep)
    assert vllm.activation(model, "bf16", few, card, split).peak == prefill + fused
    assert vllm.activation(model, "bf16", many, card, split).peak == max(prefill, sampler) + fused
    assert vllm.activation(model, "nvfp4", few, card, split).peak == prefill
    assert vllm.activation(model, "nvfp4", few, CARDS["MI300X"], split).peak == prefill + fused
    before = replace(many, version=(0, 16, 9))
    assert vllm.activation(replace(model, moe=None), "bf16", before, card).peak == 38.5 * 4096 * 1000 + 2 * 384 * 8192


def test_a_latent_read_sparsely_takes_656_bytes_in_fp8_beside_its_indexer():
    group = Attention(
        kind="mla_dsa", layers=61, heads=128, kv_lora_rank=512, qk_rope_head_dim=64, qk_nope_head_dim=128,
        v_head_dim=128, indexer=Indexer(heads=64, dim=128),
    )  # fmt: skip
    assert kv.bytes_per_token(group, "fp8") == 656 + 132
    assert kv.bytes_per_token(group, "bf16") == 1152 + 132
