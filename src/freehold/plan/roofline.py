"""How long one step of an engine takes on its cards: what is read, computed, sent, and waited for.

A step of decoding reads every weight that some request touches and the KV cache of all; it computes once for each
token. Which of both is slower decides, and a part of the other is not hidden behind it. Prefill computes. What the
figures are worth is fitted (bench/fit_speed.py writes plan/fitted.py) and told by `bench/accuracy.py throughput`.
"""

from __future__ import annotations

from typing import NamedTuple

from msgspec import Struct

from freehold.errors import Unknown
from freehold.facts import Attention, Card, Model
from freehold.plan.kv import LINEAR, bytes_per_token, state_bytes
from freehold.plan.params import Counts
from freehold.plan.performance import Bands
from freehold.plan.weights import SCHEMES, Split, attention_rates, on_rank

_GENERATIONS = (  # least compute capability, the newest first
    *((12.0, "Blackwell RTX"), (10.0, "Blackwell"), (9.0, "Hopper"), (8.9, "Ada"), (8.0, "Ampere")),
)
HIDDEN = 0.3  # of the shorter of reading and computing, what the longer one does not hide
IN_A_MACHINE = 8  # cards
PCIE_GB_S = 25.0  # what cards without a link of their own reach through the host, assumed


class Constants(Struct, frozen=True, kw_only=True):
    """What an engine makes of the data sheet. Shares are of 1."""

    memory: float  # of the bandwidth, where weights are read
    cache: float  # of the bandwidth, where the KV cache is read
    compute: float  # of the peak, with a token of each request
    prefill: float  # of the peak, with whole prompts
    attention: float  # of the peak in BF16, between tokens and cache
    link: float  # of the link, in an all-reduce
    weight_only: float  # of `compute` and `prefill`, where the card cannot compute in the weights' precision
    layer_us: float
    expert_us: float  # more in a layer with experts
    hop_us: float  # an all-reduce takes at least
    step_us: float
    sequence_ns: float  # of each request in each layer


class Fitted(Struct, frozen=True, kw_only=True):
    """What was fitted for one engine on some generations of cards, on which rows, and what came of it."""

    engine: str
    generations: tuple[str, ...]
    constants: Constants
    shared: Constants | None  # of all servers and cards together, for models of which no row was fitted; None: the same
    shared_rows: int
    first_ms: float  # until the first token, beside the prompt and one step: the way in and out
    queue: float  # share of the others' prompts that a new one waits for
    schemes: frozenset[str]  # keys of weights.SCHEMES
    models: frozenset[str]  # ids of those with the same dimensions, too
    attention: frozenset[str]  # kinds of it that these have
    versions: tuple[str, ...]  # of the engine
    date: str
    rows: int
    bands: dict[tuple[bool, bool], Bands]  # by whether the model was fitted, and whether it has experts

    def constants_of(self, model: Model) -> Constants:
        """Few models do not tell what is the engine's and what is theirs: others are met better by what all share."""
        return self.constants if model.id in self.models else self.shared or self.constants

    def bands_of(self, model: Model) -> Bands:
        """Of rows that were not fitted; of a model of which none was, what models left out came to."""
        known, experts = model.id in self.models, model.moe is not None
        return self.bands.get((known, experts)) or max(self.bands.values(), key=lambda each: each.tpot_error_pct)

    def strange(self, work: Work, card: Card) -> tuple[str, ...]:
        """What of it no fitted row has: a kind of attention, cards that PCIe joins, or several machines."""
        kinds = sorted({group.kind for group in work.model.attention} - self.attention)
        apart = ["cards joined by PCIe alone"] if work.together > 1 and not card.link_gb_s else []
        far = ["several machines"] if work.split.cards > IN_A_MACHINE else []
        return (*(f"attention of the kind {kind}" for kind in kinds), *apart, *far)

    def about(self, model: Model, strange: tuple[str, ...]) -> str:
        """What a figure rests on, in words."""
        where = f"{self.engine} {', '.join(self.versions)} on {' and '.join(self.generations)} cards"
        if self.constants_of(model) is self.shared:
            rows = f"{self.shared_rows:,} rows of all servers and cards, {self.date}"
            whose = f"the {self.rows:,} of {where} are of other dimensions than this model's"
        else:
            rows = f"{self.rows:,} rows of {where}, {self.date}"
            whose = f"this model's dimensions {'are' if model.id in self.models else 'are not'} among them"
        return (
            f"roofline fitted on {rows}; {whose}: the time of a token was "
            f"{self.bands_of(model).tpot_error_pct:.0f} % off on average, where it was not fitted"
        ) + (f"; never fitted: {', '.join(strange)}, so the band is wider" if strange else "")


