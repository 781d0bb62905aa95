"""Says a LoRA of PEFT in GGUF, as llama.cpp loads it; what GGUF cannot say is refused, never left out.

PEFT: adapter_config.json and adapter_model.safetensors, read in peft 0.21.2 (LoraConfig). llama.cpp: llama-adapter.cpp
and conversion/ of https://github.com/ggml-org/llama.cpp, as of xllamacpp 2026.10.11549. There a matrix is named after
the base's with .lora_a and .lora_b, and is scaled by alpha / rank, with the rank of its own lora_b.

All becomes F32, llama.cpp's own default: exact, where a 16-bit matrix would round the activations too.
"""

from __future__ import annotations

import math
import os
import re
import struct
from collections.abc import Iterable
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

from msgspec import Struct
from msgspec.structs import replace

from freehold.errors import Refused
from freehold.weights import gguf, safetensors
from freehold.weights.files import BESIDE, list_files
from freehold.weights.reading import MAX_JSON_BYTES, Malformed, parse_json, quoted

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
# Rotary halves in Hugging Face's files, neighbours in GGUF: the rows of q_proj and k_proj are interleaved.
INTERLEAVED = {"llama", "mistral3", "granite"}
AS_THEY_ARE = {"qwen2", "qwen3", "gemma", "gemma2", "gemma3", "phi3"}
MODULES = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip
FUSED = {"phi3": {"self_attn.qkv_proj": "attn_qkv", "mlp.gate_up_proj": "ffn_up"}}
_HEADS = {"attn_q": "head_count", "attn_k": "head_count_kv"}
_TENSOR = re.compile(
    r"base_model\.model\.(?:model\.|language_model\.){0,2}"
    r"layers\.(?P<layer>0|[1-9]\d{0,3})\.(?P<module>\w+\.\w+)\.lora_(?P<side>[AB])\.weight",
    re.ASCII,
)
# What changes an adapter's meaning without a tensor that tells of it, or has no place in GGUF.
_UNSAYABLE = (
    "use_dora", "modules_to_save", "layer_replication", "lora_bias", "alora_invocation_tokens", "use_qalora",
    "use_bdlora", "arrow_config",
)  # fmt: skip
_INITS = {"gaussian", "eva", "orthogonal", "mica", "lora_ga"}  # the others change the base before they add to it
_ALIGNMENT = 32
_MERGE = "merge it into its base (merge_and_unload of PEFT), and serve that"
_OR_VLLM = "merge it into its base, or serve it with vLLM"
_AGAIN = "verify the adapter's folder; export it again with PEFT's save_pretrained"


class _Matrix(Struct, frozen=True):
    """One matrix: where it comes from, what it is called there, and how many heads its rows belong to."""

    source: safetensors.Tensor
    name: str
    heads: int = 0  # 0: the rows stay as they are


def convert(adapter: Path, base: Path, target: Path) -> None:
    """Write the LoRA in the folder `adapter`, made for the GGUF file `base` (or its folder), to the GGUF file `target`.

    The file appears whole under its name or not at all. One matrix is held in memory at a time.
    Raises Refused for what GGUF or llama.cpp cannot say, Unknown when one of the two is not there, OSError.
    """
    files = {each.name: each for each in list_files(adapter)[0]}
    if missing := {CONFIG, TENSORS} - files.keys():
        raise Refused(f"{adapter.name} has no {' and no '.join(sorted(missing))}", hint=_AGAIN)
    try:
        with files[CONFIG].open() as stream:
            _check(config := parse_json(stream.read(MAX_JSON_BYTES)))
        header = _read_base(base)
        with files[TENSORS].open() as source:
            tensors = safetensors.read_header(source, files[TENSORS].size_bytes)
            matrices = _matrices(tensors.tensors, header)
            alpha = _alpha(config, {each.source.shape[0] for each in matrices if each.name.endswith(".lora_a")})
            head = _head(header.metadata["general.architecture"], alpha, matrices)
            _write(target, chain((head,), (_read(source, tensors.data_offset, each) for each in matrices)))
    except Malformed as error:
        raise Refused(f"{adapter.name} on {base.name}: {error}", hint=_AGAIN) from None


