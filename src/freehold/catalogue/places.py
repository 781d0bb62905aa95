"""Where something may run: a team's machines and what is offered for rent, with what policy says of each."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

from msgspec.structs import replace

from freehold.catalogue import Catalogue
from freehold.catalogue.names import nearest
from freehold.catalogue.own import OwnHost, naming
from freehold.errors import BadRequest, Unknown
from freehold.facts import Card, Offer, Provider
from freehold.plan.cost import exchange, owned_hourly, superseded
from freehold.plan.cpu_speed import Memory
from freehold.plan.deployment import MOST_CARDS, Place
from freehold.plan.llamacpp import RESERVE_BYTES
from freehold.plan.need import Need
from freehold.policy.countries import expand
from freehold.policy.law import Rules, in_words, judge_place
from freehold.types import Gpu, Host, Refusal

IN_ONE_MACHINE = 8  # cards, where an offer is by the card and does not say
Found = tuple[Place, tuple[str, ...], Provider | None]  # countries where it may stand, and who runs it
_FORMS = {"sxm", "pcie", "nvl", "blackwell", "gb", "nvidia", "amd", "geforce", "instinct", "tesla", "80gb", "rtx"}


def places(
    catalogue: Catalogue, need: Need, rules: Rules, hosts: Mapping[str, OwnHost]
) -> tuple[list[Place], list[Refusal]]:
    """Every place for this need that policy allows, and why the others are out."""
    return judged((*_hosts(catalogue, need, hosts), *_offers(catalogue, need)), rules)


def judged(found: Iterable[Found], rules: Rules) -> tuple[list[Place], list[Refusal]]:
    """Those that policy allows in one of their countries at least, and why the others are out."""
    allowed: list[Place] = []
    refused: list[Refusal] = []
    for place, countries, provider in found:
        rulings = {country: judge_place(country, provider, rules) for country in countries or ("",)}
        good = [country for country, ruling in rulings.items() if ruling.allowed]
        if good:
            country = " or ".join(filter(None, good))
            allowed.append(replace(place, country=country, ruling=rulings[good[0]]))
        else:
            against = next(iter(rulings.values())).objections
            reasons = tuple(map(in_words, against))
            refused.append(Refusal(subject=place.name, reason=reasons[0], hint=against[0].hint, steps=reasons))
    return allowed, refused


def at_hand(catalogue: Catalogue, need: Need) -> Place:
    """The cards that were named: nobody said what they cost."""
    count, cards = read_cards(catalogue.cards, need.cards)
    return Place(name=f"{count} x {cards[0].id} at hand", card=cards[0], cards=count, machines=1)


def here(
    catalogue: Catalogue,
    host: Host,
    hourly_price: float,
    need: Need,
    currency: str,
    *,
    memory: Memory | None = None,
) -> list[Place]:
    """This machine: its processor, and its cards. `hourly_price` of 0 says nothing of what it costs."""
    alike = [gpu for gpu in host.gpus if gpu.name == host.gpus[0].name]
    count = max(1, len(alike))
    offer = Offer(
        id="this machine", provider="own", card="", cards=count, kind="owned", price=hourly_price, currency=currency,
        date="stated", source="[machine] hourly_price",
    ) if hourly_price else None  # fmt: skip
    rate = exchange(currency, need.currency, catalogue.rates) if offer else 1.0
    ram = max(0, host.available_bytes - RESERVE_BYTES)
    own = Place(
        name="this machine", card=None, cards=1, machines=1, offer=offer, rate=rate, ram_bytes=ram, memory=memory
    )
    found = [own]
    if alike:
        card = card_of(catalogue, alike)
        ram = 0 if card.unified else ram  # then it is the same memory
        name = "this machine's cards"
        found.append(replace(own, name=name, card=card, ram_bytes=ram, cards=count))
    return found


def card_of(catalogue: Catalogue, gpus: Sequence[Gpu]) -> Card:
    """Their data sheet, with the memory that the driver says; of a card that the catalogue does not know, only that."""
    smallest = min(gpus, key=lambda gpu: gpu.memory_bytes)
    known = by_words(catalogue.cards, smallest.name)
    memory_gb = smallest.memory_bytes // 10**9
    card = Card(id=smallest.name, vendor="NVIDIA", memory_gb=memory_gb, memory_bytes=0, memory_source="")
    return replace(known[0] if known else card, memory_bytes=smallest.memory_bytes, memory_source="the driver")


def read_cards(cards: Sequence[Card], text: str) -> tuple[int, list[Card]]:
    """`2xH100`: how many, and the cards that are called so, the first being the one that is meant."""
    found = re.fullmatch(r"(?:(\d{1,9})\s*[xX*]\s*)?(\S.*)", text.strip())
    if not found:
        raise BadRequest(f"cards {text!r} cannot be read", hint="write them as 2xH100")
    count, name = int(found[1] or 1), found[2]
    if not 1 <= count <= 100_000:
        raise BadRequest(f"{count} cards", hint="from 1 to 100,000 cards")
    named = [card for card in cards if card.id.casefold() == name.casefold()] or by_words(cards, name)
    if not named:
        raise Unknown(f"no card is called {name!r}", hint=nearest(name, [card.id for card in cards]))
    return count, named


def by_words(cards: Iterable[Card], name: str) -> list[Card]:
    """Cards of which every telling word is in the name, with the most such words; first those of the form it names."""
    said = set(re.findall(r"[a-z0-9]+", name.casefold()))
    named = [(set(re.findall(r"[a-z0-9]+", card.id.casefold())), card) for card in cards]
    fits = [(words, card) for words, card in named if words - _FORMS and words - _FORMS <= said]
    most = max((len(words - _FORMS) for words, _ in fits), default=0)
    best = [(words, card) for words, card in fits if len(words - _FORMS) == most]
    return [card for _, card in sorted(best, key=lambda each: -len(each[0] & said))]


def _hosts(catalogue: Catalogue, need: Need, hosts: Mapping[str, OwnHost]) -> Iterator[Found]:
    wanted = read_cards(catalogue.cards, need.cards)[1] if need.cards else catalogue.cards
    offered = {offer.id for offer in catalogue.offers}
    for name, host in hosts.items():
        with naming(f"[hosts.{name}]"):
            if name in offered:
                raise BadRequest("is the name of an offer, too", hint="give the machines a name of their own")
            count, cards = read_cards(catalogue.cards, host.card)
            if count > 1:
                raise BadRequest(f"card {host.card!r} has a number", hint=f"say cards = {count}")
            expand(filter(None, [host.country]))
        if cards[0] not in wanted or (need.kinds and "owned" not in need.kinds):
            continue
        price = owned_hourly(host.owned) if host.owned else host.hourly_price
        currency = host.owned.currency if host.owned else host.currency
        offer = None
        if price is not None:
            offer = Offer(
                id=name, provider="own", card=cards[0].id, cards=host.cards, kind="owned", price=price,
                currency=currency, date=(host.owned.date if host.owned else "") or "stated", source=f"[hosts.{name}]",
            )  # fmt: skip
        rate = exchange(currency, need.currency, catalogue.rates) if offer else 1.0
        place = Place(name=name, card=cards[0], cards=host.cards, machines=host.machines, offer=offer, rate=rate)
        yield place, (host.country,), operator(catalogue, host.operator)


def _offers(catalogue: Catalogue, need: Need) -> Iterator[Found]:
    cards = {card.id: card for card in catalogue.cards}
    providers = {each.id: each for each in catalogue.providers}
    wanted, count = None, 0
    if need.cards:
        count, named = read_cards(catalogue.cards, need.cards)
        wanted = {card.id for card in named}
    old = superseded(catalogue.offers)
    for offer in catalogue.offers:
        if offer.id in old or offer.card not in cards or (wanted is not None and offer.card not in wanted):
            continue
        if offer.kind not in need.kinds if need.kinds else offer.kind == "spot":
            continue
        one = offer.cards if offer.kind == "dedicated" or offer.cards > 1 else IN_ONE_MACHINE
        one, most = (min(one, count), count) if count else (one, MOST_CARDS)
        rate = exchange(offer.currency, need.currency, catalogue.rates)
        provider = providers.get(offer.provider) or Provider(id=offer.provider, name=offer.provider)
        place = Place(name=offer.id, card=cards[offer.card], cards=one, most=most, offer=offer, rate=rate)
        yield place, offer.countries, provider


def operator(catalogue: Catalogue, name: str) -> Provider | None:
    """Who runs a machine; None: the company itself."""
    if not name:
        return None
    known = (each for each in catalogue.providers if name.casefold() in (each.id.casefold(), each.name.casefold()))
    return next(known, Provider(id=name, name=name))
