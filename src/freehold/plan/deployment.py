"""A place where a model may run, and one way to serve it there."""

from __future__ import annotations

from math import ceil

from msgspec import Struct

from freehold.facts import Card, Offer
from freehold.plan import vllm
from freehold.plan.cost import Interruptions, hourly
from freehold.plan.cpu_speed import Memory
from freehold.plan.need import Need, version_of
from freehold.plan.performance import Performance
from freehold.plan.traffic import DAYS_A_MONTH, FILL, HOURS_A_MONTH
from freehold.plan.weights import Split
from freehold.types import Ruling

MOST_CARDS = 256  # of one deployment on rented machines
LOADED = 256  # sequences of a vLLM that carries a load: more at once write more in all
INTERRUPTIONS = Interruptions()  # assumed of spot machines


class Place(Struct, frozen=True, kw_only=True):
    """Machines of one kind that may be used, with what they cost."""

    name: str
    card: Card | None  # None: none that is used
    cards: int = 8  # in one machine
    machines: int | None = None  # None: as many as are needed, joined by a network
    most: int = MOST_CARDS  # of them in all, where machines are as many as are needed
    offer: Offer | None = None  # None: nobody said what it costs
    rate: float = 1.0  # the need's currency for one unit of the offer's
    ram_bytes: int = 0  # free for llama.cpp; 0: it does not run there
    memory: Memory | None = None  # how fast it was measured to be; None: nobody did
    country: str = ""
    ruling: Ruling = Ruling()

    @property
    def ram_gb_s(self) -> float | None:
        return self.memory.all_gb_s if self.memory else None

    @property
    def undated(self) -> bool:
        """Prices without a date are old ones."""
        return self.offer is not None and not self.offer.date

    def hour(self, cards: int, replicas: int = 1) -> float | None:
        """Money for a useful hour of replicas of so many cards; None: nobody said. Small ones share a machine.

        Of a spot machine some minutes are lost.
        """
        if self.offer is None:
            return None
        price = hourly(self.offer, machines(self.offer, cards, replicas) * self.offer.cards, self.rate)
        return price / INTERRUPTIONS.useful if self.offer.kind == "spot" else price

    def paid_hours(self, need: Need) -> float:
        """Of a month. What is rented by the hour is given back for the rest of the day; what is bought is not."""
        by_the_hour = self.offer is not None and self.offer.kind in ("on-demand", "spot") and self.offer.per == "hour"
        return hours_a_month(need) if by_the_hour else HOURS_A_MONTH

    def replicas(self, cards: int) -> int:
        """How many of so many cards it has room for; small ones share a machine, large ones take whole ones."""
        if self.machines is None:
            return self.most // cards
        if cards <= self.cards:
            return self.machines * (self.cards // cards)
        return self.machines // -(-cards // self.cards)


def machines(offer: Offer, cards: int, replicas: int = 1) -> int:
    """How many of what the offer sells: a replica of a few cards leaves the rest of a machine to others of its kind."""
    if cards <= offer.cards:
        return -(-replicas // (offer.cards // cards))
    return replicas * -(-cards // offer.cards)


class Deployment(Struct, frozen=True, kw_only=True):
    """One way to serve a model: what runs where, what it holds, what it costs. Memory is that of the fullest card."""

    model: str
    scheme: str  # a key of weights.SCHEMES
    native: bool  # the precision that the publisher ships
    engine: str
    place: str
    card: str = ""  # "": the CPU alone
    tp: int = 1
    pp: int = 1
    ep: int = 1  # ranks that share the experts and have each their own requests
    replicas: int = 1
    gpu_layers: int = 0  # llama.cpp: how many are on the cards
    context: int
    users: int
    requests: int  # of that context at once, all replicas together
    longest: int  # context that as many users could have
    kv_tokens: int  # the KV cache holds in all, in requests of that context
    sequences: int  # computed at once in one replica
    weight_bytes: int
    activation_bytes: int
    other_bytes: int = 0
    graph_bytes: int = 0
    usable_bytes: int
    pool_bytes: int
    block_bytes: int
    request_blocks: int
    at_once: int = 1  # requests in each replica, as users and load are shared out
    ceiling: float | None = None  # tokens a second of one request, at most
    performance: Performance | None = None  # of one replica, while the users are shared out evenly
    unpredicted: str = ""  # why nobody can say how fast it is
    hour: float | None = None
    month: float | None = None
    per_million: float | None = None  # tokens, at the load of the need; None: nobody can say how many it writes
    currency: str = "EUR"
    undated: bool = False
    duties: tuple[str, ...] = ()
    accepted: str = ""

    @property
    def split(self) -> Split:
        return Split(self.tp, self.pp, self.ep)

    @property
    def cards(self) -> int:
        return self.split.cards * self.replicas if self.card else 0


def settings(need: Need) -> vllm.Settings:
    """vLLM as the plan starts it: room for the users and for a load, no more."""
    least = LOADED if need.requests_a_day else 8
    sequences = min(1024, max(least, -(-need.users // 8) * 8))
    return vllm.Settings(version=version_of(need.vllm), kv_dtype=need.kv_dtype, sequences=sequences)


def hours_a_month(need: Need) -> float:
    return need.hours_a_day * DAYS_A_MONTH


def busy_replicas(need: Need, rate: float | None) -> int:
    """How many the load keeps busy that write `rate` tokens a second each, none more than `FILL` of the time.

    1 where no load was stated, or nobody knows the rate.
    """
    return max(1, ceil(written_per_s(need) / rate / FILL)) if rate else 1


def written_per_s(need: Need) -> float:
    """Tokens of the load, over the hours in which it comes; 0 where none was stated."""
    return (need.requests_a_day or 0.0) * need.completion_tokens / (need.hours_a_day * 3600)


def per_million(need: Need, month: float, replicas: int, rate: float | None) -> float | None:
    """Money for a million tokens, prompt and completion alike; without a load, of completions at full load."""
    if not rate:
        return None
    if need.requests_a_day:
        tokens = need.requests_a_day * DAYS_A_MONTH * (need.prompt_tokens + need.completion_tokens)
    else:
        tokens = rate * 3600 * hours_a_month(need) * replicas
    return month / tokens * 1e6
