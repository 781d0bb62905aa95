"""Which precision a quantization_config means, as one of the schemes that memory is counted with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from msgspec import Struct

from freehold.weights.reading import quoted

_EXPERTS_ONLY = {"int4-g32": "int4-experts", "mxfp4": "mxfp4-experts", "nvfp4": "nvfp4-experts"}
_BY_WEIGHTS = {  # (type, bits, group size): scheme
    ("float", 8, 0): "fp8", ("int", 8, 0): "int8", ("int", 4, 128): "int4-gptq", ("int", 4, 32): "int4-g32",
    ("float", 4, 16): "nvfp4", ("float", 4, 32): "mxfp4",
}  # fmt: skip
_MODELOPT = {"FP8": "fp8", "FP8_PB_WO": "fp8-block", "NVFP4": "nvfp4", "MXFP4": "mxfp4", "W4A16_AWQ": "int4-awq"}
_KEPT = ("ignore", "ignored_layers", "modules_to_not_convert", "exclude_modules")


class Precision(Struct, frozen=True, kw_only=True):
    """How a checkpoint is stored. An empty scheme: stored in a way that is not counted from dimensions."""

    scheme: str  # a key of plan.weights.SCHEMES
    note: str = ""
    kv_dtype: str = ""  # "": as the engine chooses


def precision_of(quantization: Any, *, moe: bool) -> Precision:
    """From `quantization_config` of a config.json, or `quantization` of a hf_quant_config.json."""
    if not isinstance(quantization, Mapping):
        return Precision(scheme="bf16")
    method = str(quantization.get("quant_method") or quantization.get("quant_algo") or "unknown")
    kept = next((value for key in _KEPT if isinstance(value := quantization.get(key), list)), [])
    scheme = _scheme(quantization)
    if moe and any(_keeps_attention(str(each)) for each in kept):
        scheme = _EXPERTS_ONLY.get(scheme, scheme)
    note = f"{quoted(method, 40)}, {len(kept)} patterns kept as they were" if kept else quoted(method, 40)
    if not scheme:
        note += ": not a form Freehold counts from dimensions, only from the files"
    return Precision(scheme=scheme, note=note, kv_dtype=_kv_dtype(quantization))


def _keeps_attention(pattern: str) -> bool:
    """Whether a pattern keeps the decoder's projections, not just an encoder's, an indexer's or a draft layer's."""
    return "self_attn" in pattern and not any(other in pattern for other in ("vis", "audio", "mtp", "indexer"))


def _scheme(quantization: Mapping[str, Any]) -> str:
    method, algorithm = quantization.get("quant_method"), quantization.get("quant_algo")
    bits, group = quantization.get("bits"), quantization.get("group_size")
    if isinstance(algorithm, str):
        return _MODELOPT.get(algorithm, "")
    if method == "compressed-tensors":
        groups = quantization.get("config_groups")
        forms = {_weights(each) for each in groups.values()} if isinstance(groups, Mapping) else set()
        return forms.pop() if len(forms) == 1 else ""  # one form for all, or none that is counted
    if method == "fp8":
        return "fp8-block" if quantization.get("weight_block_size") == [128, 128] else "fp8"
    if method in ("gptq", "awq") and type(bits) is int and type(group) is int:
        packed = "int4-awq" if method == "awq" else "int4-gptq"
        return {(4, 128): packed, (4, 32): "int4-g32", (8, 128): "int8"}.get((bits, group), "")
    return "mxfp4" if method == "mxfp4" else ""


def _weights(group: Any) -> str:
    weights = group.get("weights") if isinstance(group, Mapping) else None
    if not isinstance(weights, Mapping):
        return ""
    size = weights.get("group_size")
    if weights.get("strategy") == "block":
        return "fp8-block" if weights.get("num_bits") == 8 else ""
    size = size if isinstance(size, int) and size > 0 else 0
    bits = weights.get("num_bits")
    key = (str(weights.get("type")), bits if type(bits) is int else 0, size)
    return "int4-awq" if key == ("int", 4, 128) and weights.get("symmetric") is False else _BY_WEIGHTS.get(key, "")


def _kv_dtype(quantization: Mapping[str, Any]) -> str:
    scheme, algorithm = quantization.get("kv_cache_scheme"), quantization.get("kv_cache_quant_algo")
    if isinstance(scheme, Mapping) and (scheme.get("num_bits"), scheme.get("type")) == (8, "float"):
        return "fp8"
    return {"FP8": "fp8", "NVFP4": "nvfp4"}.get(algorithm, "") if isinstance(algorithm, str) else ""


_FILE_TYPES = {  # llama.cpp's enum llama_ftype
    0: "fp32", 1: "gguf-f16", 7: "gguf-q8_0", 10: "gguf-q2_k", 12: "gguf-q3_k_m", 15: "gguf-q4_k_m",
    17: "gguf-q5_k_m", 18: "gguf-q6_k", 30: "gguf-iq4_xs", 32: "gguf-f16",
}  # fmt: skip


def precision_of_file(file_type: Any) -> Precision:
    """From `general.file_type` of a GGUF header."""
    if type(file_type) is int and file_type in _FILE_TYPES:
        return Precision(scheme=_FILE_TYPES[file_type])
    return Precision(scheme="", note="a GGUF mixture Freehold counts from the file only")
