"""Law as pure functions, on the catalogue as it ships: licences, publishers, places, operators."""

from datetime import date

import hypothesis.strategies as st
import pytest
from hypothesis import given
from msgspec.structs import replace

from freehold.catalogue import load, model
from freehold.errors import BadRequest
from freehold.facts import Licence, LicenceOf, Provider, Term
from freehold.policy.countries import code, expand
from freehold.policy.law import Acceptance, Rules, judge_build, judge_model, judge_place, licence_of

CATALOGUE = load()
LICENCES = {each.id: each for each in CATALOGUE.licences}
PROVIDERS = {each.id: each for each in CATALOGUE.providers}
REVIEWED = Acceptance(by="Ada", on=date(2026, 1, 2), why="read", until=date(2026, 12, 31))


def judge(name, today="2026-11-21", *, accept=False, **rules):
    """The ruling on a model of the catalogue."""
    found = model(CATALOGUE, name)
    accepted = {found.licence.id: REVIEWED} if accept else {}
    return judge_model(found, LICENCES[found.licence.id], Rules(accepted=accepted, **rules), today)


def rules_of(ruling):
    return {each.rule for each in ruling.objections}


def test_every_licence_of_the_catalogue_has_its_terms():
    assert {each.licence.id for each in CATALOGUE.models} <= set(LICENCES)
    for licence in CATALOGUE.licences:
        assert all(term.says and term.clause and term.source for term in licence.terms), licence.id
        assert licence.commercial_use == "yes" or licence.terms, f"{licence.id}: conditional on what?"
        assert all((term.limit is None) == (not term.unit) or term.kind == "monthly-users" for term in licence.terms)
        assert {term.unit for term in licence.terms} <= {"", "USD a year", "USD a month"}


LICENCE_TABLE = [
    # model, rules, rules objected, a word of a duty
    ("llama-4-scout-17b-16e", {"country": "FR"}, {"licence-eu-exclusion"}, ""),
    ("llama-4-scout-17b-16e", {"country": "France", "accept": True}, {"licence-eu-exclusion"}, ""),
    ("llama-4-scout-17b-16e", {"country": "CH"}, set(), "Built with Llama"),
    ("llama-4-scout-17b-16e", {}, set(), "policy.country is not stated"),
    ("llama-4-scout-17b-16e", {"unreviewed": "refuse"}, {"licence-eu-exclusion", "licence-unaccepted"}, ""),
    ("llama-4-scout-17b-16e", {"country": "CH", "accept": True, "unreviewed": "refuse"}, set(), "Built with Llama"),
    ("llama-4-scout-17b-16e", {"country": "US", "monthly_users": 700_000_001}, {"licence-monthly-users"}, ""),
    ("llama-3.3-70b", {"country": "DE"}, set(), "Built with Llama"),  # text alone: the EU sentence does not touch it
    ("mistral-large-2411", {}, {"licence-non-commercial"}, ""),
    ("mistral-large-2411", {"use": "internal"}, {"licence-non-commercial"}, ""),
    ("mistral-large-2411", {"accept": True}, {"licence-non-commercial"}, ""),
    ("mistral-large-2411", {"use": "research"}, set(), "scientific or academic research"),
    ("mistral-large-2411", {"use": "research", "unreviewed": "refuse"}, {"licence-unaccepted"}, ""),
    ("mistral-large-2411", {"use": "research", "unreviewed": "refuse", "accept": True}, set(), "research"),
    ("command-a-03-2025", {"accept": True}, {"licence-non-commercial"}, ""),
    ("qwen3-8b", {"unreviewed": "refuse"}, set(), ""),
    ("kimi-k2-instruct", {"monthly_users": 100_000_001}, set(), 'shows the model\'s name ("Kimi K2")'),
    ("kimi-k2-instruct", {}, set(), "above 100,000,000 monthly users (policy.monthly_users is not stated)"),
    ("devstral-2-123b-2512", {"yearly_revenue_usd": 240_000_001}, {"licence-revenue"}, ""),
    ("devstral-2-123b-2512", {"yearly_revenue_usd": 240_000_001, "use": "research"}, {"licence-revenue"}, ""),
    ("devstral-2-123b-2512", {"yearly_revenue_usd": 240_000_001, "accept": True}, {"licence-revenue"}, ""),
    ("devstral-2-123b-2512", {"yearly_revenue_usd": 240_000_000}, set(), "needs acceptance"),
    ("devstral-2-123b-2512", {}, set(), "above 20,000,000 USD a month (policy.yearly_revenue_usd is not stated)"),
    ("kimi-k3", {"serves_others": True, "yearly_revenue_usd": 20_000_001}, {"licence-model-service"}, ""),
    ("kimi-k3", {"yearly_revenue_usd": 20_000_001}, set(), "needs an agreement with Moonshot AI"),
    ("qwen3.8-flash-next", {"serves_others": True}, {"licence-model-service"}, ""),
    ("minimax-m3", {"yearly_revenue_usd": 20_000_001}, {"licence-revenue"}, ""),
    ("minimax-m3", {"yearly_revenue_usd": 20_000_001, "use": "research"}, set(), "needs acceptance"),
    ("muse-spark-open-816b-a42b", {}, {"licence-unknown"}, ""),
    ("muse-spark-open-816b-a42b", {"accept": True}, set(), "nobody has read"),
    ("muse-spark-open-816b-a42b", {"use": "research"}, set(), "needs acceptance"),
]


