"""Memory of vLLM on one card: what is left for the KV cache, and how many requests that holds.

pool = utilisation x what the card has - weights - activations - other allocations (- CUDA graphs since 0.21).
The constants were read from public start-up logs of vLLM 0.5 to 0.26 and are those of its profiling run: a warm-up of
the sampler with every sequence, a prefill step, NCCL's buffers. What each is worth is in bench/results/accuracy.json.
"""

from __future__ import annotations

from typing import NamedTuple

from msgspec import Struct

from freehold.facts import Card, Model
from freehold.plan.kv import Layout, layout
from freehold.plan.params import Counts
from freehold.plan.units import GIB
from freehold.plan.weights import held_bytes

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
    prefix_caching: bool | None = None  # of linear attention: off by default
    hybrid: bool = True  # False with a KV connector
    block_tokens: int = 16

    def share(self) -> float:
        return self.utilisation or (0.92 if self.version >= (0, 22, 0) else 0.9)

    def at_once(self, card: Card) -> int:
        """Sequences computed in one step."""
        return self.sequences or (1024 if large(card) and self.version >= (0, 10, 0) else 256)

    def step_tokens(self, card: Card) -> int:
        """Tokens computed in one step."""
        return self.batched_tokens or (8192 if large(card) else 2048)


def large(card: Card) -> bool:
    """Whether vLLM's defaults allow four times as much at once: from 70 GiB up, but not A100 nor shared memory."""
    return card.memory_bytes >= 70 * GIB and not card.unified and "A100" not in card.id


class Rank(Struct, frozen=True, kw_only=True):
    """The fullest card of a deployment, in bytes."""

    card: int
    usable: int  # the share of it that vLLM takes
    weights: int
    activation: int
    other: int
    graphs: int
    layout: Layout

    @property
    def pool(self) -> int:
        """Left for the KV cache; negative: the weights alone do not fit."""
        return self.usable - self.weights - self.activation - self.other - self.graphs


def rank(
    model: Model,
    counts: Counts,
    scheme: str,
    card: Card,
    settings: Settings,
    *,
    split: tuple[int, int, int] = (1, 1, 1),
) -> Rank:
    """What the fullest card holds when the model is split tensor x pipeline x expert parallel."""
    tp, pp, ep = split
    drafts = settings.draft_layers > 0
    return Rank(
        card=card.memory_bytes,
        usable=int(settings.share() * card.memory_bytes),
        weights=held_bytes(counts, scheme, model, tp=tp, pp=pp, ep=ep, mtp=drafts),
        activation=activation_bytes(model, scheme, settings, card, tp=tp, ep=ep),
        other=other_bytes(settings, card, tp * pp * ep),
        graphs=graph_bytes(settings, card, tp),
        layout=kv_layout(model, settings, tp=tp, pp=pp),
    )


def kv_layout(model: Model, settings: Settings, *, tp: int = 1, pp: int = 1) -> Layout:
    return layout(
        model.attention,
        dtype=settings.kv_dtype,
        tp=tp,
        pp=pp,
        block_tokens=settings.block_tokens,
        speculative=settings.speculative,
        draft_layers=settings.draft_layers,
        align=settings.prefix_caching is True,
        hybrid=settings.hybrid and settings.version >= (0, 9, 0),
    )


class Activation(NamedTuple):
    """What the profiling run takes at its peak, in bytes: the larger of the first two, and the workspace beside it."""

    logit_bytes: float  # of the sampler, for each of sequences x vocabulary
    sampler: float
    prefill: float
    workspace: float  # of fused experts

    @property
    def peak(self) -> int:
        return round(max(self.sampler, self.prefill) + self.workspace)


def activation(model: Model, scheme: str, settings: Settings, card: Card, *, tp: int = 1, ep: int = 1) -> Activation:
    """The sampler works on (sequences x vocabulary) logits, 15 bytes each since 0.17 and 38.5 before.

    On wide layers a full prefill step can be more. NVIDIA's FP4 kernels have no workspace.
    """
    tokens, sequences = settings.step_tokens(card), settings.at_once(card)
    vocabulary, hidden = model.output_vocab_size or model.vocab_size, model.hidden_size
    per_logit = 15.0 if settings.version >= (0, 17, 0) else 38.5
    workspace = 0.0
    if (moe := model.moe) and (card.vendor == "AMD" or "fp4" not in scheme):
        width = moe.intermediate_size / (1 if ep > 1 else tp)
        first, second = (2 if moe.gated else 1) * width, moe.latent_size or hidden
        workspace = 2 * tokens * moe.experts_per_token * (max(first, second) + width)
    return Activation(
        per_logit,
        sampler=per_logit * sequences * vocabulary + 2 * hidden * tokens,
        prefill=2 * tokens * (2 * model.intermediate_size / tp + 2.5 * hidden),
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


def activation_bytes(model: Model, scheme: str, settings: Settings, card: Card, *, tp: int = 1, ep: int = 1) -> int:
    return activation(model, scheme, settings, card, tp=tp, ep=ep).peak


def other_bytes(settings: Settings, card: Card, cards: int) -> int:
    return round(other_gib(settings, card, cards) * GIB)


def graph_bytes(settings: Settings, card: Card, tp: int) -> int:
    sizes, each = graphs(settings, card, tp)
    return round(sizes * each * GIB)
