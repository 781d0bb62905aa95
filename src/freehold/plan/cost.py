"""What a deployment costs: by the hour, by the month, by the million tokens, and against a closed API.

Pure arithmetic on dated offers. A month has 730 hours (365 x 24 / 12). Money keeps its currency: figures of two
currencies meet only through a named Rate. `steps` are lines whose right side can be computed from the left.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Literal

from msgspec import Struct
from msgspec.structs import replace

from freehold.errors import BadRequest
from freehold.facts import ApiPrice, Offer, OfferKind, Rate
from freehold.plan.traffic import FILL, HOURS_A_MONTH, Load, Service, Sleep, Speed, always_on, number, to_zero, within

SETUP_MONTHS = 12.0  # over which what is paid once is spread
LARGEST = 1e12


def exchange(have: str, want: str, rates: Iterable[Rate]) -> float:
    """Units of `want` for one unit of `have`. Raises BadRequest when no rate joins them: money is never mixed."""
    return _exchange(have, want, rates)[0]


def _exchange(have: str, want: str, rates: Iterable[Rate]) -> tuple[float, str]:
    """The factor, and the words that name it."""
    if have == want:
        return 1.0, ""
    for rate in rates:
        if {rate.base, rate.quote} == {have, want}:
            within(f"rate {rate.base}/{rate.quote}", rate.rate, 1e-6, 1e6)
            named = f"{rate.base}/{rate.quote} {number(rate.rate)} of {rate.date or 'an unknown day'}"
            return (rate.rate if rate.base == have else 1 / rate.rate), named
    hint = f'state it: [[rates]] base = "{have}", quote = "{want}", rate = ..., date = "..."'
    raise BadRequest(f"no rate between {have} and {want} is known", hint=hint)


def hourly(offer: Offer, cards: int = 1, rate: float = 1.0) -> float:
    """Money an hour for at least `cards` cards, times `rate`. Machines are bought whole: ceil(cards / offer.cards)."""
    if not (cards >= 1 and 0 <= offer.price < LARGEST and 0 < rate < LARGEST):  # it is asked some thousand times
        within("cards", cards, 1, 1e6)
        within(f"price of {offer.id}", offer.price, 0, LARGEST, offer.currency)
        within("rate", rate, 1e-6, 1e6)
    price = offer.price
    if offer.per == "month":
        price /= HOURS_A_MONTH
    if offer.setup:
        price += offer.setup / (SETUP_MONTHS * HOURS_A_MONTH)
    return -(-cards // offer.cards) * price * rate


def remarks(offer: Offer) -> tuple[str, ...]:
    """What a reader must know of a price before believing it."""
    undated = () if offer.date else (f"{offer.id}: the price has no date, treat it as old",)
    return (*undated, f"{offer.id}: {offer.note}") if offer.note else undated


def superseded(offers: Iterable[Offer]) -> set[str]:
    """Ids of the dated offers of which the provider's newer price is known."""
    newest: dict[tuple[object, ...], str] = {}
    offers = [offer for offer in offers if offer.date]
    for offer in offers:
        newest[_what(offer)] = max(offer.date, newest.get(_what(offer), ""))
    return {offer.id for offer in offers if offer.date < newest[_what(offer)]}


def _what(offer: Offer) -> tuple[object, ...]:
    return offer.provider, offer.card, offer.cards, offer.kind, offer.per, offer.countries, offer.currency


