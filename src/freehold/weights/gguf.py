"""Reads and checks a GGUF header. Only the header is read; no count in it is believed.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, versions 2 and 3, little-endian.
"""

from __future__ import annotations

import math
import re
import struct
from typing import Any, BinaryIO

from msgspec import Struct

from freehold.weights.reading import Malformed, Reader, quoted

MAGIC = b"GGUF"
VERSIONS = (2, 3)
MAX_KEYS = MAX_TENSORS = 1 << 16
MAX_STRINGS = 4_000_000  # in all arrays together; the largest vocabularies and their merges stay under a million
MAX_STRING_BYTES = 16 << 20
MAX_ELEMENT_BYTES = 1 << 14  # of a string in an array: the longest tokens in use have some hundred
MAX_KEY_BYTES = 65_535
MAX_NAME_BYTES = 63  # ggml's own limit for tensors
MAX_ALIGNMENT = 1 << 16
MAX_KEPT_VALUES = 4096  # longer arrays are checked and counted, not kept

SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "B", 10: "Q", 11: "q", 12: "d"}
BOOL, STRING, ARRAY = 7, 8, 9
ELEMENTS = {  # llama.cpp takes the arrays' bytes for these without asking
    "tokenizer.ggml.tokens": (STRING,), "tokenizer.ggml.merges": (STRING,), "tokenizer.ggml.scores": (6,),
    "tokenizer.ggml.token_type": (4, 5), "tokenizer.ggml.precompiled_charsmap": (0, 1),
}  # fmt: skip
_NAME = re.compile(r"\w[\w.-]*", re.ASCII)
# What readers take each key for. {}: the architecture. None: a text; numbers: how far they may go.
KEYS: dict[str, range | None] = {
    **dict.fromkeys(("general.type", "general.name", "tokenizer.ggml.model", "tokenizer.ggml.pre")),
    "{}.block_count": range(1 << 12),
    "{}.context_length": range(1 << 31),
    "{}.embedding_length": range(1, 1 << 20),
    "{}.vocab_size": range(10_000_000),
    "{}.expert_count": range(1 << 16),
    "{}.expert_used_count": range(1 << 16),
    **{f"tokenizer.ggml.{each}_token_id": range(-1, 1 << 32) for each in ("bos", "eos", "unknown", "padding")},
}

# number: (name, values in a block, bytes of a block), from ggml-common.h and ggml.c
TENSOR_TYPES = {
    0: ("F32", 1, 4), 1: ("F16", 1, 2), 2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20), 6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24), 8: ("Q8_0", 32, 34), 9: ("Q8_1", 32, 40), 10: ("Q2_K", 256, 84), 11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144), 13: ("Q5_K", 256, 176), 14: ("Q6_K", 256, 210), 15: ("Q8_K", 256, 292),
    16: ("IQ2_XXS", 256, 66), 17: ("IQ2_XS", 256, 74), 18: ("IQ3_XXS", 256, 98), 19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18), 21: ("IQ3_S", 256, 110), 22: ("IQ2_S", 256, 82), 23: ("IQ4_XS", 256, 136),
    24: ("I8", 1, 1), 25: ("I16", 1, 2), 26: ("I32", 1, 4), 27: ("I64", 1, 8), 28: ("F64", 1, 8),
    29: ("IQ1_M", 256, 56), 30: ("BF16", 1, 2), 34: ("TQ1_0", 256, 54), 35: ("TQ2_0", 256, 66),
    39: ("MXFP4", 32, 17), 40: ("NVFP4", 64, 36), 41: ("Q1_0", 128, 18), 42: ("Q2_0", 64, 18),
}  # fmt: skip


class Array(Struct, frozen=True):
    """An array's length, its numbers where they are few, and how its bytes begin where it is one of bytes."""

    count: int
    values: tuple[int | float, ...] = ()
    head: bytes = b""


class Tensor(Struct, frozen=True):
    name: str
    type: str
    shape: tuple[int, ...]
    offset: int  # from the start of the data
    size_bytes: int


class Header(Struct, frozen=True):
    version: int
    metadata: dict[str, Any]  # int, float, bool, str (what is no UTF-8 escaped as surrogates) or Array
    tensors: tuple[Tensor, ...]
    header_bytes: int
    data_offset: int  # the header, aligned


