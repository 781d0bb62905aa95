"""How many machine-hours a load takes: replicas at the peak, idle hours, and what scaling to zero saves.

A replica that computes P prompt tokens a second and C completion tokens a second when it does nothing else is busy for
prompt / P + completion / C seconds with a request. That is its share of the machine, not its latency.
"""

from __future__ import annotations

import math

from msgspec import Struct

from freehold.errors import BadRequest

HOURS_A_MONTH = 730.0  # 365 x 24 / 12
DAYS_A_MONTH = HOURS_A_MONTH / 24
FLAT = (1.0,) * 24
FILL = 0.8  # how busy a replica may be: queues grow without end near 1


def within(name: str, value: float, low: float, high: float, unit: str = "") -> float:
    """The value, or a refusal that names the valid range; NaN is outside every range."""
    if not low <= value <= high:
        span = f"from {number(low)} to {number(high)} {unit}".rstrip()
        raise BadRequest(f"{name} is {value}, but must be {span}", hint=f"give {name} {span}", param=name)
    return value


def number(value: float) -> str:
    """Six digits, or all of an integer's up to a quadrillion: what a step shows can be computed with."""
    if abs(value) >= 1e6:
        return f"{value:,.0f}" if abs(value) < 1e15 else f"{value:.6g}"
    return f"{value:.7g}" if abs(value) >= 1e-4 or value == 0 else f"{value:.6e}"


class Load(Struct, frozen=True, kw_only=True):
    """What is asked of an endpoint. `hours` weigh the 24 hours of a working day; only their ratios count."""

    requests_a_day: float  # on a working day
    prompt_tokens: float  # of one request
    completion_tokens: float
    hours: tuple[float, ...] = FLAT
    days_a_month: float = DAYS_A_MONTH  # on which it works; 21 for offices

    def __post_init__(self) -> None:
        within("requests_a_day", self.requests_a_day, 0, 1e10)
        within("prompt_tokens", self.prompt_tokens, 0, 1e8, "tokens a request")
        within("completion_tokens", self.completion_tokens, 0, 1e8, "tokens a request")
        within("days_a_month", self.days_a_month, 1, DAYS_A_MONTH, "days")
        within("hours", len(self.hours), 24, 24, "weights")
        for weight in self.hours:
            within("a weight of hours", weight, 0, 1e9)
        within("the sum of hours", sum(self.hours), 1e-9, 24e9)
        within("tokens a request", self.prompt_tokens + self.completion_tokens, 1, 2e8)

    @property
    def requests_an_hour(self) -> tuple[float, ...]:
        total = sum(self.hours)
        return tuple(self.requests_a_day * weight / total for weight in self.hours)

    @property
    def tokens_a_month(self) -> float:
        return self.requests_a_day * self.days_a_month * (self.prompt_tokens + self.completion_tokens)


class Speed(Struct, frozen=True, kw_only=True):
    """Tokens a second that one replica sustains for all its requests together, and who measured it."""

    completion: float
    prompt: float | None = None  # None: `completion` was measured with prompts like the load's: they take no more
    source: str = ""

    def __post_init__(self) -> None:
        within("speed of completion", self.completion, 1e-3, 1e8, "tokens a second")
        if self.prompt is not None:
            within("speed of prompt", self.prompt, 1e-3, 1e9, "tokens a second")

    def seconds(self, prompt_tokens: float, completion_tokens: float) -> tuple[float, float]:
        """How long so many tokens keep a replica busy: reading prompts, writing completions."""
        return (prompt_tokens / self.prompt if self.prompt else 0.0), completion_tokens / self.completion


class Service(Struct, frozen=True, kw_only=True):
    """What a load takes at a speed. Hours are machine-hours of a month."""

    replicas: int  # at the peak hour
    busy_h: float
    on_h: float
    starts: float = 0.0  # a month
    starting_h: float = 0.0  # part of on_h
    steps: tuple[str, ...] = ()

    @property
    def utilisation(self) -> float:
        return self.busy_h / self.on_h if self.on_h else 0.0

    @property
    def idle_share(self) -> float:
        return 1 - (self.busy_h + self.starting_h) / self.on_h if self.on_h else 0.0


def _replicas(requests: float, request_s: float) -> int:
    """Enough that none is busier than FILL; the last digits of a float do not buy a machine."""
    return math.ceil(requests * request_s / 3600 / FILL - 1e-9)


