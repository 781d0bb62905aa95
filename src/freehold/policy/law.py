"""May we? Licence, publisher, place and operator as pure functions: facts and rules in, a ruling out.

No legal advice: it applies what the catalogue read of a licence, names the clause, and says where nobody has read.
What is not known is never taken for allowed. A rule more never takes an objection away: each is judged by itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date
from fnmatch import fnmatchcase
from typing import Annotated, Literal

from msgspec import Meta, Struct, field
from msgspec.structs import replace

from freehold.facts import Licence, Model, Provider, Term
from freehold.policy.countries import code, expand, named
from freehold.types import Objection, Ruling

Use = Literal["commercial", "internal", "research"]
_CLOUD_ACT = "18 U.S.C. 2713 (CLOUD Act): data in its possession, custody or control, wherever it is stored"
_IN_A_YEAR = {"USD a month": 12, "USD a year": 1}
_OTHERWISE = "another model; or an agreement with the publisher, as an own [models] entry with its own licence"


class Acceptance(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Somebody read a licence and takes its terms on: `[policy.accepted.LICENCE]`."""

    by: Annotated[str, Meta(min_length=1)]
    on: date
    why: Annotated[str, Meta(min_length=1)]
    until: date | None = None  # its last day

    def holds(self, today: str) -> bool:
        """Whether it is in force on this ISO date; "" asks nothing of the calendar."""
        return not today or self.on.isoformat() <= today <= (self.until.isoformat() if self.until else today)


