"""`freehold compare`: models side by side, with figures that agree with plan, law and catalogue."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from freehold.catalogue import load
from freehold.cli.main import cli
from freehold.errors import BadRequest, Unknown
from freehold.facts import Card
from freehold.plan import vllm
from freehold.plan.deployment import settings
from freehold.plan.kv import kv_bytes_per_token
from freehold.plan.need import Need
from freehold.plan.params import count
from freehold.plan.weights import SCHEMES, Split, held_bytes, weigh

CATALOGUE = load()
MODELS = {each.id: each for each in CATALOGUE.models}
OFFERS = {each.id: each for each in CATALOGUE.offers}
USD = next(rate.rate for rate in CATALOGUE.rates if (rate.base, rate.quote) == ("EUR", "USD"))
CARDS: dict[str, Card] = {each.id: each for each in CATALOGUE.cards}


@pytest.fixture(autouse=True)
def _nowhere(tmp_path, monkeypatch):
    """No freehold.toml is there."""
    monkeypatch.chdir(tmp_path)


def run(*words):
    result = CliRunner().invoke(cli, ["compare", *words])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


def data(*words):
    return {each["id"]: each for each in json.loads(run(*words, "--json"))["models"]}


def lines(paper):
    """The rows of a Markdown table by their first cell."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in paper.splitlines() if line[:1] == "|"]
    return {row[0]: row[1:] for row in rows}


def test_the_table_says_what_the_json_says():
    names = ("qwen3-32b", "gpt-oss-120b", "mistral-large-2407")
    flags = (*names, "--users", "20", "--context", "32K")
    rows, found = lines(run(*flags, "--md")), data(*flags)
    assert list(found) == list(names)
    for at, (name, said) in enumerate(found.items()):
        model = MODELS[name]
        assert rows[""][at] == model.name
        assert rows["licence"][at] == said["licence"] == model.licence.id
        assert said["kv_bytes_per_token"] == kv_bytes_per_token(model)
        assert rows["KV a token"][at].startswith(f"{said['kv_bytes_per_token']:,} bytes")
        assert rows["KV at 32K"][at] == f"{said['kv_bytes_at_32k'] / 2**30:,.2f} GiB"
        for form, scheme in (("shipped", model.checkpoint), ("BF16", "bf16"), ("FP8", "fp8"), ("INT4", "int4-awq")):
            files = weigh(count(model), SCHEMES[scheme], model, mtp=True, tables=False)
            assert said["weight_bytes"][form] == files.total
        assert rows["weights FP8"][at] == f"{said['weight_bytes']['FP8'] / 1e9:,.1f} GB"
        for card, way in said["cards"].items():
            shown = rows[f"{card} for 20 x 32,768"][at]
            assert shown.startswith(f"{way['cards']}, " if way["cards"] else f"no: {way['reason']}")
        shown = rows["EUR a month for 20 x 32,768"][at]
        assert shown.startswith(f"{said['cheapest']['month']:,.0f}: {said['cheapest']['cards']} x ")


