"""A team's own entries in freehold.toml, beside those that ship: [models], [offers], [hosts], [[rates]]."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

from msgspec import Meta, Struct
from msgspec.structs import replace

from freehold.catalogue import Catalogue, model
from freehold.errors import BadConfig, Unknown
from freehold.facts import Licence, LicenceOf, Model, Offer, Rate
from freehold.plan.cost import Owned

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
    cards = {each.id for each in catalogue.cards}
    for name, offer in offers.items():
        if offer.card not in cards:
            raise BadConfig(
                f"[offers.{name}] card {offer.card!r} is not known", hint="one of: " + ", ".join(sorted(cards))
            )
    mine = tuple(replace(offer, id=name) for name, offer in offers.items())
    return replace(
        catalogue,
        models=(*own, *catalogue.models),
        licences=tuple(licences.values()),
        offers=(*mine, *catalogue.offers),
        rates=(*rates, *catalogue.rates),
    )


def _model(catalogue: Catalogue, name: str, entry: OwnModel) -> Model:
    try:
        base = model(catalogue, entry.like)
    except Unknown as error:
        raise BadConfig(f"[models.{name}] like: {error}", hint=error.hint) from None
    own = {field: value for field in ("repo", "publisher", "publisher_country") if (value := getattr(entry, field))}
    licence = LicenceOf(id=entry.licence or f"own-{name}") if entry.licence or entry.commercial_use else base.licence
    sources = base.sources | ({"licence": (f"[models.{name}]",)} if licence is not base.licence else {})
    return replace(
        base, id=name, name=entry.name or name, also=(), quantized=(), licence=licence, sources=sources, **own
    )