class Rules(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What must hold before anything is served: `[policy]`."""

    isolation: Literal["required", "preferred", "off"] = "preferred"
    require_pin: bool = False
    use: Use = "commercial"
    serves_others: bool = False
    country: str = ""
    monthly_users: Annotated[int, Meta(ge=0)] | None = None
    yearly_revenue_usd: Annotated[int, Meta(ge=0)] | None = None
    unreviewed: Literal["show", "refuse"] = "show"
    unscored: Literal["refuse", "allow"] = "refuse"  # where a quality floor is asked
    publishers: tuple[str, ...] = ()
    publishers_not: tuple[str, ...] = ()
    publisher_countries: tuple[str, ...] = ()
    publisher_countries_not: tuple[str, ...] = ()
    residency: tuple[str, ...] = ()
    jurisdiction_not: tuple[str, ...] = ()
    certifications: tuple[str, ...] = ()
    formats: tuple[Literal["gguf", "safetensors"], ...] = ()
    accepted: dict[str, Acceptance] = field(default_factory=dict)

    @property
    def asks_for_model(self) -> bool:
        """Whether nothing may be served of which nobody says what model it is."""
        return self.unreviewed == "refuse" or bool(
            self.publishers or self.publishers_not or self.publisher_countries or self.publisher_countries_not
        )


def licence_of(model: Model, licences: Mapping[str, Licence]) -> Licence:
    """The terms of a model's licence. Where only its tag at the hub names one, nobody read what it says there.

    Such a licence has the model's id, as one that is unknown has: to accept it answers for this model and no other.
    """
    named = licences.get(model.licence.id, licences["unknown"])
    if named.id == "unknown":
        return replace(named, id=model.id)
    if model.licence.read:
        return named
    term = Term(
        kind="unread",
        says=f"only the tag at the hub says {named.id}: nobody read the licence of this model",
        clause=f"tag {model.licence.tag or named.id}",
        source=f"the hub's page of {model.repo}",
    )
    use = named.commercial_use if named.commercial_use in ("no", "unknown") else "conditional"
    return replace(named, id=model.id, commercial_use=use, terms=(*named.terms, term))


def judge_model(model: Model, licence: Licence, rules: Rules, today: str = "") -> Ruling:
    """What the licence and the rules on publishers say of a model. `today`: an ISO date, for acceptances that end.

    An acceptance answers for what needed somebody's review. It never answers for a right that the licence does not
    give: non-commercial use, companies in the EU, thresholds that are passed.
    """
    acceptance = rules.accepted.get(licence.id)
    accepted = acceptance if acceptance and acceptance.holds(today) else None
    objections, duties = _terms(model, licence, rules)
    denied = any(each.hint == _OTHERWISE for each in objections)  # then no acceptance would help: none is asked for
    if acceptance:  # say why that does not help
        by = f"that {acceptance.by} accepted `{licence.id}`"
        nothing = f"{by} changes nothing: the licence itself grants no such right; {_OTHERWISE}"
        objections = [replace(each, hint=nothing) if each.hint == _OTHERWISE else each for each in objections]
    if not accepted and (review := _review(licence, rules, acceptance)):
        if rules.unreviewed == "refuse" or review.rule == "licence-unknown":
            objections.append(replace(review, hint="") if denied else review)
        elif not denied:
            duties.insert(0, f"needs acceptance: {review.hint}")
    return Ruling(
        objections=(*objections, *_publisher(model, rules)),
        duties=(*duties, *(() if licence.terms else model.licence.conditions)),
        accepted=f"{accepted.by}, {accepted.on.isoformat()}: {accepted.why}" if accepted else "",
        until=accepted.until.isoformat() if accepted and accepted.until else "",
    )


def judge_place(country: str, operator: Provider | None, rules: Rules) -> Ruling:
    """What the rules say of a machine in a country ("": unknown), run by an operator (None: the company itself)."""
    objections, asked = _residency(country, rules), dict.fromkeys(rules.certifications)
    if operator is None:
        showing = tuple(f"{each} is asked of operators; of your own machine it is yours to show" for each in asked)
        return Ruling(objections=(*objections, *_own_jurisdiction(rules)), duties=showing)
    objections += _jurisdiction(operator, rules)
    for wanted in asked:
        if not any(_certifies(held, wanted) for held in operator.certifications):
            held = ", ".join(operator.certifications) or "nobody said that it has it"
            reason = f"{wanted} is required of an operator; {operator.name}: {held}"
            hint = "ask the operator for the certificate, then name it in an own entry of that operator"
            objections.append(
                _objection("certification", reason, "policy.certifications", "; ".join(operator.sources), hint)
            )
    return Ruling(objections=tuple(objections))


def judge_build(file_format: str, rules: Rules) -> Ruling:
    """What the rules say of weights in this format: `gguf` or `safetensors`."""
    if not rules.formats or file_format in rules.formats:
        return Ruling()
    allowed = ", ".join(rules.formats)
    reason = f"the weights are {file_format}, and policy.formats allows {allowed}"
    return Ruling(objections=(Objection(rule="format", reason=reason, clause="policy.formats", hint=f"use {allowed}"),))


def unnamed_model() -> Ruling:
    """Rules that ask what a model is, and nobody said."""
    reason = "[policy] has rules on models, and nobody said which model this is"
    clause, hint = "policy.publishers, publisher_countries, unreviewed", 'say it: model = "ID" of the catalogue'
    return Ruling(objections=(_objection("model-unnamed", reason, clause, "", hint),))


def join(*rulings: Ruling) -> Ruling:
    """All of them at once; of several ends the first."""
    return Ruling(
        objections=tuple(each for ruling in rulings for each in ruling.objections),
        duties=tuple(each for ruling in rulings for each in ruling.duties),
        accepted="; ".join(ruling.accepted for ruling in rulings if ruling.accepted),
        until=min((ruling.until for ruling in rulings if ruling.until), default=""),
    )


def in_words(objection: Objection) -> str:
    """One objection with its clause and source, on one line."""
    rests = "; ".join(each for each in (objection.clause, objection.source) if each)
    return f"{objection.reason} [{rests}]" if rests else objection.reason


# the licence


def _terms(model: Model, licence: Licence, rules: Rules) -> tuple[list[Objection], list[str]]:
    """What the licence denies, whoever accepts it; and what it obliges to."""
    terms = licence.terms
    if licence.commercial_use == "no" and not any(term.kind == "non-commercial" for term in terms):
        forbids = Term(kind="non-commercial", says="non-commercial", clause=licence.name, source=licence.url)
        terms = (forbids, *terms)
    found = [_term(term, model, licence, rules) for term in terms if not _spared(term, rules)]
    return [each for each in found if isinstance(each, Objection)], [each for each in found if isinstance(each, str)]


def _spared(term: Term, rules: Rules) -> bool:
    """Terms on commercial use spare research; those of them on what is offered to others spare internal use."""
    offered = term.kind == "model-service" or term.above == "attribution"
    return term.commercial and (rules.use == "research" or (rules.use == "internal" and offered))


def _term(term: Term, model: Model, licence: Licence, rules: Rules) -> Objection | str | None:
    """A denial, a duty in words, or None: it does not touch this model or this company."""
    match term.kind:
        case "non-commercial" if rules.use != "research":
            return _denial(term, f"{licence.name} allows no commercial use")
        case "eu-exclusion":
            return _eu(term, model, licence, rules)
        case "monthly-users":
            return _limit(term, licence, rules.monthly_users, "monthly_users")
        case "revenue":
            return _limit(term, licence, _revenue(term, rules), "yearly_revenue_usd")
        case "model-service" if rules.serves_others:
            return _limit(term, licence, _revenue(term, rules), "yearly_revenue_usd")
    return f"{'nobody has read: ' if term.kind == 'unread' else ''}{_duty(term)}"


def _duty(term: Term) -> str:
    return f"{term.says} [{term.clause}]"


def _eu(term: Term, model: Model, licence: Licence, rules: Rules) -> Objection | str | None:
    """The rights kept from companies in the EU: by the model's own flag, else where it reads more than text."""
    flag = model.licence.eu_companies
    if flag is True or (flag is None and set(model.inputs) <= {"text"}):
        return None
    without = f"{licence.name} gives companies in the EU no right to {model.name}"
    if rules.country:
        inside = expand([rules.country]) & expand(["EU"])
        return _denial(term, f"the company is in {named(code(rules.country))}, and {without}") if inside else None
    if rules.unreviewed == "refuse":
        reason = f"{without}, and nobody said where yours is"
        return _objection("licence-eu-exclusion", reason, term.clause, term.source, "say it: [policy] country")
    return f"not for companies in the EU, and policy.country is not stated: {_duty(term)}"


def _revenue(term: Term, rules: Rules) -> float | None:
    """The company's revenue as the term counts it: a month is a twelfth of the year."""
    return None if rules.yearly_revenue_usd is None else rules.yearly_revenue_usd / _IN_A_YEAR.get(term.unit, 1)


def _limit(term: Term, licence: Licence, figure: float | None, key: str) -> Objection | str | None:
    """A threshold: passed, kept, or not to be told because the figure was not stated."""
    if term.limit is None:
        return _denial(term, f"{licence.name} does not allow it, whatever the company's size")
    unit = term.unit or "monthly users"
    if figure is None:
        return f"above {term.limit:,} {unit} (policy.{key} is not stated): {_duty(term)}"
    if figure <= term.limit:
        return None
    if term.above == "attribution":
        return _duty(term)
    return _denial(term, f"{figure:,.0f} {unit} are above the {term.limit:,} of {licence.name}")


def _denial(term: Term, reason: str) -> Objection:
    """The licence does not give this right, so that no acceptance of it can."""
    return _objection(f"licence-{term.kind}", f"{reason}: {term.says}", term.clause, term.source, _OTHERWISE)


def _review(licence: Licence, rules: Rules, ended: Acceptance | None) -> Objection | None:
    """What somebody must have read and accepted first: conditions, and what nobody has read."""
    unread = [term for term in licence.terms if term.kind == "unread"]
    if licence.commercial_use == "yes" and not unread:
        return None
    unknown = licence.commercial_use == "unknown" and rules.use != "research"
    what = "it is unknown whether it allows commercial use" if unknown else "it has terms that nobody here accepted"
    past = f"; the acceptance by {ended.by} is not in force" if ended else ""
    clause = "; ".join(dict.fromkeys(term.clause for term in unread or licence.terms)) or licence.name
    source = licence.url or "; ".join(dict.fromkeys(term.source for term in unread or licence.terms))
    hint = f'[policy.accepted."{licence.id}"] with by, on and why, once somebody has read it'
    rule = "licence-unknown" if unknown else "licence-unaccepted"
    return _objection(rule, f"{licence.name}: {what}{past}", clause, source, hint)


def _objection(rule: str, reason: str, clause: str, source: str, hint: str) -> Objection:
    return Objection(rule=rule, reason=reason, clause=clause, source=source, hint=hint)


# the publisher


def _publisher(model: Model, rules: Rules) -> list[Objection]:
    names = tuple(each.casefold() for each in (model.publisher, model.repo.partition("/")[0]))

    def named_in(patterns: tuple[str, ...]) -> bool:
        return any(fnmatchcase(name, pattern.casefold()) for name in names for pattern in patterns)

    found: dict[str, str] = {}  # what is broken, and how
    if rules.publishers and not named_in(rules.publishers):
        found["publishers"] = f"{model.publisher} is not among the publishers allowed"
    if named_in(rules.publishers_not):
        found["publishers_not"] = f"{model.publisher} is a publisher that is not allowed"
    countries = [code(each) for each in model.publisher_country.split("/") if each]
    homes, where = expand(countries), " and ".join(map(named, countries)) or "a country that nobody named"
    if rules.publisher_countries and not (homes and homes <= expand(rules.publisher_countries)):
        found["publisher_countries"] = f"{model.publisher} is from {where}, which is not among the countries allowed"
    if rules.publisher_countries_not and (not homes or homes & expand(rules.publisher_countries_not)):
        found["publisher_countries_not"] = f"{model.publisher} is from {where}, which is not allowed"
    return [
        _objection(key.replace("_", "-"), reason, f"policy.{key}", "", f"another model, or policy.{key}")
        for key, reason in found.items()
    ]


# the place


def _residency(country: str, rules: Rules) -> list[Objection]:
    if not rules.residency:
        return []
    allowed = ", ".join(rules.residency)
    if country and expand([country]) <= expand(rules.residency):
        return []
    where = f"the machine stands in {named(code(country))}" if country else "nobody said where the machine stands"
    hint = "a machine in one of these countries" if country else "say it: country"
    reason = f"{where}, and policy.residency asks for {allowed}"
    return [Objection(rule="residency", reason=reason, clause=f"policy.residency: {allowed}", hint=hint)]


def _own_jurisdiction(rules: Rules) -> list[Objection]:
    """The operator is the company itself: it is under the law of its own country."""
    barred = expand(rules.jurisdiction_not)
    if not barred or (rules.country and not expand([rules.country]) & barred):
        return []
    whose = f"is itself under the law of {named(code(rules.country))}" if rules.country else "said nowhere where it is"
    return [_under(f"the company runs this machine and {whose}", "policy.country", rules)]


def _jurisdiction(operator: Provider, rules: Rules) -> list[Objection]:
    """Both entities are asked, and for the US any other link too: what is unknown is refused."""
    barred = expand(rules.jurisdiction_not)
    if not barred:
        return []
    source = "; ".join(operator.sources)
    parent = f"{operator.parent or 'the ultimate parent'} (of {operator.name})"
    found: list[Objection] = []
    unknown: list[Objection] = []
    for who, home in ((operator.name, operator.home), (parent, operator.parent_home)):
        if not home:
            unknown.append(_under(f"{who} is under a law that is unknown: nobody said", source, rules))
        elif expand([home]) & barred:
            found.append(_under(f"{who} is under the law of {named(code(home))}", source, rules))
    if "US" in barred and "US" not in (operator.home, operator.parent_home):
        if operator.us_exposure is None:
            unknown.append(_under(f"whether {operator.name} is within reach of US law is unknown", source, rules))
        elif operator.us_exposure:
            found.append(_under(f"{operator.name} is within reach of US law: {operator.us_nexus}", source, rules))
    return found + unknown  # what is known speaks first


def _under(fact: str, source: str, rules: Rules) -> Objection:
    barred = ", ".join(rules.jurisdiction_not)
    clause = _CLOUD_ACT if "US" in expand(rules.jurisdiction_not) else f"policy.jurisdiction_not: {barred}"
    hint = "an operator whose home, and whose ultimate parent's, are known and not barred"
    return _objection("jurisdiction", f"{fact}, and policy.jurisdiction_not names {barred}", clause, source, hint)


def _certifies(held: str, wanted: str) -> bool:
    """`ISO 27001:2022` is ISO 27001, `ISO 27001x` is not."""
    held, wanted = held.casefold(), wanted.strip().casefold()
    return held.startswith(wanted) and not held[len(wanted) : len(wanted) + 1].isalnum()
