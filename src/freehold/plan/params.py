"""How many parameters a model has, counted from its dimensions, part by part.

The formulas reproduce the published checkpoints of 85 catalogue models to the last parameter; tests/test_catalogue.py
holds them to it. Parts are kept apart because they are quantized and split over cards differently.
"""

from __future__ import annotations

from msgspec import Struct

from freehold.facts import Attention, Model, Moe


class Part(Struct, frozen=True, kw_only=True):
    """Parameters of one kind in the whole model."""

    matrices: int = 0  # of linear layers: what a quantizer quantizes
    rest: int = 0  # norms, biases, convolutions: what stays as it is
    replicated: int = 0  # of `matrices`: every rank holds them whole
    kv: int = 0  # of `matrices`: keys and values by head, split over at most kv_heads ranks
    kv_heads: int = 0


class Counts(Struct, frozen=True, kw_only=True):
    """Parameters by kind. `total` is what a checkpoint without scales and buffers holds."""

    embedding: int
    head: int  # 0: tied to the embedding, or none
    attention: tuple[Part, ...]  # as the model's groups
    dense: Part
    experts: Part
    shared: Part
    router: int
    norms: int
    extra: int
    mtp: int
    encoders: int
    idle: int  # of the experts: what one token does not touch

    @property
    def text(self) -> int:
        parts = (*self.attention, self.dense, self.experts, self.shared)
        beside = self.embedding + self.head + self.router + self.norms + self.extra
        return beside + sum(part.matrices + part.rest for part in parts)

    @property
    def total(self) -> int:
        return self.text + self.mtp + self.encoders

    @property
    def active(self) -> int:
        return self.text - self.idle


def count(model: Model) -> Counts | None:
    """Parameters of every part, or None where a part is outside the formulas."""
    if not model.attention or any(group.kind not in _PER_LAYER for group in model.attention):
        return None
    hidden, moe = model.hidden_size, model.moe
    embedding = model.vocab_size * hidden
    head = 0 if model.tied_embeddings else (model.output_vocab_size or model.vocab_size) * hidden
    dense_rest = model.dense_layers * model.mlp_extra_per_layer
    dense = Part(matrices=model.dense_layers * _mlp(hidden, model.intermediate_size, model.mlp_gated), rest=dense_rest)
    experts, shared, router = _moe(moe, hidden) if moe else (Part(), Part(), 0)
    return Counts(
        embedding=embedding,
        head=head,
        attention=tuple(_times(attention_of(group, hidden), group.layers) for group in model.attention),
        dense=dense,
        experts=experts,
        shared=shared,
        router=router,
        norms=hidden * (2 if model.norm_bias else 1) + model.layers * model.layer_norms * hidden,
        extra=model.extra_params,
        mtp=_mtp(model, embedding),
        encoders=model.encoder_params,
        idle=moe.layers * (moe.experts - moe.experts_per_token) * _expert(moe, hidden) if moe else 0,
    )


def attention_of(group: Attention, hidden: int) -> Part:
    """Parameters of one layer of this group, without the norms around it."""
    return _PER_LAYER[group.kind](group, hidden)


def _by_heads(group: Attention, hidden: int) -> Part:
    heads, kv_heads, dim = group.heads, group.kv_heads, group.head_dim
    v_dim = group.v_head_dim or dim
    queries = hidden * heads * dim * (2 if group.output_gate else 1)
    kv = hidden * kv_heads * (dim + (0 if group.k_eq_v else v_dim))
    rest = (heads * dim + kv_heads * (dim + v_dim)) * group.qkv_bias + hidden * group.o_bias + heads * group.sinks
    rest += {"": 0, "per_head_dim": 2 * dim, "per_projection": (heads + kv_heads) * dim}[group.qk_norm]
    index = group.indexer
    picks = hidden * (index.heads + 1) * index.dim if index else 0
    return Part(
        matrices=queries + kv + heads * v_dim * hidden + picks,
        rest=rest + (2 * index.dim if index else 0),
        replicated=picks,
        kv=kv,
        kv_heads=kv_heads,
    )