def read_header(stream: BinaryIO, size_bytes: int) -> Header:
    """The header of a GGUF file of `size_bytes`, checked to its last byte. Raises Malformed."""
    reader = _Gguf(stream, size_bytes)
    if reader.take(4, "the magic number") != MAGIC:
        raise Malformed("wrong-magic", "the file does not start with GGUF")
    version = reader.number("I", "the version")
    if version not in VERSIONS:
        raise Malformed("gguf-version", f"version {version}; only 2 and 3, little-endian, are read")
    tensor_count = reader.count("Q", MAX_TENSORS, 8 + 4 + 8 + 4 + 8, "tensors")
    key_count = reader.count("Q", MAX_KEYS, 8 + 4 + 1, "keys")
    metadata: dict[str, Any] = {}
    for _ in range(key_count):
        key = reader.name("a key", MAX_KEY_BYTES)
        if key in metadata:
            raise Malformed("duplicate-key", f"key {quoted(key)} occurs twice")
        metadata[key] = reader.value(quoted(key))
    _check_keys(metadata)
    alignment = _alignment(metadata)
    tensors = tuple(reader.tensor() for _ in range(tensor_count))
    data_offset = _align(reader.position, alignment)
    _check_layout(tensors, alignment, data_offset, reader.position, size_bytes)
    return Header(version, metadata, tensors, reader.position, data_offset)


class _Gguf(Reader):
    strings = 0  # counted over all arrays
    kept_bytes = 0

    def count(self, code: str, limit: int, least_bytes: int, what: str) -> int:
        """A count of things that take at least `least_bytes` each: believed only if the file could hold them."""
        count = self.number(code, f"the number of {what}")
        if count > limit:
            raise Malformed("gguf-count", f"claims {count:,} {what}; at most {limit:,} are read")
        self.require(count * least_bytes, f"{count:,} {what}")
        return count

    def text(self, what: str, limit_bytes: int) -> bytes:
        return self.take(self.count("Q", limit_bytes, 1, f"bytes in {what}"), what)

    def name(self, what: str, limit_bytes: int) -> str:
        text = self.text(what, limit_bytes)
        if not text or not text.isascii() or not (name := text.decode()).isprintable():
            raise Malformed("gguf-name", f"{what} is named {quoted(ascii(text))}; names are printable ASCII")
        return name

    def value(self, key: str) -> Any:
        kind = self.number("I", f"the type of {key}")
        if kind == ARRAY:
            return self.array(key)
        if key in ELEMENTS:
            raise Malformed("gguf-value-type", f"{key} is no array")
        if kind == STRING:
            text = self.text(key, MAX_STRING_BYTES)
            self.kept_bytes += len(text)
            if self.kept_bytes > MAX_STRING_BYTES:
                raise Malformed("gguf-too-big", f"more than {MAX_STRING_BYTES:,} bytes of text in the header")
            return text.decode(errors="surrogateescape")
        if kind not in SCALARS:
            raise Malformed("gguf-value-type", f"{key} has the unknown type {kind}")
        value = self.number(SCALARS[kind], key)
        return self.boolean(value, key) if kind == BOOL else self.finite(value, key)

    def boolean(self, value: int, key: str) -> bool:
        if value > 1:
            raise Malformed("gguf-bool", f"{key} is a boolean with the value {value}")
        return bool(value)

    def finite(self, value: float, key: str) -> int | float:
        if isinstance(value, float) and not math.isfinite(value):
            raise Malformed("gguf-number", f"{key} is {value}: no number to compute with")
        return value

    def array(self, key: str) -> Array:
        kind = self.number("I", f"the type of {key}")
        if kind not in ELEMENTS.get(key, (kind,)):
            raise Malformed("gguf-value-type", f"{key} is an array of the type {kind}: readers would misread it")
        if kind == ARRAY:
            raise Malformed("gguf-nested-array", f"{key} is an array of arrays: no reader in use accepts them")
        if kind == STRING:
            count = self.count("Q", MAX_STRINGS, 8, f"strings in {key}")
            self.strings += count
            if self.strings > MAX_STRINGS:
                raise Malformed("gguf-count", f"more than {MAX_STRINGS:,} strings in the header")
            for _ in range(count):
                self.skip_string(key)
            return Array(count)
        if kind not in SCALARS:
            raise Malformed("gguf-value-type", f"{key} is an array of the unknown type {kind}")
        code = SCALARS[kind]
        size = struct.calcsize("<" + code)
        count = self.count("Q", self.size_bytes, size, f"values in {key}")
        data = self.take(min(count, MAX_KEPT_VALUES) * size, key)
        head = data if size == 1 else b""
        if count > MAX_KEPT_VALUES:
            self.skip((count - MAX_KEPT_VALUES) * size, key)
            return Array(count, (), head)
        values = struct.unpack(f"<{count}{code}", data)
        check = self.boolean if kind == BOOL else self.finite
        return Array(count, tuple(check(value, key) for value in values), head)

    def skip_string(self, key: str) -> None:
        """The hot loop: a vocabulary has up to a million of these, so the reader's own checks are written out."""
        length = int.from_bytes(self.stream.read(8), "little")
        self.position += 8 + length
        if self.position > self.size_bytes:
            raise Malformed("truncated", f"a string in {key} claims {length:,} bytes")
        if length > MAX_ELEMENT_BYTES:
            raise Malformed(
                "gguf-long-string", f"a string in {key} has {length:,} bytes; {MAX_ELEMENT_BYTES:,} are read"
            )
        if len(self.stream.read(length)) != length:
            raise Malformed("truncated", f"the file became shorter while {key} was read")

    def tensor(self) -> Tensor:
        name = self.name("a tensor", MAX_NAME_BYTES)
        rank = self.number("I", f"the rank of {name}")
        if not 1 <= rank <= 4:
            raise Malformed("gguf-rank", f"tensor {name} has {rank} dimensions; 1 to 4 are possible")
        shape = struct.unpack(f"<{rank}Q", self.take(8 * rank, f"the shape of {name}"))
        kind = self.number("I", f"the type of {name}")
        if kind not in TENSOR_TYPES:
            raise Malformed("gguf-tensor-type", f"tensor {name} has the unknown type {kind}")
        type_name, block, block_bytes = TENSOR_TYPES[kind]
        if 0 in shape or shape[0] % block:
            raise Malformed("gguf-shape", f"tensor {name} has the shape {shape}; rows of {type_name} are {block} x n")
        size_bytes = math.prod(shape) // block * block_bytes
        return Tensor(name, type_name, shape, self.number("Q", f"the offset of {name}"), size_bytes)


