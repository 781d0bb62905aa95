"""The KV cache: what a token, and for linear attention a sequence, takes in each layer."""

from __future__ import annotations

from freehold.facts import Attention, Model

BYTES = {"bf16": 2.0, "fp16": 2.0, "fp32": 4.0, "fp8": 1.0, "nvfp4": 0.5 + 1 / 16}  # of one cached value, by dtype
LINEAR = ("gated_deltanet", "kda", "mamba2")
WINDOWED = ("sliding", "chunked")
STATE_BYTES = 4  # recurrent states stay float32


def values_per_token(group: Attention, tp: int = 1) -> int:
    """Values that one layer of this group caches for a token, on one of `tp` ranks; 0 for linear attention.

    Heads are split over the ranks, down to one each; the latent of MLA is not.
    """
    if group.kind in LINEAR or group.kind == "mla_dsa_kv_shared":
        return 0
    if group.kv_lora_rank:
        return group.kv_lora_rank + group.qk_rope_head_dim
    heads = max(1, group.kv_heads // tp)
    return heads * (group.head_dim + (group.v_head_dim or group.head_dim))


def bytes_per_token(group: Attention, dtype: str = "bf16", tp: int = 1) -> int:
    """Of one layer on one rank. An indexer adds its key in FP8 with one float32 scale per 128 values.

    A latent that is read sparsely is kept so too in FP8, its position in bf16: 656 bytes for DeepSeek-V3.2.
    """
    cached = round(values_per_token(group, tp) * BYTES[dtype])
    if cached and group.kind.startswith("mla_dsa") and dtype == "fp8":
        cached = group.kv_lora_rank + group.kv_lora_rank // 128 * 4 + group.qk_rope_head_dim * 2
    if group.kind == "mla_dsa" and group.indexer:
        cached += group.indexer.dim + group.indexer.dim // 128 * 4
    return cached


def kv_bytes_per_token(model: Model, dtype: str = "bf16", tp: int = 1, *, windowed: bool = False) -> int:
    """Of all layers whose cache grows with every token, on one rank; `windowed`: of those that keep a window only."""
    return sum(g.layers * bytes_per_token(g, dtype, tp) for g in model.attention if (g.kind in WINDOWED) == windowed)


def state_values(group: Attention, tp: int = 1) -> tuple[int, int]:
    """Of one linear layer on one rank: channels of the convolution, and values of the recurrent state."""
    if group.kind == "gated_deltanet":
        mixed = 2 * group.key_heads * group.key_head_dim + group.value_heads * group.value_head_dim
        state = group.value_heads * group.key_head_dim * group.value_head_dim
    elif group.kind == "kda":
        mixed, state = 3 * group.heads * group.head_dim, group.heads * group.head_dim**2
    elif group.kind == "mamba2":
        groups = group.state_groups if group.state_groups % tp == 0 else tp  # vLLM repeats what does not divide
        mixed = group.heads * group.head_dim + 2 * groups * group.state_dim
        state = group.heads * group.head_dim * group.state_dim
    else:
        mixed = state = 0
    return mixed // tp, state // tp


def state_bytes(group: Attention, tp: int = 1, speculative: int = 0, bytes_per_input: int = 2) -> int:
    """Of one linear layer for one sequence on one rank: the convolution's inputs (bf16), and the state in float32.

    With speculation the convolution keeps `speculative` more inputs.
    """
    mixed, state = state_values(group, tp)
    return mixed * (group.conv_kernel - 1 + speculative) * bytes_per_input + state * STATE_BYTES
