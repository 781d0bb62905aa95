"""What people wrote of cards, providers, prices and rates: complete, sourced, dated or said not to be."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
import yaml

from freehold.facts import ApiPrice, Card, Offer, Provider, Rate
from freehold.plan.cost import exchange, hourly, remarks, superseded

ROOT = Path(__file__).resolve().parents[1] / "catalogue"
GIB = 1 << 30
COUNTRIES = {"AT", "BG", "CA", "CH", "DE", "FI", "FR", "GB", "HR", "IL", "IT", "MX", "NL", "NO", "PL", "SE", "SG", "US"}


def read(name: str, kind: type) -> list:
    rows = yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))
    for row in rows:
        assert set(row) <= set(kind.__struct_fields__) | {"offers"}, row
    return [msgspec.convert({k: v for k, v in row.items() if k != "offers"}, kind) for row in rows]


def offers() -> list[Offer]:
    rows = yaml.safe_load((ROOT / "providers.yaml").read_text(encoding="utf-8"))
    found = [offer | {"provider": row["id"]} for row in rows for offer in row.get("offers", ())]
    assert all(set(offer) <= set(Offer.__struct_fields__) for offer in found)
    return msgspec.convert(found, list[Offer])


CARDS = {card.id: card for card in read("cards.yaml", Card)}
PROVIDERS = {provider.id: provider for provider in read("providers.yaml", Provider)}
OFFERS = offers()
RATES = read("currency.yaml", Rate)


def test_nothing_is_lost_and_nothing_is_double():
    assert (len(CARDS), len(PROVIDERS), len(OFFERS)) == (31, 24, 61)
    assert len({offer.id for offer in OFFERS}) == len(OFFERS)


@pytest.mark.parametrize("card", CARDS.values(), ids=CARDS)
def test_a_card_has_sources_and_sees_less_than_is_sold(card):
    assert card.source
    assert card.memory_source.startswith(("engine log", "llama.cpp", "derived", "torch's own total", "the data sheet"))
    sold = card.memory_gb * GIB  # vendors' GB of memory chips are GiB, less what is kept back
    assert 0.45 * sold < card.memory_bytes <= sold
    for value in (card.bandwidth_gb_s, card.bf16_tflops, card.fp8_tflops, card.power_w, card.link_gb_s):
        assert value is None or value > 0


@pytest.mark.parametrize(
    ("card", "gib"), [("H100-SXM", 79.19), ("A100-80GB-SXM", 79.25), ("H200-SXM", 139.8), ("B200-SXM", 178.35)]
)
def test_memory_is_what_engines_print(card, gib):
    assert CARDS[card].memory_bytes / GIB == pytest.approx(gib, abs=0.005)


@pytest.mark.parametrize("offer", OFFERS, ids=[offer.id for offer in OFFERS])
def test_an_offer_can_be_believed_or_says_why_not(offer):
    assert offer.card in CARDS
    assert offer.id.startswith(f"{offer.provider}-")
    assert offer.price > 0
    assert offer.source
    assert offer.currency in {"EUR", "USD"}
    assert set(offer.countries) <= COUNTRIES
    assert (
        not offer.countries
        or not PROVIDERS[offer.provider].countries
        or set(offer.countries) <= set(PROVIDERS[offer.provider].countries) | {"US"}
    )
    assert offer.date or ("undated" in offer.note and any("no date" in remark for remark in remarks(offer)))
    a_card = hourly(offer, offer.cards, exchange(offer.currency, "EUR", RATES)) / offer.cards
    assert 0.1 < a_card < 15


@pytest.mark.parametrize("provider", PROVIDERS.values(), ids=PROVIDERS)
def test_a_provider_is_unknown_where_nobody_said(provider):
    assert provider.sources
    assert {provider.home, provider.parent_home} <= COUNTRIES | {""}
    assert set(provider.countries) <= COUNTRIES
    if not provider.parent:
        assert provider.parent_home == "", "the law of a parent nobody named"
    if provider.us_exposure is False:
        assert provider.us_nexus == "none seen"
        assert "US" not in provider.countries
        assert "US" not in (provider.home, provider.parent_home)
    if "US" in (provider.home, provider.parent_home):
        assert provider.us_exposure


def test_presumed_is_not_known():
    for name in ("verda", "seeweb", "runpod", "vast"):
        assert (PROVIDERS[name].home, PROVIDERS[name].us_exposure) == ("", None)
        assert "presumed" in PROVIDERS[name].notes


def test_monthly_machines_carry_their_set_up():
    monthly = {offer.id: offer for offer in OFFERS if offer.per == "month"}
    assert {(offer.price, offer.setup) for offer in monthly.values()} == {(999, 999), (214, 209)}
    assert {offer.kind for offer in monthly.values()} == {"dedicated"}


@pytest.mark.parametrize("name", ["aws-h100-sxm-on-demand", "azure-h100-sxm-on-demand", "nebius-b200-sxm-on-demand"])
def test_machines_sold_whole_are_bought_whole(name):
    offer = next(offer for offer in OFFERS if offer.id == name)
    assert offer.cards == 8
    assert hourly(offer, 1) == hourly(offer, 8) == offer.price


def test_rates_and_closed_prices_are_dated_and_sourced():
    prices = read("closed_prices.yaml", ApiPrice)
    assert 5 <= len(prices) <= 12
    assert all(price.date and price.source and 0 < price.prompt < price.completion < 1_000 for price in prices)
    assert RATES
    assert all(rate.date and rate.source and 0.5 < rate.rate < 2 for rate in RATES)


def test_a_newer_price_takes_the_place_of_the_same_thing_only():
    old = Offer(id="old", provider="x", card="L4", kind="on-demand", price=1, date="2026-01-01")
    newer = msgspec.structs.replace(old, id="newer", date="2026-02-01")
    others = [msgspec.structs.replace(newer, id=key, **{key: to}) for key, to in (("per", "month"), ("kind", "spot"))]
    assert superseded([old, *others]) == set()
    assert superseded([old, newer, *others, msgspec.structs.replace(newer, id="undated", date="")]) == {"old"}
