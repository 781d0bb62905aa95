"""Any model: dimensions from config.json and from GGUF headers, exact or said to be unknown."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from weight_files import CONFIG, SHAPE, entry, facts, gguf_bytes, safetensors_bytes, tensor, write

from freehold.errors import Refused
from freehold.plan.kv import kv_bytes_per_token
from freehold.plan.params import count
from freehold.plan.weights import SCHEMES
from freehold.weights import describe
from freehold.weights.architectures import ARCHITECTURES
from freehold.weights.dimensions import dimensions
from freehold.weights.gguf import Array
from freehold.weights.layers import Unfamiliar
from freehold.weights.metadata import RULES, dimensions_of, facts_of
from freehold.weights.precision import precision_of
from freehold.weights.reading import Malformed

MLA = {
    "num_attention_heads": 128, "q_lora_rank": 1536, "kv_lora_rank": 512, "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64, "v_head_dim": 128, "n_shared_experts": 1, "num_experts_per_tok": 8,
    "max_position_embeddings": 163_840, "num_nextn_predict_layers": 1, "moe_layer_freq": 1,
}  # fmt: skip
QWEN35 = {
    "hidden_size": 2048, "num_hidden_layers": 40, "num_attention_heads": 16, "num_key_value_heads": 2,
    "head_dim": 256, "vocab_size": 248_320, "max_position_embeddings": 262_144, "num_experts": 256,
    "num_experts_per_tok": 8, "moe_intermediate_size": 512, "shared_expert_intermediate_size": 512,
    "linear_num_key_heads": 16, "linear_num_value_heads": 32, "linear_key_head_dim": 128,
    "linear_value_head_dim": 128, "linear_conv_kernel_dim": 4, "full_attention_interval": 4, "mtp_num_hidden_layers": 1,
}  # fmt: skip

# Config (facts of the published config.json, what matters of it), parameters of the decoder, groups as
# (kind, layers, window), bytes a token in bf16 of the layers that grow with every token and of those that slide.
CONFIGS = {
    "llama-3.1-8b": (
        {"model_type": "llama", "hidden_size": 4096, "intermediate_size": 14_336, "num_hidden_layers": 32,
         "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128_256, "max_position_embeddings": 131_072,
         "attention_bias": False},
        8_030_261_248, [("full", 32, 0)], 131_072, 0,
    ),
    "qwen2.5-1.5b": (
        {"model_type": "qwen2", "hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28,
         "num_attention_heads": 12, "num_key_value_heads": 2, "vocab_size": 151_936, "max_position_embeddings": 131_072,
         "sliding_window": 4096, "max_window_layers": 21, "use_sliding_window": False, "tie_word_embeddings": True},
        1_543_714_304, [("full", 28, 0)], 28_672, 0,
    ),
    "mistral-7b-v0.1": (
        {"model_type": "mistral", "hidden_size": 4096, "intermediate_size": 14_336, "num_hidden_layers": 32,
         "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 32_000, "max_position_embeddings": 32_768,
         "sliding_window": 4096},
        7_241_732_096, [("sliding", 32, 4096)], 0, 131_072,
    ),
    "qwen3.5-35b-a3b": (
        {"model_type": "qwen3_5_moe", "text_config": {"model_type": "qwen3_5_moe_text", **QWEN35}},
        34_660_610_688, [("gated_deltanet", 30, 0), ("full", 10, 0)], 20_480, 0,
    ),
    "gemma-3-4b": (  # what its config.json leaves out is the class default
        {"model_type": "gemma3", "text_config": {"model_type": "gemma3_text", "hidden_size": 2560,
         "intermediate_size": 10_240, "num_hidden_layers": 34, "sliding_window": 1024}},
        3_880_263_168, [("sliding", 29, 1024), ("full", 5, 0)], 20_480, 118_784,
    ),
    "gpt-oss-20b": (
        {"model_type": "gpt_oss", "hidden_size": 2880, "intermediate_size": 2880, "num_hidden_layers": 24,
         "num_attention_heads": 64, "num_key_value_heads": 8, "head_dim": 64, "vocab_size": 201_088,
         "max_position_embeddings": 131_072, "num_local_experts": 32, "num_experts_per_tok": 4, "sliding_window": 128,
         "attention_bias": True},
        20_914_757_184, [("sliding", 12, 128), ("full", 12, 0)], 24_576, 24_576,
    ),
    "llama-4-maverick": (
        {"model_type": "llama4", "text_config": {"model_type": "llama4_text", "hidden_size": 5120,
         "intermediate_size": 8192, "intermediate_size_mlp": 16_384, "num_hidden_layers": 48,
         "num_attention_heads": 40, "num_key_value_heads": 8, "interleave_moe_layer_step": 2,
         "num_local_experts": 128, "num_experts_per_tok": 1, "max_position_embeddings": 1_048_576}},
        400_711_848_960, [("chunked", 36, 8192), ("full", 12, 0)], 49_152, 147_456,
    ),
    "deepseek-v3": (
        {"model_type": "deepseek_v3", "hidden_size": 7168, "intermediate_size": 18_432, "num_hidden_layers": 61,
         "vocab_size": 129_280, "n_routed_experts": 256, "moe_intermediate_size": 2048, "first_k_dense_replace": 3,
         **MLA},
        671_026_419_200, [("mla", 61, 0)], 70_272, 0,
    ),
    "glm-5.2, whose indexers are shared by a rule": (
        {"model_type": "glm_moe_dsa", "hidden_size": 6144, "intermediate_size": 12_288, "num_hidden_layers": 78,
         "vocab_size": 154_880, "n_routed_experts": 256, "moe_intermediate_size": 2048, "first_k_dense_replace": 3,
         "index_topk_freq": 4, "index_skip_topk_offset": 3, **MLA, "num_attention_heads": 64, "q_lora_rank": 2048,
         "qk_nope_head_dim": 192, "v_head_dim": 256},
        None, [("mla_dsa", 21, 0), ("mla_dsa_shared", 57, 0)], 89_856 + 21 * 132, 0,
    ),
    "nemotron-3-nano": (
        {"model_type": "nemotron_h", "hidden_size": 2688, "intermediate_size": 1856, "num_hidden_layers": 52,
         "hybrid_override_pattern": "MEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEMEM*EMEMEMEME", "num_attention_heads": 32,
         "num_key_value_heads": 2, "head_dim": 128, "vocab_size": 131_072, "max_position_embeddings": 262_144,
         "mamba_num_heads": 64, "mamba_head_dim": 64, "ssm_state_size": 128, "n_groups": 8, "conv_kernel": 4,
         "use_conv_bias": True, "n_routed_experts": 128, "n_shared_experts": 1, "num_experts_per_tok": 6,
         "moe_intermediate_size": 1856, "moe_shared_expert_intermediate_size": 3712},
        31_577_940_288, [("mamba2", 23, 0), ("full", 6, 0)], 6_144, 0,
    ),
    "gemma-4, the last layers of which share a cache": (
        {"model_type": "gemma4_text", "hidden_size": 1536, "intermediate_size": 6144, "num_hidden_layers": 35,
         "num_attention_heads": 8, "num_key_value_heads": 1, "head_dim": 256, "global_head_dim": 512,
         "num_kv_shared_layers": 20, "sliding_window": 512, "vocab_size": 262_144, "max_position_embeddings": 131_072,
         "layer_types": (["sliding_attention"] * 4 + ["full_attention"]) * 7},
        None, [("sliding", 12, 512), ("full", 3, 0)], 6_144, 12_288,
    ),
}  # fmt: skip


@pytest.mark.parametrize(("config", "text", "groups", "kv_bytes", "windowed_bytes"), CONFIGS.values(), ids=CONFIGS)
def test_a_config_gives_the_layers_cache_and_parameters(config, text, groups, kv_bytes, windowed_bytes):
    model = dimensions(config)
    assert [(group.kind, group.layers, group.window) for group in model.attention] == groups
    assert sum(layers for _, layers, _ in groups) + model.other_layers == model.layers
    assert (kv_bytes_per_token(model), kv_bytes_per_token(model, windowed=True)) == (kv_bytes, windowed_bytes)
    if text:
        assert model.parameters.text == text


def test_an_unknown_architecture_is_said_to_be_unknown_and_never_guessed(tmp_path):
    config = {**CONFIG, "model_type": "foo"}
    build = describe(write(tmp_path, {"config.json": config, "model.safetensors": safetensors_bytes()}))
    assert (build.model, build.layers) == (None, 2)
    assert "architecture foo is not one whose layers Freehold knows" in build.model_note
    for other in ({"layer_types": ["full_attention", "retention"]}, {"use_cla": True}):
        with pytest.raises(Unfamiliar):
            dimensions({**CONFIG, **other})
    entries = [
        entry(key.replace("llama.", "foo."), "foo" if value == "llama" else value) for key, value in SHAPE.items()
    ]
    unknown = describe(write(tmp_path / "g", {"m.gguf": gguf_bytes(entries)}) / "m.gguf")
    assert (unknown.model, "foo" in unknown.model_note) == (None, True)


def test_a_folder_is_described_with_its_dimensions_encoders_and_precision(tmp_path):
    quantization = {"quant_method": "fp8", "weight_block_size": [128, 128], "ignore": ["lm_head"],
                    "kv_cache_scheme": {"num_bits": 8, "type": "float"}}  # fmt: skip
    tensors = {"model.w": facts(), "visual.w": facts("F32", (4,), (16, 32))}
    files = {
        "config.json": {**CONFIG, "quantization_config": quantization},
        "model.safetensors": safetensors_bytes(tensors, b"\0" * 32),
    }
    build = describe(write(tmp_path, files))
    assert (build.model.checkpoint, build.model.checkpoint_confirmed, build.kv_dtype) == ("fp8-block", True, "fp8")
    assert (build.model.encoder_params, build.model.parameters.checkpoint, build.weight_bytes) == (4, 12, 32)
    assert not build.model.parameters.exact  # eight elements are not the decoder the dimensions describe


def group(**weights) -> dict:
    return {"quant_method": "compressed-tensors", "config_groups": {"group_0": {"weights": weights}}}


@pytest.mark.parametrize(
    ("quantization", "moe", "scheme"),
    [
        (None, False, "bf16"),
        ({"quant_method": "fp8"}, False, "fp8"),
        ({"quant_method": "awq", "bits": 4, "group_size": 128}, False, "int4-awq"),
        ({"quant_method": "gptq", "bits": 4, "group_size": 32}, False, "int4-g32"),
        ({"quant_method": "gptq", "bits": 3, "group_size": 128}, False, ""),
        ({"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn"]}, True, "mxfp4-experts"),
        (group(num_bits=8, type="float", strategy="channel"), False, "fp8"),
        (group(num_bits=4, type="int", group_size=128, symmetric=True), False, "int4-gptq"),
        ({**group(num_bits=4, type="int", group_size=32), "ignore": ["re:.*self_attn.*"]}, True, "int4-experts"),
        ({"quant_algo": "NVFP4", "kv_cache_quant_algo": "FP8"}, False, "nvfp4"),
        ({"quant_algo": "NVFP4", "exclude_modules": ["visual.blocks.0.attn.qkv", "mtp.0.self_attn*"]}, True, "nvfp4"),
        ({"quant_algo": "MIXED_PRECISION"}, True, ""),
        ({"quant_method": "bitsandbytes"}, False, ""),
    ],
)
def test_a_quantization_is_a_scheme_or_said_not_to_be_counted(quantization, moe, scheme):
    precision = precision_of(quantization, moe=moe)
    assert precision.scheme == scheme
    assert scheme in SCHEMES or "only from the files" in precision.note


# -- GGUF ------------------------------------------------------------------------------------------------------------

TRUNK = {"context_length": 4096, "embedding_length": 512, "vocab_size": 1000, "attention.head_count": 8}


def header(kind: str, **keys) -> dict:
    values = {"block_count": 12, **TRUNK, **{key.replace("__", "."): value for key, value in keys.items()}}
    lists = {key: Array(len(value), tuple(value)) for key, value in values.items() if isinstance(value, list)}
    return {"general.architecture": kind, **{f"{kind}.{key}": value for key, value in {**values, **lists}.items()}}


SSM = {"ssm__conv_kernel": 4, "ssm__inner_size": 4096, "ssm__state_size": 128, "ssm__time_step_rank": 32,
       "ssm__group_count": 16}  # fmt: skip
SWA = {"attention__sliding_window": 1024, "attention__head_count_kv": 4}

# Header, groups as (kind, layers, key-value heads, head size, value size where it differs, window).
HEADERS = {
    "llama": (header("llama", attention__head_count_kv=2), [("full", 12, 2, 64, 0, 0)]),
    "phi3 slides nowhere": (header("phi3", **SWA), [("full", 12, 4, 64, 0, 0)]),
    "gemma2": (
        header("gemma2", attention__head_count_kv=4), [("sliding", 6, 4, 64, 0, 4096), ("full", 6, 4, 64, 0, 0)]
    ),
    "gemma3": (header("gemma3", **SWA), [("sliding", 10, 4, 64, 0, 1024), ("full", 2, 4, 64, 0, 0)]),
    "gemma3n": (
        header("gemma3n", block_count=35, **SWA), [("sliding", 16, 4, 64, 0, 1024), ("full", 4, 4, 64, 0, 0)]
    ),
    "gemma4": (
        header("gemma4", attention__sliding_window=512, attention__key_length=512, attention__value_length=512,
               attention__key_length_swa=256, attention__value_length_swa=256, attention__shared_kv_layers=2,
               attention__sliding_window_pattern=([True] * 5 + [False]) * 2,
               attention__head_count_kv=([8] * 5 + [2]) * 2),
        [("sliding", 9, 8, 256, 0, 512), ("full", 1, 2, 512, 0, 0)],
    ),
    "gpt-oss": (header("gpt-oss", **SWA), [("sliding", 6, 4, 64, 0, 1024), ("full", 6, 4, 64, 0, 0)]),
    "a pattern in the header": (
        header("olmo2", attention__sliding_window_pattern=2, **SWA),
        [("sliding", 6, 4, 64, 0, 1024), ("full", 6, 4, 64, 0, 0)],
    ),
    "olmo2 without a window": (header("olmo2", attention__head_count_kv=4), [("full", 12, 4, 64, 0, 0)]),
    "llama4": (
        header("llama4", attention__head_count_kv=4), [("chunked", 9, 4, 64, 0, 8192), ("full", 3, 4, 64, 0, 0)]
    ),
    "small exaone4": (header("exaone4", **SWA), [("full", 12, 4, 64, 0, 0)]),
    "qwen35 with a layer that predicts further": (
        header("qwen35", block_count=13, nextn_predict_layers=1, attention__head_count_kv=2,
               attention__key_length=256, attention__value_length=256, **SSM),
        [("gated_deltanet", 9, 0, 0, 0, 0), ("full", 3, 2, 256, 0, 0)],
    ),
    "granitehybrid": (
        header("granitehybrid", attention__head_count_kv=[0, 0, 0, 0, 0, 4] * 2, **SSM),
        [("mamba2", 10, 0, 128, 0, 0), ("full", 2, 4, 64, 0, 0)],
    ),
    "nemotron_h": (
        header("nemotron_h", attention__head_count_kv=[0, 0, 2] * 4, feed_forward_length=[0, 900, 0] * 4, **SSM),
        [("mamba2", 4, 0, 128, 0, 0), ("full", 4, 2, 64, 0, 0)],
    ),
    "deepseek2": (
        header("deepseek2", attention__head_count_kv=1, attention__key_length=576, attention__value_length=512,
               attention__key_length_mla=192, attention__value_length_mla=128, attention__kv_lora_rank=512),
        [("mla", 12, 0, 0, 128, 0)],
    ),
    "deepseek2 of old, cached by head": (
        header("deepseek2", attention__key_length=192, attention__value_length=128, attention__kv_lora_rank=512),
        [("full", 12, 8, 192, 128, 0)],
    ),
}  # fmt: skip


@pytest.mark.parametrize(("metadata", "groups"), HEADERS.values(), ids=HEADERS)
def test_a_gguf_header_gives_the_layers_that_llama_cpp_would_cache(metadata, groups):
    model = dimensions_of(facts_of(metadata), ())
    found = [(g.kind, g.layers, g.kv_heads, g.head_dim, g.v_head_dim, g.window) for g in model.attention]
    assert found == groups
    assert sum(each.layers for each in model.attention) + model.other_layers == model.layers


def test_gguf_parameters_are_those_of_its_tensors(tmp_path):
    names = ["token_embd.weight", "blk.0.ffn_down.weight", "blk.1.ffn_down_exps.weight"]
    tensors = [tensor(name, (32, 2), 1, 128 * at) for at, name in enumerate(names)]
    moe = {"llama.expert_count": 8, "llama.expert_used_count": 2, "llama.feed_forward_length": 64}
    entries = [entry(*pair) for pair in {**SHAPE, **moe, "general.file_type": 15}.items()]
    content = gguf_bytes(entries, tensors, data=b"\0" * 384)
    model = describe(write(tmp_path, {"m.gguf": content}) / "m.gguf").model
    assert (model.dense_layers, model.moe.layers, model.tied_embeddings, model.checkpoint) == (
        1,
        1,
        True,
        "gguf-q4_k_m",
    )
    assert (model.parameters.total, model.parameters.active) == (192, 192 - 48)


# -- hostile ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        {"num_hidden_layers": 1 << 20}, {"num_hidden_layers": -1}, {"num_attention_heads": 0}, {"hidden_size": True},
        {"head_dim": "64"}, {"layer_types": ["full_attention"]}, {"layer_types": {}}, {"num_key_value_heads": 0},
        {"vocab_size": (1 << 40) - 1, "hidden_size": (1 << 40) - 1}, {"intermediate_size": None},
        {"attention_bias": "yes"}, {"num_kv_shared_layers": 2},
    ],
)  # fmt: skip
def test_absurd_values_are_refused(tmp_path, change):
    with pytest.raises(Malformed):
        dimensions({**CONFIG, **change})
    write(tmp_path, {"config.json": json.dumps({**CONFIG, **change}), "model.safetensors": safetensors_bytes()})
    with pytest.raises(Refused, match="missing-fact"):
        describe(tmp_path)


KEYS = sorted({key for config, *_ in CONFIGS.values() for key in {**config, **config.get("text_config", {})}})
JUNK = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 1 << 41), st.floats(allow_nan=False), st.text(max_size=4),
    st.lists(st.one_of(st.integers(-1, 9), st.sampled_from(["full_attention", "mamba", "moe", "x"])), max_size=70),
    st.dictionaries(st.sampled_from(KEYS), st.integers(-1, 99), max_size=3),
)  # fmt: skip


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("num_attention_heads", [32] * 1_000_000),
        ("sliding_window_pattern", "L" * 10_000_000),
        ("mlp_only_layers", [7] * 1_000_000),
        ("model_type", "llama" * 1_000_000),
    ],
)
def test_what_is_looked_at_for_each_layer_may_not_be_long(key, value):
    row = {**CONFIGS["llama-3.1-8b"][0], "model_type": "exaone4", "num_hidden_layers": 1024}
    moe = {"model_type": "qwen3_moe", "num_experts": 8, "num_experts_per_tok": 2} if key == "mlp_only_layers" else {}
    with pytest.raises(Malformed, match=key):
        dimensions({**row, **moe, key: value})


def test_a_config_past_the_limit_is_not_read(tmp_path):
    write(tmp_path, {"model.safetensors": safetensors_bytes()})
    with (tmp_path / "config.json").open("wb") as config:
        config.truncate(1 << 40)  # sparse
    with pytest.raises(Refused, match="too-big"):
        describe(tmp_path)


def never_a_traceback(read) -> None:
    reason, model = "", None
    try:
        model = read()
    except (Malformed, Unfamiliar) as error:
        reason = error.why
    assert model or (reason and reason.isprintable())
    if model:
        assert sum(each.layers for each in model.attention) + model.other_layers == model.layers
        assert kv_bytes_per_token(model) >= 0
        count(model)


@settings(max_examples=400, deadline=None, derandomize=True)
@given(
    st.sampled_from([config for config, *_ in CONFIGS.values()]),
    st.sampled_from(sorted(ARCHITECTURES)),
    st.dictionaries(
        st.sampled_from([*KEYS, "quantization_config", "mlp_only_layers", "moe_layer_freq"]), JUNK, max_size=3
    ),
)
def test_a_mangled_config_gives_a_model_or_a_reason(config, kind, junk):
    mangled = {**config, **config.get("text_config", {}), "model_type": kind, "text_config": None, **junk}
    never_a_traceback(lambda: dimensions(mangled))
    precision_of(mangled.get("quantization_config"), moe=True)


@settings(max_examples=400, deadline=None, derandomize=True)
@given(
    st.sampled_from([metadata for metadata, _ in HEADERS.values()]),
    st.sampled_from(sorted(RULES)),
    st.dictionaries(
        st.sampled_from(sorted({key.split(".", 1)[1] for metadata, _ in HEADERS.values() for key in metadata})),
        st.one_of(
            st.integers(-3, 1 << 41), st.booleans(), st.text(max_size=3), st.floats(),
            st.lists(st.integers(-1, 9), max_size=40).map(lambda values: Array(len(values), tuple(values))),
        ),
        max_size=3,
    ),
)  # fmt: skip
def test_a_mangled_gguf_header_gives_a_model_or_a_reason(metadata, kind, junk):
    renamed = {
        f"{kind}.{key.split('.', 1)[1]}": value for key, value in metadata.items() if key != "general.architecture"
    }
    mangled = {**renamed, **{f"{kind}.{key}": value for key, value in junk.items()}, "general.architecture": kind}
    never_a_traceback(lambda: dimensions_of(facts_of(mangled), ()))