def _hour_steps(offer: Offer, cards: int, want: str, rates: Sequence[Rate]) -> tuple[str, ...]:
    rate, named = _exchange(offer.currency, want, rates)
    machines, source = -(-cards // offer.cards), f"{offer.source or 'no source'}, {offer.date or 'undated'}"
    base, parts = offer.price, number(offer.price)
    if offer.per == "month":
        base, parts = base / HOURS_A_MONTH, f"{number(offer.price)} a month / {number(HOURS_A_MONTH)} h"
    if offer.setup:
        parts += f" + {number(offer.setup)} setup / {number(SETUP_MONTHS)} months / {number(HOURS_A_MONTH)} h"
        base += offer.setup / (SETUP_MONTHS * HOURS_A_MONTH)
    total = f"{machines} machine{'s' if machines > 1 else ''} of {offer.cards}: {machines} x ({parts})"
    lines = (f"{total} = {number(machines * base)} {offer.currency} an hour; {offer.id}, {source}",)
    if not named:
        return lines
    factor = number(rate) if named.startswith(offer.currency) else f"(1 / {number(1 / rate)})"
    return (
        *lines,
        f"in {want}: {number(machines * base)} x {factor} = {number(machines * base * rate)} {want} an hour; {named}",
    )


class Owned(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A machine that is bought. Money in `currency`; power is the cards and the host at full load."""

    capex: float
    power_w: float
    price_kwh: float
    cards: int = 1
    card: str = ""
    currency: str = "EUR"
    years: float = 4.0
    pue: float = 1.4  # what the building draws for each watt of the machine
    utilisation: float = 1.0  # share of the hours in which it works; the others draw `idle_power`
    idle_power: float = 0.3  # share of power_w
    hosting_month: float = 0.0
    staff_month: float = 0.0
    interest_pct: float = 0.0  # a year, on the capital still bound: half of it on average
    date: str = ""
    source: str = "stated by the asker"

    def __post_init__(self) -> None:
        for name, low, high, unit in _OWNED:
            within(name, getattr(self, name), low, high, unit)


_OWNED = (
    *(("capex", 0, LARGEST, ""), ("power_w", 1, 1e7, "W"), ("price_kwh", 0, 1e4, "a kWh"), ("cards", 1, 1e6, "")),
    *(("years", 0.5, 20, "years"), ("pue", 1, 5, ""), ("utilisation", 0, 1, ""), ("idle_power", 0, 1, "")),
    *(("hosting_month", 0, LARGEST, ""), ("staff_month", 0, LARGEST, ""), ("interest_pct", 0, 100, "% a year")),
)


def owned_hourly(owned: Owned) -> float:
    """Money an hour, used or not: straight-line depreciation, interest on half the capital, power, hosting, staff."""
    return sum(_owned_parts(owned))


def _owned_parts(owned: Owned) -> tuple[float, float, float]:
    """Money an hour for the capital, for power, and for hosting and staff."""
    capital = owned.capex / owned.years + owned.capex / 2 * owned.interest_pct / 100
    power = owned.power_w / 1000 * _drawn(owned) * owned.pue * owned.price_kwh
    return capital / (12 * HOURS_A_MONTH), power, (owned.hosting_month + owned.staff_month) / HOURS_A_MONTH


def _drawn(owned: Owned) -> float:
    """Share of its power that is drawn on average."""
    return owned.idle_power + (1 - owned.idle_power) * owned.utilisation


def _owned_steps(owned: Owned) -> tuple[str, ...]:
    n, unit, drawn = number, "an hour", _drawn(owned)
    a, b, c = _owned_parts(owned)
    fixed = f"{n(owned.hosting_month)} + {n(owned.staff_month)}"
    return (
        (
            f"capital: ({n(owned.capex)} / {n(owned.years)} years + {n(owned.capex)} / 2 x {n(owned.interest_pct)} "
            f"/ 100) / 8760 h = {n(a)} {unit}; {owned.source}, {owned.date or 'undated'}"
        ),
        f"average draw: {n(owned.idle_power)} + (1 - {n(owned.idle_power)}) x {n(owned.utilisation)} = {n(drawn)}",
        f"power: {n(owned.power_w)} W / 1000 x {n(drawn)} x PUE {n(owned.pue)} x {n(owned.price_kwh)} = {n(b)} {unit}",
        f"hosting and staff: ({fixed}) / {n(HOURS_A_MONTH)} h = {n(c)} {unit}",
        f"owned: {n(a)} + {n(b)} + {n(c)} = {n(owned_hourly(owned))} {owned.currency} an hour",
    )


def owned_offer(owned: Owned, name: str = "owned", provider: str = "own") -> Offer:
    """The same as an offer, so that it is ranked with the others."""
    return Offer(
        id=name,
        provider=provider,
        card=owned.card,
        cards=owned.cards,
        kind="owned",
        price=owned_hourly(owned),
        currency=owned.currency,
        billing_s=int(owned.years * 365 * 86_400),
        date=owned.date,
        source=owned.source,
    )


def reserve(offer: Offer, *, discount_pct: float, months: float) -> Offer:
    """An offer under a commitment, paid whether used or not."""
    within("discount_pct", discount_pct, 0, 95, "%")
    within("months", months, 1, 120)
    note = f"{number(discount_pct)} % below {number(offer.price)} for {number(months)} months"
    price, billing_s = offer.price * (1 - discount_pct / 100), int(months * HOURS_A_MONTH * 3600)
    return replace(offer, id=f"{offer.id}-reserved", kind="reserved", price=price, billing_s=billing_s, note=note)


class Interruptions(Struct, frozen=True, kw_only=True):
    """How a spot machine goes away. Minutes lost are counted as paid: restart, reload, and the work that was cut."""

    a_day: float = 2.0
    lost_minutes: float = 10.0  # each
    fallback: float = 0.0  # share of the hours for which there is no spot machine and on-demand is taken

    def __post_init__(self) -> None:
        within("interruptions a day", self.a_day, 0, 1440)
        within("lost_minutes", self.lost_minutes, 0, 1440, "minutes")
        within("fallback", self.fallback, 0, 1)
        within("minutes lost a day", self.a_day * self.lost_minutes, 0, 1439, "of 1440")

    @property
    def useful(self) -> float:
        """Share of the hours paid in which it works."""
        return 1 - self.a_day * self.lost_minutes / 1440


def spot_hourly(spot: float, on_demand: float, cut: Interruptions) -> float:
    """Money for a useful hour: spot / useful for its share, on-demand for the rest. Both prices in one currency."""
    within("spot price", spot, 0, LARGEST)
    within("on-demand price", on_demand, 0, LARGEST)
    return (1 - cut.fallback) * spot / cut.useful + cut.fallback * on_demand


def _spot_steps(spot: float, on_demand: float, cut: Interruptions, currency: str) -> tuple[str, ...]:
    n = number
    return (
        f"useful share of spot: 1 - {n(cut.a_day)} a day x {n(cut.lost_minutes)} minutes / 1440 = {n(cut.useful)}",
        (
            f"a useful hour: (1 - {n(cut.fallback)}) x {n(spot)} / {n(cut.useful)} + {n(cut.fallback)} "
            f"x {n(on_demand)} = {n(spot_hourly(spot, on_demand, cut))} {currency}"
        ),
    )


def egress(gb_a_month: float, price_a_gb: float) -> float:
    """Money a month for what leaves the provider's network. GB are powers of ten."""
    return within("gb_a_month", gb_a_month, 0, 1e12, "GB") * within("price_a_gb", price_a_gb, 0, 1e3, "a GB")


class Cost(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One way to pay for one need. None: unknown, because no speed or no load was given."""

    name: str
    kind: OfferKind
    scaling: Literal["always on", "to zero"]
    currency: str
    hour: float  # of one replica while it is on; for spot of a useful hour
    month: float
    replicas: int = 1
    utilisation: float | None = None
    idle_share: float | None = None
    per_million: float | None = None  # tokens, prompt and completion together
    per_million_prompt: float | None = None
    per_million_completion: float | None = None
    steps: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()


class Wanted(Struct, frozen=True, kw_only=True):
    """The need that ways of paying are compared for."""

    cards: int = 1  # of one replica
    currency: str = "EUR"
    rates: tuple[Rate, ...] = ()
    load: Load | None = None
    speed: Speed | None = None
    sleep: Sleep | None = None  # None: always on; its billing_s gives way to the offer's
    interruptions: Interruptions = Interruptions()
    egress_month: float = 0.0  # in `currency`, from `egress`

    def __post_init__(self) -> None:
        within("cards", self.cards, 1, 1e6)
        within("egress_month", self.egress_month, 0, LARGEST)


def cost(offer: Offer, wanted: Wanted, *, on_demand: Offer | None = None) -> Cost:
    """What `wanted` costs on one offer. For spot, `on_demand` is what is taken when there is none."""
    rate = exchange(offer.currency, wanted.currency, wanted.rates)
    hour = hourly(offer, wanted.cards, rate)
    steps = _hour_steps(offer, wanted.cards, wanted.currency, wanted.rates)
    said = remarks(offer)
    if offer.kind == "spot":
        cut = wanted.interruptions
        if cut.fallback and on_demand is None:
            raise BadRequest(
                f"{offer.id} falls back on an on-demand machine, but none was named", hint="give its offer"
            )
        other = 0.0
        if on_demand is not None and cut.fallback:
            other = hourly(on_demand, wanted.cards, exchange(on_demand.currency, wanted.currency, wanted.rates))
            said = (*said, *remarks(on_demand))
        steps += _spot_steps(hour, other, cut, wanted.currency)
        hour = spot_hourly(hour, other, cut)
    service, n = _service(offer, wanted), number
    hours = service.on_h if service else HOURS_A_MONTH
    month = hours * hour + wanted.egress_month
    extra = f" + egress {n(wanted.egress_month)}" if wanted.egress_month else ""
    line = f"a month: {n(hours)} h x {n(hour)}{extra} = {n(month)} {wanted.currency}"
    found = Cost(
        name=offer.id,
        kind=offer.kind,
        scaling="to zero" if service and service.starts else "always on",
        currency=wanted.currency,
        hour=hour,
        month=month,
        steps=(*steps, *(service.steps if service else ()), line),
        remarks=said,
    )
    return _by_tokens(found, service, wanted)


def _service(offer: Offer, wanted: Wanted) -> Service | None:
    """Machine-hours of the load: to zero where that is asked, can be billed so, and is not dearer than staying on."""
    if wanted.load is None or wanted.speed is None:
        return None
    kept = always_on(wanted.load, wanted.speed)
    if wanted.sleep is None or offer.kind not in ("on-demand", "spot"):
        return kept
    asleep = to_zero(wanted.load, wanted.speed, replace(wanted.sleep, billing_s=offer.billing_s))
    return replace(asleep, steps=kept.steps[:3] + asleep.steps) if asleep.on_h < kept.on_h else kept


def _by_tokens(found: Cost, service: Service | None, wanted: Wanted) -> Cost:
    n, load = number, wanted.load
    if service is None or load is None or wanted.speed is None or load.tokens_a_month == 0:
        why = "per million tokens: unknown without a load and a measured or stated speed"
        return replace(found, remarks=(*found.remarks, why))
    per_million = found.month / load.tokens_a_month * 1e6
    reading, writing = wanted.speed.seconds(load.prompt_tokens, load.completion_tokens)
    share = reading / (reading + writing) if reading + writing else 0.0
    requests = load.requests_a_day * load.days_a_month
    split = wanted.speed.prompt is not None
    prompt = found.month * share / (requests * load.prompt_tokens) * 1e6 if split and load.prompt_tokens else None
    completion = (
        found.month * (1 - share) / (requests * load.completion_tokens) * 1e6
        if load.completion_tokens and (split or not load.prompt_tokens)
        else None
    )
    line = (
        f"per million: {n(found.month)} / {n(load.tokens_a_month)} tokens x 1000000 = {n(per_million)} {found.currency}"
    )
    return replace(
        found,
        replicas=service.replicas,
        utilisation=service.utilisation,
        idle_share=service.idle_share,
        per_million=per_million,
        per_million_prompt=prompt,
        per_million_completion=completion,
        steps=(*found.steps, line),
    )


def owned_cost(owned: Owned, wanted: Wanted) -> Cost:
    """What `wanted` costs on a machine that is bought."""
    found = cost(owned_offer(owned), wanted)
    return replace(found, steps=(*_owned_steps(owned), *found.steps))


class BreakEven(Struct, frozen=True, kw_only=True):
    """Tokens a month at which a month of machines costs what a closed API asks for as many."""

    tokens: float
    api_per_million: float  # of the load's mix, in the month's currency
    capacity: float | None  # tokens a month the replicas can deliver; None: no speed
    deliverable: bool | None
    steps: tuple[str, ...]


def break_even(found: Cost, api: ApiPrice, wanted: Wanted) -> BreakEven:
    """Where both cost the same, for the mix of wanted.load, with the replicas on all month: full, none would sleep."""
    load = wanted.load
    if load is None:
        raise BadRequest("the mix of prompt and completion tokens is unknown", hint="state a load")
    within(f"prompt price of {api.id}", api.prompt, 0, 1e6, "a million")
    within(f"completion price of {api.id}", api.completion, 0, 1e6, "a million")
    rate, named = _exchange(api.currency, found.currency, wanted.rates)
    n, speed = number, wanted.speed
    share = load.prompt_tokens / (load.prompt_tokens + load.completion_tokens)
    asked = share * api.prompt + (1 - share) * api.completion
    within(f"price of {api.id} for this mix", asked, 1e-9, 1e6, "a million")
    month = found.replicas * HOURS_A_MONTH * found.hour + wanted.egress_month
    tokens = month / (asked * rate) * 1e6
    capacity = None
    if speed is not None:
        one = sum(speed.seconds(share, 1 - share))
        capacity = found.replicas * HOURS_A_MONTH * 3600 * FILL / one
    factor = f" x {n(rate)}" if named else ""
    steps = (
        (
            f"the API's mix: ({n(load.prompt_tokens)} x {n(api.prompt)} + {n(load.completion_tokens)} x "
            f"{n(api.completion)}) / ({n(load.prompt_tokens)} + {n(load.completion_tokens)}) = {n(asked)} "
            f"{api.currency} a million; {api.id}, {api.date or 'undated'}, {api.source or 'no source'}"
        ),
        f"on all month: {found.replicas} x 730 h x {n(found.hour)} + {n(wanted.egress_month)} = {n(month)}",
        f"break-even: {n(month)} / ({n(asked)}{factor}) x 1000000 = {n(tokens)} tokens a month"
        + (f"; {named}" if named else ""),
    )
    within("break-even", tokens, 0, math.inf)
    deliverable = None if capacity is None else tokens <= capacity
    return BreakEven(
        tokens=tokens, api_per_million=asked * rate, capacity=capacity, deliverable=deliverable, steps=steps
    )
