"""A team's own entries in freehold.toml, beside those that ship: [models], [offers], [hosts], [[rates]]."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Annotated, Literal

from msgspec import Meta, Struct
from msgspec.structs import replace

from freehold.catalogue import Catalogue, match
from freehold.catalogue.names import nearest
from freehold.errors import BadConfig, BadRequest, Unknown
from freehold.facts import Licence, LicenceOf, Model, Offer, Rate
from freehold.plan.cost import LARGEST, Owned, exchange, hourly
from freehold.plan.traffic import within
from freehold.policy.countries import expand

Count = Annotated[int, Meta(ge=1, le=100_000)]


class OwnModel(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A model with the dimensions of one that is known: a fine-tune, or the same one under another agreement."""

    like: str
    name: str = ""
    repo: str = ""
    publisher: str = ""
    publisher_country: str = ""
    licence: str = ""  # an id of the catalogue, or a new one, which then needs commercial_use
    commercial_use: Literal["", "yes", "conditional", "no"] = ""
    digests: tuple[Annotated[str, Meta(pattern="^[0-9a-f]{64}$")], ...] = ()  # of the files that are it


class OwnHost(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Machines of one kind that the team has."""

    card: str
    cards: Count = 1  # in each machine
    machines: Count = 1
    country: str = ""
    operator: str = ""  # a provider's id or name; "": the company itself
    hourly_price: Annotated[float, Meta(ge=0, le=1e6)] | None = None  # of one machine
    currency: str = "EUR"
    owned: Owned | None = None  # what was paid for one machine, instead of an hourly price


def merge(
    catalogue: Catalogue, models: Mapping[str, OwnModel], offers: Mapping[str, Offer], rates: Sequence[Rate]
) -> Catalogue:
    """The catalogue with a team's entries in front of its own. Raises BadConfig for a name that nothing answers to."""
    licences = {each.id: each for each in catalogue.licences}
    own = []
    for name, entry in models.items():
        found = _model(catalogue, name, entry)
        if entry.commercial_use:
            if found.licence.id in licences and entry.licence:
                hint = "give your agreement an id of its own, or leave commercial_use out"
                raise BadConfig(f"[models.{name}] licence {entry.licence!r} is in the catalogue already", hint=hint)
            new = Licence(
                id=found.licence.id, name=f"as stated in [models.{name}]", commercial_use=entry.commercial_use
            )
            licences[new.id] = new
        elif found.licence.id not in licences:
            hint = "name one of the catalogue (freehold models), or say commercial_use"
            raise BadConfig(f"[models.{name}] licence {found.licence.id!r} is not known", hint=hint)
        own.append(found)
    for rate in rates:
        with naming("[[rates]]"):
            exchange(rate.base, rate.quote, (rate,))
    return replace(
        catalogue,
        models=(*own, *(each for each in catalogue.models if each.id not in models)),
        licences=tuple(licences.values()),
        offers=(
            *(_offer(catalogue, name, offer) for name, offer in offers.items()),
            *(each for each in catalogue.offers if each.id not in offers),
        ),
        rates=(*rates, *catalogue.rates),
    )


@contextmanager
def naming(table: str) -> Iterator[None]:
    """What is wrong with an entry, with the table it stands in."""
    try:
        yield
    except (BadRequest, Unknown) as error:
        raise BadConfig(f"{table} {error}", hint=error.hint) from None


def _offer(catalogue: Catalogue, name: str, offer: Offer) -> Offer:
    """Under its name, with a price that can be computed with."""
    cards = sorted(each.id for each in catalogue.cards)
    if offer.card not in cards:
        raise BadConfig(f"[offers.{name}] card {offer.card!r} is not known", hint=nearest(offer.card, cards))
    with naming(f"[offers.{name}]"):
        within("cards", offer.cards, 1, 100_000)
        within("setup", offer.setup, 0, LARGEST, offer.currency)
        within("billing_s", offer.billing_s, 1, 1e9, "s")
        expand(offer.countries)
        hourly(replace(offer, id="it"))
    return replace(offer, id=name)


def _model(catalogue: Catalogue, name: str, entry: OwnModel) -> Model:
    with naming(f"[models.{name}] like:"):
        found = match(catalogue, entry.like)
    base = found.model
    if not found.exact:  # of a copy only the dimensions are known
        base = replace(base, publisher="", publisher_country="", licence=LicenceOf(id="unknown", read=False))
    own = {field: value for field in ("publisher", "publisher_country") if (value := getattr(entry, field))}
    licence = LicenceOf(id=entry.licence or f"own-{name}") if entry.licence or entry.commercial_use else base.licence
    sources = base.sources | ({"licence": (f"[models.{name}]",)} if licence is not base.licence else {})
    return replace(
        base,
        id=name,
        name=entry.name or name,
        repo=entry.repo,
        digests=entry.digests,
        also=(),
        quantized=(),
        licence=licence,
        sources=sources,
        **own,
    )
