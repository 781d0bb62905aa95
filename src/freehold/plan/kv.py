"""The KV cache: bytes a token and layer take, and how vLLM cuts its pool into blocks.

The layout is that of vLLM's kv_cache_utils and kv_cache_interface (0.9 to 0.26), checked against public start-up logs
(bench/accuracy.py): layers of one kind form groups of equal size, every group has pages of the same size, and a block
is one page of every layer in a group.
"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct
from msgspec.structs import replace

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


def kv_bytes_per_token(model: Model, dtype: str = "bf16", tp: int = 1) -> int:
    """Of all layers whose cache grows with every token, on one rank."""
    return sum(g.layers * bytes_per_token(g, dtype, tp) for g in model.attention if g.kind not in WINDOWED)


def windowed_bytes_per_token(model: Model, dtype: str = "bf16", tp: int = 1) -> int:
    """Of all layers whose cache stops growing at their window, on one rank."""
    return sum(g.layers * bytes_per_token(g, dtype, tp) for g in model.attention if g.kind in WINDOWED)


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


class Group(Struct, frozen=True, kw_only=True):
    """Layers that vLLM keeps in one table of blocks."""

    attention: Attention
    layers: int


class Layout(Struct, frozen=True, kw_only=True):
    """How one rank's pool is cut."""

    block_tokens: int  # of the layers whose cache grows with every token
    block_bytes: int  # of one block: a page of each layer of a group
    groups: tuple[tuple[Attention, int, int], ...]  # kind, how many groups of it, tokens in one of its pages
    page_bytes: int = 0  # of one layer, where there are several groups
    speculative: int = 0
    align: bool = False  # prefix caching keeps a second state of linear layers

    def blocks(self, pool_bytes: float) -> int:
        return int(pool_bytes // self.block_bytes)

    def blocks_per_request(self, tokens: int, batched_tokens: int) -> int:
        """Blocks that a request of `tokens` takes while at most `batched_tokens` are computed in one step."""
        return sum(n * self.blocks_in_group(g, page, tokens, batched_tokens) for g, n, page in self.groups)

    def blocks_in_group(self, group: Attention, page: int, tokens: int, batched_tokens: int) -> int:
        if group.kind in LINEAR:
            return 1 + self.speculative + self.align
        if group.kind == "sliding":
            return _ceil(min(group.window - 1 + batched_tokens, tokens), page) + 1
        if group.kind == "chunked":
            return _ceil(min(group.window + batched_tokens, tokens), page)
        return _ceil(tokens, page)

    def requests(self, pool_bytes: float, tokens: int, batched_tokens: int) -> float:
        """Requests of `tokens` that the pool holds at once: vLLM's "maximum concurrency"."""
        return self.blocks(pool_bytes) / self.blocks_per_request(tokens, batched_tokens)

    def longest(self, pool_bytes: float, requests: int, batched_tokens: int, limit: int) -> int:
        """The longest requests, in tokens up to `limit`, of which the pool holds `requests` at once; 0: none."""
        blocks = self.blocks(pool_bytes) // requests
        low, high = 0, limit
        while low < high:
            middle = (low + high + 1) // 2
            fits = self.blocks_per_request(middle, batched_tokens) <= blocks
            low, high = (middle, high) if fits else (low, middle - 1)
        return low


def layout(
    attention: Sequence[Attention],
    *,
    dtype: str = "bf16",
    tp: int = 1,
    pp: int = 1,
    block_tokens: int = 16,
    speculative: int = 0,
    draft_layers: int = 0,
    align: bool = False,
    hybrid: bool = True,
) -> Layout:
    """vLLM's layout for one rank. `hybrid` False: every layer keeps all tokens, as before 0.9 or with a KV connector.

    `draft_layers` are those of a draft model or of multi-token prediction: they count as the first that keep all.
    """
    kinds = [(g, _ceil(g.layers, pp)) for g in attention if g.kind in LINEAR or values_per_token(g, tp)]
    first = next((i for i, (g, _) in enumerate(kinds) if g.kind not in LINEAR + WINDOWED), None)
    if first is not None:
        kinds[first] = (kinds[first][0], kinds[first][1] + draft_layers)
    if not hybrid:
        kinds = [(_whole(g), n) for g, n in kinds]
    per_token = [bytes_per_token(g, dtype, tp) for g, _ in kinds]
    states = [state_bytes(g, tp, speculative) for g, _ in kinds]
    if any(states) and any(per_token):
        block_tokens = 16 * _ceil(max(states), 16 * max(per_token))
    if not any(states) and not any(g.kind in WINDOWED for g, _ in kinds):
        # all layers keep all tokens: one group, whatever their sizes
        block = block_tokens * sum(n * size for (_, n), size in zip(kinds, per_token, strict=True))
        return Layout(block_tokens=block_tokens, block_bytes=block, groups=((kinds[0][0], 1, block_tokens),))
    page = block_tokens * max(per_token) if any(per_token) else max(states)
    size = group_size([n for _, n in kinds])
    tokens = (page // each if each else 0 for each in per_token)
    groups = tuple((g, _ceil(n, size), held) for (g, n), held in zip(kinds, tokens, strict=True))
    block = page * size
    return Layout(
        block_tokens=block_tokens,
        block_bytes=block,
        page_bytes=page,
        groups=groups,
        speculative=speculative,
        align=align,
    )


def group_size(layers: Sequence[int]) -> int:
    """Layers a group holds: the fewest of any kind, or the most where that is within a quarter of it."""
    fewest, most = min(layers), max(layers)
    return most if most < fewest * 1.25 else fewest


def _whole(group: Attention) -> Attention:
    return replace(group, kind="full", window=0) if group.kind in WINDOWED else group


def _ceil(count: int, size: int) -> int:
    return -(-count // size)
