"""What is known when a command decides about money or models: the catalogue, and `freehold.toml` where there is one."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from freehold.catalogue import Catalogue
    from freehold.facts import Rate
    from freehold.fleet.config import Config

DEFAULT = Path("freehold.toml")


def known(path: Path) -> tuple[Catalogue, Config | None]:
    """The catalogue with the team's own entries, and its file; None where nobody named one and there is none here.

    Raises BadConfig.
    """
    from freehold.catalogue import load

    if path == DEFAULT and not path.exists():
        return load(), None
    from freehold.catalogue.own import merge
    from freehold.fleet import config

    own = config.load(path)
    return merge(load(), own.models, own.offers, own.rates), own


def exchanged(rates: Iterable[Rate], currencies: set[str]) -> list[str]:
    """The rates of exchange that join these currencies, each with its day and source."""
    named = [rate for rate in rates if {rate.base, rate.quote} <= currencies]
    return [f"1 {each.base} = {each.rate:g} {each.quote}, {each.date}; {each.source}".rstrip("; ") for each in named]
