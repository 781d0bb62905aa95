"""`freehold cost`: what it prints is what plan/cost computes, cheapest dated price first, and nonsense is refused."""

from __future__ import annotations

import json
import re

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from freehold.catalogue import load
from freehold.cli.main import cli
from freehold.errors import BadConfig, BadRequest, Unknown

CATALOGUE = load()
OFFERS = {offer.id: offer for offer in CATALOGUE.offers}
USD = next(rate.rate for rate in CATALOGUE.rates if (rate.base, rate.quote) == ("EUR", "USD"))
LOAD = ("--requests", "20000", "--rate", "1500")
OWN = ("--own", "40000", "--power-w", "1200", "--price-kwh", "0.25")


@pytest.fixture(autouse=True)
def _nowhere(tmp_path, monkeypatch):
    """No freehold.toml is there."""
    monkeypatch.chdir(tmp_path)


def run(*flags, cards="H100-SXM"):
    result = CliRunner().invoke(cli, ["cost", "--cards", cards, *flags], catch_exceptions=True)
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


def data(*flags, **more):
    return json.loads(run(*flags, "--json", **more))


def cells(text):
    """The table's rows by offer."""
    table, _, notes = text.partition("\n\n")
    head, *rows = (re.split(r"\s{2,}", line) for line in table.splitlines())
    return {row[0]: dict(zip(head, row, strict=True)) for row in rows}, notes


def test_a_loose_name_means_every_form_of_the_card():
    assert {row["card"] for row in data(cards="2xH100")["rows"]} == {"H100-SXM", "H100-PCIe", "H100-NVL"}
    assert {row["card"] for row in data(cards="h100-nvl")["rows"]} == {"H100-NVL"}


def test_dated_prices_come_first_and_each_part_by_month():
    rows = data(cards="H100")["rows"]
    assert [row["current"] for row in rows] == sorted((row["current"] for row in rows), reverse=True)
    for part in (True, False):
        months = [row["month"] for row in rows if row["current"] is part]
        assert months == sorted(months)
        assert months
    table, notes = cells(run(cards="H100"))
    for row in rows:
        said = table[row["name"]]["PRICE OF"]
        assert said == (row["date"] or "undated") + ("" if row["current"] else " *")
    assert "undated, or a newer one is known" in notes


def test_an_older_price_of_the_same_offer_is_not_believed():
    current = {row["name"]: row["current"] for row in data()["rows"]}
    assert current["nebius-h100-sxm-on-demand"]
    assert not current["nebius-h100-sxm-on-demand-2026-09"]


def test_without_a_rate_a_million_tokens_is_unknown():
    for flags, why in (((), "no --requests and no --rate"), (LOAD[:2], "no --rate"), (LOAD[2:], "no --requests")):
        table, notes = cells(run(*flags))
        assert {row["EUR A MILLION TOKENS"] for row in table.values()} == {f"unknown: {why}"}
        assert "a month is of one replica" in notes


def test_the_table_says_what_the_json_says():
    flags = (*LOAD, *OWN, "--reserve", "30:12", "--against", "gpt-4o", "--to-zero")
    table, _ = cells(run(*flags))
    rows = data(*flags)["rows"]
    assert list(table) == [row["name"] for row in rows]
    assert {row["kind"] for row in rows} == {"on-demand", "spot", "reserved", "owned"}
    for row in rows:
        shown = table[row["name"]]
        assert float(shown["EUR AN HOUR"].replace(",", "")) == pytest.approx(row["hour"], abs=0.005)
        assert float(shown["EUR A MONTH"].replace(",", "")) == pytest.approx(row["month"], abs=0.5)
        assert float(shown["EUR A MILLION TOKENS"]) == pytest.approx(row["per_million"], abs=0.005)
        assert shown["USED"] == f"{row['utilisation']:.1%}"
        assert shown["KIND"].startswith(row["kind"])
        assert shown["REACHED"] == {True: "yes", False: "no"}[row["break_even"]["deliverable"]]