def _latent(group: Attention, hidden: int) -> Part:
    """Multi-head latent attention: the projections to the latents are held whole by every rank."""
    heads, latent, rope = group.heads, group.kv_lora_rank, group.qk_rope_head_dim
    key_dim, rank = group.qk_nope_head_dim + rope, group.q_lora_rank
    queries = rank * heads * key_dim if rank else hidden * heads * key_dim
    down = hidden * (latent + rope) + hidden * rank
    up = latent * heads * (group.qk_nope_head_dim + group.v_head_dim)
    picks = rest = 0
    if group.kind == "mla_dsa" and (index := group.indexer):
        picks = rank * index.heads * index.dim + hidden * (index.dim + index.heads)
        rest = 2 * index.dim
    return Part(
        matrices=queries + down + up + heads * group.v_head_dim * hidden + picks,
        rest=rank + latent + rest,
        replicated=down + picks,
    )


def _gated_deltanet(group: Attention, hidden: int) -> Part:
    values = group.value_heads * group.value_head_dim
    mixed = 2 * group.key_heads * group.key_head_dim + values
    gates = 2 * hidden * group.value_heads
    rest = mixed * group.conv_kernel + 2 * group.value_heads + group.value_head_dim
    return Part(matrices=hidden * mixed + 2 * hidden * values + gates, rest=rest)


def _mamba2(group: Attention, hidden: int) -> Part:
    inner = group.heads * group.head_dim
    convolved = inner + 2 * group.state_groups * group.state_dim
    rest = convolved * (group.conv_kernel + group.conv_bias) + 3 * group.heads + inner
    return Part(matrices=hidden * (inner + convolved + group.heads) + inner * hidden, rest=rest)


_PER_LAYER = {
    **dict.fromkeys(("full", "sliding", "chunked", "sparse_block"), _by_heads),
    **dict.fromkeys(("mla", "mla_dsa", "mla_dsa_shared"), _latent),
    "gated_deltanet": _gated_deltanet,
    "mamba2": _mamba2,
}


def _mlp(hidden: int, width: int, gated: bool) -> int:
    return (3 if gated else 2) * hidden * width


def _expert(moe: Moe, hidden: int) -> int:
    width = moe.latent_size or hidden
    bias = ((2 if moe.gated else 1) * moe.intermediate_size + width) * moe.expert_bias
    return _mlp(width, moe.intermediate_size, moe.gated) + bias


def _moe(moe: Moe, hidden: int) -> tuple[Part, Part, int]:
    """Routed experts, shared experts, and routers with what stands beside them, of all layers."""
    bias = moe.experts * ((2 if moe.gated else 1) * moe.intermediate_size + (moe.latent_size or hidden))
    bias *= moe.layers * moe.expert_bias
    routed = Part(matrices=moe.layers * moe.experts * _expert(moe, hidden) - bias, rest=bias)
    shared = moe.layers * moe.shared_experts * _mlp(hidden, moe.shared_intermediate_size, moe.gated)
    router = hidden * moe.experts + moe.experts * moe.router_bias + 2 * hidden * moe.latent_size
    router += hidden * (moe.shared_gate and moe.shared_experts > 0)
    return routed, Part(matrices=shared), moe.layers * router


def _mtp(model: Model, embedding: int) -> int:
    """Qwen3.5: one projection and three norms in all; DeepSeek: the same in each layer, and embeddings if repeated."""
    mtp, hidden, moe = model.mtp, model.hidden_size, model.moe
    if not mtp or not mtp.style:
        return 0
    group = mtp.attention or next(g for g in model.attention if g.kind in ("full", "mla", "mla_dsa"))
    attention = attention_of(group, hidden)
    if moe and mtp.ffn == "moe":
        routed, shared, router = _moe(moe, hidden)
        ffn = (routed.matrices + routed.rest + shared.matrices + router) // moe.layers
    else:
        ffn = _mlp(hidden, model.intermediate_size, model.mlp_gated)
    layer = attention.matrices + attention.rest + ffn + model.layer_norms * hidden
    joint = 2 * hidden * hidden + 3 * hidden
    if mtp.style == "qwen3_5":
        return mtp.layers * layer + joint
    return mtp.layers * (layer + joint + 2 * embedding * mtp.repeats_embeddings)


def _times(part: Part, layers: int) -> Part:
    counts = {name: getattr(part, name) * layers for name in ("matrices", "rest", "replicated", "kv")}
    return Part(**counts, kv_heads=part.kv_heads)
