"""How to read the config.json of each architecture whose layers are known: one row for each `model_type`.

Rows state what no config.json says, and what published ones leave out because it is the default of transformers'
configuration class (read in transformers 5.23.0). What is not here is unknown, and never guessed.
"""

from __future__ import annotations

from typing import Any, Literal

from msgspec import Struct

Bias = bool | str  # a text names the key that says so


class Architecture(Struct, frozen=True, kw_only=True):
    """What a model_type means beyond the keys of its config.json."""

    attention: Literal["heads", "mla", "deltanet", "mamba2", "nemotron_h", "kda"] = "heads"
    window: Literal["", "all", "upper"] = ""  # layers that slide: all, or those from max_window_layers on if used
    every: int = 0  # each n-th layer is full where `layer_types` is missing, the rest are `other`
    other: Literal["sliding", "chunked", "linear"] = "sliding"
    last_full: bool = False  # whatever the list says
    qkv_bias: Bias = "attention_bias"
    o_bias: Bias = "attention_bias"
    qk_norm: Literal["", "per_head_dim", "per_projection"] = ""
    qk_norm_if: str = ""  # key that switches it on
    output_gate: bool = False
    sinks: Bias = False
    norms: int = 2  # vectors of the hidden size in each layer
    norm_bias: bool = False
    gated: bool = True
    mlp_extra: int = 0
    tied: bool = False  # where tie_word_embeddings is missing
    moe: bool = False
    shared_gate: bool = False
    router_bias: Bias = False
    expert_bias: bool = False
    mtp: Literal["", "qwen3_5", "deepseek_nextn"] = ""
    mtp_repeats_embeddings: bool = False
    counted: bool = True  # False: plan.params leaves parts of it out
    defaults: dict[str, Any] = {}


A = Architecture

_NO_BIAS: dict[str, Any] = {"qkv_bias": False, "o_bias": False}
_QWEN2 = A(window="upper", qkv_bias=True, o_bias=False, defaults={"max_window_layers": 28})
_QWEN3 = A(window="upper", qk_norm="per_head_dim", defaults={"head_dim": 128, "max_window_layers": 28})
_QWEN3_MOE = A(qk_norm="per_head_dim", moe=True)
_DELTANET: dict[str, Any] = {
    "attention": "deltanet", "every": 4, "other": "linear", "qk_norm": "per_head_dim", "output_gate": True,
    "mtp": "qwen3_5",
}  # fmt: skip
_LINEAR_DIMS = {
    "linear_num_key_heads": 16, "linear_num_value_heads": 32, "linear_key_head_dim": 128,
    "linear_value_head_dim": 128, "linear_conv_kernel_dim": 4, "head_dim": 256,
}  # fmt: skip
_DEEPSEEK_V3 = A(attention="mla", moe=True, router_bias=True, mtp="deepseek_nextn", mtp_repeats_embeddings=True)
_DEEPSEEK_DSA = A(
    attention="mla", moe=True, router_bias=True, mtp="deepseek_nextn", mtp_repeats_embeddings=True,
    defaults={"index_n_heads": 64, "index_head_dim": 128, "index_topk": 2048},
)  # fmt: skip
_GEMMA3_DEFAULTS = {
    "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256, "vocab_size": 262_208,
    "sliding_window": 4096, "max_position_embeddings": 131_072, "hidden_size": 2304, "intermediate_size": 9216,
    "num_hidden_layers": 26,
}  # fmt: skip
_GEMMA4 = A(tied=True, every=6, last_full=True, moe=True, counted=False,
            defaults={"head_dim": 256, "global_head_dim": 512})  # fmt: skip
_GLM4_MOE = A(o_bias=False, moe=True, router_bias=True, mtp="deepseek_nextn", mtp_repeats_embeddings=True,
              qk_norm="per_head_dim", qk_norm_if="use_qk_norm")  # fmt: skip