@pytest.mark.parametrize(("name", "rules", "objected", "duty"), LICENCE_TABLE)
def test_licences(name, rules, objected, duty):
    ruling = judge(name, **rules)
    assert rules_of(ruling) == objected
    assert duty in "\n".join(ruling.duties)
    for objection in ruling.objections:
        assert objection.clause
        assert objection.source
        assert objection.hint


def test_internal_use_is_spared_what_is_asked_of_offers_to_others():
    assert not [duty for duty in judge("kimi-k3", use="internal").duties if "Kimi K3" in duty]
    assert "Moonshot" in "\n".join(judge("kimi-k3").duties)


def test_llama_4_in_france_names_the_clause_and_where_it_was_read():
    (objection,) = judge("llama-4-maverick-17b-128e", country="FR", accept=True).objections
    assert "FR (France)" in objection.reason
    assert "principal place of business in, the European Union" in objection.clause
    assert objection.source == "meta-llama/llama-models@a9c89c4 models/llama4/USE_POLICY.md line 71"
    assert "that Ada accepted `llama4-community` changes nothing" in objection.hint


def test_a_permissive_licence_asks_nothing():
    ruling = judge("qwen3-8b")
    assert ruling.allowed
    assert ruling.duties == ()


def test_an_acceptance_says_by_whom_and_ends():
    strict = {"accept": True, "unreviewed": "refuse"}
    ruling = judge("gemma-3-27b", "2026-12-31", **strict)
    assert ruling.allowed
    assert (ruling.accepted, ruling.until) == ("Ada, 2026-01-02: read", "2026-12-31")
    for day in ("2027-01-01", "2026-01-01"):  # after its end, before it was given
        ended = judge("gemma-3-27b", day, **strict)
        assert rules_of(ended) == {"licence-unaccepted"}
        assert "the acceptance by Ada is not in force" in ended.objections[0].reason
        assert ended.until == ""


def test_an_unknown_licence_is_refused_for_a_business_until_somebody_has_read_it():
    known = replace(model(CATALOGUE, "qwen3-8b"), licence=LicenceOf(id="unknown"))
    (objection,) = judge_model(known, LICENCES["unknown"], Rules()).objections
    assert objection.rule == "licence-unknown"
    assert '[policy.accepted."unknown"]' in objection.hint


