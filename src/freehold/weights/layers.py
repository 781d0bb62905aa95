"""The layers of a model, one by one, as its config.json describes them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from freehold.facts import Attention, AttentionKind, Indexer
from freehold.weights.architectures import Architecture, Bias
from freehold.weights.reading import Malformed, quoted

MAX_SIZE = 1 << 40  # no width, vocabulary or context is larger; keeps nonsense out of the arithmetic
MAX_LAYERS = 1024
MAX_LENGTH = 4 * MAX_LAYERS  # of a list or text: it is looked at once for each layer
_KINDS = {
    "full_attention": "full", "attention": "full", "sliding_attention": "sliding", "chunked_attention": "chunked",
    "linear_attention": "linear", "mamba": "linear", "indexed_attention": "full",
    "deepseek_sparse_attention": "full", "moe": "moe", "mlp": "mlp",
}  # fmt: skip
_NEMOTRON = {"M": "linear", "*": "full", "E": "moe", "-": "mlp"}

Layer = Attention | None  # of one layer; None: it keeps nothing of its own for a token


class Unfamiliar(Exception):
    """An architecture, or a way to use one, whose layers are not known. `why` is for a person."""

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why


class Facts:
    """Values by key, each checked for its type: a header that leaves one out cannot be planned with."""

    def __init__(self, values: Mapping[str, Any], prefix: str = "") -> None:
        self.values = values
        self.prefix = prefix

    def get(self, key: str) -> Any:
        value = self.values.get(self.prefix + key)
        if isinstance(value, str | list) and len(value) > MAX_LENGTH:
            raise Malformed("missing-fact", f"{self.prefix + key} has {len(value):,} parts, no model so many")
        return value

    def text(self, key: str) -> str:
        if not isinstance(value := self.get(key), str) or not value.isprintable():
            raise Malformed("missing-fact", f"{self.prefix + key} is missing or no text")
        return value

    def size(self, key: str, default: int | None = None, *, least: int = 1, limit: int = MAX_SIZE) -> int:
        """An integer from `least` up. Of a list the largest, which makes a plan safe rather than tight."""
        value = self.get(key)
        if isinstance(value, list):
            value = max((each for each in value if type(each) is int), default=None)
        value = default if value is None else value
        if type(value) is not int or not least <= value < limit:
            raise Malformed("missing-fact", f"{self.prefix + key} is missing or no size")
        return value

    def count(self, *keys: str, default: int = 0) -> int:
        """The first of these keys that is there; zero is allowed."""
        return self.size(next((key for key in keys if self.get(key) is not None), keys[0]), default, least=0)

    def flag(self, key: Bias, *, default: bool = False) -> bool:
        value = key if isinstance(key, bool) else self.get(key)
        if value is not None and not isinstance(value, bool | int):
            raise Malformed("missing-fact", f"{self.prefix}{key} is neither true nor false")
        return default if value is None else bool(value)

    def row(self, key: str, layers: int) -> list[Any] | None:
        """One value a layer. A longer list goes on with layers that predict further tokens."""
        value = self.get(key)
        if value is None or value == []:
            return None
        if not isinstance(value, list) or not layers <= len(value) <= 2 * MAX_LAYERS:
            raise Malformed("missing-fact", f"{self.prefix + key} is no list of {layers} layers")
        return value[:layers]

    def part(self, key: str) -> Facts:
        if not isinstance(value := self.get(key), dict):
            raise Malformed("missing-fact", f"{self.prefix + key} is missing or no object")
        return Facts(value)


def kinds_of(facts: Facts, row: Architecture) -> list[str]:
    """The kind of each layer: as listed, or by the architecture's rule."""
    listed = facts.get("layers_block_type")
    pattern = facts.get("hybrid_override_pattern")
    if row.attention == "nemotron_h" and isinstance(pattern, str):
        listed = [_NEMOTRON.get(each, each) for each in pattern]
    layers = facts.size("num_hidden_layers", len(listed) if isinstance(listed, list) else None, limit=MAX_LAYERS + 1)
    if names := Facts({"layers_block_type": listed}).row("layers_block_type", layers) or facts.row(
        "layer_types", layers
    ):
        kinds = [_kind(each) for each in names]
    elif row.attention == "kda":
        kda = facts.part("linear_attn_config").get("kda_layers") or []
        if not isinstance(kda, list) or not all(type(each) is int for each in kda):
            raise Malformed("missing-fact", "kda_layers is no list of numbers")
        linear = set(kda)
        kinds = ["linear" if at + 1 in linear else "full" for at in range(layers)]
    elif row.attention in ("mamba2", "nemotron_h"):
        raise Malformed("missing-fact", "layer_types is missing")
    elif hybrid := facts.row("hybrid_layer_pattern", layers):
        kinds = ["sliding" if each else "full" for each in hybrid]
    elif row.other == "chunked" and (rope := facts.row("no_rope_layers", layers)):
        kinds = ["chunked" if each else "full" for each in rope]
    else:
        kinds = [_by_rule(facts, row, at) for at in range(layers)]
    return [*kinds[:-1], "full"] if row.last_full else kinds


