"""Bytes of weights, from dimensions: of a whole checkpoint, and of what one rank holds once they are split over cards.

Scales and zero points are counted, and so is what a quantizer leaves alone: embeddings, the head, norms, routers,
encoders, and the attention that publishers spare (hf_quant_config.json of 36 NVIDIA checkpoints of 2025 and 2026).
Sizes of GGUF mixtures follow llama.cpp's llama-quant.cpp: half of the value and down projections get the better type.
Against public start-up logs the median error is 0.2 % (bench/accuracy.py).
"""

from __future__ import annotations

from typing import NamedTuple

from msgspec import Struct

from freehold.facts import Model
from freehold.plan.kv import LINEAR
from freehold.plan.params import Counts, Part


def _rate(bits: float, group: int = 0, scale_bits: int = 0) -> float:
    """Bytes a parameter takes when each `group` of them shares one scale."""
    return bits / 8 + (scale_bits / 8 / group if group else 0)


class Scheme(Struct, frozen=True, kw_only=True):
    """Bytes a parameter takes, by what it belongs to."""

    name: str  # as people say it
    attention: float = 2.0
    latent: float | None = None  # attention with compressed latents (MLA); None: as attention
    hybrid: float | None = None  # attention of models with linear layers; None: as attention
    dense: float = 2.0  # and shared experts
    experts: float = 2.0
    head: float = 2.0
    embedding: float = 2.0
    rest: float = 2.0  # norms, biases, routers, convolutions
    needs: float = 0.0  # least compute capability


def _linear(name: str, rate: float, experts: float | None = None, **others: float) -> Scheme:
    return Scheme(name=name, attention=rate, dense=rate, experts=rate if experts is None else experts, **others)


def _gguf(name: str, base: float, better: float, head: float, embedding: float | None = None) -> Scheme:
    """`better` is the bits of half of the down and value projections."""
    mixed = base + (better - base) / 6  # a third of a feed-forward block is its down projection, half of them better
    return Scheme(
        name=name,
        attention=(base + (better - base) / 20) / 8,  # values are about a tenth of attention
        dense=mixed / 8,
        experts=mixed / 8,
        head=head / 8,
        embedding=(embedding or base) / 8,
        rest=4.0,
    )


SCHEMES = {
    "bf16": _linear("BF16", 2.0),
    "fp16": _linear("FP16", 2.0),
    "fp32": _linear("FP32", 4.0, head=4.0, embedding=4.0, rest=4.0),
    "fp8": _linear("FP8 per channel", 1.0, needs=8.0),
    "fp8-block": _linear("FP8 in blocks of 128 x 128", _rate(8, 128 * 128, 32), needs=8.0),
    "int8": _linear("INT8 (W8A8)", 1.0, needs=7.5),
    "int4-awq": _linear("INT4 AWQ, groups of 128", _rate(4, 128, 16 + 4), hybrid=2.0, needs=7.5),
    "int4-gptq": _linear("INT4 GPTQ, groups of 128", _rate(4, 128, 16), hybrid=2.0, needs=7.5),
    "int4-g32": _linear("INT4, groups of 32", _rate(4, 32, 16), hybrid=2.0, needs=7.5),
    "nvfp4": _linear("NVFP4", _rate(4, 16, 8), latent=2.0, hybrid=1.0, needs=10.0),
    "mxfp4": _linear("MXFP4", _rate(4, 32, 8), latent=1.15, hybrid=1.0, needs=9.0),  # of MLA the output projection only
    "int4-experts": _linear("INT4 experts, groups of 32", 2.0, _rate(4, 32, 16), needs=7.5),
    "mxfp4-experts": _linear("MXFP4 experts", 2.0, _rate(4, 32, 8), needs=8.0),
    "fp4-experts": _linear("FP4 experts, FP8 elsewhere", _rate(8, 128 * 128, 32), _rate(4, 32, 8), needs=9.0),
    "nvfp4-experts": _linear("NVFP4 experts", 2.0, _rate(4, 16, 8), needs=10.0),
    "gguf-f16": _gguf("GGUF F16", 16, 16, 16),
    "gguf-q8_0": _gguf("GGUF Q8_0", 8.5, 8.5, 8.5),
    "gguf-q6_k": _gguf("GGUF Q6_K", 6.5625, 6.5625, 6.5625),
    "gguf-q5_k_m": _gguf("GGUF Q5_K_M", 5.5, 6.5625, 6.5625),
    "gguf-q4_k_m": _gguf("GGUF Q4_K_M", 4.5, 6.5625, 6.5625),
    "gguf-iq4_xs": _gguf("GGUF IQ4_XS", 4.25, 5.5, 6.5625),
    "gguf-q3_k_m": _gguf("GGUF Q3_K_M", 3.4375, 5.5, 6.5625),
    "gguf-q2_k": _gguf("GGUF Q2_K", 2.625, 3.4375, 6.5625),
}
_SPLIT_ENCODERS = ("qwen", "glm", "internvl")  # families whose vision tower vLLM splits; others are on every rank whole
VOCABULARY_STEP = 64  # vLLM pads the vocabulary to a multiple of this for each rank


class Split(NamedTuple):
    """Over how many cards a model is split."""

    tp: int = 1  # that share every layer
    pp: int = 1  # that share the layers
    ep: int = 1  # that share the experts and have each their own requests; 1: experts are split like every layer

    @property
    def cards(self) -> int:
        return self.tp * self.pp * self.ep


NOT_SPLIT = Split()


