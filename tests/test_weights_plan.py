"""Bytes of weights: every scheme by hand for a tiny model, and what must hold for all models."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from freehold import catalogue
from freehold.facts import Attention, Card, Context, LicenceOf, Model, Moe, Mtp, Parameters
from freehold.plan.params import count
from freehold.plan.speed import active_bytes, decode_ceiling
from freehold.plan.weights import SCHEMES, Split, checkpoint_bytes, held_bytes, weigh

EVERYTHING = catalogue.load()
COUNTED = [model for model in EVERYTHING.models if model.ready and count(model)]
FULL = Attention(kind="full", layers=2, heads=8, kv_heads=4, head_dim=64, qk_norm="per_head_dim")
TINY = Model(
    id="tiny", name="Tiny", repo="", family="none", publisher="", publisher_country="", architecture="",
    layers=2, hidden_size=512, intermediate_size=1024, dense_layers=2, vocab_size=1024, attention=(FULL,),
    context=Context(native=4096), parameters=Parameters(method="formula"), licence=LicenceOf(id="apache-2.0"),
)  # fmt: skip
LATENT = Attention(
    kind="mla", layers=2, heads=8, q_lora_rank=128, kv_lora_rank=64, qk_nope_head_dim=32, qk_rope_head_dim=16,
    v_head_dim=32,
)  # fmt: skip
ATTENTION = 2 * (512 * 512 + 2 * 512 * 256 + 512 * 512)  # queries, keys and values, output
KV = 2 * 2 * 512 * 256
DENSE = 2 * 3 * 512 * 1024
NORMS = 2 * 2 * 64 + 512 + 2 * 2 * 512  # of queries and keys, the last one, two in each layer
TABLE = 1024 * 512
ROTARY = 64 * 4096 * 2
MOE = Moe(layers=2, experts=16, experts_per_token=2, intermediate_size=256)
EXPERTS, ROUTER = 2 * 16 * 3 * 512 * 256, 2 * 16 * 512


def held(model: Model, scheme: str, *split, **more) -> int:
    return held_bytes(count(model), scheme, model, *split, **more)


@pytest.mark.parametrize(
    ("scheme", "bytes_a_parameter"),
    [
        ("bf16", 2),
        ("fp16", 2),
        ("fp8", 1),
        ("fp8-block", 1 + 4 / 128**2),
        ("int8", 1),
        ("int4-awq", 0.5 + 20 / 8 / 128),
        ("int4-gptq", 0.5 + 2 / 128),
        ("int4-g32", 0.5 + 2 / 32),
        ("nvfp4", 0.5 + 1 / 16),
        ("mxfp4", 0.5 + 1 / 32),
    ],
)
def test_quantized_layers_and_what_stays(scheme, bytes_a_parameter):
    quantized = (ATTENTION + DENSE) * bytes_a_parameter
    assert held(TINY, scheme) == round(quantized + 2 * (2 * TABLE + NORMS) + ROTARY)


def test_float32_is_float32_throughout():
    assert held(TINY, "fp32") == 4 * (ATTENTION + DENSE + 2 * TABLE + NORMS) + ROTARY


@pytest.mark.parametrize(
    ("scheme", "bits", "better", "head"),
    [
        ("gguf-f16", 16, 16, 16),
        ("gguf-q8_0", 8.5, 8.5, 8.5),
        ("gguf-q6_k", 6.5625, 6.5625, 6.5625),
        ("gguf-q5_k_m", 5.5, 6.5625, 6.5625),
        ("gguf-q4_k_m", 4.5, 6.5625, 6.5625),
        ("gguf-q3_k_m", 3.4375, 5.5, 6.5625),
    ],
)
def test_gguf_mixtures(scheme, bits, better, head):
    """A sixth of feed-forward and a twentieth of attention in the better type; norms in float32; no engine's tables."""
    attention, dense = (bits + (better - bits) / share for share in (20, 6))
    quantized = ATTENTION * attention + DENSE * dense + TABLE * (bits + head)
    assert held(TINY, scheme, tables=False) == round(quantized / 8 + 4 * NORMS)


@pytest.mark.parametrize(
    ("scheme", "expert", "other"),
    [
        ("int4-experts", 0.5 + 2 / 32, 2),
        ("mxfp4-experts", 0.5 + 1 / 32, 2),
        ("nvfp4-experts", 0.5 + 1 / 16, 2),
        ("fp4-experts", 0.5 + 1 / 32, 1 + 4 / 128**2),
    ],
)
def test_experts_alone_are_quantized(scheme, expert, other):
    model = replace(TINY, moe=MOE, dense_layers=0)
    rest = 2 * (2 * TABLE + NORMS + ROUTER) + ROTARY
    assert held(model, scheme) == round(EXPERTS * expert + ATTENTION * other + rest)


