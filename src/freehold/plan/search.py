"""Every way to serve one model: precision x split x card, each tried against memory, speed and budget."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from msgspec import Struct

from freehold.facts import Card, Model, Offer
from freehold.plan import llamacpp, vllm
from freehold.plan.cost import Interruptions, hourly
from freehold.plan.kv import LINEAR
from freehold.plan.need import Need
from freehold.plan.params import Counts
from freehold.plan.speed import active_bytes, decode_ceiling
from freehold.plan.traffic import DAYS_A_MONTH
from freehold.plan.units import size
from freehold.plan.weights import SCHEMES, Scheme, split
from freehold.types import Refusal, Ruling

TENSOR = (1, 2, 4, 8)  # cards of one machine that share every layer
PIPELINE = (2, 4)  # machines that share the layers, for a model that was named and is too large for one
MOST_CARDS = 256  # of one deployment on rented machines
LIGHTER = ("fp8", "nvfp4", "int4-awq")  # made from a checkpoint in 16 bits
GGUF = ("gguf-q8_0", "gguf-q6_k", "gguf-q5_k_m", "gguf-q4_k_m", "gguf-q3_k_m")
CPU_BANDWIDTH_GB_S = 40.0  # assumed of a machine that nobody measured: two channels of DDR4 or DDR5, in part
INTERRUPTIONS = Interruptions()  # assumed of spot machines
_GROUP = 128  # values that share a scale: a rank's share of a width must be a multiple of it
_CAPABILITY = 8.0  # vLLM's least that is planned for; AMD's cards count as newest


class Place(Struct, frozen=True, kw_only=True):
    """Machines of one kind that may be used, with what they cost."""

    name: str
    card: Card | None  # None: the CPU
    cards: int = 8  # in one machine
    machines: int | None = None  # None: as many as are needed; they are joined by a network where there are several
    offer: Offer | None = None  # None: nobody said what it costs
    rate: float = 1.0  # the need's currency for one unit of the offer's
    ram_bytes: int = 0  # free for an engine on the CPU
    country: str = ""
    ruling: Ruling = Ruling()

    def hour(self, cards: int) -> float | None:
        """Money for a useful hour of so many cards; None: nobody said. Of a spot machine some minutes are lost."""
        if self.offer is None:
            return None
        price = hourly(self.offer, cards, self.rate)
        return price / INTERRUPTIONS.useful if self.offer.kind == "spot" else price


class Deployment(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One way to serve a model: what runs where, what it holds, what it costs. Memory is that of the fullest card."""

    model: str
    scheme: str  # a key of weights.SCHEMES
    native: bool  # the precision that the publisher ships
    engine: str
    place: str
    card: str = ""  # "": the CPU
    tp: int = 1
    pp: int = 1
    ep: int = 1  # ranks that share the experts and have each their own requests
    replicas: int = 1
    context: int
    users: int
    requests: int  # of that context at once, all replicas together
    longest: int  # context that as many users could have
    sequences: int  # computed at once in one replica
    weight_bytes: int
    activation_bytes: int = 0
    other_bytes: int = 0
    graph_bytes: int = 0
    usable_bytes: int
    pool_bytes: int
    block_bytes: int
    request_blocks: int
    ceiling: float | None = None  # tokens a second of one request, at most
    hour: float | None = None
    month: float | None = None
    currency: str = "EUR"
    undated: bool = False  # the price has no date
    duties: tuple[str, ...] = ()
    accepted: str = ""

    @property
    def cards(self) -> int:
        return self.tp * self.pp * self.ep * self.replicas if self.card else 0


class Spot(NamedTuple):
    """A card as the inner loop wants it."""

    place: Place
    card: Card
    usable: int
    large: bool
    capability: float


class Found(NamedTuple):
    """What the inner loop keeps, in the order in which the ways to serve one model are ranked."""

    tier: int
    undated: bool  # prices without a date are old ones: a dated one is believed first
    month: float
    cards: int
    order: int  # finer precision first
    scheme: str
    place: Place
    split: tuple[int, int, int]  # tp, pp, ep
    replicas: int
    hour: float | None


