"""What `freehold compare` says of each model, as plain data: facts, law, memory and money."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from msgspec.structs import replace

from freehold.catalogue import Catalogue, match
from freehold.catalogue.decide import judge
from freehold.catalogue.places import places
from freehold.cli.models import active, commercial_uses, total
from freehold.errors import BadRequest
from freehold.facts import Attention, Model
from freehold.fleet.config import Config
from freehold.plan.choose import choose
from freehold.plan.deployment import Deployment, Place
from freehold.plan.kv import WINDOWED, bytes_per_token, kv_bytes_per_token, state_bytes, windowed_bytes_per_token
from freehold.plan.need import Need
from freehold.plan.params import count
from freehold.plan.weights import SCHEMES, split
from freehold.policy.law import Rules, in_words
from freehold.types import Refusal

CARDS = ("H100-SXM", "H200-SXM", "L40S")
TOKENS = 32_768
FORMS = {"shipped": None, "BF16": "bf16", "FP8": "fp8", "INT4": "int4-awq"}


def profiles(names: Sequence[str], need: Need, catalogue: Catalogue, config: Config | None) -> list[dict[str, Any]]:
    """One for each name. Raises Unknown with the nearest names, BadRequest where there is nothing to compare."""
    found = {match(catalogue, name).model.id: match(catalogue, name) for name in names}
    if not 2 <= len(found) == len(names) <= 6:
        same = "" if len(found) == len(names) else f": they mean {', '.join(found)}"
        raise BadRequest(f"{len(names)} names given{same}", hint="give from 2 to 6 different models")
    rules = config.policy if config else Rules()
    rented = _offers(need, catalogue, rules)
    return [
        _facts(each.model)
        | {"matched": "" if each.exact else f"{each.how}; licence and notes are of {each.model.id}"}
        | _law(each.model, catalogue, rules)
        | _sizes(each.model)
        | {"cards": _fewest(each.model, need, catalogue), "cheapest": _cheapest(each.model, need, rented)}
        for each in found.values()
    ]


def _facts(model: Model) -> dict[str, Any]:
    fields = ("id", "name", "repo", "publisher", "publisher_country", "released", "checkpoint", "unknown")
    return {field: getattr(model, field) for field in fields} | {
        "total": total(model),
        "active": active(model),
        "context": model.context.native,
        "context_extended": model.context.extended,
        "precision": SCHEMES[model.checkpoint].name,
        "architecture": _architecture(model),
    }


def _architecture(model: Model) -> str:
    kinds = " + ".join(
        f"{group.layers} x {group.kind.replace('_', ' ')}" + (f" {group.window:,}" if group.window else "")
        for group in model.attention
    )
    moe = model.moe
    experts = f", {moe.experts_per_token} of {moe.experts} experts" if moe else ", dense"
    return (kinds or model.attention_note or "attention unknown") + experts


def _law(model: Model, catalogue: Catalogue, rules: Rules) -> dict[str, Any]:
    ruling = judge([model], catalogue.licences, rules, datetime.now(UTC).date().isoformat())[model.id]
    return {
        "licence": model.licence.id,
        "commercial_use": commercial_uses([model], catalogue)[model.id],
        "objections": [in_words(each) for each in ruling.objections],
        "duties": ruling.duties,
        "accepted": ruling.accepted,
    }


def _sizes(model: Model) -> dict[str, Any]:
    """Bytes of the KV cache in BF16, and of weights as files."""
    kept = None
    if model.attention:
        kept = sum(each.layers * (bytes_per_token(each) * _kept(each) + state_bytes(each)) for each in model.attention)
    return {
        "kv_bytes_per_token": kv_bytes_per_token(model) if model.attention else None,
        "kv_windowed_bytes_per_token": windowed_bytes_per_token(model) if model.attention else None,
        "kv_bytes_at_32k": kept,
        "weight_bytes": {name: _file_bytes(model, scheme or model.checkpoint) for name, scheme in FORMS.items()},
    }


def _file_bytes(model: Model, scheme: str) -> int | None:
    """All weight files, layers for multi-token prediction included."""
    counts = count(model)
    return split(counts, SCHEMES[scheme], model, mtp=True, tables=False).total if counts else None


def _kept(group: Attention) -> int:
    """Tokens of TOKENS that a layer keeps."""
    return min(group.window, TOKENS) if group.kind in WINDOWED else TOKENS


def _fewest(model: Model, need: Need, catalogue: Catalogue) -> dict[str, dict[str, Any]]:
    """As shipped, on one machine of eight of each card."""
    need = replace(need, model=model.id, quantization=(model.checkpoint,))
    ways = {}
    for card in (each for each in catalogue.cards if each.id in CARDS):
        plans, refusals = _ways(model, need, [Place(name=card.id, card=card, machines=1)])
        best = min(plans, key=lambda plan: (plan.cards, plan.replicas), default=None)
        ways[card.id] = _said(best) if best else {"cards": None, "reason": refusals[0].reason}
    return {name: ways[name] for name in CARDS}


def _offers(need: Need, catalogue: Catalogue, rules: Rules) -> list[Place]:
    """Dated on-demand offers that [policy] allows, of which no newer price is known."""
    allowed, _ = places(catalogue, replace(need, kinds=("on-demand",)), rules, {})
    return [each for each in allowed if each.offer and each.offer.date]


def _cheapest(model: Model, need: Need, rented: list[Place]) -> dict[str, Any]:
    """In a precision that loses next to nothing if there is one: as choose ranks them."""
    if not rented:
        return {"month": None, "reason": "[policy] allows none of the places that have a dated on-demand price"}
    plans, refusals = _ways(model, replace(need, model=model.id), rented)
    if not plans:
        return {"month": None, "reason": refusals[0].reason}
    offer = next(place.offer for place in rented if place.name == plans[0].place)
    return _said(plans[0]) | {"month": plans[0].month, "offer": plans[0].place, "date": offer.date if offer else ""}


def _ways(model: Model, need: Need, where: list[Place]) -> tuple[Sequence[Deployment], Sequence[Refusal]]:
    choice = choose(need, [model], {}, where, every=True)
    return choice.plans, choice.refusals


def _said(plan: Deployment) -> dict[str, Any]:
    fields = ("cards", "card", "scheme", "tp", "pp", "ep", "replicas", "requests")
    return {field: getattr(plan, field) for field in fields} | {"precision": SCHEMES[plan.scheme].name}