def _check_keys(metadata: dict[str, Any]) -> None:
    own = metadata.get("general.architecture", "")
    if not isinstance(own, str) or (own and not _NAME.fullmatch(own)):
        raise _bad_key("general.architecture", own, "the name of an architecture")
    for name, limits in KEYS.items():
        value = metadata.get(key := name.format(own))
        right = isinstance(value, str) if limits is None else type(value) is int and value in limits
        if value is not None and not right:
            raise _bad_key(key, value, f"a whole number from {limits[0]} to {limits[-1]:,}" if limits else "a text")
    heads = metadata.get(f"{own}.attention.head_count", 1)
    least = 0 if any(key.startswith((f"{own}.ssm.", f"{own}.wkv.")) for key in metadata) else 1  # without attention
    if not isinstance(heads, Array) and not (type(heads) is int and least <= heads < 1 << 16):
        raise _bad_key(f"{own}.attention.head_count", heads, f"{least} to 65,535, or a list")
    if (used := metadata.get(f"{own}.expert_used_count", 0)) > metadata.get(f"{own}.expert_count", 0):
        raise _bad_key(f"{own}.expert_used_count", used, "at most the number of experts")
    part, parts = metadata.get("split.no", 0), metadata.get("split.count", 1)
    if type(part) is type(parts) is int and part >= max(parts, 1):  # 0: merged from parts
        raise _bad_key("split.no", part, "less than split.count")


def _bad_key(key: str, value: Any, asked: str) -> Malformed:
    return Malformed("gguf-key", f"{quoted(key)} is {quoted(repr(value), 40)}; readers ask for {asked}")


def _alignment(metadata: dict[str, Any]) -> int:
    alignment = metadata.get("general.alignment", 32)
    if type(alignment) is not int or not 8 <= alignment <= MAX_ALIGNMENT or alignment & (alignment - 1):
        raise Malformed("gguf-alignment", f"alignment is no power of two from 8 to {MAX_ALIGNMENT:,}")
    return alignment


def _align(position: int, alignment: int) -> int:
    return -(-position // alignment) * alignment


def _check_layout(
    tensors: tuple[Tensor, ...], alignment: int, data_offset: int, header_bytes: int, size_bytes: int
) -> None:
    """Tensors follow each other in order, without overlap or hole, to the exact end of the file."""
    names: set[str] = set()
    end = unpadded = 0
    for tensor in tensors:
        if tensor.name in names:
            raise Malformed("duplicate-tensor", f"tensor {tensor.name} occurs twice")
        names.add(tensor.name)
        if tensor.offset % alignment:
            raise Malformed("gguf-offset", f"tensor {tensor.name} is at {tensor.offset:,}, no multiple of {alignment}")
        if tensor.offset != end:
            what = "overlaps the one before" if tensor.offset < end else "leaves a hole"
            raise Malformed("gguf-offset", f"tensor {tensor.name} {what}: it is at {tensor.offset:,}, not {end:,}")
        unpadded = end + tensor.size_bytes
        end = _align(unpadded, alignment)
    ends = {data_offset + end, data_offset + unpadded} if tensors else {header_bytes, data_offset}
    if size_bytes not in ends:
        raise Malformed("gguf-end", f"the tensors end at byte {max(ends):,} but the file has {size_bytes:,}")
