"""One decision from everything that is known: which model, where, at what cost, and may we?"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from math import ceil, floor

from msgspec import Struct
from msgspec.structs import replace

from freehold.catalogue import Catalogue, match
from freehold.catalogue.own import OwnHost
from freehold.catalogue.places import at_hand, judged, places
from freehold.errors import BadRequest
from freehold.facts import Licence, Model, Provider
from freehold.plan.choose import Choice, choose
from freehold.plan.deployment import Place
from freehold.plan.need import Need, check
from freehold.plan.performance import Pace
from freehold.plan.scores import NOTHING, Scores, floor_of
from freehold.plan.search import largest
from freehold.plan.speeds import traffic_of
from freehold.policy.countries import expand
from freehold.policy.law import Rules, judge_model, licence_of, unnamed_model
from freehold.types import Refusal, Ruling


class Change(Struct, frozen=True, kw_only=True):
    """One bound that, let go alone, makes deployments possible, and how far it has to go."""

    bound: str
    change: str


class Decision(Struct, frozen=True, kw_only=True):
    """The choice with what it rests on. `changes`: for a need that nothing meets, what alone would make it possible."""

    need: Need
    choice: Choice
    places: tuple[Place, ...] = ()
    places_refused: tuple[Refusal, ...] = ()
    changes: tuple[Change, ...] = ()
    notes: tuple[str, ...] = ()


class Situation(Struct, frozen=True, kw_only=True):
    """What a decision is taken in: the law of the house, its machines, the day."""

    rules: Rules = Rules()
    hosts: Mapping[str, OwnHost] = {}
    here: tuple[Place, ...] | None = None  # this machine, where nothing else is asked about
    country: str = ""  # of it
    operator: Provider | None = None  # of it; None: the company itself
    today: str = ""
    scores: Scores = NOTHING  # where a floor of quality is asked
    paces: tuple[Pace, ...] = ()  # how fast engines were here
    digest: str = ""  # of the files that the model was read from


def decide(
    catalogue: Catalogue, need: Need, situation: Situation, *, model: Model | None = None, every: bool = False
) -> Decision:
    """Rank every way to meet the need, and say why each other model and place is out.

    `model` is one that was read from files. Raises BadRequest and Unknown for needs that make no sense.
    """

    def ask(need: Need, only: str = "") -> Decision:
        models = tuple(each for each in catalogue.models if only in ("", each.id))
        return _decide(replace(catalogue, models=models), need, situation, model, every=False)

    found = _decide(catalogue, need, situation, model, every=every)
    if found.choice.plans:
        return found
    return replace(found, changes=(*_changes(need, ask), *_lower(need, ask, situation.scores)))


def _decide(catalogue: Catalogue, need: Need, situation: Situation, model: Model | None, *, every: bool) -> Decision:
    need, notes = _shortened(check(need))
    rules = stricter(situation.rules, need)
    models: Sequence[Model] = catalogue.models
    judged_by_name = model is None
    if model is not None:
        models = (model,)
    elif need.model:
        found = match(catalogue, need.model)
        models, judged_by_name = (found.model,), found.exact
        if not found.exact:
            notes.append(
                f"{need.model}: {found.how}; only its dimensions are used, its licence is not that of the copy"
            )
    if need.use not in ("", situation.rules.use):
        notes.append(
            f"use = {need.use} is of this question: endpoints start under [policy] use = {situation.rules.use}"
        )
    allowed, refused, said = _where(catalogue, need, rules, situation)
    notes += said
    if judged_by_name:
        rulings = judge(models, catalogue.licences, rules, situation.today)
    else:  # as at the start of an endpoint that names no model
        nobody = Ruling(duties=("nobody said under what licence these files are",))
        rulings = {models[0].id: unnamed_model() if rules.asks_for_model else nobody}
    return Decision(
        need=need,
        choice=choose(
            replace(need, unscored=need.unscored or rules.unscored),
            models,
            rulings,
            allowed,
            every=every,
            scores=situation.scores,
            paces=situation.paces,
            digest=situation.digest,
        ),
        places=tuple(allowed),
        places_refused=tuple(refused),
        notes=tuple(notes),
    )


def _shortened(need: Need) -> tuple[Need, list[str]]:
    """With prompts and answers that fit into the context together: what tokens cost is of these, too."""
    asked = traffic_of(need, 1)
    if (asked.prompt_tokens, asked.completion_tokens) == (need.prompt_tokens, need.completion_tokens):
        return need, []
    note = (
        f"prompts of {need.prompt_tokens:,.0f} tokens with answers of {need.completion_tokens:,.0f} do not fit into "
        f"{need.context:,}: speed and cost are of {asked.prompt_tokens:,.0f} and {asked.completion_tokens:,.0f}"
    )
    return replace(need, prompt_tokens=asked.prompt_tokens, completion_tokens=asked.completion_tokens), [note]


def _where(
    catalogue: Catalogue, need: Need, rules: Rules, situation: Situation
) -> tuple[list[Place], list[Refusal], list[str]]:
    """Places that policy allows, those that it does not, and what must be said of them."""
    if situation.here is not None:
        country, runs = (situation.country,), situation.operator
        allowed, refused = judged(((place, country, runs) for place in situation.here), rules)
        return allowed, refused, []
    if need.cards and not need.kinds:
        place = at_hand(catalogue, need)
        notes = [f"{need.cards} read as {place.name}: what they cost is unknown; --offer rents such cards"]
        if rules.residency or rules.jurisdiction_not or rules.certifications:
            notes.append("where these cards stand, and who runs them, is yours to show: policy asks for it")
        return [place], [], notes
    allowed, refused = places(catalogue, need, rules, situation.hosts)
    return allowed, refused, _rates(catalogue, need)


_LOOSE = {  # what a bound is when it is let go
    "budget": None, "speed": 0.0, "context": 1, "users": 1, "requests_a_day": 1.0, "min_size": None, "max_size": None,
    "quantization": (), "task": "", "residency": (), "jurisdiction_not": (), "cards": "", "kinds": (),
    "use": "research",
}  # fmt: skip
_STEPS = {"budget": 1, "speed": 10, "context": 1, "users": 1, "requests_a_day": 1}  # of a unit, in which it is named


def _changes(need: Need, ask: Callable[..., Decision]) -> Iterator[Change]:
    """Bounds of which letting one go is enough, and how far it has to go. Of several, any two contradict each other."""
    for bound, loose in _LOOSE.items():
        if getattr(need, bound) in (loose, Need.__struct_defaults__[Need.__struct_fields__.index(bound)]):
            continue
        found = ask(replace(need, **{bound: loose}))
        if found.choice.plans:
            said = _nearest(found, bound, getattr(need, bound), ask) if bound in _STEPS else _instead(found, bound, ask)
            yield Change(bound=bound, change=said)


def _lower(need: Need, ask: Callable[..., Decision], scores: Scores) -> Iterator[Change]:
    """Floors of quality of which letting one go is enough, and the value that the best of what is then possible has."""
    for text in need.floor:
        found = ask(replace(need, floor=tuple(each for each in need.floor if each != text)))
        cohort = floor_of(text, scores).cohort
        names = list(dict.fromkeys(plan.model for plan in found.choice.plans))
        reached = [(each, name) for name in names if (each := scores.of(cohort.id, name))]
        if reached:
            best, name = (min if cohort.lower_is_better else max)(reached, key=lambda each: each[0].value)
            way = "<=" if cohort.lower_is_better else ">="
            yield Change(bound="floor", change=f"a floor of {cohort.id}{way}{best.value:g}, for example with {name}")
        elif names:
            said = f"no floor in {cohort.id}, or --unscored allow: nothing possible has a score there"
            yield Change(bound="floor", change=said)


def _nearest(found: Decision, bound: str, asked: float, ask: Callable[..., Decision]) -> str:
    """The value nearest to what was asked that is enough, exactly as it is printed."""
    plans, need, step = found.choice.plans, found.need, _STEPS[bound]
    months = [plan.month for plan in plans if plan.month is not None]
    if bound == "budget" and not months:
        return f"no budget: nobody said what {plans[0].place} costs"

    def enough(name: str, steps: int) -> bool:
        tried = replace(need, **{bound: abs(steps) / step if step > 1 else abs(steps)})
        return bool(ask(tried, name).choice.plans)

    most, end = int((getattr(need, bound) or 0) * step), ceil(asked * step)
    if bound == "budget":  # the less, the nearer
        most, end = -ceil(min(months)), -floor(asked)
    for name in {plan.model: None for plan in plans}:  # one at a time: most are no better than the best before
        if most < end and enough(name, most + 1):
            most = largest(most + 1, end, partial(enough, name))
    if bound == "budget":
        return f"a budget of {-most:,} {need.currency} a month"
    if bound == "speed":
        return f"a speed of at most {most / step:,.1f} tokens a second" if most else "no bound on speed"
    words = {"context": "a context of at most {:,} tokens", "users": "at most {:,} at once"}
    return words.get(bound, "at most {:,} requests a day").format(most)


def _instead(found: Decision, bound: str, ask: Callable[..., Decision]) -> str:
    """What would be possible without a bound that is no number."""
    plan = found.choice.plans[0]
    if bound == "residency":
        named = sorted({code for place in found.places for code in place.country.split(" or ") if code})
        for country in named:
            there = ask(replace(found.need, residency=(country,)))
            if there.choice.plans:
                return f"residency {country}, for example {there.choice.plans[0].place}"
        return f"no residency: nobody said where {plan.place} is"
    return {
        "min_size": f"a smaller model, for example {plan.model}",
        "max_size": f"a larger model, for example {plan.model}",
        "quantization": f"another precision, for example {plan.scheme}",
        "task": f"another task, for example with {plan.model}",
        "jurisdiction_not": f"an operator like that of {plan.place}",
        "cards": f"other cards, for example {plan.cards} x {plan.card}",
        "kinds": f"another kind of offer, for example {plan.place}",
        "use": f"use for research only, for example of {plan.model}",
    }[bound]


def judge(models: Sequence[Model], licences: Sequence[Licence], rules: Rules, today: str) -> dict[str, Ruling]:
    """What policy says of each model, by id."""
    by_id = {each.id: each for each in licences}
    return {each.id: judge_model(each, licence_of(each, by_id), rules, today) for each in models}


def stricter(rules: Rules, need: Need) -> Rules:
    """The house's rules and those of this need: both hold."""
    residency = rules.residency
    if need.residency:
        both = sorted(expand(need.residency) & expand(residency)) if residency else need.residency
        if not both:
            said = f"residency {', '.join(need.residency)} and [policy] residency {', '.join(residency)}"
            raise BadRequest(
                f"{said} contradict each other: no country is in both", hint="leave one of them out, or widen it"
            )
        residency = tuple(both)
        expand(residency)
    use = {"use": need.use} if need.use else {}
    barred = (*rules.jurisdiction_not, *need.jurisdiction_not)
    expand(barred)
    return replace(rules, residency=residency, jurisdiction_not=barred, **use)


def _rates(catalogue: Catalogue, need: Need) -> list[str]:
    return [
        f"{each.base}/{each.quote} {each.rate} of {each.date or 'an unknown day'}, {each.source or 'no source'}"
        for each in catalogue.rates
        if need.currency in (each.base, each.quote)
    ][:1]