def test_a_dense_model_takes_the_fewest_cards_that_hold_the_users():
    """A power of two of cards by vLLM's own arithmetic, of one replica or of several that share the users."""
    users, context = 20, 32_768
    asked, model = settings(Need(users=users)), MODELS["qwen3-32b"]
    for name, way in data("qwen3-32b", "qwen3-8b", "--users", "20", "--context", "32768")["qwen3-32b"]["cards"].items():
        fits = []
        for tp in (1, 2, 4, 8):
            loaded, split = held_bytes(count(model), "bf16", model, Split(tp)), Split(tp)
            pool = vllm.rank(model, loaded, "bf16", CARDS[name], asked, split=split).pool_bytes
            layout = vllm.layout(model.attention, asked, split)
            held = int(layout.requests(pool, context, asked.step_tokens(CARDS[name]))) if pool > 0 else 0
            fits += [tp * replicas for replicas in range(1, 8 // tp + 1) if held * replicas >= users]
        assert way["cards"] == min(fits)


def test_more_users_never_need_fewer_cards_or_less_money():
    before = None
    for users in (1, 8, 64):
        found = data("llama-3.3-70b", "qwen3-32b", "--users", str(users))
        now = [(each["cards"]["H200-SXM"]["cards"] or 99, each["cheapest"]["month"]) for each in found.values()]
        for old, new in zip(before or now, now, strict=True):
            assert old[0] <= new[0]
            assert old[1] <= new[1]
        before = now


def test_the_cheapest_month_is_of_a_dated_offer_on_demand_that_is_current():
    found = data("qwen3-32b", "gemma-3-27b-it", "--currency", "USD")
    for each in found.values():
        offer = OFFERS[each["cheapest"]["offer"]]
        assert (offer.kind, offer.date) == ("on-demand", each["cheapest"]["date"])
        machines = -(-each["cheapest"]["cards"] // offer.cards)
        price = offer.price * (USD if offer.currency == "EUR" else 1)
        assert each["cheapest"]["month"] == pytest.approx(machines * price * 730)
    assert f"1 EUR = {USD:g} USD, 20" in run("qwen3-32b", "gemma-3-27b-it")


def test_the_law_is_that_of_the_house(tmp_path):
    names = ("mistral-large-2407", "qwen3-32b")
    first, second = data(*names).values()
    assert "allows no commercial use" in first["objections"][0]
    assert not second["objections"]
    assert "no: 1 reason below" in lines(run(*names, "--md"))["allowed"]
    (tmp_path / "freehold.toml").write_text('[policy]\nuse = "research"\npublisher_countries_not = ["CN"]\n')
    first, second = data(*names).values()
    assert not first["objections"]
    assert "China" in second["objections"][0]


def test_rules_on_places_bind_the_offers(tmp_path):
    (tmp_path / "freehold.toml").write_text('[policy]\nresidency = ["FI"]\n')
    assert {each["cheapest"]["offer"][:6] for each in data("qwen3-32b", "qwen3-8b").values()} == {"verda-"}
    (tmp_path / "freehold.toml").write_text('[policy]\nresidency = ["LU"]\n')
    assert "[policy] allows none" in run("qwen3-32b", "qwen3-8b", "--md")


def test_what_does_not_fit_says_why():
    each = data("kimi-k2-instruct", "qwen3-8b")["kimi-k2-instruct"]
    assert each["cards"]["L40S"]["cards"] is None
    assert each["cards"]["L40S"]["reason"].startswith("memory: ")
    assert "context: at most" in data("qwen3-8b", "qwen3-32b", "--context", "1M")["qwen3-8b"]["cheapest"]["reason"]


def test_a_name_of_a_copy_is_read_and_said():
    text = run("llama-4-scout", "Qwen/Qwen3-32B-AWQ")
    assert "llama-4-scout-17b-16e under another name" in text


def test_every_model_can_be_compared():
    ids = [each.id for each in (*CATALOGUE.models, *CATALOGUE.known[:8])]
    for at in range(0, len(ids) - 6, 6):
        text = run(*ids[at : at + 6])
        assert "weights as shipped" in text
        assert "None" not in text


def test_lines_stay_within_a_wide_terminal():
    table = run("qwen3-32b", "llama-4-scout", "kimi-k2-instruct", "--users", "20").split("\n\n")[0]
    assert max(map(len, table.splitlines())) <= 160


@pytest.mark.parametrize(
    ("words", "error", "says"),
    [
        (("qwen3-32b",), BadRequest, "from 2 to 6"),
        (("qwen3-32b",) * 2, BadRequest, "they mean qwen3-32b"),
        (
            ("qwen3-32b", "qwen3-8b", "qwen3-14b", "qwen3-4b", "qwen3-1.7b", "qwen3-0.6b", "gpt-oss-20b"),
            BadRequest,
            "6",
        ),
        (("qwen3-32b", "gpt-oss-210b"), Unknown, "gpt-oss-120b"),
        (("qwen3-32b", "qwen3-8b", "--users", "0"), BadRequest, "from 1 to"),
        (("qwen3-32b", "qwen3-8b", "--users", "-3"), BadRequest, "from 1 to"),
        (("qwen3-32b", "qwen3-8b", "--context", "0"), BadRequest, "from 1 to"),
    ],
)
def test_nonsense_is_refused_with_what_would_make_sense(words, error, says):
    with pytest.raises(error) as refused:
        run(*words)
    assert refused.value.exit_code == 2
    assert says in f"{refused.value} {refused.value.hint}"