@pytest.mark.parametrize("licence", ["apache-2.0", "unknown"])
def test_what_nobody_read_is_accepted_for_one_model_only(licence):
    found = next(each for each in CATALOGUE.known if each.licence.id == licence)
    terms = licence_of(found, LICENCES)
    for accepted, allowed in (({licence: REVIEWED}, False), ({found.id: REVIEWED}, True)):
        rules = Rules(unreviewed="refuse", accepted=accepted)
        ruling = judge_model(found, terms, rules, "2026-11-21")
        assert ruling.allowed is allowed
        assert allowed or f'[policy.accepted."{found.id}"]' in ruling.objections[0].hint


def test_a_model_that_hears_or_sees_is_multimodal_for_the_eu():
    scout = model(CATALOGUE, "llama-4-scout-17b-16e")
    for inputs, objected in ((("text", "audio"), True), (("text", "image"), True), (("text",), False)):
        other = replace(scout, inputs=inputs, licence=LicenceOf(id=scout.licence.id))
        ruling = judge_model(other, LICENCES[scout.licence.id], Rules(country="RE"))  # Réunion is in the Union
        assert ("licence-eu-exclusion" in rules_of(ruling)) is objected


def test_a_licence_that_only_says_no_is_refused_too():
    bare = Licence(id="bare", name="Bare", commercial_use="no", url="https://example.org")
    qwen = model(CATALOGUE, "qwen3-8b")
    accepted = Rules(accepted={"bare": REVIEWED})
    assert rules_of(judge_model(qwen, bare, accepted)) == {"licence-non-commercial"}
    own = replace(qwen, licence=LicenceOf(id="own", conditions=("tell them",)))
    assert "tell them" in judge_model(own, Licence(id="own", name="Own", commercial_use="yes"), Rules()).duties


@pytest.mark.parametrize(
    ("name", "rules", "objected"),
    [
        ("qwen3-8b", {"publishers": ("alibaba*",)}, set()),
        ("qwen3-8b", {"publishers": ("Qwen",)}, set()),
        ("qwen3-8b", {"publishers": ("Mistral AI",)}, {"publishers"}),
        ("qwen3-8b", {"publishers_not": ("QWEN",)}, {"publishers-not"}),
        ("qwen3-8b", {"publisher_countries_not": ("China",)}, {"publisher-countries-not"}),
        ("qwen3-8b", {"publisher_countries": ("EU", "US")}, {"publisher-countries"}),
        ("mistral-small-3.2-24b-2506", {"publisher_countries": ("eu",)}, set()),
        ("eurollm-9b-instruct", {"publisher_countries": ("EU",)}, set()),
        ("eurollm-9b-instruct", {"publisher_countries": ("EEA",)}, set()),
        ("eurollm-9b-instruct", {"publisher_countries": ("DE",)}, {"publisher-countries"}),
        ("eurollm-9b-instruct", {"publisher_countries_not": ("DE",)}, {"publisher-countries-not"}),  # it may be
        ("smollm3-3b", {"publisher_countries_not": ("FR",)}, {"publisher-countries-not"}),  # at home in US and FR
        ("smollm3-3b", {"publisher_countries": ("US",)}, {"publisher-countries"}),
        ("smollm3-3b", {"publisher_countries": ("US", "EU")}, set()),
        ("apertus-8b-2509", {"publisher_countries": ("EEA",)}, {"publisher-countries"}),
    ],
)
def test_publishers(name, rules, objected):
    assert rules_of(judge(name, **rules)) == objected


def test_a_publisher_of_unknown_country_is_refused_by_both_lists():
    nowhere = replace(model(CATALOGUE, "qwen3-8b"), publisher_country="")
    rules = Rules(publisher_countries=("EU",), publisher_countries_not=("CN",))
    found = judge_model(nowhere, LICENCES["apache-2.0"], rules).objections
    assert [each.rule for each in found] == ["publisher-countries", "publisher-countries-not"]
    assert "a country that nobody named" in found[0].reason


NO_US = {"jurisdiction_not": ("US",)}