def interleave(rows: list[bytes], heads: int) -> list[bytes]:
    """Of each head the first row of both halves, then the second of both, and so on."""
    size = len(rows) // heads
    half = size // 2
    return [rows[head + at + part] for head in range(0, len(rows), size) for at in range(half) for part in (0, half)]


def widen(data: bytes, dtype: str) -> bytes | bytearray:
    """Little-endian F16 or BF16 as F32, and F32 as it is: each value stays the same."""
    if dtype == "F32":
        return data
    if dtype == "BF16":  # the upper half of an F32
        wide = bytearray(2 * len(data))
        wide[2::4], wide[3::4] = data[::2], data[1::2]
        return wide
    blocks = (data[at : at + 8192] for at in range(0, len(data), 8192))
    return b"".join(struct.pack(f"<{len(each) // 2}f", *struct.unpack(f"<{len(each) // 2}e", each)) for each in blocks)


def _read_base(base: Path) -> gguf.Header:
    """The header of its first part, with the tensors of all."""
    headers = []
    for file in list_files(base)[0]:
        if file.suffix == ".gguf" and not BESIDE.fullmatch(file.name):
            with file.open() as stream:
                headers.append(gguf.read_header(stream, file.size_bytes))
    family = headers[0].metadata.get("general.architecture", "") if headers else "no GGUF"
    if family not in INTERLEAVED | AS_THEY_ARE:
        known = ", ".join(sorted(INTERLEAVED | AS_THEY_ARE))
        raise Refused(f"{base.name} is of the family {quoted(family)}; LoRAs are converted for {known}", hint=_OR_VLLM)
    return replace(headers[0], tensors=sum((each.tensors for each in headers), ()))


def _matrices(tensors: tuple[safetensors.Tensor, ...], base: gguf.Header) -> list[_Matrix]:
    """Every tensor of the adapter, named after the base's; refused where one of them has no such name."""
    shapes = {each.name: each.shape for each in base.tensors}
    modules = MODULES | FUSED.get(base.metadata["general.architecture"], {})
    found: dict[str, _Matrix] = {}
    for each in tensors:
        match = _TENSOR.fullmatch(each.name)
        name = modules.get(match["module"], "") if match else ""
        weight = f"blk.{match['layer']}.{name}.weight" if match else ""
        if not match or weight not in shapes:
            raise Refused(f"{quoted(each.name)} has no place in a GGUF adapter for this base", hint=_OR_VLLM)
        matrix = _Matrix(each, f"{weight}.lora_{match['side'].lower()}", _heads(name, match["side"], base))
        if found.setdefault(matrix.name, matrix) is not matrix or each.dtype not in {"F32", "F16", "BF16"}:
            raise Refused(f"{quoted(each.name)} comes twice, or is {each.dtype}, no float", hint=_AGAIN)
    for name, matrix in found.items():
        other = found.get(name[:-1] + ("b" if name.endswith("a") else "a"))
        if other is None:
            raise Refused(f"{quoted(matrix.source.name)} is without the other half of its pair", hint=_AGAIN)
        if name.endswith("a"):
            _check_pair(matrix, other, shapes[name.removesuffix(".lora_a")])
    if not found:
        raise Refused("the adapter has no tensors", hint=_AGAIN)
    return list(found.values())


def _heads(name: str, side: str, base: gguf.Header) -> int:
    """How many heads share the rows of this matrix, where they are interleaved; else 0."""
    family = base.metadata["general.architecture"]
    if side == "A" or name not in _HEADS or family not in INTERLEAVED:
        return 0
    query = base.metadata.get(f"{family}.attention.head_count")
    heads = base.metadata.get(f"{family}.attention.{_HEADS[name]}", query)
    if type(heads) is not int or heads < 1:
        raise Refused("the base's layers have no one number of heads", hint=_OR_VLLM)
    return heads


