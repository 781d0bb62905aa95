"""One decision from everything that is known: which model, where, at what cost, and may we?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from msgspec import Struct
from msgspec.structs import replace

from freehold.catalogue import Catalogue, match
from freehold.catalogue.own import OwnHost
from freehold.catalogue.places import at_hand, places
from freehold.errors import BadRequest
from freehold.facts import Licence, Model
from freehold.plan.choose import Choice, choose
from freehold.plan.deployment import Place
from freehold.plan.need import Need, check
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
    today: str = ""


def decide(
    catalogue: Catalogue, need: Need, situation: Situation, *, model: Model | None = None, every: bool = False
) -> Decision:
    """Rank every way to meet the need, and say why each other model and place is out.

    `model` is one that was read from files. Raises BadRequest and Unknown for needs that make no sense.
    """
    found = _decide(catalogue, need, situation, model, every=every)
    if found.choice.plans:
        return found
    return replace(found, changes=tuple(_changes(catalogue, need, situation, model)))


def _decide(catalogue: Catalogue, need: Need, situation: Situation, model: Model | None, *, every: bool) -> Decision:
    check(need)
    rules = stricter(situation.rules, need)
    notes: list[str] = []
    models: Sequence[Model] = catalogue.models
    if model is not None:
        models = (model,)
    elif need.model:
        found = match(catalogue, need.model)
        models = (found.model,)
        if not found.exact:
            notes.append(f"{need.model}: {found.how}; only its dimensions are used, check the copy's own licence")
    refused: list[Refusal] = []
    if situation.here is not None:
        allowed = list(situation.here)
    elif need.cards and not need.kinds:
        allowed = [at_hand(catalogue, need)]
        notes.append(f"{need.cards} read as {allowed[0].name}: what they cost is unknown; --offer rents such cards")
    else:
        allowed, refused = places(catalogue, need, rules, situation.hosts)
        notes += _rates(catalogue, need)
    if model is None:
        rulings = judge(models, catalogue.licences, rules, situation.today)
    else:  # as at the start of an endpoint that names no model
        nobody = Ruling(duties=("nobody said under what licence these files are",))
        rulings = {model.id: unnamed_model() if rules.asks_for_model else nobody}
    return Decision(
        need=need,
        choice=choose(need, models, rulings, allowed, every=every),
        places=tuple(allowed),
        places_refused=tuple(refused),
        notes=tuple(notes),
    )


_BOUNDS = {  # what it is when it is let go, and what to say of the deployments that this makes possible
    "budget": (
        None,
        lambda need, plans: f"a budget of {min(p.month or 0 for p in plans):,.0f} {need.currency} a month",
    ),
    "speed": (0.0, lambda _, plans: f"a speed of at most {max(p.ceiling or 0 for p in plans):,.1f} tokens a second"),
    "context": (1, lambda _, plans: f"a context of at most {max(p.longest for p in plans):,} tokens"),
    "users": (1, lambda _, plans: f"at most {max(p.requests for p in plans):,} at once"),
    "min_size": (None, lambda _, plans: f"a smaller model, for example {plans[0].model}"),
    "max_size": (None, lambda _, plans: f"a larger model, for example {plans[0].model}"),
    "quantization": ((), lambda _, plans: f"another precision, for example {plans[0].scheme}"),
    "task": ("", lambda _, plans: f"another task, for example with {plans[0].model}"),
    "residency": ((), lambda _, plans: f"another residency, for example {plans[0].place}"),
    "jurisdiction_not": ((), lambda _, plans: f"an operator like that of {plans[0].place}"),
    "cards": ("", lambda _, plans: f"other cards, for example {plans[0].cards} x {plans[0].card}"),
    "kinds": ((), lambda _, plans: f"another kind of offer, for example {plans[0].place}"),
    "use": ("research", lambda _, plans: f"use for research only, for example of {plans[0].model}"),
}


def _changes(catalogue: Catalogue, need: Need, situation: Situation, model: Model | None) -> Iterator[Change]:
    """Bounds of which letting one go is enough. Where there are several, any two of them contradict each other."""
    for name, (loose, say) in _BOUNDS.items():
        if getattr(need, name) in (loose, Need.__struct_defaults__[Need.__struct_fields__.index(name)]):
            continue
        plans = _decide(catalogue, replace(need, **{name: loose}), situation, model, every=False).choice.plans
        if plans:
            yield Change(bound=name, change=say(need, plans))


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
            raise BadRequest(
                f"residency {need.residency} and [policy] residency {residency} contradict each other",
                hint="leave one of them out, or widen it",
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
