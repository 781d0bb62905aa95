"""What is known of models, cards, providers, prices and licences: the package's own data, read once by who asks."""

from __future__ import annotations

from pathlib import Path

import msgspec
from msgspec import Struct

from freehold.catalogue.names import Match, find
from freehold.catalogue.scored import scores
from freehold.facts import ApiPrice, Card, Licence, Model, Offer, Pair, Provider, Rate

__all__ = ["Catalogue", "Match", "load", "match", "model", "pairs", "scores"]


class Catalogue(Struct, frozen=True, kw_only=True):
    """Everything that ships with the package. `known` has dimensions only: nobody judged what those models may do."""

    models: tuple[Model, ...] = ()
    known: tuple[Model, ...] = ()
    licences: tuple[Licence, ...] = ()
    cards: tuple[Card, ...] = ()
    providers: tuple[Provider, ...] = ()
    offers: tuple[Offer, ...] = ()
    rates: tuple[Rate, ...] = ()  # of exchange
    closed_prices: tuple[ApiPrice, ...] = ()


def load() -> Catalogue:
    """Read the catalogue: one file, decoded straight into its types."""
    return msgspec.json.decode((Path(__file__).parent / "data" / "catalogue.json").read_bytes(), type=Catalogue)


def match(catalogue: Catalogue, name: str) -> Match:
    """Which model a name means, by itself or by its dimensions, and why. Raises Unknown with the nearest names."""
    return find((*catalogue.models, *catalogue.known), name)


def model(catalogue: Catalogue, name: str) -> Model:
    """The model a name means. Raises Unknown with the nearest names."""
    return match(catalogue, name).model


def pairs() -> tuple[Pair, ...]:
    """Read the pairs of models in two precisions: a file of their own, for who asks what quantization loses."""
    return msgspec.json.decode((Path(__file__).parent / "data" / "pairs.json").read_bytes(), type=tuple[Pair, ...])
