"""What the flags of `freehold cost` say, as the types of plan/cost. A flag left out is None or False."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from freehold.catalogue.names import nearest
from freehold.errors import BadRequest, Unknown
from freehold.facts import ApiPrice, Card, Rate
from freehold.plan.cost import Interruptions, Owned, Wanted, egress
from freehold.plan.traffic import DAYS_A_MONTH, FLAT, Load, Sleep, Speed, within

STATED = "stated by you"
OFFICE = tuple(float(8 <= hour < 18) for hour in range(24))
OFFICE_DAYS = 21.0
_NEEDS = {  # flags that mean nothing without others
    **dict.fromkeys(("idle", "start"), ("to_zero",)),
    **dict.fromkeys(("prompt_rate", "rate_source"), ("rate",)),
    **dict.fromkeys(("years", "power_w", "price_kwh", "pue", "hosting", "interest"), ("own",)),
    "to_zero": ("requests", "rate"),
    "hours": ("requests",),
    "own": ("power_w", "price_kwh"),
    "egress_gb": ("egress_price",),
    "egress_price": ("egress_gb",),
}


def check(given: Mapping[str, Any]) -> None:
    """Raises BadRequest for a flag without those it needs."""
    absent = {name for name, value in given.items() if value is None or value is False}
    for name, others in _NEEDS.items():
        if lacking := " and ".join(_flag(other) for other in others if other in absent and name not in absent):
            raise BadRequest(f"{_flag(name)} means nothing without {lacking}", hint=f"give {lacking} too")


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def load(given: Mapping[str, Any]) -> Load:
    """Of no requests where nobody said how many: then it is the mix of one request."""
    profile = given["hours"] or "flat"
    office, hours = profile == "office", _numbers(profile, ",")
    if profile not in ("flat", "office") and len(hours) != 24:
        raise BadRequest(f"--hours is {profile!r}", hint="give flat, office, or 24 weights with commas: midnight first")
    return Load(
        requests_a_day=given["requests"] or 0.0,
        prompt_tokens=given["prompt"],
        completion_tokens=given["completion"],
        hours=OFFICE if office else FLAT if profile == "flat" else hours,
        days_a_month=OFFICE_DAYS if office else DAYS_A_MONTH,
    )


def parts(flag: str, text: str, shape: str, example: str) -> tuple[float, ...]:
    """Numbers between colons, as many as the shape has."""
    if len(numbers := _numbers(text, ":")) != shape.count(":") + 1:
        raise BadRequest(f"{flag} is {text!r}, but must be {shape}", hint=f"for example {flag} {example}")
    return numbers


def _numbers(text: str, between: str) -> tuple[float, ...]:
    """(): they are none."""
    try:
        return tuple(float(each) for each in text.split(between))
    except ValueError:
        return ()


def api(name: str | None, known: Sequence[ApiPrice], currency: str) -> ApiPrice | None:
    if name is None:
        return None
    if ":" not in name:
        for each in known:
            if each.id.casefold() == name.casefold():
                return each
        raise Unknown(f"no price of an API called {name!r} is known", hint=nearest(name, [each.id for each in known]))
    price, _, stated = name.rpartition(":")
    price, currency = (price, stated.upper()) if stated.isalpha() else (name, currency)
    prompt, completion = parts("--against", price, "PROMPT:COMPLETION", "2.5:10:USD")
    source = f"{STATED}, on the command line"
    return ApiPrice(id=name, publisher="", prompt=prompt, completion=completion, currency=currency, source=source)


def wanted(given: Mapping[str, Any], rates: tuple[Rate, ...], cards: int, mix: Load) -> Wanted:
    speed, interruptions, sent = None, Interruptions(), 0.0
    if given["rate"] is not None:
        source = given["rate_source"] or STATED
        if not given["completion"] and given["prompt_rate"] is None:
            raise BadRequest("--rate is of completion tokens, and there are none", hint="give --prompt-rate too")
        speed = Speed(completion=given["rate"], prompt=given["prompt_rate"], source=source)
    if given["interruptions"]:
        shape = "A_DAY:MINUTES:SHARE"
        a_day, minutes, fallback = parts("--interruptions", given["interruptions"], shape, "2:10:0.1")
        interruptions = Interruptions(a_day=a_day, lost_minutes=minutes, fallback=fallback)
    if given["egress_gb"] is not None:
        sent = egress(given["egress_gb"], given["egress_price"])
    if given["usd_rate"] is not None:
        stated = Rate(base="EUR", quote="USD", rate=within("--usd-rate", given["usd_rate"], 0.01, 100), date=STATED)
        rates = (stated, *(each for each in rates if {each.base, each.quote} != {"EUR", "USD"}))
    sleep = Sleep(**{f"{flag}_s": given[flag] for flag in ("idle", "start") if given[flag] is not None})
    return Wanted(
        cards=cards,
        currency=given["currency"],
        rates=rates,
        load=mix if given["requests"] else None,
        speed=speed,
        sleep=sleep if given["to_zero"] else None,
        interruptions=interruptions,
        egress_month=sent,
    )


def owned(given: Mapping[str, Any], many: int, cards: Sequence[Card]) -> Owned:
    """A machine of just these cards."""
    names = {"years": "years", "pue": "pue", "hosting": "hosting_month", "interest": "interest_pct"}
    stated = {field: given[flag] for flag, field in names.items() if given[flag] is not None}
    return Owned(
        capex=within("--own", given["own"], 1, 1e12, given["currency"]),
        power_w=given["power_w"],
        price_kwh=given["price_kwh"],
        cards=many,
        card=cards[0].id if len(cards) == 1 else given["cards"].lstrip("0123456789x* "),
        currency=given["currency"],
        date=STATED,
        source="--own",
        **stated,
    )
