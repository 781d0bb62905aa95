"""Llamas of random weights as GGUF files, of any size and precision: as fast as real ones, and as large.

Weights are random blocks of ggml's formats with small scales, repeated; formats are those of ggml-common.h. Mixtures
follow llama.cpp's llama-quant.cpp: the better type for half of the value and down projections.
"""

from __future__ import annotations

import os
import struct
import sys
from math import prod
from pathlib import Path
from typing import NamedTuple

from freehold.weights.gguf import TENSOR_TYPES

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from weight_files import entry, gguf_bytes, tensor

NUMBERS = {name: (number, values, size) for number, (name, values, size) in TENSOR_TYPES.items()}
MIXTURES = {  # layers, better, head, embedding, and llama.cpp's number for general.file_type
    "f32": ("F32", "F32", "F32", "F32", 0),
    "f16": ("F16", "F16", "F16", "F16", 1),
    "bf16": ("BF16", "BF16", "BF16", "BF16", 32),
    "q8_0": ("Q8_0", "Q8_0", "Q8_0", "Q8_0", 7),
    "q6_k": ("Q6_K", "Q6_K", "Q6_K", "Q6_K", 18),
    "q5_k_m": ("Q5_K", "Q6_K", "Q6_K", "Q5_K", 17),
    "q4_k_m": ("Q4_K", "Q6_K", "Q6_K", "Q4_K", 15),
    "q4_0": ("Q4_0", "Q4_0", "Q6_K", "Q4_0", 2),
    "q3_k_m": ("Q3_K", "Q5_K", "Q6_K", "Q3_K", 12),
    "q2_k": ("Q2_K", "Q3_K", "Q6_K", "Q2_K", 10),
    "iq4_xs": ("IQ4_XS", "Q5_K", "Q6_K", "IQ4_XS", 30),
}
CHUNK_BLOCKS = 4096
_SCALES = {  # where a block has its scales in f16, and how large: weights are about 0.02, and none on average, or else
    # attention sees one token only, and what it multiplies is too small for a CPU to be quick with
    "Q8_0": {0: 2.5e-4}, "Q4_0": {0: 4e-3}, "Q6_K": {208: 1e-5}, "Q5_K": {0: 3e-5, 2: 15.5 * 3e-5},
    "Q4_K": {0: 6e-5, 2: 7.5 * 6e-5}, "Q3_K": {108: 4e-4}, "Q2_K": {80: 1e-3, 82: 1.5e-3}, "IQ4_XS": {0: 1e-5},
}  # fmt: skip


class Shape(NamedTuple):
    """Of a Llama; with `experts` of a Mixtral, whose feed-forward width is that of one expert."""

    layers: int
    hidden: int
    width: int
    heads: int
    kv_heads: int
    vocabulary: int
    experts: int = 0
    used: int = 0
    context: int = 8192


def write(path: Path, shape: Shape, mixture: str, *, hollow: bool = False) -> None:
    """The model at `path`. `hollow`: its header and its size, for who reads no weights."""
    base, better, head, embedding, file_type = MIXTURES[mixture]
    tensors = list(_tensors(shape, base, better, head, embedding))
    table, at = [], 0
    for name, dims, kind in tensors:
        number, values, size = NUMBERS[kind]
        table.append(tensor(name, dims, number, at))
        at += -(-prod(dims) // values * size // 32) * 32
    with path.open("wb") as file:
        file.write(gguf_bytes([entry(*each) for each in _facts(shape, file_type).items()], table, data=b""))
        if hollow:
            file.truncate(file.tell() + at)
            return
        for _, dims, kind in tensors:
            _, values, size = NUMBERS[kind]
            left, chunk = prod(dims) // values * size, _chunk(kind, ones=len(dims) == 1)
            padding = -left % 32
            while left > 0:
                left -= file.write(chunk[: min(left, len(chunk))])
            file.write(b"\0" * padding)


def _facts(shape: Shape, file_type: int) -> dict:
    tokens = ["<s>", "</s>", "\u010a", "a", "b", "ab", *(f"t{n}" for n in range(6, shape.vocabulary))]
    dim = shape.hidden // shape.heads
    experts = {"llama.expert_count": shape.experts, "llama.expert_used_count": shape.used} if shape.experts else {}
    return {
        "general.architecture": "llama",
        "general.file_type": file_type,
        "llama.block_count": shape.layers,
        "llama.context_length": shape.context,
        "llama.embedding_length": shape.hidden,
        "llama.feed_forward_length": shape.width,
        "llama.attention.head_count": shape.heads,
        "llama.attention.head_count_kv": shape.kv_heads,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.rope.dimension_count": dim,
        "llama.rope.freq_base": 10000.0,
        "llama.vocab_size": shape.vocabulary,
        **experts,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.merges": ["a b"],
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 1,
    }


def _tensors(shape: Shape, base: str, better: str, head: str, embedding: str):
    hidden, kv = shape.hidden, shape.hidden // shape.heads * shape.kv_heads
    yield "token_embd.weight", (hidden, shape.vocabulary), embedding
    for layer in range(shape.layers):
        fine, block = (better if layer % 2 else base), f"blk.{layer}."
        yield block + "attn_norm.weight", (hidden,), "F32"
        yield block + "attn_q.weight", (hidden, hidden), base
        yield block + "attn_k.weight", (hidden, kv), base
        yield block + "attn_v.weight", (hidden, kv), fine
        yield block + "attn_output.weight", (hidden, hidden), base
        yield block + "ffn_norm.weight", (hidden,), "F32"
        if shape.experts:
            yield block + "ffn_gate_inp.weight", (hidden, shape.experts), "F32"
        end, many = ("_exps.weight", (shape.experts,)) if shape.experts else (".weight", ())
        yield block + "ffn_gate" + end, (hidden, shape.width, *many), base
        yield block + "ffn_up" + end, (hidden, shape.width, *many), base
        yield block + "ffn_down" + end, (shape.width, hidden, *many), fine
    yield "output_norm.weight", (hidden,), "F32"
    yield "output.weight", (hidden, shape.vocabulary), head


def _chunk(kind: str, *, ones: bool) -> bytes:
    """Some thousand random blocks."""
    _, values, size = NUMBERS[kind]
    if ones:
        return struct.pack("<f", 1.0) * 4096
    if values == 1:  # random numbers from 2^-6 to 2^-5, of either sign: the exponent is fixed
        data = bytearray(os.urandom(size * 256 * CHUNK_BLOCKS))
        keep, exponent = {"F16": (0x83, 9 << 2), "BF16": (0x80, 121 >> 1), "F32": (0x80, 121 >> 1)}[kind]
        data[size - 1 :: size] = data[size - 1 :: size].translate(bytes(n & keep | exponent for n in range(256)))
        return bytes(data)
    data = bytearray(os.urandom(size * CHUNK_BLOCKS))
    for place, scale in _SCALES[kind].items():
        for byte, value in enumerate(struct.pack("<e", scale)):
            data[place + byte :: size] = bytes([value]) * CHUNK_BLOCKS
    return bytes(data)
