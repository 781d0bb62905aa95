"""From a GGUF header to a model's dimensions, by the rules of llama.cpp's own loader.

Read in src/models and llama-model.cpp as packed in llama-cpp-python 0.3.36: which layers slide, which are recurrent,
and what each caches. Counts of parameters come from the tensors themselves.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any, Literal

from msgspec import Struct
from msgspec.structs import replace

from freehold.facts import Attention, Indexer, Model, Moe, Parameters
from freehold.weights.dimensions import blank, checked, unknown
from freehold.weights.gguf import Array, Tensor
from freehold.weights.layers import MAX_LAYERS, Facts, Layer, Unfamiliar
from freehold.weights.reading import Malformed


class Rule(Struct, frozen=True, kw_only=True):
    """How llama.cpp reads the layers of one architecture."""

    attention: Literal["heads", "mla", "deltanet", "mamba2", "nemotron_h"] = "heads"
    every: int = 0  # each n-th layer is full, the others slide; 0: none slides, -1: only a list in the header says
    dense_first: bool = False  # it is the first of n that is full, not the last
    window: int = 0  # where the header has none
    chunked: bool = False
    kept: int = 0  # layers with a cache of their own; 0: all


_SLIDES_AS_LISTED = Rule(every=-1)
RULES = {
    **dict.fromkeys(
        (
            "apertus", "arcee", "command-r", "ernie4_5", "ernie4_5-moe", "exaone", "gemma", "glm4", "glm4moe",
            "granite", "granitemoe", "hunyuan-dense", "hunyuan-moe", "hy_v3", "internlm2", "llama", "minimax-m2",
            "mistral3", "olmo", "olmoe", "phi2", "phi3", "phimoe", "qwen2", "qwen2moe", "qwen2vl", "qwen3",
            "qwen3moe", "qwen3vl", "qwen3vlmoe", "seed_oss", "smollm3", "stablelm", "starcoder2",
        ),
        Rule(),
    ),
    "cohere2": Rule(every=4),
    "cohere2moe": Rule(every=4, dense_first=True),
    "deepseek2": Rule(attention="mla"),
    "deepseek32": Rule(attention="mla"),
    "exaone4": Rule(every=4, window=4096),
    "exaone-moe": Rule(every=4),
    "gemma2": Rule(every=2, window=4096),
    "gemma3": Rule(every=6),
    "gemma3n": Rule(every=5, kept=20),
    "gemma4": _SLIDES_AS_LISTED,
    "gpt-oss": Rule(every=2),
    "granite_swa": _SLIDES_AS_LISTED,
    "granitehybrid": Rule(attention="mamba2"),
    "llama4": Rule(every=4, window=8192, chunked=True),
    "mimo2": _SLIDES_AS_LISTED,
    "muse-glimmer": Rule(every=4),
    "nemotron_h": Rule(attention="nemotron_h"),
    "nemotron_h_moe": Rule(attention="nemotron_h"),
    "olmo2": Rule(every=4),
    "qwen35": Rule(attention="deltanet", every=4),
    "qwen35moe": Rule(attention="deltanet", every=4),
    "qwen3next": Rule(attention="deltanet", every=4),
    "step35": _SLIDES_AS_LISTED,
}  # fmt: skip


def facts_of(metadata: Mapping[str, Any]) -> Facts:
    """The header's values under its architecture's prefix, with short arrays as lists."""
    values = {key: list(v.values) if isinstance(v, Array) and v.values else v for key, v in metadata.items()}
    return Facts(values, Facts(values).text("general.architecture") + ".")


def dimensions_of(facts: Facts, tensors: Sequence[Tensor], name: str = "model") -> Model:
    """A model's dimensions from its GGUF header; `attention` is exact, parameters are those in the file.

    Raises Unfamiliar when the architecture is not one that is known, Malformed when a value is missing or absurd.
    """
    kind = facts.prefix[:-1]
    if (rule := RULES.get(kind)) is None:
        raise Unfamiliar(unknown(kind))
    blocks = facts.size("block_count", limit=MAX_LAYERS + 1)
    trunk = blocks - facts.count("nextn_predict_layers")
    if trunk < 1:
        raise Malformed("missing-fact", "nextn_predict_layers leaves no layer")
    kept = trunk - facts.count("attention.shared_kv_layers", default=trunk - min(trunk, rule.kept or trunk))
    if kept < 1:
        raise Malformed("missing-fact", "attention.shared_kv_layers leaves no layer with a cache")
    slides = _slides(facts, rule, blocks, trunk)
    layers = [_layer(facts, rule, at, blocks, slides=slides[at]) for at in range(kept)]
    names = {tensor.name for tensor in tensors}
    moe = _moe(facts, names)
    model = checked(
        blank(name, kind, [*layers, *[None] * (trunk - kept)], facts.size("context_length")),
        counted=False,
        attention_note=f"the last {trunk - kept} layers read the cache of earlier ones" if kept < trunk else "",
        hidden_size=facts.size("embedding_length"),
        intermediate_size=facts.count("feed_forward_length"),
        dense_layers=sum(each.endswith(".ffn_down.weight") for each in names),
        vocab_size=vocabulary(facts),
        tied_embeddings="output.weight" not in names,
        moe=moe,
    )
    return _counted(model, tensors)


def vocabulary(facts: Facts) -> int:
    tokens = facts.values.get("tokenizer.ggml.tokens")
    return tokens.count if isinstance(tokens, Array) else facts.size("vocab_size")


def _slides(facts: Facts, rule: Rule, blocks: int, trunk: int) -> list[bool]:
    """Of each layer whether it slides; for deltanet, whether it is recurrent."""
    if rule.attention == "deltanet":
        if listed := facts.row("attention.recurrent_layers", blocks):
            return [bool(each) for each in listed]
        every = facts.size("full_attention_interval", rule.every)
        return [(at + 1) % every != 0 for at in range(trunk)]
    window = facts.count("attention.sliding_window", default=rule.window)
    if not rule.every or not window or (facts.prefix == "exaone4." and trunk != _EXAONE4_LAYERS):
        return [False] * blocks
    if isinstance(facts.get("attention.sliding_window_pattern"), list):
        return [bool(each) for each in facts.row("attention.sliding_window_pattern", trunk) or []]
    if rule.every < 0:
        raise Malformed("missing-fact", f"{facts.prefix}attention.sliding_window_pattern is missing")
    every = facts.count("attention.sliding_window_pattern", default=rule.every)
    full = 0 if rule.dense_first else every - 1
    return [not every or at % every != full for at in range(trunk)]


_EXAONE4_LAYERS = 64  # llama.cpp knows the 32B by it; smaller ones do not slide


def _of_layer(facts: Facts, key: str, at: int, blocks: int, default: int) -> int:
    """A value that is one for all layers, or an array with one for each; zero is allowed."""
    if isinstance(facts.get(key), list):
        return Facts({key: (facts.row(key, blocks) or [])[at]}).count(key)
    return facts.count(key, default=default)


def _layer(facts: Facts, rule: Rule, at: int, blocks: int, *, slides: bool) -> Layer:
    heads = _of_layer(facts, "attention.head_count", at, blocks, 0)
    kv_heads = _of_layer(facts, "attention.head_count_kv", at, blocks, heads)
    if rule.attention == "deltanet" and slides:
        return _state(facts, "gated_deltanet")
    if rule.attention in ("mamba2", "nemotron_h") and kv_heads == 0:
        beside = rule.attention == "nemotron_h" and _of_layer(facts, "feed_forward_length", at, blocks, 0)
        return None if beside else _state(facts, "mamba2")
    if not heads or not kv_heads:
        raise Malformed("missing-fact", f"{facts.prefix}attention.head_count is missing or no size")
    if rule.attention == "mla" and facts.get("attention.key_length_mla") is not None:
        return _latent(facts, heads)
    hidden = facts.size("embedding_length")
    dim = facts.size("attention.key_length", hidden // heads)
    v_dim = facts.size("attention.value_length", hidden // heads)
    kind, window = "full", 0
    if slides and rule.attention == "heads":
        dim = facts.size("attention.key_length_swa", dim)
        v_dim = facts.size("attention.value_length_swa", v_dim)
        kind = "chunked" if rule.chunked else "sliding"
        window = _CHUNK if rule.chunked else facts.size("attention.sliding_window", rule.window or None)
    return Attention(
        kind=kind,
        layers=1,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=dim,
        v_head_dim=0 if v_dim == dim else v_dim,
        window=window,
    )


_CHUNK = 8192  # llama.cpp's own number for Llama 4, whatever the header says


def _latent(facts: Facts, heads: int) -> Attention:
    """Files from before 2025-04 have no key_length_mla: llama.cpp caches full heads for them."""
    index = None
    if facts.get("attention.indexer.head_count") is not None:
        index = Indexer(
            heads=facts.size("attention.indexer.head_count"),
            dim=facts.size("attention.indexer.key_length"),
            topk=facts.count("attention.indexer.top_k"),
        )
    latent = facts.size("attention.kv_lora_rank")
    rope = facts.size("attention.key_length") - latent
    nope = facts.size("attention.key_length_mla") - rope
    if rope < 0 or nope < 1:
        raise Malformed("missing-fact", f"{facts.prefix}attention.key_length contradicts kv_lora_rank")
    return Attention(
        kind="mla_dsa" if index else "mla",
        layers=1,
        heads=heads,
        v_head_dim=facts.size("attention.value_length_mla"),
        q_lora_rank=facts.count("attention.q_lora_rank"),
        kv_lora_rank=latent,
        qk_nope_head_dim=nope,
        qk_rope_head_dim=rope,
        indexer=index,
    )


def _state(facts: Facts, kind: Literal["gated_deltanet", "mamba2"]) -> Attention:
    heads, state, groups = facts.size("ssm.time_step_rank"), facts.size("ssm.state_size"), facts.size("ssm.group_count")
    dim, kernel = facts.size("ssm.inner_size") // heads, facts.size("ssm.conv_kernel")
    one = Attention(kind=kind, layers=1, conv_kernel=kernel)
    if kind == "mamba2":
        return replace(one, heads=heads, head_dim=dim, state_dim=state, state_groups=groups, conv_bias=True)
    return replace(one, key_heads=groups, value_heads=heads, key_head_dim=state, value_head_dim=dim)


def _moe(facts: Facts, names: set[str]) -> Moe | None:
    experts = facts.count("expert_count")
    layers = sum(each.endswith(".ffn_down_exps.weight") for each in names)
    if not experts or not layers:
        return None
    shared = facts.count("expert_shared_count")
    width = facts.count("expert_feed_forward_length", "feed_forward_length")
    return Moe(
        layers=layers,
        experts=experts,
        experts_per_token=min(facts.size("expert_used_count"), experts),
        intermediate_size=width,
        shared_experts=shared,
        shared_intermediate_size=facts.count("expert_shared_feed_forward_length", default=width) if shared else 0,
    )


def _counted(model: Model, tensors: Sequence[Tensor]) -> Model:
    """With the parameters that are in the file. Of the experts one token touches its share."""
    total = sum(prod(tensor.shape) for tensor in tensors)
    routed = sum(prod(tensor.shape) for tensor in tensors if "_exps." in tensor.name)
    moe = model.moe
    active = total - (routed * (moe.experts - moe.experts_per_token) // moe.experts if moe else 0)
    return checked(
        model, counted=False, parameters=Parameters(method="none", total=total, active=active, checkpoint=total)
    )
