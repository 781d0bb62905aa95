"""The answer of `freehold cost`, row by row: every offer, commitment and machine of one's own that was asked about."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from msgspec.structs import replace

from freehold.catalogue import Catalogue
from freehold.catalogue.names import nearest
from freehold.catalogue.places import read_cards
from freehold.cli import stated
from freehold.errors import BadRequest, Unknown
from freehold.facts import ApiPrice, Card, Offer
from freehold.plan import cost as money
from freehold.plan.cost import BreakEven, Cost, Owned, Wanted, superseded
from freehold.plan.traffic import Load


class Row(NamedTuple):
    """One way to pay."""

    offer: Offer
    cost: Cost
    current: bool  # its price is dated, and no newer one is known
    even: BreakEven | None  # None: no API was named


class Bill(NamedTuple):
    """The answer."""

    rows: tuple[Row, ...]  # current prices first, then by month
    wanted: Wanted
    api: ApiPrice | None
    mix: Load  # of one request, whether or not a load was stated


def bill(given: Mapping[str, Any], catalogue: Catalogue) -> Bill:
    """Every way to pay for what was asked. Raises BadRequest with the valid range, Unknown with the nearest names."""
    stated.check(given)
    many, cards = read_cards(catalogue.cards, given["cards"])
    mix = stated.load(given)
    api = stated.api(given["against"], catalogue.closed_prices, given["currency"])
    wanted = stated.wanted(given, catalogue.rates, many, mix)
    offers = _offers(given, catalogue, cards)
    old = superseded((*catalogue.offers, *offers))
    costs = []
    for offer in offers:
        other = _fallback(offer, catalogue.offers, wanted)
        current = all(each.date and each.id not in old for each in (offer, other) if each)
        costs.append((offer, money.cost(offer, wanted, on_demand=other), current))
    if given["own"] is not None:
        costs.append((*_owned(stated.owned(given, many, cards), wanted), True))
    if not costs:
        has = sorted({offer.card for offer in catalogue.offers})
        hint = f"fewer conditions, or --own CAPEX; cards with offers: {', '.join(has)}"
        raise BadRequest(f"nobody here offers {given['cards']} so", hint=hint)
    rows = []
    for offer, cost, current in costs:
        mixed = replace(wanted, load=mix, egress_month=0.0 if cost.kind == "owned" else wanted.egress_month)
        rows.append(Row(offer, cost, current, money.break_even(cost, api, mixed) if api else None))
    rows.sort(key=lambda row: (not row.current, row.cost.month))
    return Bill(tuple(rows), wanted, api, mix)


def _offers(given: Mapping[str, Any], catalogue: Catalogue, cards: Iterable[Card]) -> list[Offer]:
    """Those of the catalogue that are wanted, and the on-demand ones once more as a commitment would make them."""
    ids, provider = {card.id for card in cards}, (given["provider"] or "").casefold()
    names = {each.id: each.name for each in catalogue.providers}
    names = {**{offer.provider: "" for offer in catalogue.offers}, **names}
    meant = {each for each, name in names.items() if provider in (each.casefold(), name.casefold(), "")}
    if not meant:
        raise Unknown(f"no provider is called {given['provider']!r}", hint=nearest(provider, names))
    there = [offer for offer in catalogue.offers if offer.card in ids and offer.provider in meant]
    found = [offer for offer in there if not given["kind"] or offer.kind in given["kind"]]
    if given["reserve"]:
        percent, months = stated.parts("--reserve", given["reserve"], "PERCENT:MONTHS", "30:12")
        found += [money.reserve(o, discount_pct=percent, months=months) for o in there if o.kind == "on-demand"]
    return found


def _fallback(offer: Offer, offers: Iterable[Offer], wanted: Wanted) -> Offer | None:
    """What a spot machine gives way to: the same provider's first, then a price that has a date, then the cheapest."""
    if offer.kind != "spot" or not wanted.interruptions.fallback:
        return None

    def order(other: Offer) -> tuple[bool, bool, float]:
        rate = money.exchange(other.currency, wanted.currency, wanted.rates)
        return other.provider != offer.provider, not other.date, money.hourly(other, wanted.cards, rate)

    others = (other for other in offers if other.kind == "on-demand" and other.card == offer.card)
    return min(others, key=order, default=None)


def _owned(owned: Owned, wanted: Wanted) -> tuple[Offer, Cost]:
    """What it sends is part of its hosting. Its power follows the load where that is known."""
    wanted = replace(wanted, egress_month=0.0)
    found = money.owned_cost(owned, wanted)
    if found.utilisation is not None:
        owned = replace(owned, utilisation=min(1.0, found.utilisation))
        found = money.owned_cost(owned, wanted)
    return money.owned_offer(owned), found
