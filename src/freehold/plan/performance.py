"""How fast a deployment answers: figures with a band, and what they rest on."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct


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


class Band(Struct, frozen=True, kw_only=True):
    """What a prediction is multiplied with for the ends of its band."""

    low: float
    high: float

    def around(self, value: float) -> Estimate:
        return Estimate(value=value, low=value * self.low, high=value * self.high)


class Bands(Struct, frozen=True, kw_only=True):
    """Of one class of cases, and how far off they were: the mean of the absolute errors of the time a token takes."""

    ttft: Band
    tpot: Band
    tokens_per_s: Band
    tpot_error_pct: float