def _check_pair(one: _Matrix, other: _Matrix, base: tuple[int, ...]) -> None:
    """A is (rank, in) and B (out, rank); the base, as GGUF has it, (in, out)."""
    down, up = one.source.shape, other.source.shape
    whole = len(down) == len(up) == 2 and 0 < down[0] == up[1] and (down[1], up[0]) == base
    if not whole or (other.heads and up[0] % (2 * other.heads)):
        raise Refused(
            f"{other.name.removesuffix('.lora_b')}: {down} and {up} do not fit the base's {base}", hint=_AGAIN
        )


def _check(config: Any) -> None:
    """Refuses what the configuration sets and GGUF cannot say."""
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        raise Refused("adapter_config.json configures no LoRA", hint=_MERGE)
    init, alpha = config.get("init_lora_weights", True), config.get("lora_alpha", 8)
    unsayable = [key for key in _UNSAYABLE if config.get(key)]
    unsayable += ["bias"] * (config.get("bias", "none") != "none")
    unsayable += ["init_lora_weights"] * (isinstance(init, str) and init.lower() not in _INITS)
    if unsayable:
        raise Refused(f"GGUF has no way to say what the adapter sets: {', '.join(unsayable)}", hint=_MERGE)
    if any(each != alpha for each in (config.get("alpha_pattern") or {}).values()):
        raise Refused("the adapter has several alphas (alpha_pattern), and GGUF one", hint=_OR_VLLM)
    if type(alpha) not in {int, float} or not 0 < alpha <= 10**6:
        raise Refused(f"lora_alpha is {quoted(str(alpha))}; llama.cpp scales by it where it is above 0", hint=_AGAIN)


def _alpha(config: dict[str, Any], ranks: set[int]) -> float:
    """What llama.cpp divides by the rank. PEFT's rsLoRA divides by the root of it."""
    alpha = config.get("lora_alpha", 8)
    if not config.get("use_rslora"):
        return alpha
    if len(ranks) > 1:
        raise Refused(
            "the adapter divides by the root of several ranks (rsLoRA), and GGUF has one alpha", hint=_OR_VLLM
        )
    return alpha * math.sqrt(max(ranks))


def _head(family: str, alpha: float, matrices: list[_Matrix]) -> bytes:
    """All of the file before its data: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, version 3."""
    texts = {"general.architecture": family, "general.type": "adapter", "adapter.type": "lora"}
    head = gguf.MAGIC + struct.pack("<IQQ", 3, len(matrices), len(texts) + 1)
    for key, value in texts.items():
        head += _text(key) + struct.pack("<I", gguf.STRING) + _text(value)
    head += _text("adapter.lora.alpha") + struct.pack("<If", 6, alpha)  # 6: an F32
    offset = 0
    for each in matrices:
        down, across = each.source.shape
        head += _text(each.name) + struct.pack("<IQQIQ", 2, across, down, 0, offset)  # the inner side first; 0: F32
        offset += _padded(4 * down * across)
    return head


def _text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def _padded(size_bytes: int) -> int:
    return -(-size_bytes // _ALIGNMENT) * _ALIGNMENT


def _read(source: BinaryIO, data_offset: int, matrix: _Matrix) -> bytes | bytearray:
    source.seek(data_offset + matrix.source.start)
    data = source.read(size_bytes := matrix.source.end - matrix.source.start)
    if len(data) != size_bytes:
        raise Malformed("truncated", "the file became shorter while it was converted")
    if matrix.heads:
        step = len(data) // matrix.source.shape[0]
        data = b"".join(interleave([data[at : at + step] for at in range(0, len(data), step)], matrix.heads))
    return widen(data, matrix.source.dtype)


def _write(target: Path, blocks: Iterable[bytes | bytearray]) -> None:
    """Each block padded; under another name until all of it is on the disk."""
    partial = target.with_name(target.name + ".partial")
    try:
        with partial.open("wb") as out:
            for block in blocks:
                out.write(block)
                out.write(bytes(_padded(len(block)) - len(block)))
            out.flush()
            os.fsync(out.fileno())
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)