def test_cards_share_matrices_but_not_norms():
    each = 2 * ((ATTENTION + DENSE + 2 * TABLE) / 4 + NORMS) + ROTARY
    assert held(TINY, "bf16", Split(tp=4)) == each
    few = replace(TINY, attention=(replace(FULL, kv_heads=1),))  # one head of keys and values, on every card
    kv = KV // 4
    assert held(few, "bf16", Split(tp=4)) == 2 * ((ATTENTION - KV + DENSE + 2 * TABLE) / 4 + kv + NORMS) + ROTARY


def test_a_pipeline_shares_layers_and_the_fullest_has_one_end():
    layers = ATTENTION + DENSE + NORMS  # the last norm is counted like the others
    assert held(TINY, "bf16", Split(pp=2)) == pytest.approx(2 * (layers / 2 + TABLE) + ROTARY, abs=2)


def test_experts_can_be_shared_without_the_rest():
    model = replace(TINY, moe=MOE, dense_layers=0)
    assert held(model, "bf16", Split(ep=8)) == 2 * (EXPERTS // 8 + ATTENTION + 2 * TABLE + NORMS + ROUTER) + ROTARY


def test_mxfp4_widths_are_padded():
    """gpt-oss: 2880 to 3072 and to 2880 on one card; on four a width of 720 becomes 768."""
    model = catalogue.model(EVERYTHING, "gpt-oss-20b")
    counts, scheme = count(model), SCHEMES["mxfp4-experts"]
    grown = [
        weigh(counts, scheme, model, Split(tp=tp)).experts.bytes * tp / (counts.experts.matrices * 17 / 32)
        for tp in (1, 4)
    ]
    whole = weigh(counts, scheme, model, Split(ep=4)).experts.bytes * 4 / (counts.experts.matrices * 17 / 32)
    assert whole == pytest.approx(3072 / 2880), "experts that are shared keep their width"
    assert grown == pytest.approx([3072 / 2880, 3072 / 2880 * 768 / 720])


def test_mla_keeps_copies_of_what_works_on_latents():
    model = replace(TINY, attention=(LATENT,))
    copies, rotary = 2 * 64 * 8 * (32 + 32), 16 * 4096 * 2
    assert weigh(count(model), SCHEMES["bf16"], model).tables.bytes == 2 * copies + rotary
    assert weigh(count(model), SCHEMES["bf16"], model, Split(tp=2)).tables.bytes == copies + rotary
    assert weigh(count(model), SCHEMES["bf16"], model, tables=False).tables.bytes == 0
    down = 2 * (512 * (64 + 16) + 512 * 128)  # the projections to the latents are on every card whole
    whole = weigh(count(model), SCHEMES["bf16"], model).attention.bytes
    assert weigh(count(model), SCHEMES["bf16"], model, Split(tp=8)).attention.bytes == (whole - 2 * down) / 8 + 2 * down
    assert weigh(count(model), SCHEMES["nvfp4"], model).attention.bytes == whole, "publishers spare latent attention"


def test_the_layers_that_predict_further_are_loaded_only_to_speculate():
    model = replace(TINY, mtp=Mtp(layers=1, style="qwen3_5", ffn="dense"))
    counts = count(model)
    assert counts.mtp == ATTENTION // 2 + DENSE // 2 + 2 * 64 + 2 * 512 + 2 * 512**2 + 3 * 512
    assert held(model, "bf16") == held(TINY, "bf16")
    assert held(model, "bf16", mtp=True) == held(TINY, "bf16") + 2 * counts.mtp
    assert checkpoint_bytes(counts, "bf16", model) == held(model, "bf16", mtp=True) - ROTARY


def test_the_vocabulary_is_padded_for_every_card():
    odd = replace(TINY, vocab_size=1000)
    for tp, rows in ((1, 1024), (2, 1024), (4, 1024), (8, 1024)):
        assert weigh(count(odd), SCHEMES["bf16"], odd, Split(tp=tp)).embedding.bytes == pytest.approx(
            rows * 512 * 2 / tp
        )
    assert weigh(count(odd), SCHEMES["bf16"], replace(odd, vocab_size=1025)).embedding.bytes > 1024 * 512 * 2


def test_tied_embeddings_have_no_head():
    tied = replace(TINY, tied_embeddings=True)
    assert held(tied, "bf16") == held(TINY, "bf16") - 2 * TABLE
    head = held(TINY, "gguf-q4_k_m") - TABLE * 4.5 / 8  # what is both is kept as the head is
    assert held(tied, "gguf-q4_k_m") == pytest.approx(head, abs=1)


# Sizes of published GGUF files in GB; token embeddings are a third of the smallest
@pytest.mark.parametrize(
    ("name", "file_gb"),
    [("llama-3.2-1b", 0.81), ("llama-3.2-3b", 2.02), ("qwen3-4b", 2.50)],
)
def test_small_models_in_four_bits(name, file_gb):
    model = catalogue.model(EVERYTHING, name)
    assert held(model, "gguf-q4_k_m", tables=False) == pytest.approx(file_gb * 1e9, rel=0.013)


def test_a_token_reads_what_is_active_and_waits_for_what_comes_after():
    card = Card(id="X", vendor="NVIDIA", memory_gb=1, memory_bytes=1, memory_source="", bandwidth_gb_s=1000.0)
    assert decode_ceiling(2e9, card) == 500
    assert decode_ceiling(2e9, card, tp=4) == 2000
    model = replace(TINY, moe=MOE, dense_layers=0)
    counts, chosen = count(model), EXPERTS / 16 * 2
    assert active_bytes(model, counts, SCHEMES["bf16"]) == 2 * (ATTENTION + chosen + TABLE)
    assert active_bytes(model, counts, SCHEMES["bf16"], ep=8) == 2 * (ATTENTION + chosen / 2 + TABLE), "both at once"
    assert active_bytes(TINY, count(TINY), SCHEMES["nvfp4"]) == (ATTENTION + DENSE) * 9 / 16 + 2 * TABLE
    tied = replace(TINY, tied_embeddings=True)
    assert active_bytes(tied, count(tied), SCHEMES["fp8"]) == ATTENTION + DENSE + 2 * TABLE
    latent = replace(TINY, attention=(LATENT,))
    spared = active_bytes(latent, count(latent), SCHEMES["nvfp4"]) - active_bytes(latent, count(latent), SCHEMES["fp8"])
    assert spared == count(latent).attention[0].matrices - DENSE * 7 / 16, "latent attention stays in 16 bits"


def test_files_are_taken_at_their_size():
    by_dimensions = checkpoint_bytes(count(TINY), "bf16", TINY)
    files = replace(TINY, file_bytes=by_dimensions * 11 // 10)
    assert held(files, "bf16") == pytest.approx(files.file_bytes + ROTARY, abs=1)
    assert held(files, "fp8") == held(TINY, "fp8"), "what is made from them is counted"
    gguf = replace(TINY, file_bytes=123_456, checkpoint="gguf-q4_k_m")
    assert held(gguf, "gguf-q4_k_m") == 123_456


# -- what must hold for all --------------------------------------------------------------------------------------------

models = st.sampled_from(COUNTED)
schemes = st.sampled_from(sorted(SCHEMES))


@given(models, schemes, st.sampled_from([1, 2, 4]))
def test_more_cards_never_put_more_on_one(model, scheme, tp):
    assert held(model, scheme, Split(tp=2 * tp)) <= held(model, scheme, Split(tp=tp))
    assert held(model, scheme, Split(tp=8, pp=2)) <= held(model, scheme, Split(tp=8))


@given(models, st.sampled_from([1, 2, 8]))
def test_a_coarser_precision_is_never_larger(model, tp):
    """Of the schemes that leave the same parts alone."""
    rows = [
        ("fp32", "bf16", "fp8-block", "fp8"),
        ("bf16", "int8"),
        ("bf16", "int4-g32", "int4-awq", "int4-gptq"),  # of models with linear layers not the attention
        ("bf16", "nvfp4-experts"),
        ("gguf-f16", "gguf-q8_0", "gguf-q6_k", "gguf-q5_k_m", "gguf-q4_k_m", "gguf-iq4_xs", "gguf-q3_k_m", "gguf-q2_k"),
    ]
    for row in rows:
        sizes = [held(model, scheme, Split(tp=tp)) for scheme in row]
        assert sizes == sorted(sizes, reverse=True), row


@given(models, schemes)
def test_the_parts_are_positive_and_add_up(model, scheme):
    found = weigh(count(model), SCHEMES[scheme], model, mtp=True)
    assert min(part.bytes for part in found) >= 0
    assert found.total == pytest.approx(sum(part.parameters * part.rate for part in found))


@given(models)
def test_no_precision_is_below_its_bits(model):
    counts = count(model)
    for scheme, bits in (("bf16", 16), ("fp8", 8), ("int4-awq", 4), ("nvfp4", 4), ("gguf-q4_k_m", 4), ("gguf-q2_k", 2)):
        assert held(model, scheme) >= counts.text * bits / 8


def test_files_are_not_padded():
    model = catalogue.model(catalogue.load(), "gpt-oss-20b")
    counts = count(model)
    files = checkpoint_bytes(counts, "mxfp4-experts", model)
    assert files < held_bytes(counts, "mxfp4-experts", model) * 0.96
    experts = counts.experts.matrices
    assert files == pytest.approx(experts * 4.25 / 8 + (counts.total - experts) * 2, rel=1e-3)