def _kind(name: Any) -> str:
    kind = _KINDS.get(name, name) if isinstance(name, str) else ""
    if kind not in _KINDS.values():
        raise Unfamiliar(f"layers of type {quoted(str(name))} are not known: the KV cache is an upper bound")
    return kind


def _by_rule(facts: Facts, row: Architecture, at: int) -> str:
    window, slides = facts.count("sliding_window"), False
    if row.every:
        pattern = facts.get("sliding_window_pattern")
        if isinstance(pattern, str) and pattern and not set(pattern) - set("LG"):
            slides = pattern[at % len(pattern)] == "L"
        else:
            slides = (at + 1) % facts.size("full_attention_interval", facts.size("sliding_window_pattern", row.every))
        return row.other if slides and (window or row.other != "sliding") else "full"
    if row.window == "upper":
        slides = facts.flag("use_sliding_window") and at >= facts.count("max_window_layers")
    elif row.window == "all":
        slides = window < facts.size("max_position_embeddings")
    return "sliding" if slides and window else "full"


def layer(facts: Facts, row: Architecture, kind: str, at: int) -> Layer:
    """What the layer at this place keeps. Raises Unfamiliar when it is of a kind the architecture does not have."""
    if kind in ("moe", "mlp") and row.attention == "nemotron_h":
        return None
    if kind == "linear" and row.attention in _LINEAR:
        return _LINEAR[row.attention](facts)
    if kind in ("linear", "moe", "mlp"):
        raise Unfamiliar(f"{kind} layers in {row.attention}: the KV cache is an upper bound")
    if kind == "full" and row.attention in ("mla", "kda"):
        return _latent(facts, at)
    return _by_heads(facts, row, kind, at)