class Work(NamedTuple):
    """What one rank of a deployment has to do, before any card is looked at."""

    model: Model
    split: Split
    weight_bytes: float  # of matrices that every step reads
    expert_bytes: float  # of all experts
    touched: float  # share of the experts that one token chooses
    flops: tuple[tuple[str, float], ...]  # of one token of this rank, by the precision of the weights
    head: tuple[str, float]  # of these, what a prompt needs for its last token only
    kv_dtype: str

    @property
    def alone(self) -> int:
        """Ranks that share a request's attention."""
        return 1 if self.split.ep > 1 else self.split.tp

    @property
    def together(self) -> int:
        """Ranks that send each other what they computed."""
        return max(self.split.tp, self.split.ep)

    def touched_by(self, tokens: float) -> float:
        """Share of the experts that so many tokens choose, each by itself."""
        return 1 - (1 - self.touched) ** tokens


def generation_of(card: Card) -> str:
    """Cards whose constants are alike; "": not one that was looked at."""
    capability = float(card.compute_capability or 0) if card.vendor == "NVIDIA" else 0.0
    return next((name for least, name in _GENERATIONS if capability >= least), "")


def work(model: Model, counts: Counts, scheme: str, split: Split, kv_dtype: str = "bf16") -> Work:
    """`split.ep` ranks have requests of their own and share the experts; `split.tp` ranks share everything."""
    s, tp = SCHEMES[scheme], 1 if split.ep > 1 else split.tp
    matrices = [
        (on_rank(part, tp), rate) for part, rate in zip(counts.attention, attention_rates(model, s), strict=True)
    ]
    matrices.append(((counts.dense.matrices + counts.shared.matrices) / tp, s.dense))
    head = (counts.head or counts.embedding) / tp
    matrices.append((head, s.head))
    flops: dict[str, float] = {}
    for size, rate in matrices:
        flops[computed_in(rate, scheme)] = flops.get(computed_in(rate, scheme), 0.0) + 2 * size
    touched = held = 0.0
    if moe := model.moe:
        touched = moe.experts_per_token / moe.experts
        held = counts.experts.matrices / max(split.tp, split.ep)
        # a rank computes for the tokens of all ranks that have requests of their own, on its share of the experts
        kind = computed_in(s.experts, scheme)
        flops[kind] = flops.get(kind, 0.0) + 2 * counts.experts.matrices / tp * touched
    return Work(
        model,
        split,
        weight_bytes=sum(size * rate for size, rate in matrices),
        expert_bytes=held * s.experts,
        touched=touched,
        flops=tuple((kind, count) for kind, count in flops.items() if count),
        head=(computed_in(s.head, scheme), 2 * head),
        kv_dtype=kv_dtype,
    )


def computed_in(rate: float, scheme: str) -> str:
    """What weights of so many bytes are computed in."""
    if rate >= 1.9:  # 16 bits
        return "bf16"
    if rate >= 0.9:  # 8 bits, with scales or without
        return "int8" if scheme.startswith("int8") else "fp8"
    return {"nvfp4": "fp4", "mxfp4": "mxfp4"}.get(scheme.partition("-")[0], "int4")


def peak(card: Card, precision: str) -> tuple[float, bool]:
    """FLOPS of the card for weights of this precision, and whether it computes in it; in BF16 where it cannot."""
    own = {"bf16": card.bf16_tflops, "fp8": card.fp8_tflops, "int8": card.int8_tflops, "fp4": card.fp4_tflops}
    if precision == "mxfp4":  # with activations in FP8, where the card can
        own["mxfp4"] = card.fp8_tflops if card.fp4_tflops else None
    if tflops := own.get(precision):
        return tflops * 1e12, True
    return (card.bf16_tflops or 0.0) * 1e12, False


class Look(NamedTuple):
    """What one token of a request reads and computes of its context, on one rank."""

    cache_bytes: float
    flops: float


