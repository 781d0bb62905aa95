"""Every way to serve one model: precision x split x card, each tried against memory, speed and budget."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from math import ceil
from typing import Any, NamedTuple

from msgspec.structs import asdict

from freehold.facts import Card, Model
from freehold.plan import llamacpp, vllm
from freehold.plan.deployment import Deployment, Place, per_million, settings
from freehold.plan.kv import LINEAR
from freehold.plan.misses import Misses
from freehold.plan.need import Need
from freehold.plan.performance import Performance, bounded
from freehold.plan.speed import active_bytes, decode_ceiling, mixed_ceiling, token_bytes
from freehold.plan.speeds import Carried, Setup, Speeds, traffic_of
from freehold.plan.units import size
from freehold.plan.weights import SCHEMES, Scheme, Split, held_bytes
from freehold.types import Refusal, Ruling

TENSOR = (1, 2, 4, 8)  # cards of one machine that share every layer
PIPELINE = (2, 4)  # machines that share the layers, for a model that was named and is too large for one
MOST_USERS = 1_000_000
LIGHTER = ("fp8", "nvfp4", "int4-awq")  # made from a checkpoint in 16 bits
GGUF = ("gguf-q8_0", "gguf-q6_k", "gguf-q5_k_m", "gguf-q4_k_m", "gguf-q3_k_m")
_GROUP = 128  # values that share a scale: a rank's share of a width must be a multiple of it


class Kind(NamedTuple):
    """Of a card: all that vLLM's defaults and allocations depend on."""

    step_tokens: int
    at_once: int
    unified: bool
    vendor: str


class Spot(NamedTuple):
    """A card as the inner loop wants it."""

    place: Place
    card: Card
    usable: int
    kind: Kind
    capability: float


class Way(NamedTuple):
    """A precision and a split, before any card is looked at."""

    tier: int
    order: int  # finer precision first
    scheme: str
    split: Split
    cards: int  # of the split
    token_bytes: float  # read for one token


class Replica(NamedTuple):
    """One of a way at a place, that fits."""

    way: Way
    place: Place
    gpu_layers: int  # llama.cpp; -1: vLLM
    slots: int  # requests of average length at once
    ceiling: float | None  # tokens a second of one of them, at most

    @property
    def setup(self) -> Setup:
        return Setup(self.way.scheme, self.way.split, self.place, self.gpu_layers)


class Found(NamedTuple):
    """What the inner loop keeps."""

    way: Way
    place: Place
    replicas: int
    hour: float | None
    month: float
    gpu_layers: int  # llama.cpp; -1: vLLM
    ceiling: float | None
    at_once: int  # requests in each replica, as users and load are shared out
    unsure: bool  # a speed or a load is asked for, and nobody can say how fast it is

    @property
    def rank(self) -> tuple[bool, int, bool, float, int, int, int]:
        """The order of the ways to serve one model. A dated price is believed first."""
        cards = self.way.cards * self.replicas if self.gpu_layers else 0
        return self.unsure, self.way.tier, self.place.undated, self.month, cards, self.way.order, self.gpu_layers


def spots(places: Sequence[Place], need: Need, asked: vllm.Settings) -> list[Spot]:
    """The cards among the places, smaller ones first: the cheapest of each card and machine.

    Where there is a price with a date, one without is not looked at; unless it is lower and there is a budget.
    """
    kept: dict[tuple[str, int, int | None], list[Spot]] = {}
    paid = {place.name: (place.hour(1) or 0.0) * place.paid_hours(need) for place in places if place.card}

    def believed(place: Place) -> tuple[bool, bool, int, float]:
        cards = place.offer.cards if place.offer else 0
        return place.offer is None, place.undated, cards, paid.get(place.name, 0.0)

    for place in sorted(places, key=believed):
        if (card := place.card) is None:
            continue
        same = kept.setdefault((card.id, place.cards, place.machines), [])
        hidden = same and place.undated and need.budget is None
        if not hidden and not any(_never_dearer(each.place, place, paid) for each in same):
            kind = Kind(asked.step_tokens(card), asked.at_once(card), card.unified, card.vendor)
            same.append(Spot(place, card, int(asked.share() * card.memory_bytes), kind, _capability(card)))
    return sorted((spot for same in kept.values() for spot in same), key=lambda spot: spot.usable)


