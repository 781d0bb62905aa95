"""From a parsed config.json to a model's dimensions, by the table of architectures and never by a guess.

Checked against the configs of catalogue models and, part by part, against transformers' own model classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from msgspec.structs import replace

from freehold.facts import Attention, Context, LicenceOf, Model, Moe, Mtp, Parameters
from freehold.plan.params import count
from freehold.weights.architectures import ARCHITECTURES, Architecture
from freehold.weights.layers import Facts, Layer, Unfamiliar, kinds_of, layer
from freehold.weights.reading import Malformed, quoted

MAX_PARAMETERS = 1 << 60
_NESTED = ("text_config", "llm_config", "language_config")


def merged(config: Mapping[str, Any]) -> dict[str, Any]:
    """The decoder's keys over those around it, with the defaults of its architecture where that is known."""
    nested = next((config[key] for key in _NESTED if isinstance(config.get(key), dict)), {})
    found = {**config, **nested}
    for each in (nested, config):
        kind = each.get("model_type")
        if isinstance(kind, str) and (kind := kind.removesuffix("_text")) in ARCHITECTURES:
            return {**ARCHITECTURES[kind].defaults, **found, "model_type": kind}
    return found


def dimensions(config: Mapping[str, Any], name: str = "model") -> Model:
    """A model's dimensions from its parsed config.json.

    Raises Unfamiliar when the architecture is not one that is known, Malformed when a value is missing or absurd.
    """
    facts = Facts(merged(config))
    kind = facts.text("model_type")
    if kind not in ARCHITECTURES:
        raise Unfamiliar(unknown(kind))
    if facts.flag("use_cla"):
        raise Unfamiliar(f"architecture {kind} with cross-layer attention is not one whose layers Freehold knows")
    row = ARCHITECTURES[kind]
    kinds = kinds_of(facts, row)
    attention = [layer(facts, row, each, at) for at, each in enumerate(kinds)]
    if shared := facts.count("num_kv_shared_layers"):
        if shared >= len(kinds):
            raise Malformed("missing-fact", "num_kv_shared_layers leaves no layer with a cache")
        attention[len(kinds) - shared :] = [None] * shared
    moe, dense = _moe(facts, row, kinds)
    return checked(
        blank(name, kind, attention, facts.size("max_position_embeddings")),
        counted=row.counted,
        attention_note=f"the last {shared} layers read the cache of earlier ones" if shared else "",
        hidden_size=facts.size("hidden_size"),
        intermediate_size=_dense_width(facts, moe, dense),
        dense_layers=dense,
        vocab_size=facts.size("vocab_size"),
        output_vocab_size=facts.count("output_vocab_size"),
        tied_embeddings=facts.flag("tie_word_embeddings", default=row.tied),
        mlp_gated=row.gated,
        layer_norms=row.norms,
        norm_bias=row.norm_bias,
        mlp_extra_per_layer=row.mlp_extra,
        moe=moe,
        mtp=_mtp(facts, row, moe, attention),
    )


def unknown(kind: str) -> str:
    return f"architecture {quoted(kind)} is not one whose layers Freehold knows: its KV cache is an upper bound"


def blank(name: str, kind: str, layers: Sequence[Layer], context: int) -> Model:
    """A model of which only its layers are known. Layers that attend alike form one group."""
    groups: dict[Attention, int] = {}
    for each in layers:
        if each is not None:
            groups[each] = groups.get(each, 0) + 1
    return Model(
        id=name,
        name=name,
        repo="",
        family=kind,
        publisher="",
        publisher_country="",
        architecture=kind,
        layers=len(layers),
        other_layers=sum(each is None for each in layers),
        attention=tuple(replace(each, layers=n) for each, n in groups.items()),
        context=Context(native=context),
        parameters=Parameters(method="none"),
        licence=LicenceOf(id="unknown"),
    )


def checked(model: Model, *, counted: bool, **facts: Any) -> Model:
    """With its parameters counted where the formulas hold. Raises Malformed when there are absurdly many."""
    model = replace(model, **facts)
    counts = count(model)
    if counts and counts.total >= MAX_PARAMETERS:
        raise Malformed("missing-fact", "the dimensions make more than 10^18 parameters")
    if not counts or not counted:
        return model
    return replace(
        model, parameters=Parameters(method="formula", text=counts.text, total=counts.total, active=counts.active)
    )