@pytest.mark.parametrize(
    ("country", "operator", "rules", "objected", "says"),
    [
        ("DE", "aws", NO_US, {"jurisdiction"}, "Amazon.com"),
        ("FR", "scaleway", NO_US, set(), ""),
        ("DE", "stackit", NO_US, set(), ""),
        ("FR", "ovhcloud", NO_US, {"jurisdiction"}, "separate US company"),
        ("DE", "lyceum", NO_US, {"jurisdiction"}, "unknown: nobody said"),
        ("FI", "hetzner", NO_US, {"jurisdiction"}, "within reach of US law is unknown"),
        ("CH", "exoscale", {"jurisdiction_not": ("MX",)}, {"jurisdiction"}, "MX (Mexico)"),
        ("US", "scaleway", {"residency": ("EU",)}, {"residency"}, "US (United States)"),
        ("NO", "scaleway", {"residency": ("EU",)}, {"residency"}, "NO (Norway)"),
        ("NO", "scaleway", {"residency": ("EEA",)}, set(), ""),
        ("", "scaleway", {"residency": ("EU",)}, {"residency"}, "nobody said where"),
        ("IT", "seeweb", {"certifications": ("iso 27001",)}, set(), ""),
        ("IT", "seeweb", {"certifications": ("ISO 2700",)}, {"certification"}, "ISO 2700 is required"),
        ("DE", "stackit", {"certifications": ("C5",)}, {"certification"}, "nobody said"),
        ("DE", None, {"country": "DE", **NO_US}, set(), ""),
        ("DE", None, NO_US, {"jurisdiction"}, "said nowhere where it is"),
        ("DE", None, {"country": "US", **NO_US}, {"jurisdiction"}, "US (United States)"),
        ("DE", None, {"certifications": ("C5",)}, set(), ""),
        ("", "aws", {}, set(), ""),
    ],
)
def test_places(country, operator, rules, objected, says):
    ruling = judge_place(country, PROVIDERS[operator] if operator else None, Rules(**rules))
    assert rules_of(ruling) == objected
    assert says in "\n".join(each.reason for each in ruling.objections)


def test_the_cloud_act_is_named_with_the_facts_it_rests_on():
    (first, *_) = judge_place("DE", PROVIDERS["aws"], Rules(jurisdiction_not=("US",))).objections
    assert "Amazon.com, Inc." in first.reason
    assert "18 U.S.C. 2713" in first.clause
    assert "possession, custody or control" in first.clause
    assert first.source.startswith("https://")


def test_every_provider_can_be_judged():
    rules = Rules(jurisdiction_not=("US", "CN"), residency=("EU",), certifications=("C5",))
    for provider in CATALOGUE.providers:
        for country in ("", *provider.countries):
            assert judge_place(country, provider, rules).objections


def test_formats():
    assert judge_build("gguf", Rules()).allowed
    assert judge_build("gguf", Rules(formats=("gguf",))).allowed
    assert not judge_build("gguf", Rules(formats=("safetensors",))).allowed


def test_countries():
    assert (code("germany"), code("uk"), code(" fr ")) == ("DE", "GB", "FR")
    members = expand(["EU"]) - {"EU", "AX", "GF", "GP", "MF", "MQ", "RE", "YT"}  # Åland, and six regions of France
    assert len(members) == 27
    assert not members & {"GB", "CH", "NO", "IS", "LI", "PF"}
    assert expand(["EEA"]) - expand(["EU"]) == {"EEA", "IS", "LI", "NO"}
    assert "PR" in expand(["US"])
    with pytest.raises(BadRequest) as refused:
        code("Swizerland")
    assert "CH (Switzerland)" in refused.value.hint


# a stricter policy never yields more

COUNTRIES = st.lists(st.sampled_from(["EU", "EEA", "US", "CN", "DE", "CH", "FR"]), max_size=3).map(tuple)
PATTERNS = st.lists(st.sampled_from(["*", "qwen", "m*", "Meta", "none"]), max_size=2).map(tuple)
STRICTER = {
    "publishers_not": PATTERNS,
    "publisher_countries_not": COUNTRIES,
    "jurisdiction_not": COUNTRIES,
    "certifications": st.lists(st.sampled_from(["C5", "ISO 27001"]), max_size=2).map(tuple),
}
FACTS = st.fixed_dictionaries(
    {
        "use": st.sampled_from(["commercial", "internal", "research"]),
        "country": st.sampled_from(["", "DE", "US", "CH"]),
        "monthly_users": st.sampled_from([None, 10, 10**9]),
        "yearly_revenue_usd": st.sampled_from([None, 10, 10**11]),
        **STRICTER,
    }
)
MODELS = st.sampled_from(CATALOGUE.models)
PLACES = st.tuples(st.sampled_from(["", "DE", "US"]), st.sampled_from([None, *CATALOGUE.providers]))