def _never_dearer(one: Place, other: Place, paid: Mapping[str, float]) -> bool:
    """Whether the first costs no more, however many cards are rented; nothing is dearer than an unknown price."""
    if one.offer is None or other.offer is None:
        return other.offer is None
    times, rest = divmod(other.offer.cards, one.offer.cards)
    return not rest and paid[one.name] * times <= paid[other.name]


def _capability(card: Card) -> float:
    """NVIDIA's number, 0 where nobody said it; AMD's cards run every precision that is planned here."""
    return float(card.compute_capability or 0) if card.vendor == "NVIDIA" else 99.0


def largest(low: int, high: int, fits: Callable[[int], bool]) -> int:
    """The largest number up to `high` that fits, where `low` does and what is less than one that fits fits too."""
    return low + bisect_left(range(low + 1, high + 1), x=True, key=lambda n: not fits(n))


class Search:
    """The deployments found for one model, and the nearest misses."""

    def __init__(self, need: Need, speeds: Speeds) -> None:
        self.need, self.speeds = need, speeds
        self.model, self.counts = speeds.model, speeds.counts
        self.asked = settings(need)
        self.found: list[Found] = []
        self.misses = Misses()
        self.considered = 0

    def cards(self, places: Sequence[Spot]) -> None:
        """vLLM on every card, in every precision and split."""
        if self.model.checkpoint.startswith("gguf"):
            return
        own = self.model.checkpoint
        for order, name in enumerate(self._asked([own, *LIGHTER] if own == "bf16" else [own])):
            scheme, grade = SCHEMES[name], tier(name, own)
            for split in self._splits(scheme):
                read = active_bytes(self.model, self.counts, scheme, split.ep)
                self._on_cards(Way(grade, order, name, split, split.cards, read), places)

    def _on_cards(self, way: Way, places: Sequence[Spot]) -> None:
        asked, model, needs = self.asked, self.model, SCHEMES[way.scheme].needs
        (tp, _, ep), cards = way.split, way.cards
        joined = max(tp, min(ep, TENSOR[-1]))  # by the links of one machine
        held = held_bytes(self.counts, way.scheme, model, way.split)
        layout = vllm.layout(model.attention, asked, way.split)
        fixed: dict[Kind, tuple[int, int, int]] = {}
        mean = traffic_of(self.need, 1)
        step_bytes = way.token_bytes / mean.tokens_a_step
        for spot in places:
            place, card, kind = spot.place, spot.card, spot.kind
            self.considered += 1
            if needs > spot.capability or joined > place.cards or (cards > place.cards and not place.replicas(cards)):
                continue
            if kind not in fixed:
                taken = vllm.rank(model, held, way.scheme, card, asked, split=way.split).taken_bytes
                lengths = self.need.context, ceil(mean.prompt_tokens + mean.completion_tokens)
                whole, part = (layout.blocks_per_request(tokens, kind.step_tokens) for tokens in lengths)
                fixed[kind] = taken, whole, part
            taken, blocks, fewer = fixed[kind]
            pool = (spot.usable - taken) // layout.block_bytes
            if pool >= blocks:
                most, ceiling = kind.at_once, decode_ceiling(step_bytes, card, tp)
                self._keep(way, place, min(pool // blocks, most) * ep, min(pool // fewer, most) * ep, ceiling)
            else:
                lack = taken + blocks * layout.block_bytes - spot.usable
                self.misses.lacks(lack, f"{SCHEMES[way.scheme].name} on {cards} x {card.id}")

    def _keep(self, way: Way, place: Place, requests: int, slots: int, ceiling: float | None) -> None:
        if self.misses.slow(ceiling, self.need.speed, place.card):
            return
        replicas, room = -(-self.need.users // requests), place.replicas(way.cards)
        if replicas > room:
            self.misses.most = max(self.misses.most, room * requests)
        else:
            self._carry(Replica(way, place, -1, slots, ceiling), replicas, room)

    def _carry(self, replica: Replica, replicas: int, room: int) -> None:
        """Whether it is fast enough for each request, and for the load: with as many replicas as that keeps busy."""
        need, carried = self.need, Carried(1, -(-self.need.users // replicas), None, unsure=False)
        if need.speed or need.requests_a_day:
            carried = self.speeds.carry(replica.setup, carried.at_once, replica.slots, replica.ceiling)
        if carried.each is not None and carried.each < need.speed:
            self.misses.likely = max(self.misses.likely or 0.0, carried.each)
        elif carried.busy > room:
            self.misses.room = max(self.misses.room or (0, 0), (room, carried.busy))
        else:
            self._afford(replica, max(replicas, carried.busy), carried)

    def _afford(self, replica: Replica, replicas: int, carried: Carried) -> None:
        budget, (way, place, gpu_layers, _, ceiling) = self.need.budget, replica
        hour = place.hour(way.cards if gpu_layers else 1, replicas)
        month = hour * place.paid_hours(self.need) if hour is not None else 0.0
        if budget is not None and (hour is None or month > budget):
            if hour is None:
                self.misses.unpriced = True
            else:
                self.misses.cheapest = min(self.misses.cheapest or month, month)
            return
        self.found.append(
            Found(way, place, replicas, hour, month, gpu_layers, ceiling, carried.at_once, carried.unsure)
        )

    def llamacpp(self, place: Place) -> None:
        """llama.cpp in the memory of a machine, with as many layers on its cards as they hold."""
        model, need = self.model, self.need
        own = (model.checkpoint,) if model.checkpoint.startswith("gguf") else self._asked(GGUF)
        for order, name in enumerate(own):
            self.considered += 1
            held = held_bytes(self.counts, name, model, tables=False)
            fit = _offload(model, place, held, need.context, need.users)
            if fit.lack_bytes > 0:
                self.misses.lacks(fit.lack_bytes, f"{SCHEMES[name].name} in {size(place.ram_bytes)}")
                continue
            cards, read = place.cards if fit.gpu_layers else 1, token_bytes(model, self.counts, name)
            way = Way(tier(name, model.checkpoint), order, name, Split(cards), cards, read)
            ceiling = mixed_ceiling(way.token_bytes, fit.gpu_layers / model.layers, place.card, place.ram_gb_s)
            if self.misses.slow(ceiling, need.speed, place.card):
                continue
            self._carry(Replica(way, place, fit.gpu_layers, need.users, ceiling), 1, 1)

    def refusal(self) -> Refusal:
        """Why there is no deployment, the nearest reason first."""
        nowhere = "place: no machine is left that can run it in a precision that is allowed"
        reasons = tuple(self.misses.reasons(self.need)) or (nowhere,)
        return Refusal(subject=self.model.id, reason=reasons[0], steps=reasons)

    def describe(self, found: Found, ruling: Ruling) -> Deployment:
        """The whole of what the inner loop kept in short."""
        need, place, way = self.need, found.place, found.way
        priced = found.hour is not None
        speed = self.speeds.of(Setup(way.scheme, way.split, place, found.gpu_layers), found.at_once)
        if isinstance(speed, Performance) and found.ceiling:
            speed = bounded(speed, 1 / found.ceiling)
        rate = need.rate or (speed.tokens_per_s.value if isinstance(speed, Performance) else None)
        common: dict[str, Any] = {
            "model": self.model.id,
            "scheme": way.scheme,
            "native": way.scheme == self.model.checkpoint,
            "place": place.name,
            "replicas": found.replicas,
            "context": need.context,
            "users": need.users,
            "hour": found.hour,
            "month": found.month if priced else None,
            "per_million": per_million(need, found.month, found.replicas, rate) if priced else None,
            "performance": speed if isinstance(speed, Performance) else None,
            "unpredicted": "" if isinstance(speed, Performance) else speed.reason,
            "ceiling": found.ceiling,
            "at_once": found.at_once,
            "currency": need.currency,
            "undated": place.undated,
            "duties": (*ruling.duties, *place.ruling.duties),
            "accepted": ruling.accepted,
        }
        return self._vllm(found, common) if found.gpu_layers < 0 else self._llamacpp(found, common)

    def _vllm(self, found: Found, common: dict[str, Any]) -> Deployment:
        need, asked, way, card = self.need, self.asked, found.way, found.place.card
        assert card is not None  # noqa: S101  vLLM is planned on cards only
        held = held_bytes(self.counts, way.scheme, self.model, way.split)
        rank = vllm.rank(self.model, held, way.scheme, card, asked, split=way.split)
        layout, step = vllm.layout(self.model.attention, asked, way.split), asked.step_tokens(card)
        blocks, in_pool = layout.blocks_per_request(need.context, step), layout.blocks(rank.pool_bytes)
        ranks = found.replicas * way.split.ep  # with requests of their own
        return Deployment(
            **common,
            **asdict(rank),
            **way.split._asdict(),
            engine="vllm",
            card=card.id,
            requests=in_pool // blocks * ranks,
            longest=layout.longest(rank.pool_bytes, -(-need.users // ranks), step, _limit(self.model)),
            kv_tokens=in_pool * need.context // blocks * ranks,
            sequences=asked.at_once(card),
            pool_bytes=rank.pool_bytes,
            block_bytes=layout.block_bytes,
            request_blocks=blocks,
        )

    def _llamacpp(self, found: Found, common: dict[str, Any]) -> Deployment:
        need, model, place, way = self.need, self.model, found.place, found.way
        held = held_bytes(self.counts, way.scheme, model, tables=False)
        taken = _offload(model, place, held, need.context, need.users)

        def fits(context: int, users: int) -> bool:
            return _offload(model, place, held, context, users).lack_bytes <= 0

        requests = largest(need.users, MOST_USERS, lambda users: fits(need.context, users))
        return Deployment(
            **common,
            engine="llamacpp",
            card=place.card.id if place.card and found.gpu_layers else "",
            tp=way.split[0],
            gpu_layers=found.gpu_layers,
            requests=requests,
            longest=largest(need.context, _limit(model), lambda context: fits(context, need.users)),
            kv_tokens=requests * need.context,
            sequences=need.users,
            weight_bytes=held,
            activation_bytes=taken.compute_bytes,
            usable_bytes=taken.usable_bytes,
            pool_bytes=taken.usable_bytes - held - taken.compute_bytes,
            block_bytes=llamacpp.kv_buffers(model.attention, need.context),
            request_blocks=1,
        )

    def _asked(self, schemes: Sequence[str]) -> list[str]:
        return [name for name in schemes if not self.need.quantization or name in self.need.quantization]

    def _splits(self, scheme: Scheme) -> list[Split]:
        model = self.model
        ways = [Split(tp) for tp in TENSOR if _divides(model, scheme, tp)]
        if self.need.model:
            ways += [Split(8, pp) for pp in PIPELINE if _divides(model, scheme, 8)]
        if model.moe and model.attention[0].kv_lora_rank:
            ways += [Split(ep=n) for n in ((8, 16, 32) if self.need.model else (8,)) if model.moe.experts % n == 0]
        return ways


def _offload(model: Model, place: Place, held: int, context: int, users: int) -> llamacpp.Offload:
    card, cards = (place.card.memory_bytes, place.cards) if place.card else (0, 0)
    return llamacpp.offload(
        model, held, context=context, users=users, ram_bytes=place.ram_bytes, card_bytes=card, cards=cards
    )


def _limit(model: Model) -> int:
    return model.context.extended or model.context.native


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
    grouped = "128" in scheme.name  # NVFP4's groups are of 16, MXFP4 is padded
    width = model.moe.intermediate_size if model.moe else model.intermediate_size
    return not (grouped and width % (tp * _GROUP))


def tier(scheme: str, own: str) -> int:
    """0: as shipped, or eight bits; 1: four or five; 2: fewer.

    In matched pairs FP8 kept 100 % of the score and INT4 98 (medians); the six bits of Q6_K are put beside eight
    without such a measurement.
    """
    if scheme in (own, "bf16", "fp8", "fp8-block", "int8", "gguf-q8_0", "gguf-f16", "gguf-q6_k"):
        return 0
    return 2 if scheme in ("gguf-q3_k_m", "gguf-q2_k") else 1
