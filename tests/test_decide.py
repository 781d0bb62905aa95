"""The decision: law and physics in one filter, refusals with reasons, and changes that really are enough."""

from __future__ import annotations

import re
from datetime import date

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from freehold import catalogue
from freehold.catalogue.decide import Change, Decision, Situation, decide
from freehold.catalogue.own import OwnHost
from freehold.catalogue.places import here, operator, read_cards
from freehold.errors import BadRequest, Unknown
from freehold.plan.cost import Owned
from freehold.plan.deployment import settings as started
from freehold.plan.need import Need
from freehold.plan.units import GIB
from freehold.policy.law import Acceptance, Rules
from freehold.types import Host

EVERYTHING = catalogue.load()
NAMES = [
    "qwen3-0.6b", "llama-3.1-8b", "llama-3.3-70b", "deepseek-r1", "qwen3.5-27b", "gemma-4-31b", "gpt-oss-20b",
    "llama-4-scout-17b-16e", "kimi-k2.6", "mistral-large-2411", "qwen3-coder-30b-a3b", "command-a-03-2025",
]  # fmt: skip
FEW = replace(EVERYTHING, models=tuple(catalogue.model(EVERYTHING, name) for name in NAMES))
LAPTOP = Host(name="laptop", cpu="any", cores=8, memory_bytes=32 * GIB, available_bytes=24 * GIB)
HOSTS = {"rack": OwnHost(card="H100-SXM", cards=8, machines=2, country="DE", hourly_price=9.0)}


def decided(need: Need, known=FEW, **situation) -> Decision:
    return decide(known, need, Situation(**situation))


def served(decision: Decision) -> set[str]:
    return {plan.model for plan in decision.choice.plans}


# -- stricter is never more --------------------------------------------------------------------------------------------

codes = st.lists(st.sampled_from(["DE", "FR", "EU", "US", "FI", "CN", "NO"]), max_size=2).map(tuple)
rules_ = st.builds(
    Rules,
    use=st.sampled_from(["research", "internal", "commercial"]),
    serves_others=st.just(False),
    country=st.sampled_from(["", "FR", "US"]),
    monthly_users=st.sampled_from([None, 1000, 10**9]),
    unreviewed=st.sampled_from(["show", "refuse"]),
    publisher_countries_not=codes,
    residency=codes,
    jurisdiction_not=codes,
)
STRICTER = {
    "unreviewed": "refuse",
    "publisher_countries_not": ("CN",),
    "publishers": ("Meta*",),
    "jurisdiction_not": ("US",),
    "certifications": ("ISO 27001",),
}


@settings(max_examples=60)
@given(rules_, st.sampled_from(sorted(STRICTER)), st.booleans())
def test_a_stricter_policy_never_yields_more_plans(rules, field, budgeted):
    had = getattr(rules, field)
    harder = replace(rules, **{field: (*had, *STRICTER[field]) if isinstance(had, tuple) and had else STRICTER[field]})
    need = Need(users=4, budget=1_500.0 if budgeted else None)
    loose, strict = (decided(need, rules=each, hosts=HOSTS) for each in (rules, harder))
    assert served(strict) <= served(loose)
    assert {place.name for place in strict.places} <= {place.name for place in loose.places}


@settings(max_examples=40)
@given(rules_.filter(lambda rules: rules.residency), st.sampled_from(["research", "internal", "commercial"]))
def test_residency_and_commercial_use_only_take_away(rules, use):
    wide, narrow = replace(rules, residency=()), rules
    assert served(decided(Need(), rules=narrow)) <= served(decided(Need(), rules=wide))
    strict = decided(Need(use="commercial"), rules=rules)
    assert served(strict) <= served(decided(Need(use=use), rules=rules))


@settings(max_examples=40)
@given(rules_)
def test_every_model_and_every_place_is_in_or_out_with_a_reason(rules):
    decision = decided(Need(), rules=rules, hosts=HOSTS)
    assert len(decision.choice.plans) + len(decision.choice.refusals) == len(NAMES)
    names = [place.name for place in decision.places] + [place.subject for place in decision.places_refused]
    assert len(names) == len(set(names))
    assert "rack" in names
    for refusal in decision.places_refused:
        assert refusal.reason
        assert re.search(r"\[.+\]", refusal.reason), "with its clause"
        assert refusal.hint
    both = {plan.place for plan in decision.choice.plans} & {place.subject for place in decision.places_refused}
    assert not both