def _by_heads(facts: Facts, row: Architecture, kind: str, at: int) -> Attention:
    heads = facts.size("num_attention_heads")
    kv_heads = facts.count("num_key_value_heads", "num_attention_groups", default=heads)
    dim = facts.size("head_dim", facts.size("hidden_size") // heads)
    v_dim, one_projection = facts.size("v_head_dim", dim), False
    if kind == "full" and facts.get("global_head_dim") is not None:
        dim = v_dim = facts.size("global_head_dim")
        if one_projection := facts.flag("attention_k_eq_v"):
            kv_heads = facts.size("num_global_key_value_heads", kv_heads)
    if kind == "sliding" and facts.get("swa_num_key_value_heads") is not None:
        heads, kv_heads = facts.size("swa_num_attention_heads", heads), facts.size("swa_num_key_value_heads")
        dim, v_dim = facts.size("swa_head_dim", dim), facts.size("swa_v_head_dim", v_dim)
    if kv_heads < 1:
        raise Malformed("missing-fact", "num_key_value_heads is 0")
    window = {"sliding": "sliding_window", "chunked": "attention_chunk_size"}.get(kind)
    index = _sparse(facts, at)
    return Attention(
        kind="sparse_block" if index else kind,  # type: ignore[arg-type]  # one of _KINDS
        layers=1,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=dim,
        v_head_dim=0 if v_dim == dim else v_dim,
        window=facts.size(window) if window else 0,
        output_gate=row.output_gate,
        k_eq_v=one_projection,
        qkv_bias=facts.flag(row.qkv_bias),
        o_bias=facts.flag(row.o_bias),
        sinks=facts.flag(row.sinks) and (row.sinks is True or kind == "sliding"),
        qk_norm=row.qk_norm if not row.qk_norm_if or facts.flag(row.qk_norm_if) else "",
        indexer=index,
    )


def _sparse(facts: Facts, at: int) -> Indexer | None:
    """MiniMax M3: some layers read blocks that an index picks."""
    if facts.get("sparse_attention_config") is None:
        return None
    sparse = facts.part("sparse_attention_config")
    row = sparse.row("sparse_attention_freq", at + 1)
    if not row or not row[at]:
        return None
    return Indexer(heads=sparse.size("sparse_num_index_heads"), dim=sparse.size("sparse_index_dim"))


def _latent(facts: Facts, at: int) -> Attention:
    index = None
    kind = "mla"
    if facts.get("index_n_heads") is not None:
        index = Indexer(
            heads=facts.size("index_n_heads"), dim=facts.size("index_head_dim"), topk=facts.count("index_topk")
        )
        kind = "mla_dsa" if _owns_indexer(facts, at) else "mla_dsa_shared"
    return Attention(
        kind=kind,
        layers=1,
        heads=facts.size("num_attention_heads"),
        v_head_dim=facts.size("v_head_dim"),
        q_lora_rank=facts.count("q_lora_rank"),
        kv_lora_rank=facts.size("kv_lora_rank"),
        qk_nope_head_dim=facts.size("qk_nope_head_dim"),
        qk_rope_head_dim=facts.count("qk_rope_head_dim"),
        indexer=index if kind == "mla_dsa" else None,
    )


def _owns_indexer(facts: Facts, at: int) -> bool:
    """GLM: by list, by a text of F and S, or every index_topk_freq layers after an offset."""
    if types := facts.row("indexer_types", at + 1):
        return types[at] == "full"
    pattern = facts.get("index_topk_pattern")
    if isinstance(pattern, str) and at < len(pattern):
        return pattern[at] == "F"
    offset = facts.count("index_skip_topk_offset", default=2)
    return max(at - offset + 1, 0) % facts.size("index_topk_freq", 1) == 0


def state(kind: AttentionKind, sizes: Mapping[str, str], facts: Facts, **others: Any) -> Attention:
    """One layer that keeps a state for each sequence: each field is the size under its key."""
    return Attention(kind=kind, layers=1, **{field: facts.size(key) for field, key in sizes.items()}, **others)


def _granite_mamba2(facts: Facts) -> Attention:
    dim = facts.size("mamba_expand", 2) * facts.size("hidden_size") // facts.size("mamba_n_heads")
    dim = dim if facts.get("mamba_d_head") == "auto" else facts.size("mamba_d_head", dim)
    return state("mamba2", _GRANITE, facts, head_dim=dim, conv_bias=facts.flag("mamba_conv_bias", default=True))


def _nemotron_mamba2(facts: Facts) -> Attention:
    return state("mamba2", _NEMOTRON_MAMBA, facts, conv_bias=facts.flag("use_conv_bias", default=True))


def _kda(facts: Facts) -> Attention:
    return state("kda", _KDA, facts.part("linear_attn_config"))


_DELTANET = {
    "key_heads": "linear_num_key_heads", "value_heads": "linear_num_value_heads",
    "key_head_dim": "linear_key_head_dim", "value_head_dim": "linear_value_head_dim",
    "conv_kernel": "linear_conv_kernel_dim",
}  # fmt: skip
_GRANITE = {
    "heads": "mamba_n_heads", "state_dim": "mamba_d_state", "state_groups": "mamba_n_groups",
    "conv_kernel": "mamba_d_conv",
}  # fmt: skip
_NEMOTRON_MAMBA = {
    "heads": "mamba_num_heads", "head_dim": "mamba_head_dim", "state_dim": "ssm_state_size",
    "state_groups": "n_groups", "conv_kernel": "conv_kernel",
}  # fmt: skip
_KDA = {"heads": "num_heads", "head_dim": "head_dim", "conv_kernel": "short_conv_kernel_size"}
_LINEAR: dict[str, Callable[[Facts], Attention]] = {
    "deltanet": partial(state, "gated_deltanet", _DELTANET), "mamba2": _granite_mamba2,
    "nemotron_h": _nemotron_mamba2, "kda": _kda,
}  # fmt: skip
