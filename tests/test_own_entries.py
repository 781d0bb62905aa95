"""A team's own entries in freehold.toml: models, hosts, offers and rates beside those that ship."""

from __future__ import annotations

from pathlib import Path

import pytest
from msgspec.structs import replace

from freehold import catalogue
from freehold.catalogue.decide import Decision, Situation, decide
from freehold.catalogue.own import OwnModel, merge
from freehold.errors import BadConfig, FreeholdError
from freehold.fleet.config import load
from freehold.plan.need import Need

SHIPPED = catalogue.load()


def decided(folder: Path, text: str, need: Need) -> Decision:
    """What `freehold plan` would say with this file."""
    path = folder / "freehold.toml"
    path.write_text(text)
    config = load(path)
    known = merge(SHIPPED, config.models, config.offers, config.rates)
    return decide(known, need, Situation(rules=config.policy, hosts=config.hosts))


TUNED = """
[models.ours]
like = "llama-3.3-70b"
name = "Ours"
publisher = "We"
publisher_country = "DE"
licence = "our-agreement"
commercial_use = "yes"
"""


def test_a_fine_tune_under_an_agreement_of_its_own(tmp_path):
    decision = decided(tmp_path, TUNED, Need(model="ours", cards="2xH100-SXM"))
    (plan,) = decision.choice.plans
    assert (plan.model, plan.duties, decision.notes[1:]) == ("ours", (), ())
    known = merge(SHIPPED, load(tmp_path / "freehold.toml").models, {}, ())
    ours, base = (catalogue.model(known, name) for name in ("ours", "llama-3.3-70b"))
    assert (ours.attention, ours.layers, ours.parameters) == (base.attention, base.layers, base.parameters)
    assert ours.sources["licence"] == ("[models.ours]",)
    for name in (base.repo, base.id, "Llama-3.3-70B-Instruct-AWQ"):
        assert catalogue.model(known, name).id == base.id, "its base keeps its own names"


def test_the_same_licence_as_the_base_unless_another_is_named(tmp_path):
    text = '[policy]\ncountry = "FR"\n[models.scout]\nlike = "llama-4-scout-17b-16e"\n'
    (refusal,) = decided(tmp_path, text, Need(model="scout", cards="8xH100-SXM")).choice.refusals
    assert "gives companies in the EU no right" in refusal.reason
    agreed = text + 'licence = "signed-with-meta"\ncommercial_use = "yes"\n'
    assert decided(tmp_path, agreed, Need(model="scout", cards="8xH100-SXM")).choice.plans


def test_conditions_of_a_new_licence_are_accepted_like_any(tmp_path):
    text = TUNED.replace('"yes"', '"conditional"') + '[policy]\nunreviewed = "refuse"\n'
    need = Need(model="ours", cards="2xH100-SXM")
    (refusal,) = decided(tmp_path, text, need).choice.refusals
    assert '[policy.accepted."our-agreement"]' in refusal.hint
    accepted = '[policy.accepted.our-agreement]\nby = "legal@example.org"\non = 2026-10-01\nwhy = "read"\n'
    (plan,) = decided(tmp_path, text + accepted, need).choice.plans
    assert plan.accepted == "legal@example.org, 2026-10-01: read"


def test_an_own_entry_takes_the_place_of_the_one_that_ships(tmp_path):
    text = '[models."llama-3.1-8b"]\nlike = "llama-3.1-8b"\nlicence = "no-more"\ncommercial_use = "no"\n'
    decision = decided(tmp_path, text, Need(cards="1xH100-SXM"))
    (refusal,) = (each for each in decision.choice.refusals if each.subject == "llama-3.1-8b")
    assert "non-commercial" in refusal.reason
    assert "llama-3.1-8b" not in {plan.model for plan in decision.choice.plans}


OFFER = """
[offers.friend-h100]
provider = "friend"
card = "H100-SXM"
cards = 8
kind = "reserved"
price = 4.0
countries = ["DE"]
date = "2026-11-01"
source = "an email"
"""