# -- what would make it possible ---------------------------------------------------------------------------------------

ENOUGH = {  # how a change is said, and the need that takes it at its word
    "budget": (r"a budget of ([\d,]+) EUR a month", int, 1),
    "speed": (r"a speed of at most ([\d.,]+) tokens a second", float, -0.1),
    "context": (r"a context of at most ([\d,]+) tokens", int, -1),
    "users": (r"at most ([\d,]+) at once", int, -1),
}


def taken(need: Need, change: Change) -> Need | None:
    """The need with the change made exactly as it is printed; None: it names no figure."""
    if change.bound in ENOUGH and (found := re.fullmatch(ENOUGH[change.bound][0], change.change)):
        return replace(need, **{change.bound: ENOUGH[change.bound][1](found[1].replace(",", ""))})
    named = change.change.rpartition("example ")[2].rpartition(" with ")[2]
    match change.bound:
        case "residency":
            return replace(need, residency=(re.findall(r"residency (\w\w)", change.change)[0],))
        case "quantization":
            return replace(need, quantization=(named,))
        case "min_size" | "max_size":
            return replace(need, model=named, **{change.bound: None})
    return None


IMPOSSIBLE = [
    Need(model="llama-3.3-70b", budget=100.0),
    Need(budget=10.0),
    Need(budget=40.0, users=200, context=65_536),
    Need(model="llama-3.3-70b", cards="1xH100-SXM", users=10, context=32_768),
    Need(model="deepseek-r1", cards="8xH100-SXM", users=4_000),
    Need(model="llama-3.3-70b", cards="2xH100-SXM", speed=200.0),
    Need(speed=30_000.0, min_size=60.0),
    Need(min_size=60.0, max_size=80.0, users=40, context=32_768, residency=("DE",), jurisdiction_not=("US",)),
    Need(task="coding", users=5_000, context=200_000, budget=5_000.0),
    Need(model="qwen3.5-27b", quantization=("nvfp4",), cards="1xH100-SXM"),
    Need(cards="1xL4", min_size=60.0, users=4),
    Need(cards="1xL4", max_size=0.3),
    Need(residency=("NO",), kinds=("dedicated",)),
    Need(cards="64xH200-SXM", kinds=("spot",), residency=("DE",), hours_a_day=8.0),
    Need(model="llama-3.1-8b", context=131_072, users=900, budget=9_000.0, kinds=("dedicated", "on-demand")),
]


@pytest.mark.parametrize("need", IMPOSSIBLE, ids=lambda need: " ".join(map(str, [need.model, need.cards, need.users])))
def test_a_change_is_enough_exactly_as_it_is_printed(need):
    decision = decided(need)
    assert not decision.choice.plans
    assert decision.changes
    loose = dict.fromkeys(("budget", "min_size", "max_size")) | {
        "speed": 0.0,
        "context": 1,
        "users": 1,
        "use": "research",
    }
    loose |= dict.fromkeys(("quantization", "residency", "jurisdiction_not", "kinds"), ()) | {"task": "", "cards": ""}
    for change in decision.changes:
        assert decided(replace(need, **{change.bound: loose[change.bound]})).choice.plans, change
        exactly = taken(need, change)
        if exactly is not None:
            assert decided(exactly).choice.plans, change
        if change.bound in ENOUGH and exactly is not None:
            nearer = getattr(exactly, change.bound) - ENOUGH[change.bound][2]
            assert not decided(replace(need, **{change.bound: nearer})).choice.plans, change


def test_of_two_bounds_each_may_be_the_one_to_give_way():
    decision = decided(IMPOSSIBLE[7])
    assert [change.bound for change in decision.changes] == ["residency", "jurisdiction_not"]
    assert decision.changes[0].change.startswith("residency FR, for example scaleway-")


def test_what_nobody_prices_is_not_promised_for_money():
    decision = decided(Need(cards="1xH100-SXM", budget=50.0))
    assert decision.changes == (
        Change(bound="budget", change="no budget: nobody said what 1 x H100-SXM at hand costs"),
    )