class Held(NamedTuple):
    """Parameters of one rank, and the bytes that each takes."""

    parameters: float
    rate: float

    @property
    def bytes(self) -> int:
        return round(self.parameters * self.rate)


class Weights(NamedTuple):
    """What one rank loads, by what it belongs to."""

    embedding: Held
    head: Held
    attention: Held
    dense: Held  # and shared experts
    experts: Held
    rest: Held  # norms, biases, routers, convolutions
    extra: Held
    encoders: Held
    tables: Held  # of rotary positions, and the copies that MLA keeps to work on latents
    mtp: Held

    @property
    def total(self) -> int:
        return sum([round(parameters * rate) for parameters, rate in self])


def weigh(
    counts: Counts, scheme: Scheme, model: Model, split: Split = NOT_SPLIT, *, mtp: bool = False, tables: bool = True
) -> Weights:
    """What the fullest rank holds.

    `mtp`: the layers for multi-token prediction are loaded too. `tables`: with what an engine adds to the files.
    """
    tp, pp, ep = split
    share = -(-model.layers // pp) / model.layers if model.layers else 1.0
    attention = attention_bytes = rest = copies = 0.0
    for group, part, rate in zip(model.attention, counts.attention, attention_rates(model, scheme), strict=True):
        attention += (here := on_rank(part, tp))
        attention_bytes += here * rate
        rest += part.rest
        copies += group.layers * group.kv_lora_rank * group.heads * (group.qk_nope_head_dim + group.v_head_dim)
    for part in (counts.dense, counts.experts, counts.shared):
        rest += part.rest / tp
    # an embedding that is the head too is kept as the head is
    embedding = _vocabulary(model.vocab_size, counts.embedding, tp)
    head = _vocabulary(model.output_vocab_size or model.vocab_size, counts.head, tp)
    padding = _padding(model, scheme, split) if tables else 1.0
    if pp > 1:  # the fullest rank of a pipeline holds the embedding or the head
        embedding, head = (embedding, 0.0) if embedding >= head else (0.0, head)
    made = copies / tp * share + _rotary_values(model) if tables else 0.0
    return Weights(
        embedding=Held(embedding, scheme.embedding if counts.head else scheme.head),
        head=Held(head, scheme.head),
        attention=Held(attention * share, attention_bytes / attention if attention else scheme.attention),
        dense=Held((counts.dense.matrices + counts.shared.matrices) / tp * share, scheme.dense),
        experts=Held(counts.experts.matrices / max(tp, ep) * share * padding, scheme.experts),
        rest=Held((rest + counts.router + counts.norms) * share, scheme.rest),
        extra=Held(counts.extra, scheme.embedding),
        encoders=Held(counts.encoders / (tp if model.family.startswith(_SPLIT_ENCODERS) else 1), 2.0),
        tables=Held(made, 2.0),
        mtp=Held(counts.mtp / tp if mtp else 0.0, scheme.dense if scheme.dense >= 1 else 2.0),
    )


def held_bytes(
    counts: Counts, scheme: str, model: Model, split: Split = NOT_SPLIT, *, mtp: bool = False, tables: bool = True
) -> int:
    """What the fullest rank holds, in bytes. Where there are files, their size is what is split."""
    if model.file_bytes and scheme.startswith("gguf"):
        return model.file_bytes
    held = weigh(counts, SCHEMES[scheme], model, split, mtp=mtp, tables=tables)
    if not model.file_bytes or scheme != model.checkpoint:
        return held.total
    whole = checkpoint_bytes(counts, scheme, model)
    return round((held.total - held.tables.bytes) * model.file_bytes / whole + held.tables.bytes)


def checkpoint_bytes(counts: Counts, scheme: str, model: Model) -> int:
    """All weight files of a checkpoint by its dimensions, MTP layers included."""
    return weigh(counts, SCHEMES[scheme], model, mtp=True, tables=False).total


def attention_rates(model: Model, scheme: Scheme) -> list[float]:
    """Bytes a parameter of attention takes, for each of the model's groups."""
    hybrid = any(group.kind in LINEAR for group in model.attention)
    spared = [scheme.latent if group.kv_lora_rank else scheme.hybrid if hybrid else None for group in model.attention]
    return [scheme.attention if rate is None else rate for rate in spared]


def on_rank(part: Part, tp: int) -> float:
    """Parameters of attention that one of `tp` ranks holds: heads are split, down to one of keys each."""
    kv = part.kv / min(tp, part.kv_heads) if part.kv_heads else 0
    return (part.matrices - part.replicated - part.kv) / tp + part.replicated + kv


def _rotary_values(model: Model) -> int:
    """Tables of sines and cosines for every kind of attention; three-part positions come to the same."""
    dims = {(g.qk_rope_head_dim or g.head_dim, bool(g.window)) for g in model.attention if g.kind not in LINEAR}
    return sum(dim * model.context.native for dim, _ in dims)


def _padding(model: Model, scheme: Scheme, split: Split) -> float:
    """MXFP4 kernels want widths in steps, files do not: gpt-oss grows by 7 % on one card, 14 % on four."""
    if "MXFP4" not in scheme.name or not model.moe:
        return 1.0
    hidden = model.moe.latent_size or model.hidden_size
    width = model.moe.intermediate_size / (1 if split.ep > 1 else split.tp)
    return -(-hidden // 256) * 256 / hidden * (-(-width // 64) * 64 / width)


def _vocabulary(rows: int, parameters: int, tp: int) -> float:
    if not rows:
        return 0.0
    step = VOCABULARY_STEP * tp
    return parameters / rows * (-(-rows // step) * step) / tp
