"""How fast a deployment answers: figures with a band, and what they rest on."""

from __future__ import annotations

from collections.abc import Iterable
from math import log2
from typing import Any, Literal, NamedTuple

from msgspec import Struct
from msgspec.structs import replace

STRANGE = 2.0  # how many times wider a band is, where something of the case was never fitted; nothing tells how much


class Estimate(Struct, frozen=True, kw_only=True):
    """A figure and the band that held four of five cases of its class."""

    value: float
    low: float
    high: float


class Performance(Struct, frozen=True, kw_only=True):
    """One replica, while it answers `concurrency` requests at once."""

    concurrency: int
    ttft_s: Estimate  # until the first token
    tpot_s: Estimate  # for each further token
    tokens_per_s: Estimate  # written, all requests together
    basis: Literal["predicted", "measured"]
    source: str  # what it was fitted on and how far off that was, or where and when it was measured


class Unpredicted(Struct, frozen=True, kw_only=True):
    """Why nobody can say how fast it is: a value, never a guess."""

    reason: str


def bounded(found: Performance, least_s: float) -> Performance:
    """With no band that goes beyond what the memory can give: so many seconds for a token of one request."""
    tpot, rate = found.tpot_s, found.tokens_per_s
    tpot = replace(tpot, low=min(tpot.value, max(tpot.low, least_s)))
    most = max(rate.value, min(rate.high, found.concurrency / least_s))
    return replace(found, tpot_s=tpot, tokens_per_s=replace(rate, high=most))


class Band(Struct, frozen=True, kw_only=True):
    """What a prediction is multiplied with for the ends of its band."""

    low: float
    high: float

    def around(self, value: float, strange: float = 1.0) -> Estimate:
        """`strange`: how many times wider at each end."""
        return Estimate(value=value, low=value * self.low / strange, high=value * self.high * strange)


class Bands(Struct, frozen=True, kw_only=True):
    """Of one class of cases, and how far off they were: the mean of the absolute errors of the time a token takes."""

    ttft: Band
    tpot: Band
    tokens_per_s: Band
    tpot_error_pct: float


class Served(NamedTuple):
    """What makes one deployment as fast as another: fields as of a Deployment."""

    model: str
    scheme: str
    engine: str
    card: str
    tp: int
    pp: int


class Pace(Struct, frozen=True, kw_only=True):
    """How fast one model was on one kind of machine, at one concurrency."""

    model: str  # the digest of its weights
    catalogue: str
    scheme: str
    engine: str
    card: str
    tp: int
    pp: int
    host: str
    prompt_tokens: float  # in the middle
    completion_tokens: float
    performance: Performance


def alike(known: Any, plan: Any, digest: str) -> bool:
    """Whether it, a Measurement or a Pace, is of what is planned, a Deployment or Served.

    `digest`: of the files that are planned for, where it is files; else the model is the catalogue's.
    """
    where = (digest or plan.model, plan.scheme, plan.engine, plan.card, plan.tp, plan.pp)
    known_as = known.model if digest else known.catalogue
    return (known_as, known.scheme, known.engine, known.card, known.tp, known.pp) == where


def find_pace(those: Iterable[Pace], plan: Any, digest: str, concurrency: int) -> Pace | None:
    """What was measured of this deployment while so many were answered at once, within a factor of 1.4; else None.

    Of several the newest.
    """
    at = level(concurrency)
    return next((each for each in those if each.performance.concurrency == at and alike(each, plan, digest)), None)


def level(concurrency: float) -> int:
    """The power of two next to it: what is measured at about the same concurrency is put together."""
    return 1 << round(log2(max(1.0, concurrency)))