def test_where_nothing_helps_alone_nothing_is_promised():
    assert decided(Need(budget=1.0, min_size=90_000.0)).changes == ()


def test_what_can_be_met_needs_no_change():
    assert decided(Need()).changes == ()


# -- law ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rules", "name", "reason"),
    [
        (Rules(country="FR"), "llama-4-scout-17b-16e", "gives companies in the EU no right to Llama-4-Scout"),
        (Rules(), "mistral-large-2411", "allows no commercial use"),
        (Rules(publisher_countries_not=("CN",)), "kimi-k2.6", "is from CN"),
        (Rules(unreviewed="refuse"), "llama-3.1-8b", "terms that nobody here accepted"),
        (Rules(monthly_users=10**9), "llama-3.1-8b", "1,000,000,000 monthly users are above the 700,000,000"),
    ],
)
def test_the_law_refuses_with_its_clause(rules, name, reason):
    decision = decided(Need(model=name), rules=rules)
    (refusal,) = decision.choice.refusals
    assert reason in refusal.reason
    assert re.search(r"\[.+\]$", refusal.reason)
    assert refusal.hint


def test_accepting_what_the_licence_does_not_grant_changes_nothing():
    accepted = Acceptance(by="legal@example.org", on=date(2026, 10, 1), why="we like it")
    decision = decided(Need(model="mistral-large-2411"), rules=Rules(accepted={"mrl-0.1": accepted}))
    assert "accepted `mrl-0.1` changes nothing" in decision.choice.refusals[0].hint
    assert served(decided(Need(model="mistral-large-2411", use="research"))) == {"mistral-large-2411"}


def test_use_for_research_is_a_change_where_use_was_asked():
    decision = decided(Need(model="mistral-large-2411", use="commercial"))
    assert [change.bound for change in decision.changes] == ["use"]


def test_this_machine_is_judged_like_any_other():
    need, at = Need(), {"here": tuple(here(FEW, LAPTOP, 0.0, Need(), "EUR"))}
    assert served(decided(need, **at))
    rules = Rules(residency=("DE",), country="DE")
    nowhere = decided(need, rules=rules, **at)
    assert not served(nowhere)
    assert "nobody said where" in nowhere.places_refused[0].reason
    assert served(decided(need, rules=rules, country="DE", **at))
    barred = replace(rules, jurisdiction_not=("US",))
    assert served(decided(need, rules=barred, country="DE", **at))
    theirs = decided(need, rules=barred, country="DE", operator=operator(FEW, "aws"), **at)
    assert "under the law of US" in theirs.places_refused[0].reason


def test_a_load_that_is_too_much_is_the_bound_that_is_named():
    need = Need(model="llama-3.1-8b", requests_a_day=1e9, rate=100.0)
    (change,) = decided(need).changes
    assert change.bound == "requests_a_day"
    most = float(re.fullmatch(r"at most ([\d,]+) requests a day", change.change)[1].replace(",", ""))
    assert decided(replace(need, requests_a_day=most)).choice.plans
    assert not decided(replace(need, requests_a_day=most + 1)).choice.plans


@pytest.mark.parametrize(("users", "sequences"), [(1, 8), (8, 8), (9, 16), (40, 40), (5000, 1024)])
def test_an_engine_is_started_with_room_for_the_users(users, sequences):
    assert started(Need(users=users)).sequences == sequences


def test_of_cards_at_hand_the_law_is_left_to_who_has_them():
    decision = decided(Need(cards="8xH100", residency=("DE",)))
    assert served(decision)
    assert any("yours to show" in note for note in decision.notes)


def test_the_need_and_the_house_must_both_be_met():
    with pytest.raises(BadRequest, match="contradict each other"):
        decided(Need(residency=("FR",)), rules=Rules(residency=("DE",)))
    decision = decided(Need(residency=("EU",)), rules=Rules(residency=("FR", "NO")))
    assert {place.country for place in decision.places} <= {"FR"}


# -- places ------------------------------------------------------------------------------------------------------------