def test_an_hour_is_the_offers_price_in_the_currency_asked():
    in_usd = {row["name"]: row["hour"] for row in data("--currency", "USD", "--kind", "on-demand")["rows"]}
    in_eur = {row["name"]: row["hour"] for row in data("--usd-rate", "1.5", "--kind", "on-demand")["rows"]}
    for name, hour in in_usd.items():
        assert hour == pytest.approx(OFFERS[name].price)
        assert in_eur[name] == pytest.approx(hour / 1.5)
    assert "1 EUR = 1.5 USD, stated by you" in run("--usd-rate", "1.5")
    assert f"1 EUR = {USD:g} USD, 20" in run()


def test_machines_are_bought_whole():
    table, _ = cells(run(cards="2xH100-SXM"))
    assert table["aws-h100-sxm-on-demand"]["CARDS"] == "8 x H100-SXM, 2 used"
    assert table["vast-h100-sxm-on-demand"]["CARDS"] == "2 x H100-SXM"


@given(
    requests=st.floats(1, 1e6),
    prompt=st.integers(0, 10_000),
    completion=st.integers(1, 5_000),
    rate=st.floats(10, 1e5),
    egress=st.floats(0, 1e4),
)
@settings(max_examples=25, deadline=None)
def test_the_break_even_printed_is_that_of_the_arithmetic(requests, prompt, completion, rate, egress):
    flags = ("--requests", requests, "--prompt", prompt, "--completion", completion, "--rate", rate)
    flags += ("--egress-gb", egress, "--egress-price", 0.05, "--against", "2.5:10:USD", "--kind", "on-demand", *OWN)
    text, found = run(*map(str, flags)), data(*map(str, flags))["rows"]
    asked = (prompt * 2.5 + completion * 10) / (prompt + completion) / USD
    for row in found:
        sent = 0 if row["kind"] == "owned" else egress * 0.05
        even, month = row["break_even"], row["replicas"] * 730 * row["hour"] + sent
        assert even["tokens"] == pytest.approx(month / asked * 1e6)
        can = row["replicas"] * 730 * 3600 * 0.8 * rate * (prompt + completion) / completion
        assert even["capacity"] == pytest.approx(can)
        assert even["deliverable"] is (even["tokens"] <= even["capacity"])
    best = found[0]
    printed = re.search(rf"break-even of {best['name']}: ([\d,]+) tokens", text)
    assert int(printed[1].replace(",", "")) == pytest.approx(best["break_even"]["tokens"], abs=0.5)


def test_break_even_needs_no_load_and_says_that_capacity_is_unknown():
    text = run("--against", "GPT-4o")
    assert "whether they can deliver it is unknown: no --rate" in text
    assert {row["REACHED"] for row in cells(text)[0].values()} == {"unknown"}


def test_to_zero_and_office_hours_cost_less_than_always_on():
    always, office = (
        {row["name"]: row for row in data(*LOAD, "--hours", "office", *more)["rows"]} for more in ((), ("--to-zero",))
    )
    for name, row in office.items():
        assert row["month"] < always[name]["month"]
        assert row["scaling"] == "to zero"


def test_a_fallback_of_spot_is_the_same_providers_first():
    spot, plain = (
        {row["name"]: row for row in data("--kind", "spot", "--interruptions", f"2:10:{share}")["rows"]}
        for share in (1, 0)
    )
    on_demand = {row["name"]: row["hour"] for row in data("--kind", "on-demand")["rows"]}
    assert spot["gcp-h100-sxm-spot"]["hour"] == pytest.approx(on_demand["gcp-h100-sxm-on-demand"])
    useful = 1 - 20 / 1440
    assert plain["gcp-h100-sxm-spot"]["hour"] == pytest.approx(OFFERS["gcp-h100-sxm-spot"].price / USD / useful)


def test_own_power_follows_the_load():
    idle, full = (
        next(row for row in data("--requests", str(n), "--rate", "1500", *OWN)["rows"] if row["kind"] == "owned")
        for n in (10, 190_000)
    )
    assert idle["hour"] < full["hour"]
    assert "stated by you" in run(*OWN)


