"""Memory of vLLM on one card: what is left for the KV cache, how that is cut into blocks, how many requests it holds.

pool = utilisation x what the card has - weights - activations - other allocations (- CUDA graphs since 0.21).
The constants were read from public start-up logs of vLLM 0.5 to 0.26 and are those of its profiling run: a warm-up of
the sampler with every sequence, a prefill step, NCCL's buffers. What each is worth is in bench/results/accuracy.json.

The cache is laid out as by vLLM's kv_cache_utils and kv_cache_interface (0.9 to 0.26), checked against public start-up
logs (bench/accuracy.py): layers of one kind form groups of equal size, every group has pages of the same size, and a
block is one page of every layer in a group.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import NamedTuple

from msgspec import Struct
from msgspec.structs import replace

from freehold.facts import Attention, Card, Model
from freehold.plan.kv import LINEAR, WINDOWED, bytes_per_token, state_bytes, values_per_token
from freehold.plan.units import GIB
from freehold.plan.weights import NOT_SPLIT, Split

VERSION = (0, 26, 0)
_GRAPH_SIZES = 51  # batch sizes captured by default, 1 to 512


class Settings(Struct, frozen=True, kw_only=True):
    """vLLM's own settings; None: its default for the card and the version."""

    version: tuple[int, int, int] = VERSION
    utilisation: float | None = None  # --gpu-memory-utilization
    sequences: int | None = None  # --max-num-seqs
    batched_tokens: int | None = None  # --max-num-batched-tokens
    kv_dtype: str = "bf16"  # a key of kv.BYTES
    eager: bool = False  # --enforce-eager
    speculative: int = 0  # tokens drafted a step
    draft_layers: int = 0  # with a KV cache, in the model's MTP or the draft model
    prefix_caching: bool = False  # of linear attention: a second state is kept
    block_tokens: int = 16

    def share(self) -> float:
        return self.utilisation or (0.92 if self.version >= (0, 22, 0) else 0.9)

    def at_once(self, card: Card) -> int:
        """Sequences computed in one step."""
        return self.sequences or (1024 if large(card) and self.version >= (0, 10, 0) else 256)

    def step_tokens(self, card: Card) -> int:
        """Tokens computed in one step; since 0.32, if not before, twice as many from 160 GiB up."""
        most = 16_384 if card.memory_bytes >= 160 * GIB and self.version >= (0, 32, 0) else 8192
        return self.batched_tokens or (most if large(card) else 2048)


def large(card: Card) -> bool:
    """Whether vLLM's defaults allow four times as much at once: from 70 GiB up, but not A100 nor shared memory."""
    return card.memory_bytes >= 70 * GIB and not card.unified and "A100" not in card.id


class Rank(Struct, frozen=True, kw_only=True):
    """The fullest card of a deployment."""

    usable_bytes: int  # the share of it that vLLM takes
    weight_bytes: int
    activation_bytes: int
    other_bytes: int
    graph_bytes: int

    @property
    def taken_bytes(self) -> int:
        return self.weight_bytes + self.activation_bytes + self.other_bytes + self.graph_bytes

    @property
    def pool_bytes(self) -> int:
        """Left for the KV cache; negative: the weights alone do not fit."""
        return self.usable_bytes - self.taken_bytes


def rank(
    model: Model, weight_bytes: int, scheme: str, card: Card, settings: Settings, *, split: Split = NOT_SPLIT
) -> Rank:
    """What the fullest card holds beside `weight_bytes`."""
    sizes, each = graphs(settings, card, split.tp)
    return Rank(
        usable_bytes=int(settings.share() * card.memory_bytes),
        weight_bytes=weight_bytes,
        activation_bytes=activation(model, scheme, settings, card, split).peak,
        other_bytes=round(other_gib(settings, card, split.cards) * GIB),
        graph_bytes=round(sizes * each * GIB),
    )