def test_own_machines_are_ranked_with_what_they_cost():
    owned = Owned(capex=250_000, power_w=8_000, price_kwh=0.25, date="2026-09-01")
    hosts = HOSTS | {
        "bought": OwnHost(card="H200", cards=8, country="DE", owned=owned),
        "free": OwnHost(card="B200", cards=8),
    }
    decision = decided(Need(users=8, kinds=("owned",)), hosts=hosts)
    places = {place.name: place for place in decision.places}
    assert set(places) == {"rack", "bought", "free"}
    assert places["rack"].hour(1) == 9.0
    assert places["free"].hour(1) is None
    assert 7 < places["bought"].hour(8) < 11
    many = decided(
        Need(model="llama-3.1-8b", users=900, context=8_192, kinds=("owned",)), hosts={"rack": HOSTS["rack"]}
    )
    (plan,) = many.choice.plans
    assert plan.hour == 9.0 * (2 if plan.cards > 8 else 1), "replicas share a machine"


@pytest.mark.parametrize("need", [Need(kinds=("spot",)), Need(cards="8xH200", kinds=("owned", "spot"))])
def test_own_machines_stand_back_where_others_are_asked_for(need):
    assert "rack" not in {place.name for place in decided(need, hosts=HOSTS).places}


@pytest.mark.parametrize(
    ("text", "count", "card"),
    [
        ("2xH100", 2, "H100-SXM"),
        ("h200", 1, "H200-SXM"),
        ("8 x L40S", 8, "L40S"),
        ("4*A100-80GB-PCIe", 4, "A100-80GB-PCIe"),
        ("NVIDIA GeForce RTX 4090", 1, "RTX-4090"),
    ],
)
def test_cards_by_name(text, count, card):
    number, cards = read_cards(EVERYTHING.cards, text)
    assert (number, cards[0].id) == (count, card)


@pytest.mark.parametrize(
    ("need", "error", "words"),
    [
        (Need(cards="2xH1000"), Unknown, "nearest names: .*H100"),
        (Need(cards="0xH100"), BadRequest, "from 1 to 100,000 cards"),
        (Need(cards="   "), BadRequest, "2xH100"),
        (Need(model="lama-3.3-70b"), Unknown, "llama-3.3-70b"),
        (Need(residency=("Germny",)), BadRequest, "DE"),
        (Need(jurisdiction_not=("UZA",)), BadRequest, ""),
        (Need(currency="XAU"), BadRequest, r"\[\[rates\]\]"),
        (Need(quantization=("fp7",)), BadRequest, "one of: .*fp8"),
        (Need(kv_dtype="fp7"), BadRequest, "one of: .*fp8"),
    ],
)
def test_names_that_nothing_answers_to(need, error, words):
    with pytest.raises(error) as refused:
        decided(need)
    assert re.search(words, f"{refused.value} {refused.value.hint}")


def test_a_copy_is_planned_by_its_dimensions_and_said_to_be_one():
    need = Need(model="unsloth/Llama-3.3-70B-Instruct-bnb-4bit", cards="2xH100")
    decision = decided(need, EVERYTHING)
    assert "only its dimensions are used" in decision.notes[0]
    assert decision.choice.plans[0].duties[0] == "nobody said under what licence these files are"
    assert not served(decided(need, EVERYTHING, rules=Rules(unreviewed="refuse")))


def test_a_use_that_is_not_the_houses_is_said():
    said = "use = research is of this question: endpoints start under [policy] use = commercial"
    assert said in decided(Need(cards="8xH200", use="research"), EVERYTHING).notes


@pytest.mark.parametrize(
    ("prompt", "completion", "said"),
    [(1500, 500, "768 and 256"), (1, 2047, "0 and 1,024"), (4096, 1, "1,024 and 1"), (512, 512, ""), (0, 1024, "")],
)
def test_speed_and_cost_are_of_prompts_and_answers_that_fit_and_that_is_said(prompt, completion, said):
    need = Need(cards="1xH100", context=1024, prompt_tokens=prompt, completion_tokens=completion)
    notes = [note for note in decided(need).notes if "do not fit" in note]
    assert [note.endswith(f"speed and cost are of {said}") for note in notes] == [True] * bool(said)