def _moe(facts: Facts, row: Architecture, kinds: Sequence[str]) -> tuple[Moe | None, int]:
    """The mixture of experts if there is one, and how many layers have a dense block."""
    experts = facts.count("n_routed_experts", "num_local_experts", "num_experts", "moe_num_experts")
    sparse = sum(_is_sparse(facts, row, kind, at) for at, kind in enumerate(kinds)) if row.moe and experts else 0
    if row.attention == "nemotron_h":
        dense = kinds.count("mlp")
    else:
        beside = facts.flag("enable_moe_block")  # Gemma 4 has a dense block in parallel with the experts
        dense = len(kinds) if beside else len(kinds) - sparse
    if not sparse:
        return None, dense
    used = facts.count(*_USED)
    if not 0 < used <= experts:
        raise Malformed("missing-fact", f"{used} of {experts} experts for each token")
    width = facts.size("moe_intermediate_size", facts.get("intermediate_size"))
    shared_width = facts.count(*_SHARED_WIDTH)
    shared = facts.count(*_SHARED, default=1 if shared_width else 0)
    return Moe(
        layers=sparse,
        experts=experts,
        experts_per_token=used,
        intermediate_size=width,
        shared_experts=shared,
        shared_intermediate_size=(shared_width or width) if shared else 0,
        shared_gate=row.shared_gate and shared > 0,
        latent_size=facts.count("moe_latent_size"),
        gated=row.gated,
        router_bias=facts.flag(row.router_bias),
        expert_bias=row.expert_bias,
    ), dense


_USED = ("num_experts_per_tok", "num_experts_per_token", "experts_per_token", "top_k_experts", "moe_topk", "moe_k")
_SHARED = ("n_shared_experts", "num_shared_experts", "moe_num_shared_experts", "num_shared_expert")
_SHARED_WIDTH = (
    *("shared_expert_intermediate_size", "moe_shared_expert_intermediate_size"),
    *("shared_intermediate_size", "share_expert_dim"),
)


def _is_sparse(facts: Facts, row: Architecture, kind: str, at: int) -> bool:
    """Whether the layer at this place has experts: each rule that is there must agree."""
    if row.attention == "nemotron_h":
        return kind == "moe"
    if facts.get("enable_moe_block") is not None:
        return facts.flag("enable_moe_block")
    if listed := facts.row("mlp_layer_types", at + 1):
        return listed[at] == "sparse"
    if isinstance(facts.get("moe_layer_freq"), list) and (listed := facts.row("moe_layer_freq", at + 1)):
        return bool(listed[at])
    first = facts.count("first_k_dense_replace", "moe_layer_start_index")
    step = facts.size("decoder_sparse_step", facts.size("interleave_moe_layer_step", 1))
    dense = facts.get("mlp_only_layers") or []
    dense = isinstance(dense, list) and at in dense
    return at >= first and at % facts.size("moe_layer_freq", 1) == 0 and (at + 1) % step == 0 and not dense


def _dense_width(facts: Facts, moe: Moe | None, dense: int) -> int:
    """Of a dense block, whatever the experts' width is called beside it."""
    keys = ["intermediate_size_mlp", "dense_intermediate_size", "intermediate_size"]
    if facts.values["model_type"] == "granitemoehybrid" and not moe:
        keys.insert(0, "shared_intermediate_size")
    width = facts.count(*keys)
    if dense and not width:
        raise Malformed("missing-fact", "intermediate_size is missing or no size")
    return width


def _mtp(facts: Facts, row: Architecture, moe: Moe | None, attention: Sequence[Layer]) -> Mtp | None:
    layers = facts.count("num_nextn_predict_layers", "mtp_num_hidden_layers") if row.mtp else 0
    if not layers or not any(each and each.kind in ("full", "mla", "mla_dsa") for each in attention):
        return None
    return Mtp(
        layers=layers,
        style=row.mtp,
        ffn="moe" if moe else "dense",
        repeats_embeddings=row.mtp_repeats_embeddings,
    )