def settings(need: Need, version: tuple[int, int, int] = vllm.VERSION) -> vllm.Settings:
    """vLLM as the plan starts it: room for the users, no more."""
    return vllm.Settings(version=version, kv_dtype=need.kv_dtype, sequences=min(1024, max(8, -(-need.users // 8) * 8)))


def spots(places: Iterable[Place], asked: vllm.Settings) -> list[Spot]:
    """The cards among the places, the cheapest place of each card and size of machine first."""
    best: dict[tuple[str, int, int | None], Spot] = {}
    for place in places:
        card = place.card
        if card is None:
            continue
        key = (card.id, place.cards, place.machines)
        try:
            capability = float(card.compute_capability) if card.vendor == "NVIDIA" else 99.0
        except ValueError:
            capability = 0.0
        new = Spot(place, card, int(asked.share() * card.memory_bytes), vllm.large(card), capability)
        old = best.get(key)
        if old is None or _price(place) < _price(old.place):
            best[key] = new
    return sorted(best.values(), key=lambda spot: spot.usable)


def _price(place: Place) -> tuple[bool, bool, float]:
    hour = place.hour(1)
    return hour is None, bool(place.offer and not place.offer.date), hour or 0.0


class Search:
    """The deployments found for one model, and the nearest misses."""

    def __init__(self, need: Need, model: Model, counts: Counts, asked: vllm.Settings) -> None:
        self.need, self.model, self.counts, self.asked = need, model, counts, asked
        self.hours = need.hours_a_day * DAYS_A_MONTH
        self.found: list[Found] = []
        self.considered = 0
        self.short_bytes: tuple[int, str] | None = None  # memory: what the nearest miss lacked
        self.fastest: float | None = None  # of those too slow
        self.cheapest: float | None = None  # of those too dear
        self.most: int = 0  # requests where there are too few cards

    def cards(self, places: Sequence[Spot]) -> None:
        """vLLM on every card, in every precision and split."""
        for order, name in enumerate(self._schemes()):
            scheme = SCHEMES[name]
            tokens = active_bytes(self.counts, scheme)
            for tp, pp, ep in self._splits(scheme):
                self._on_cards(name, scheme, order, (tp, pp, ep), tokens, places)

    def _on_cards(self, name, scheme, order, shape, tokens, places) -> None:  # noqa: ANN001
        need, asked = self.need, self.asked
        tp, pp, ep = shape
        cards = tp * pp * ep
        held = split(self.counts, scheme, self.model, tp=tp, pp=pp, ep=ep).total
        layout = vllm.kv_layout(self.model, asked, tp=tp, pp=pp)
        fixed: dict[tuple[bool, bool], tuple[int, int]] = {}
        for spot in places:
            place = spot.place
            self.considered += 1
            if scheme.needs > spot.capability or tp > place.cards or (cards > place.cards and place.machines == 1):
                continue
            kind = spot.large, spot.card.unified
            if kind not in fixed:
                more = vllm.activation_bytes(self.model, name, asked, spot.card, tp=tp, ep=ep)
                more += vllm.other_bytes(asked, spot.card, cards)
                step = asked.step_tokens(spot.card)
                more += vllm.graph_bytes(asked, spot.card, tp)
                fixed[kind] = held + more, layout.blocks_per_request(need.context, step)
            taken, blocks = fixed[kind]
            requests = (spot.usable - taken) // layout.block_bytes // blocks * ep
            if requests < 1:
                lack = taken + blocks * layout.block_bytes - spot.usable
                if self.short_bytes is None or lack < self.short_bytes[0]:
                    self.short_bytes = lack, f"{name} on {cards} x {spot.card.id}"
                continue
            self._keep(name, order, shape, spot, requests, decode_ceiling(tokens, spot.card, tp * pp * ep))

    def _keep(self, name, order, shape, spot, requests, ceiling) -> None:  # noqa: ANN001
        need, place = self.need, spot.place
        if ceiling is not None and ceiling < need.speed:
            self.fastest = max(self.fastest or 0.0, ceiling)
            return
        cards = shape[0] * shape[1] * shape[2]
        replicas = -(-need.users // requests)
        machines = place.machines
        room = MOST_CARDS // cards if machines is None else _replicas(place, cards)
        if replicas > room:
            self.most = max(self.most, room * requests)
            return
        hour = place.hour(cards)
        month = hour * replicas * self.hours if hour is not None else 0.0
        if need.budget is not None and (hour is None or month > need.budget):
            if hour is not None:
                self.cheapest = month if self.cheapest is None else min(self.cheapest, month)
            return
        grade = tier(name, self.model.checkpoint)
        self.found.append(
            Found(
                grade,
                bool(place.offer and not place.offer.date),
                month,
                cards * replicas,
                order,
                name,
                place,
                shape,
                replicas,
                hour,
            )
        )

    def cpu(self, place: Place) -> None:
        """llama.cpp in the memory of a machine."""
        need, model = self.need, self.model
        kept = llamacpp.kv_buffers(model.attention, need.context * need.users, sequences=need.users, unified=True)
        compute = (model.vocab_size + model.hidden_size) * llamacpp.UBATCH * 4
        compute += llamacpp.cells(need.context * need.users) * llamacpp.UBATCH * 2
        for order, name in enumerate(self._gguf()):
            self.considered += 1
            held = split(self.counts, SCHEMES[name], model, tables=False).total
            lack = held + kept + compute - place.ram_bytes
            if lack > 0:
                if self.short_bytes is None or lack < self.short_bytes[0]:
                    self.short_bytes = lack, f"{SCHEMES[name].name} in {size(place.ram_bytes)} of memory"
                continue
            ceiling = CPU_BANDWIDTH_GB_S * 1e9 / active_bytes(self.counts, SCHEMES[name])
            if ceiling < need.speed:
                self.fastest = max(self.fastest or 0.0, ceiling)
                continue
            hour = place.hour(1)
            month = (hour or 0.0) * self.hours
            if need.budget is not None and month > need.budget:
                self.cheapest = month if self.cheapest is None else min(self.cheapest, month)
                continue
            found = Found(
                tier(name, model.checkpoint),
                bool(place.offer and not place.offer.date),
                month,
                0,
                order,
                name,
                place,
                (1, 1, 1),
                1,
                hour,
            )
            self.found.append(found)

    def refusal(self) -> Refusal:
        """The reasons nearest to letting it in: cost, then speed, then users, then memory."""
        need, reasons = self.need, []
        if self.cheapest is not None:
            reasons.append(f"budget: the cheapest that fits costs {self.cheapest:,.0f} {need.currency} a month")
        elif need.budget is not None and not reasons and self.short_bytes is None and self.fastest is None:
            reasons.append("budget: nobody said what the machines cost")
        if self.fastest is not None:
            reasons.append(
                f"speed: at most {self.fastest:,.1f} tokens a second for one request, {need.speed:g} are asked"
            )
        if self.most:
            reasons.append(
                f"users: the cards hold {self.most:,} requests of {need.context:,} tokens, not {need.users:,}"
            )
        if self.short_bytes:
            lack, where = self.short_bytes
            reasons.append(
                f"memory: {where} lacks {size(lack)} on the fullest card, for one request of {need.context:,}"
            )
        if not reasons:
            reasons.append("memory: no card can run it in a precision that is allowed")
        return Refusal(subject=self.model.id, reason=reasons[0], steps=tuple(reasons))

    def _schemes(self) -> list[str]:
        """Finest first: what the publisher ships, then what is made from it."""
        own = self.model.checkpoint
        names = [own, *LIGHTER] if own == "bf16" else [own]
        return [name for name in names if not self.need.quantization or name in self.need.quantization]

    def _gguf(self) -> list[str]:
        return [name for name in GGUF if not self.need.quantization or name in self.need.quantization]

    def _splits(self, scheme: Scheme) -> list[tuple[int, int, int]]:
        model = self.model
        ways = [(tp, 1, 1) for tp in TENSOR if _divides(model, scheme, tp)]
        if self.need.model:
            ways += [(8, pp, 1) for pp in PIPELINE if _divides(model, scheme, 8)]
        if model.moe and model.attention[0].kv_lora_rank:
            ways += [(1, 1, n) for n in ((8, 16, 32) if self.need.model else (8,)) if model.moe.experts % n == 0]
        return ways


def _replicas(place: Place, cards: int) -> int:
    """How many of so many cards a place has room for; one replica may span machines, never share one across."""
    machines = place.machines or 0
    if cards <= place.cards:
        return machines * (place.cards // cards)
    return machines // -(-cards // place.cards)


def _divides(model: Model, scheme: Scheme, tp: int) -> bool:
    """Whether vLLM can split it so: heads evenly, and widths in whole groups of a quantizer's scales."""
    if tp == 1:
        return True
    for group in model.attention:
        if group.kind in LINEAR:
            heads = (group.key_heads or group.heads, group.value_heads or group.heads)
            if any(each % tp for each in heads):
                return False
        elif group.heads % tp or (group.kv_heads and group.kv_heads % tp and tp % group.kv_heads):
            return False
    grouped = scheme.experts < 1 or "blocks" in scheme.name
    return not (grouped and model.moe and model.moe.intermediate_size % (tp * _GROUP))


def tier(scheme: str, own: str) -> int:
    """0: as shipped, or FP8, which matched pairs show to lose next to nothing; 1: four bits; 2: fewer."""
    if scheme in (own, "bf16", "fp8", "fp8-block", "int8", "gguf-q8_0", "gguf-f16", "gguf-q6_k"):
        return 0
    return 2 if scheme in ("gguf-q3_k_m", "gguf-q2_k") else 1


def describe(search: Search, found: Found, ruling: Ruling) -> Deployment:
    """The whole of what the inner loop kept in short."""
    need, model, place = search.need, search.model, found.place
    common = {
        "model": model.id,
        "scheme": found.scheme,
        "native": found.scheme == model.checkpoint,
        "place": place.name,
        "replicas": found.replicas,
        "context": need.context,
        "users": need.users,
        "hour": found.hour * found.replicas if found.hour is not None else None,
        "month": found.month if found.hour is not None else None,
        "currency": need.currency,
        "undated": bool(place.offer and not place.offer.date),
        "duties": (*ruling.duties, *place.ruling.duties),
        "accepted": ruling.accepted,
    }
    if found.cards == 0:
        return _on_cpu(search, found, common)
    card, asked = place.card, search.asked
    assert card is not None  # noqa: S101  a place with cards has one
    tp, pp, ep = found.split
    rank = vllm.rank(model, found.scheme, card, asked, tp=tp, pp=pp, ep=ep)
    assert rank is not None  # noqa: S101  it was counted before
    step = asked.step_tokens(card)
    blocks = rank.layout.blocks_per_request(need.context, step)
    each = -(-need.users // (found.replicas * ep))
    limit = model.context.extended or model.context.native
    return Deployment(
        **common,
        engine="vllm",
        card=card.id,
        tp=tp,
        pp=pp,
        ep=ep,
        requests=rank.layout.blocks(rank.pool) // blocks * ep * found.replicas,
        longest=rank.layout.longest(rank.pool, each, step, limit),
        sequences=asked.at_once(card),
        weight_bytes=rank.weights,
        activation_bytes=rank.activation,
        other_bytes=rank.other,
        graph_bytes=rank.graphs,
        usable_bytes=rank.usable,
        pool_bytes=rank.pool,
        block_bytes=rank.layout.block_bytes,
        request_blocks=blocks,
        ceiling=decode_ceiling(active_bytes(search.counts, SCHEMES[found.scheme]), card, tp * pp * ep),
    )


def _on_cpu(search: Search, found: Found, common: dict) -> Deployment:
    need, model, place = search.need, search.model, found.place
    weight_bytes = split(search.counts, SCHEMES[found.scheme], model, tables=False).total
    compute = (model.vocab_size + model.hidden_size) * llamacpp.UBATCH * 4
    compute += llamacpp.cells(need.context * need.users) * llamacpp.UBATCH * 2
    pool = place.ram_bytes - weight_bytes - compute
    one = llamacpp.kv_buffers(model.attention, need.context)
    limit = model.context.extended or model.context.native
    longest = need.context
    while longest * 2 <= limit and _kept(model, longest * 2, need.users) <= pool:
        longest *= 2
    return Deployment(
        **common,
        engine="llamacpp",
        requests=max(need.users, pool // one if one else need.users),
        longest=longest,
        sequences=need.users,
        weight_bytes=weight_bytes,
        activation_bytes=compute,
        usable_bytes=place.ram_bytes,
        pool_bytes=pool,
        block_bytes=one,
        request_blocks=1,
        ceiling=CPU_BANDWIDTH_GB_S * 1e9 / active_bytes(search.counts, SCHEMES[found.scheme]),
    )


def _kept(model: Model, context: int, users: int) -> int:
    return llamacpp.kv_buffers(model.attention, context * users, sequences=users, unified=True)