def broken(each, place, rules):
    """Which rules a model at a place breaks."""
    both = judge_model(each, LICENCES[each.licence.id], rules), judge_place(*place, rules)
    return {objection.rule for ruling in both for objection in ruling.objections}


@given(MODELS, PLACES, FACTS, st.fixed_dictionaries(STRICTER), st.booleans())
def test_more_rules_never_take_an_objection_away(each, place, facts, more, refuse):
    rules = Rules(**facts)
    longer = {key: getattr(rules, key) + more[key] for key in STRICTER}
    stricter = replace(rules, unreviewed="refuse" if refuse else "show", **longer)
    assert broken(each, place, rules) <= broken(each, place, stricter)


@given(MODELS, PLACES, FACTS, st.sampled_from(["publishers", "publisher_countries", "residency"]), st.data())
def test_a_shorter_list_of_what_is_allowed_never_allows_more(each, place, facts, key, data):
    choices = ["*", "qwen", "Meta", "none"] if key == "publishers" else ["EU", "EEA", "US", "CN", "DE"]
    wide = tuple(data.draw(st.lists(st.sampled_from(choices), min_size=1, max_size=3)))
    rules = Rules(**facts)
    some, fewer = replace(rules, **{key: wide}), replace(rules, **{key: wide[:1]})
    assert broken(each, place, rules) <= broken(each, place, some) <= broken(each, place, fewer)


@given(MODELS, PLACES, FACTS, st.booleans())
def test_a_wider_use_a_larger_company_and_a_lost_acceptance_never_allow_more(each, place, facts, accepted):
    uses = ["research", "internal", "commercial"]
    rules = Rules(**facts, accepted={each.licence.id: REVIEWED} if accepted else {})
    wider = replace(rules, use=uses[min(2, uses.index(rules.use) + 1)], accepted={})
    if rules.yearly_revenue_usd is not None:
        wider = replace(wider, yearly_revenue_usd=rules.yearly_revenue_usd * 2)
    assert broken(each, place, rules) <= broken(each, place, wider)
    served = replace(wider, use="commercial", serves_others=True)
    assert broken(each, place, wider) <= broken(each, place, served)


@given(MODELS, FACTS)
def test_no_acceptance_answers_for_a_right_the_licence_does_not_give(each, facts):
    licence, rules = LICENCES[each.licence.id], Rules(**facts)
    before = {o.rule for o in judge_model(each, licence, rules).objections}
    after = {o.rule for o in judge_model(each, licence, replace(rules, accepted={licence.id: REVIEWED})).objections}
    assert before - after <= {"licence-unknown", "licence-unaccepted"}


@given(st.sampled_from(CATALOGUE.licences), MODELS)
def test_terms_become_an_objection_or_a_duty_or_do_not_touch(licence, each):
    other = Licence(
        id=licence.id,
        name=licence.name,
        commercial_use="yes",
        terms=(*licence.terms, Term(kind="notify", says="tell", clause="1", source="x")),
    )
    ruling = judge_model(replace(each, publisher_country="DE"), other, Rules(use="commercial"))
    assert any("tell" in duty for duty in ruling.duties)


def test_an_operator_nobody_knows_is_refused_by_every_rule_on_places():
    nobody = Provider(id="x", name="x")
    rules = Rules(residency=("EU",), jurisdiction_not=("CN",), certifications=("C5",))
    assert rules_of(judge_place("", nobody, rules)) == {"residency", "jurisdiction", "certification"}