def test_an_own_offer_is_ranked_with_the_others(tmp_path):
    decision = decided(tmp_path, OFFER, Need(model="llama-3.3-70b", users=100, context=32_768))
    (plan,) = decision.choice.plans
    assert (plan.place, plan.hour, plan.undated) == ("friend-h100", 4.0 * (plan.cards // 8), False)
    elsewhere = decided(tmp_path, OFFER, Need(model="llama-3.3-70b", residency=("FR",)))
    assert "friend-h100" in {each.subject for each in elsewhere.places_refused}
    unknown = decided(tmp_path, OFFER, Need(model="llama-3.3-70b", jurisdiction_not=("US",)))
    reasons = {each.subject: each.reason for each in unknown.places_refused}
    assert "friend is under a law that is unknown" in reasons["friend-h100"]


HOST = """
[hosts.rack]
card = "L40S"
cards = 4
machines = 2
country = "DE"
[hosts.rack.owned]
capex = 60_000
power_w = 2_000
price_kwh = 0.25
date = "2026-01-15"
"""


def test_a_machine_that_was_bought_is_ranked_with_what_it_costs(tmp_path):
    need = Need(model="qwen3-32b", users=4, residency=("DE",), kinds=("owned",))
    decision = decided(tmp_path, HOST, need)
    (plan,) = decision.choice.plans
    hour = 60_000 / 4 / 8760 + 2 * 1.4 * 0.25
    assert (plan.place, plan.card, plan.undated) == ("rack", "L40S", False)
    assert plan.hour == pytest.approx(hour * -(-plan.cards // 4))
    too_many = decided(tmp_path, HOST, replace(need, users=500))
    (refusal,) = too_many.choice.refusals
    assert "rack" not in {plan.place for plan in too_many.choice.plans}
    assert "users: 500 at once are asked" in refusal.reason


def test_money_of_an_own_rate(tmp_path):
    text = OFFER + 'currency = "CHF"\n[[rates]]\nbase = "EUR"\nquote = "CHF"\nrate = 0.8\ndate = "2026-11-01"\n'
    (plan,) = decided(tmp_path, text, Need(model="llama-3.3-70b", users=100, context=32_768)).choice.plans
    assert (plan.place, plan.currency) == ("friend-h100", "EUR")
    assert plan.hour == pytest.approx(5.0 * (plan.cards // 8))
    own = '[[rates]]\nbase = "EUR"\nquote = "USD"\nrate = 2.0\ndate = "2026-11-02"\n'
    dear, cheap = (decided(tmp_path, words, Need(model="llama-3.3-70b", kinds=("spot",))) for words in ("", own))
    assert cheap.choice.plans[0].month < dear.choice.plans[0].month, "one's own rate goes before the one that ships"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (TUNED.replace("llama-3.3-70b", "lama-3.3-70b"), r"\[models.ours\] like: no model is called"),
        (TUNED.replace('commercial_use = "yes"', ""), r"\[models.ours\] licence 'our-agreement' is not known"),
        (TUNED.replace("our-agreement", "apache-2.0"), r"\[models.ours\] licence 'apache-2.0' is in the catalogue"),
        (TUNED.replace('"yes"', '"perhaps"'), r"models\[?.*commercial_use"),
        (TUNED + 'licens = "x"\n', r"unknown key `licens` in \[models.ours\]"),
        (OFFER.replace("H100-SXM", "H1000"), r"\[offers.friend-h100\] card 'H1000' is not known"),
        (OFFER.replace("4.0", "-4.0"), r"\[offers.friend-h100\] price of .* must be from 0"),
        (OFFER.replace("4.0", "nan"), r"\[offers.friend-h100\] price of .* must be from 0"),
        (OFFER.replace("cards = 8", "cards = 0"), r"\[offers.friend-h100\] cards is 0, but must be from 1"),
        (OFFER + "setup = -1.0\n", r"\[offers.friend-h100\] setup is -1.0, but must be from 0"),
        (OFFER.replace("DE", "Germny"), r"\[offers.friend-h100\] no country 'Germny'"),
        (OFFER + 'colour = "red"\n', r"unknown key `colour` in \[offers.friend-h100\]"),
        (HOST.replace("L40S", "L41S"), r"\[hosts.rack\] no card is called 'L41S'"),
        (HOST.replace("L40S", "2xL40S"), r"\[hosts.rack\] card '2xL40S' has a number"),
        (HOST.replace("rack", "nebius-h200-sxm-spot"), r"sxm-spot\] is the name of an offer, too"),
        (HOST.replace("DE", "Germny"), r"\[hosts.rack\] no country 'Germny'"),
        (HOST.replace("cards = 4", "cards = 0"), r"hosts.*cards|cards.*hosts|>= 1"),
        (HOST.replace("60_000", "-1"), r"\[hosts\]: capex is -1"),
        ('[[rates]]\nbase = "EUR"\nquote = "CHF"\nrate = 0\ndate = ""\n', r"\[\[rates\]\] rate EUR/CHF"),
        ("[need]\nuser = 3\n", r"unknown key `user` in \[need\]"),
    ],
)
def test_a_slip_of_the_pen_is_named_with_its_table(tmp_path, text, words):
    with pytest.raises(BadConfig, match=words) as refused:
        decided(tmp_path, text, Need(model="llama-3.1-8b"))
    assert isinstance(refused.value, FreeholdError)
    assert refused.value.exit_code == 2


def test_of_a_copy_only_the_dimensions_are_taken():
    copy = OwnModel(like="someone/Qwen3-8B-GGUF")
    (mine, *_) = merge(catalogue.load(), {"mine": copy}, {}, ()).models
    assert (mine.hidden_size, mine.publisher, mine.licence.id) == (4096, "", "unknown")