class Layout(Struct, frozen=True, kw_only=True):
    """How one rank's pool is cut."""

    block_tokens: int  # of the layers whose cache grows with every token
    block_bytes: int  # of one block: a page of each layer of a group
    groups: tuple[tuple[Attention, int, int], ...]  # kind, how many groups of it, tokens in one of its pages
    page_bytes: int = 0  # of one layer, where there are several groups
    states: int = 1  # of a linear layer for each sequence

    def blocks(self, pool_bytes: float) -> int:
        return int(pool_bytes // self.block_bytes)

    def blocks_per_request(self, tokens: int, batched_tokens: int) -> int:
        """Blocks that a request of `tokens` takes while at most `batched_tokens` are computed in one step."""
        return sum(n * self.blocks_in_group(g, page, tokens, batched_tokens) for g, n, page in self.groups)

    def blocks_in_group(self, group: Attention, page: int, tokens: int, batched_tokens: int) -> int:
        if group.kind in LINEAR:
            return self.states
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
        lengths = range(1, limit + 1)
        return bisect_left(lengths, x=True, key=lambda tokens: self.blocks_per_request(tokens, batched_tokens) > blocks)


def layout(attention: Sequence[Attention], settings: Settings, split: Split = NOT_SPLIT) -> Layout:
    """The layout of one rank. Before 0.9 every layer keeps all tokens.

    Layers of a draft model or of multi-token prediction count as the first that keep all.
    """
    kinds = [(g, _ceil(g.layers, split.pp)) for g in attention if g.kind in LINEAR or values_per_token(g, split.tp)]
    first = next((i for i, (g, _) in enumerate(kinds) if g.kind not in LINEAR + WINDOWED), None)
    if first is not None:
        kinds[first] = (kinds[first][0], kinds[first][1] + settings.draft_layers)
    if settings.version < (0, 9, 0):
        kinds = [(replace(g, kind="full", window=0) if g.kind in WINDOWED else g, n) for g, n in kinds]
    per_token = [bytes_per_token(g, settings.kv_dtype, split.tp) for g, _ in kinds]
    states = [state_bytes(g, split.tp, settings.speculative) for g, _ in kinds]
    block_tokens = settings.block_tokens
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
    return Layout(
        block_tokens=block_tokens,
        block_bytes=page * size,
        page_bytes=page,
        groups=groups,
        states=1 + settings.speculative + settings.prefix_caching,
    )


def group_size(layers: Sequence[int]) -> int:
    """Layers a group holds: the fewest of any kind, or the most where that is within a quarter of it."""
    fewest, most = min(layers), max(layers)
    return most if most < fewest * 1.25 else fewest


def _ceil(count: int, size: int) -> int:
    return -(-count // size)


class Activation(NamedTuple):
    """What the profiling run takes at its peak, in bytes: the larger of the first two, and the workspace beside it."""

    logit_bytes: float  # of the sampler, for each of sequences x vocabulary
    sampler: float
    prefill: float
    workspace: float  # of fused experts

    @property
    def peak(self) -> int:
        return round(max(self.sampler, self.prefill) + self.workspace)


def activation(model: Model, scheme: str, settings: Settings, card: Card, split: Split = NOT_SPLIT) -> Activation:
    """The sampler works on (sequences x vocabulary) logits, 15 bytes each since 0.17 and 38.5 before.

    On wide layers a full prefill step can be more. NVIDIA's FP4 kernels have no workspace.
    """
    tokens, sequences = settings.step_tokens(card), settings.at_once(card)
    vocabulary, hidden = model.output_vocab_size or model.vocab_size, model.hidden_size
    per_logit = 15.0 if settings.version >= (0, 17, 0) else 38.5
    workspace = 0.0
    if (moe := model.moe) and (card.vendor == "AMD" or "fp4" not in scheme):
        width = moe.intermediate_size / (1 if split.ep > 1 else split.tp)
        first, second = (2 if moe.gated else 1) * width, moe.latent_size or hidden
        workspace = 2 * tokens * moe.experts_per_token * (max(first, second) + width)
    return Activation(
        per_logit,
        sampler=per_logit * sequences * vocabulary + 2 * hidden * tokens,
        prefill=2 * tokens * (2 * model.intermediate_size / split.tp + 2.5 * hidden),
        workspace=workspace,
    )


def other_gib(settings: Settings, card: Card, cards: int) -> float:
    """The runtime's context and, with several cards, communication buffers; in shared memory the engine's programs too.

    MI355X, vLLM 0.26: 2.1 to 2.8 GiB on four cards.
    """
    one, several = (0.25, 2.10) if settings.version >= (0, 18, 0) else (0.13, 0.55)
    several += 0.4 * (card.vendor == "AMD")
    return (several if cards > 1 else one) + 2.0 * card.unified


def graphs(settings: Settings, card: Card, tp: int) -> tuple[int, float]:
    """How many batch sizes vLLM captures as CUDA graphs, and the GiB it sets aside for each since 0.21.

    About 0.8 GiB for all 51 of them on one card and 1.2 on several; HIP graphs of MI355X took 0.14 GiB a size.
    """
    if settings.eager or settings.version < (0, 21, 0):
        return 0, 0.0
    largest = min(2 * settings.at_once(card), 512)
    sizes = min(3, largest) + min(largest, 255) // 8 + max(0, (largest - 240) // 16)
    each = 0.14 if card.vendor == "AMD" else (1.2 if tp > 1 else 0.8) / _GRAPH_SIZES
    return min(sizes, _GRAPH_SIZES), each
