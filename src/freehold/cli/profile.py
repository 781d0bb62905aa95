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
from freehold.facts import Model
from freehold.fleet.config import Config
from freehold.plan.choose import choose
from freehold.plan.deployment import Deployment, Place
from freehold.plan.kv import WINDOWED, bytes_per_token, kv_bytes_per_token, state_bytes
from freehold.plan.need import Need
from freehold.plan.params import count
from freehold.plan.weights import SCHEMES, checkpoint_bytes
from freehold.policy.law import Rules, in_words

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
    allowed, _ = places(catalogue, replace(need, kinds=("on-demand",)), rules, {})
    rented = [place for place in allowed if place.offer and place.offer.date]
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
    kept, counts = None, count(model)
    if model.attention:
        tokens = [min(each.window, TOKENS) if each.kind in WINDOWED else TOKENS for each in model.attention]
        sizes = zip(model.attention, tokens, strict=True)
        kept = sum(each.layers * (bytes_per_token(each) * n + state_bytes(each)) for each, n in sizes)
    return {
        "kv_bytes_per_token": kv_bytes_per_token(model) if model.attention else None,
        "kv_windowed_bytes_per_token": kv_bytes_per_token(model, windowed=True) if model.attention else None,
        "kv_bytes_at_32k": kept,
        "weight_bytes": {
            name: checkpoint_bytes(counts, scheme or model.checkpoint, model) if counts else None
            for name, scheme in FORMS.items()
        },
    }


def _fewest(model: Model, need: Need, catalogue: Catalogue) -> dict[str, dict[str, Any]]:
    """As shipped, on one machine of eight of each card."""
    need = replace(need, model=model.id, quantization=(model.checkpoint,))
    ways = {}
    for card in (each for each in catalogue.cards if each.id in CARDS):
        choice = choose(need, [model], {}, [Place(name=card.id, card=card, machines=1)], every=True)
        best = min(choice.plans, key=lambda plan: (plan.cards, plan.replicas), default=None)
        ways[card.id] = _said(best) if best else {"cards": None, "reason": choice.refusals[0].reason}
    return {name: ways[name] for name in CARDS}


def _cheapest(model: Model, need: Need, rented: list[Place]) -> dict[str, Any]:
    """On dated on-demand offers that [policy] allows, in the precision that choose ranks first."""
    if not rented:
        return {"month": None, "reason": "[policy] allows none of the places that have a dated on-demand price"}
    choice = choose(replace(need, model=model.id), [model], {}, rented)
    if not choice.plans:
        return {"month": None, "reason": choice.refusals[0].reason}
    best = choice.plans[0]
    dates = {place.name: place.offer.date for place in rented if place.offer}
    return _said(best) | {"month": best.month, "offer": best.place, "date": dates[best.place]}


def _said(plan: Deployment) -> dict[str, Any]:
    fields = ("cards", "card", "scheme", "tp", "pp", "ep", "replicas", "requests")
    return {field: getattr(plan, field) for field in fields} | {"precision": SCHEMES[plan.scheme].name}
