"""The decision: every model on every card in every precision, filtered by law and by physics, ranked, with reasons.

Nothing is dropped in silence: a model that no deployment serves comes back as a Refusal, with the reasons nearest to
letting it in.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from math import log2
from operator import attrgetter

from msgspec import Struct

from freehold.facts import Model
from freehold.plan import search as ways
from freehold.plan.deployment import Deployment, Place, settings
from freehold.plan.need import Need
from freehold.plan.params import Counts, count
from freehold.plan.performance import Pace
from freehold.plan.scores import NOTHING, Floor, Scores, floor_of, refusal
from freehold.plan.search import Found, Search
from freehold.plan.speeds import Speeds
from freehold.policy.law import in_words
from freehold.types import Refusal, Ruling

_RANK = attrgetter("rank")
_EXPLAINED = 0.9  # of a checkpoint, by the dimensions, before they are trusted
_CODING = re.compile(r"coder|coding|devstral|codestral|\bcode\b|-code-", re.IGNORECASE)


class Choice(Struct, frozen=True, kw_only=True):
    """Deployments, the best first, one for each model unless all were asked for; and every model refused."""

    plans: tuple[Deployment, ...]
    refusals: tuple[Refusal, ...]
    considered: int  # combinations of precision, split and card that were computed


def choose(
    need: Need,
    models: Sequence[Model],
    rulings: Mapping[str, Ruling],
    places: Sequence[Place],
    *,
    every: bool = False,
    scores: Scores = NOTHING,
    paces: Sequence[Pace] = (),
    digest: str = "",
) -> Choice:
    """Rank what is allowed and possible. `rulings` by model id are policy's; `places` are those that policy allows.

    `scores` are what the need's floors of quality are about. `paces` are speeds that were measured; they override what
    is predicted. `digest`: of the files that the one model was read from. Raises BadRequest and Unknown for a floor
    that is none.
    """
    floors = [floor_of(each, scores) for each in need.floor]
    spots = ways.spots(places, need, settings(need))
    with_ram = [place for place in places if place.ram_bytes]
    plans: list[Deployment] = []
    refusals: list[Refusal] = []
    considered = 0
    for model in models:
        ruling = rulings.get(model.id, Ruling())
        if reasons := _unsuited(model, need, ruling):
            hint = ruling.objections[0].hint if ruling.objections else ""
            refusals.append(Refusal(subject=model.id, reason=reasons[0], hint=hint, steps=tuple(reasons)))
            continue
        counts = count(model)
        if why := _unknown(model, counts):
            refusals.append(Refusal(subject=model.id, reason=f"memory unknown: {why}"))
            continue
        assert counts is not None  # noqa: S101  it would be unknown
        search = Search(need, Speeds(need, model, counts, paces, digest))
        search.cards(spots)
        for place in with_ram:
            search.llamacpp(place)
        considered += search.considered
        found, steps = _good_enough(search, floors, scores)
        if found:
            best = sorted(found, key=_RANK) if every else [min(found, key=_RANK)]
            plans += [search.describe(each, ruling) for each in best]
        elif steps:
            refusals.append(Refusal(subject=model.id, reason=steps[0], steps=steps))
        else:
            refusals.append(search.refusal())
    by_id = {model.id: model for model in models}
    newest = max((model.released for model in models), default="")
    plans.sort(key=lambda plan: order(plan, by_id[plan.model], need, newest))
    return Choice(plans=tuple(plans), refusals=tuple(refusals), considered=considered)


def _good_enough(search: Search, floors: Sequence[Floor], scores: Scores) -> tuple[list[Found], tuple[str, ...]]:
    """What meets every floor of quality, each precision by itself; and why others do not."""
    if not floors:
        return search.found, ()
    name, unscored = search.model.id, search.need.unscored
    low = {
        scheme: [why for each in floors if (why := refusal(each, name, scores, scheme, unscored=unscored))]
        for scheme in sorted({each.way.scheme for each in search.found})
    }
    found = [each for each in search.found if not low[each.way.scheme]]
    return found, tuple(dict.fromkeys(why for reasons in low.values() for why in reasons))


ORDER = (
    "where a speed or a load is stated, those whose speed is known; then models made for the task, then those of the "
    "last twelve months, then the larger size class (half a doubling of parameters), then the newer, then the finer "
    "precision, then the dated price, then the least cost; no score is used"
)


def order(plan: Deployment, model: Model, need: Need, newest: str) -> tuple[float, ...]:
    """What ORDER says. `newest` is the date of the newest model compared."""
    made_for = need.task == "coding" and bool(_CODING.search(model.name))
    year_ago = f"{int(newest[:4]) - 1}{newest[4:]}" if newest else ""
    recent = model.released > year_ago
    size_class = round(2 * log2(model.parameters.total or model.parameters.checkpoint or 1))
    newer = -int(model.released.replace("-", "") or 0)
    finer = ways.tier(plan.scheme, model.checkpoint)
    unsure = plan.performance is None and bool(need.speed or (need.requests_a_day and not need.rate))
    return unsure, not made_for, not recent, -size_class, newer, finer, plan.undated, plan.month or 0.0


def _unknown(model: Model, counts: Counts | None) -> str:
    """Why the dimensions do not say what it takes; "": they do."""
    if counts is None:
        return model.attention_note or "its layers are of a kind the formulas do not cover"
    copy = counts.embedding if model.tied_embeddings else 0  # some checkpoints store a tied embedding twice
    stored = model.parameters.checkpoint
    if stored and not model.file_bytes and counts.total + copy < _EXPLAINED * stored:
        return f"the dimensions explain {counts.total / 1e9:,.0f} of {stored / 1e9:,.0f} billion stored values"
    return ""


def _unsuited(model: Model, need: Need, ruling: Ruling) -> list[str]:
    """Why this model is out before anything is computed: the law first."""
    reasons = [in_words(each) for each in ruling.objections]
    billions = (model.parameters.total or model.parameters.checkpoint or 0) / 1e9
    if need.min_size is not None and billions < need.min_size:
        reasons.append(f"size: {billions:,.1f} billion parameters, at least {need.min_size:g} are asked")
    if need.max_size is not None and billions > need.max_size:
        reasons.append(f"size: {billions:,.1f} billion parameters, at most {need.max_size:g} are asked")
    longest = model.context.extended or model.context.native
    if need.context > longest:
        reasons.append(f"context: at most {longest:,} tokens, {need.context:,} are asked")
    if need.task == "vision" and "image" not in model.inputs:
        reasons.append("task: it reads no images")
    if need.task == "audio" and "audio" not in model.inputs:
        reasons.append("task: it hears no audio")
    return reasons