def look(work: Work, context: float) -> Look:
    """While decoding. MLA works on its latents then, for every head; a window or an indexer bounds what is seen."""
    read = flops = 0.0
    for group in work.model.attention:
        if group.kind in LINEAR:
            read += group.layers * 2.0 * state_bytes(group, work.alone)  # read and written
            continue
        each, seen = bytes_per_token(group, work.kv_dtype, work.alone), _seen(group, context)
        keys = group.indexer.dim if group.indexer else 0  # an indexer's keys are read of all tokens
        read += group.layers * ((each - keys) * seen + keys * context)
        width = 2 * group.kv_lora_rank + group.qk_rope_head_dim if group.kv_lora_rank else _width(group)
        flops += group.layers * 2 * group.heads * width * seen
    return Look(read, flops / work.alone)


def prompt_flops(work: Work, tokens: float, prompt: float) -> float:
    """Of attention of the last `tokens` of a whole prompt, on one rank: each looks back at all before it."""
    groups = (group for group in work.model.attention if group.kind not in LINEAR)
    back = max(0.0, prompt - tokens) + tokens / 2  # on average
    return sum(g.layers * 2 * g.heads * _width(g) * _seen(g, back) for g in groups) * tokens / work.alone


def _seen(group: Attention, context: float) -> float:
    seen = min(context, group.window or context)
    return min(seen, group.indexer.topk) if group.indexer and group.indexer.topk else seen


def _width(group: Attention) -> int:
    """Multiplications for a query and a key, and for a weight and a value."""
    keys = group.qk_nope_head_dim + group.qk_rope_head_dim if group.kv_lora_rank else group.head_dim
    return keys + (group.v_head_dim or group.head_dim)


class Step(NamedTuple):
    """Seconds of one step, by what they go into. The KV cache is read while tokens look at it."""

    reading: float  # weights
    computing: float  # with them
    cache: float  # read
    looking: float  # attention, computed
    sending: float  # between cards
    waiting: float  # for kernels to start, for the slowest, for the engine itself

    @property
    def seconds(self) -> float:
        matrices = max(self.reading, self.computing) + HIDDEN * min(self.reading, self.computing)
        return matrices + max(self.cache, self.looking) + self.sending + self.waiting


class Machine:
    """One kind of card with an engine's constants, and what it has to do: answers in seconds.

    Raises Unknown where nobody said how fast the card is.
    """

    def __init__(self, card: Card, fit: Constants, work: Work) -> None:
        if not card.bandwidth_gb_s or not card.bf16_tflops:
            raise Unknown(f"nobody said how fast {card.id} reads and computes")
        self.fit, self.work = fit, work
        self.bandwidth = card.bandwidth_gb_s * 1e9
        self.link = (card.link_gb_s or PCIE_GB_S) * 1e9 * fit.link
        self.attention = card.bf16_tflops * 1e12 * fit.attention
        self.token_s = sum(flops / _reached(card, kind, fit) for kind, flops in work.flops)
        kind, flops = work.head
        self.prompt_token_s = (self.token_s - flops / _reached(card, kind, fit)) / fit.prefill
        layers, experts = work.model.layers, work.model.moe.layers if work.model.moe else 0
        hops = 2 * layers * fit.hop_us if work.together > 1 else 0.0
        self.waits_s = (layers * fit.layer_us + experts * fit.expert_us + hops + fit.step_us) / 1e6
        ranks = work.together
        self.send_s = layers * 4 * (ranks - 1) / ranks * work.model.hidden_size * 2 / self.link

    def decode(self, look: Look, requests: float, tokens: int = 1) -> Step:
        """A step with `tokens` of each of the `requests`, which ranks with requests of their own share evenly.

        More than one are guesses that are checked; what it takes to make them is not counted.
        """
        work, fit, own = self.work, self.fit, max(1.0, requests / self.work.split.ep)
        read = work.weight_bytes + work.expert_bytes * work.touched_by(requests * tokens)
        return Step(
            reading=read / (self.bandwidth * fit.memory),
            computing=self.token_s * own * tokens / fit.compute,
            cache=own * look.cache_bytes / (self.bandwidth * fit.cache),
            looking=own * tokens * look.flops / self.attention,
            sending=self.send_s * own * tokens,
            waiting=self.waits_s + requests * work.model.layers * fit.sequence_ns / 1e9,
        )

    def prefill(self, tokens: float, prompt: float) -> float:
        """Seconds to compute the last `tokens` of a prompt, beside the steps they go along with."""
        looking = prompt_flops(self.work, tokens, prompt) / self.attention
        return tokens * (self.prompt_token_s + self.send_s) + looking


def _reached(card: Card, kind: str, fit: Constants) -> float:
    flops, own = peak(card, kind)
    return flops if own else flops * fit.weight_only