def always_on(load: Load, speed: Speed) -> Service:
    """Replicas for the peak hour, kept all month."""
    reading, writing = speed.seconds(load.prompt_tokens, load.completion_tokens)
    seconds, peak = reading + writing, max(load.requests_an_hour)
    replicas = max(1, _replicas(peak, seconds))
    within("replicas at the peak hour", replicas, 1, 1e6)
    busy, on = load.requests_a_day * load.days_a_month * seconds / 3600, replicas * HOURS_A_MONTH
    read = f"{number(load.prompt_tokens)} prompt tokens / {number(speed.prompt)} a second + " if speed.prompt else ""
    steps = (
        (
            f"a request keeps a replica busy: {read}{number(load.completion_tokens)} completion tokens / "
            f"{number(speed.completion)} a second = {number(seconds)} s; speed: {speed.source or 'stated by the asker'}"
        ),
        (
            f"replicas needed at the peak hour: {number(peak)} requests x {number(seconds)} s / 3600 s "
            f"/ {number(FILL)} = {number(peak * seconds / 3600 / FILL)}; rounded up to {replicas}"
        ),
        (
            f"busy in a month: {number(load.requests_a_day)} requests x {number(load.days_a_month)} days "
            f"x {number(seconds)} s / 3600 s = {number(busy)} h"
        ),
        f"on in a month: {replicas} x {number(HOURS_A_MONTH)} h = {number(on)} h",
    )
    return Service(replicas=replicas, busy_h=busy, on_h=on, steps=steps)


class Sleep(Struct, frozen=True, kw_only=True):
    """When a replica goes, and what it takes to come back."""

    idle_s: float = 300.0  # without a request until it stops
    start_s: float = 120.0  # until it answers; billed
    billing_s: int = 1  # every span on is rounded up to this

    def __post_init__(self) -> None:
        within("idle_s", self.idle_s, 0, 86_400, "s")
        within("start_s", self.start_s, 0, 7_200, "s")
        within("billing_s", self.billing_s, 1, 2_678_400, "s")


def awake(arrivals: float, busy: float, sleep: Sleep) -> tuple[float, float]:
    """Share of time one replica is on, and how often a second it starts.

    Poisson arrivals of rate a, each taking s seconds of the replica (busy share b = a s <= 1). The replica sleeps when
    the gap to the next request is longer than the idle time T: p = exp(-a T). By renewal, with a start of c seconds
    during which requests wait (M/G/1 with set-up), a cycle lasts (1/a + p c) / (1 - b) and sleeps p/a of it, so

        asleep = (1 - b) p / (1 + a p c),   awake = 1 - asleep,   starts = a x asleep   (a second)

    At T without end p is 0: always on. At T = 0 and c = 0 what is on is what is busy.
    """
    gap = math.exp(-arrivals * sleep.idle_s)
    starting = arrivals * gap * sleep.start_s
    on = (-math.expm1(-arrivals * sleep.idle_s) + busy * gap + starting) / (1 + starting)  # exact for rare requests too
    return on, arrivals * (1 - busy) * gap / (1 + starting)


def to_zero(load: Load, speed: Speed, sleep: Sleep) -> Service:
    """Replicas that come and go with the day: each hour on its own, as if it went on for ever.

    An hour that one replica carries is on as `awake` says. One that needs more keeps them all on, and starts what the
    hour before did not have. A span on is billed as max(billing_s, its mean length + billing_s / 2): rounding up costs
    half a period on average, and never less than one. Days off are asleep.
    """
    reading, writing = speed.seconds(load.prompt_tokens, load.completion_tokens)
    seconds, requests = reading + writing, load.requests_an_hour
    needed = [_replicas(hourly, seconds) for hourly in requests]
    within("replicas at the peak hour", max(needed), 0, 1e6)
    on_s = starts = starting_s = 0.0
    for hour, count in enumerate(needed):
        if count > 1:
            spans, spans_s = max(0, count - needed[hour - 1]), count * 3600.0
            rounded = spans * sleep.billing_s / 2
            spans_s += spans * sleep.start_s
        else:
            share, rate = awake(requests[hour] / 3600, requests[hour] * seconds / 3600, sleep)
            spans, spans_s = rate * 3600, share * 3600
            rounded = max(spans * sleep.billing_s / 2, spans * sleep.billing_s - spans_s)
        on_s, starts, starting_s = on_s + spans_s + rounded, starts + spans, starting_s + spans * sleep.start_s
    days = load.days_a_month
    steps = (
        (
            f"on in a month: {number(on_s / 3600)} h a day x {number(days)} days = {number(on_s * days / 3600)} h; "
            f"idle time {number(sleep.idle_s)} s, billed by {sleep.billing_s} s, Poisson arrivals hour by hour"
        ),
        (
            f"starting: {number(starts)} starts a day x {number(days)} days x {number(sleep.start_s)} s / 3600 s = "
            f"{number(starting_s * days / 3600)} h"
        ),
    )
    return Service(
        replicas=max(1, *needed),
        busy_h=load.requests_a_day * days * seconds / 3600,
        on_h=on_s * days / 3600,
        starts=starts * days,
        starting_h=starting_s * days / 3600,
        steps=steps,
    )