def test_every_figure_can_be_explained_and_put_into_a_paper():
    explained = run(*LOAD, "--explain", "--kind", "on-demand")
    for offer in (each for each in CATALOGUE.offers if (each.card, each.kind) == ("H100-SXM", "on-demand")):
        assert f"{offer.id}, {offer.source}, {offer.date or 'undated'}" in explained
    paper = run(*LOAD, "--md").splitlines()
    assert paper[1].count("---") == paper[0].count("|") - 1
    assert "steps" not in data(*LOAD)["rows"][0]
    assert data(*LOAD, "--explain")["rows"][0]["steps"]


@pytest.mark.parametrize(
    ("flags", "error", "says"),
    [
        (("--cards", "H1000"), Unknown, "H100"),
        (("--cards", "0xH100"), BadRequest, "1"),
        (("--against", "gpt4o"), Unknown, "gpt-4o"),
        (("--against", "1:2:GBP"), BadRequest, "rate"),
        (("--against", "1:x:USD"), BadRequest, "--against"),
        (("--against", "0:0:USD"), BadRequest, "from"),
        (("--provider", "vreda"), Unknown, "verda"),
        (("--provider", "seeweb", "--kind", "spot"), BadRequest, "--own"),
        (("--rate", "0"), BadRequest, "from 0.001"),
        (("--rate", "-5"), BadRequest, "from 0.001"),
        (("--rate", "nan"), BadRequest, "from 0.001"),
        (("--requests", "1e99", "--rate", "10"), BadRequest, "10,000,000,000"),
        (("--prompt", "-1"), BadRequest, "from 0"),
        (("--prompt", "0", "--completion", "0"), BadRequest, "from 1"),
        (("--completion", "0", "--rate", "10"), BadRequest, "--prompt-rate"),
        (("--requests", "9", "--hours", "1,2,3"), BadRequest, "24"),
        (("--requests", "9", "--hours", ",".join("0" * 24)), BadRequest, "sum of hours"),
        (("--hours", "office"), BadRequest, "--requests"),
        (("--to-zero",), BadRequest, "--requests and --rate"),
        (("--idle", "5"), BadRequest, "--to-zero"),
        ((*LOAD, "--to-zero", "--start", "-1"), BadRequest, "from 0"),
        (("--own", "100"), BadRequest, "--power-w and --price-kwh"),
        (("--own", "0", "--power-w", "10", "--price-kwh", "0.1"), BadRequest, "from 1"),
        ((*OWN, "--pue", "0.5"), BadRequest, "from 1 to 5"),
        (("--pue", "1.2"), BadRequest, "--own"),
        (("--reserve", "30"), BadRequest, "PERCENT:MONTHS"),
        (("--reserve", "130:12"), BadRequest, "95"),
        (("--interruptions", "200:10:0"), BadRequest, "1440"),
        (("--egress-gb", "5"), BadRequest, "--egress-price"),
        (("--usd-rate", "0"), BadRequest, "from 0.01"),
    ],
)
def test_nonsense_is_refused_with_what_would_make_sense(flags, error, says):
    with pytest.raises(error) as refused:
        run(*flags)
    assert refused.value.exit_code == 2
    assert says in f"{refused.value} {refused.value.hint}"


def test_a_file_that_was_named_must_be_there():
    with pytest.raises(BadConfig):
        raise CliRunner().invoke(cli, ["-c", "other.toml", "cost", "--cards", "H100"]).exception


def test_offers_of_the_team_stand_beside_the_others(tmp_path):
    (tmp_path / "freehold.toml").write_text(
        '[offers.ours]\nprovider = "ours"\ncard = "H100-SXM"\nkind = "reserved"\nprice = 1.0\ndate = "2026-11-01"\n'
    )
    first = data()["rows"][0]
    assert (first["name"], first["hour"]) == ("ours", 1.0)