ARCHITECTURES = {
    "apertus": A(qk_norm="per_head_dim", gated=False, mlp_extra=2),
    "arcee": A(gated=False),
    "cohere": A(tied=True, norms=1, qk_norm="per_projection", qk_norm_if="use_qk_norm"),
    "cohere2": A(tied=True, norms=1, every=4, defaults={"sliding_window": 4096}),
    "cohere2_moe": A(tied=True, norms=1, every=4, moe=True, counted=False, defaults={"sliding_window": 4096}),
    "deepseek_v2": A(attention="mla", moe=True),
    "deepseek_v3": _DEEPSEEK_V3,
    "deepseek_v32": _DEEPSEEK_DSA,
    "ernie4_5": A(qkv_bias="use_bias", o_bias="use_bias", tied=True, defaults={"head_dim": 128}),
    "ernie4_5_moe": A(qkv_bias="use_bias", o_bias="use_bias", tied=True, moe=True, router_bias=True),
    "exaone4": A(**_NO_BIAS, qk_norm="per_head_dim", every=4, defaults={"sliding_window": 4096}),
    "exaone_moe": A(**_NO_BIAS, qk_norm="per_head_dim", every=4, moe=True, router_bias=True,
                    defaults={"sliding_window": 4096, "first_k_dense_replace": 1}),
    "gemma": A(tied=True, defaults={"head_dim": 256}),
    "gemma2": A(tied=True, norms=4, every=2, defaults={"head_dim": 256, "sliding_window": 4096}),
    "gemma3": A(qk_norm="per_head_dim", norms=4, tied=True, every=6, defaults=_GEMMA3_DEFAULTS),
    "gemma3n": A(tied=True, every=5, counted=False, defaults={
        "num_kv_shared_layers": 15, "head_dim": 256, "num_attention_heads": 8, "num_key_value_heads": 2,
        "sliding_window": 512, "num_hidden_layers": 35, "hidden_size": 2048, "vocab_size": 262_400,
        "max_position_embeddings": 32_768,
    }),
    "gemma4": _GEMMA4,
    "gemma4_unified": _GEMMA4,
    "glm": A(o_bias=False, defaults={"head_dim": 128, "attention_bias": True}),
    "glm4": A(o_bias=False, norms=4, defaults={"head_dim": 128, "attention_bias": True}),
    "glm4_moe": _GLM4_MOE,
    "glm4v_moe": _GLM4_MOE,
    "glm4_moe_lite": A(attention="mla", moe=True, router_bias=True, mtp="deepseek_nextn", mtp_repeats_embeddings=True,
                       defaults={"first_k_dense_replace": 1}),
    "glm_moe_dsa": A(attention="mla", moe=True, router_bias=True, mtp="deepseek_nextn",
                     defaults={"index_n_heads": 32, "index_head_dim": 128, "index_topk": 2048}),
    "gpt_oss": A(qkv_bias=True, o_bias=True, sinks=True, every=2, moe=True, router_bias=True, expert_bias=True,
                 defaults={"head_dim": 64, "sliding_window": 128}),
    "granite": A(),
    "granitemoe": A(moe=True),
    "granitemoeshared": A(moe=True),
    "granitemoehybrid": A(attention="mamba2", moe=True),
    "helium": A(defaults={"head_dim": 128}),
    "hunyuan_v1_dense": A(qk_norm="per_head_dim"),
    "hunyuan_v1_moe": A(qk_norm="per_head_dim", moe=True, defaults={"num_shared_expert": 1}),
    "hy_v3": A(qk_norm="per_head_dim", moe=True, router_bias=True, mtp="deepseek_nextn",
               defaults={"first_k_dense_replace": 1}),
    "internlm3": A(qkv_bias="qkv_bias", o_bias="bias"),
    "kimi_k2": _DEEPSEEK_V3,
    "kimi_linear": A(attention="kda", moe=True, counted=False),
    "kolibri1": A(**_NO_BIAS, qk_norm="per_head_dim", norms=4, every=5, moe=True, router_bias=True,
                  defaults={"sliding_window": 513, "first_k_dense_replace": 0}),
    "llama": A(),
    "llama4": A(every=4, other="chunked", moe=True, defaults={"num_shared_experts": 1, "attention_chunk_size": 8192,
                                             "head_dim": 128, "interleave_moe_layer_step": 1, "vocab_size": 202_048}),
    "step3p7": A(qk_norm="per_head_dim", moe=True, counted=False),
    "mimo_v2_flash": A(moe=True, sinks="add_swa_attention_sink_bias", counted=False),
    "minimax_m2": A(**_NO_BIAS, qk_norm="per_projection", moe=True, router_bias=True),
    "minimax_m3_vl": A(**_NO_BIAS, qk_norm="per_head_dim", moe=True, counted=False),
    "ministral3": A(**_NO_BIAS, window="all", defaults={"head_dim": 128}),
    "mistral": A(**_NO_BIAS, window="all", defaults={"sliding_window": 4096}),
    "mistral4": A(attention="mla", moe=True),
    "mixtral": A(**_NO_BIAS, window="all", moe=True),
    "muse_glimmer": A(**_NO_BIAS, norms=4, every=4, output_gate=True, counted=False),
    "nemotron_h": A(attention="nemotron_h", norms=1, gated=False, moe=True, router_bias=True,
                    defaults={"head_dim": 128}),
    "olmo": A(norms=0, counted=False),
    "olmo2": A(qk_norm="per_projection"),
    "olmo3": A(qk_norm="per_projection", every=4, defaults={"sliding_window": 4096}),
    "olmoe": A(qk_norm="per_projection", moe=True),
    "phi": A(qkv_bias=True, o_bias=True, norms=2, norm_bias=True, gated=False, counted=False),
    "phi3": A(**_NO_BIAS, window="all"),
    "phimoe": A(window="all", moe=True, norms=4, norm_bias=True, counted=False),
    "qwen2": _QWEN2,
    "qwen2_5_vl": _QWEN2,
    "qwen2_vl": _QWEN2,
    "qwen2_moe": A(window="upper", qkv_bias="qkv_bias", o_bias=False, moe=True, shared_gate=True,
                   defaults={"qkv_bias": True, "max_window_layers": 28}),
    "qwen3": _QWEN3,
    "qwen3_moe": _QWEN3_MOE,
    "qwen3_vl": _QWEN3,
    "qwen3_vl_moe": _QWEN3_MOE,
    "qwen3_next": A(**_DELTANET, moe=True, shared_gate=True, defaults={**_LINEAR_DIMS, "mtp_num_hidden_layers": 1}),
    "qwen3_5": A(**_DELTANET, defaults=_LINEAR_DIMS),
    "qwen3_5_moe": A(**_DELTANET, moe=True, shared_gate=True, defaults=_LINEAR_DIMS),
    "seed_oss": A(o_bias="attention_out_bias", defaults={"head_dim": 128, "attention_bias": True}),
    "smollm3": A(tied=True),
    "solar_open": A(moe=True, router_bias=True, defaults={"head_dim": 128}),
    "stablelm": A(qkv_bias="use_qkv_bias", o_bias=False, norms=4, norm_bias=True, counted=False),
    "starcoder2": A(window="all", qkv_bias="use_bias", o_bias="use_bias", norms=4, norm_bias=True, gated=False,
                    tied=True, counted=False, defaults={"use_bias": True}),
}  # fmt: skip
