"""Reads and checks a safetensors header: 8 bytes of length, JSON, then the tensors without a gap.

Format: https://github.com/huggingface/safetensors#format. The library itself accepts duplicate keys; this does not.
"""

from __future__ import annotations

import math
from typing import Any, BinaryIO

from msgspec import Struct

from freehold.weights.reading import Malformed, Reader, parse_json, quoted

MAX_HEADER_BYTES = 25_000_000  # huggingface_hub's limit; that of the library is 100 MB, no model has 10
MAX_TENSORS = 1 << 18
MAX_RANK = 16
BITS = {
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32,
    "I64": 64, "U64": 64, "F64": 64, "C64": 64,
}  # fmt: skip


class Tensor(Struct, frozen=True):
    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int  # bytes from the start of the data
    end: int


class Header(Struct, frozen=True):
    metadata: dict[str, str]
    tensors: tuple[Tensor, ...]  # in the order of their data
    data_offset: int  # bytes from the start of the file


def read_header(stream: BinaryIO, size_bytes: int) -> Header:
    """The header of a safetensors file of `size_bytes`, checked against its size. Raises Malformed."""
    reader = Reader(stream, size_bytes)
    length = reader.number("Q", "the header's length")
    if not 2 <= length <= MAX_HEADER_BYTES:
        raise Malformed("safetensors-header", f"the header claims {length:,} bytes; 2 to {MAX_HEADER_BYTES:,} are read")
    reader.require(length, "the header")
    first = reader.take(1, "the header")
    if first != b"{":
        raise Malformed("wrong-magic", "the header is not a JSON object: this is no safetensors file")
    header = parse_json(first + reader.take(length - 1, "the header"))
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise Malformed("safetensors-metadata", "__metadata__ holds something else than strings")
    if len(header) > MAX_TENSORS:
        raise Malformed("safetensors-count", f"{len(header):,} tensors; at most {MAX_TENSORS:,} are read")
    tensors = sorted((_tensor(name, facts) for name, facts in header.items()), key=lambda each: (each.start, each.end))
    _check_layout(tensors, reader.left_bytes)
    return Header(metadata, tuple(tensors), reader.position)


def _tensor(name: str, facts: Any) -> Tensor:
    shown = quoted(name)
    if not name or not name.isprintable():
        raise Malformed("safetensors-name", f"a tensor is named {shown}; names are printable")
    if not isinstance(facts, dict) or set(facts) != {"dtype", "shape", "data_offsets"}:
        raise Malformed("safetensors-tensor", f"tensor {shown} needs exactly dtype, shape and data_offsets")
    dtype, shape, offsets = facts["dtype"], facts["shape"], facts["data_offsets"]
    if not isinstance(dtype, str) or dtype not in BITS:
        raise Malformed("safetensors-dtype", f"tensor {shown} has the unknown dtype {quoted(str(dtype))}")
    if not _sizes(shape) or len(shape) > MAX_RANK or not _sizes(offsets) or len(offsets) != 2:
        raise Malformed("safetensors-tensor", f"tensor {shown} has a shape or offsets that are no sizes")
    start, end = offsets
    if math.prod(shape) * BITS[dtype] != (end - start) * 8:
        raise Malformed("safetensors-size", f"tensor {shown}: {dtype} {shape} does not take {end - start:,} bytes")
    return Tensor(name, dtype, tuple(shape), start, end)


def _sizes(value: Any) -> bool:
    return isinstance(value, list) and all(type(each) is int and 0 <= each < 1 << 63 for each in value)


def _check_layout(tensors: list[Tensor], data_bytes: int) -> None:
    """Every byte of the data belongs to exactly one tensor."""
    end = 0
    for tensor in tensors:
        if tensor.start != end:
            what = "overlaps another" if tensor.start < end else "leaves a hole before it"
            raise Malformed("safetensors-offset", f"tensor {quoted(tensor.name)} {what}, at byte {tensor.start:,}")
        end = tensor.end
    if end != data_bytes:
        raise Malformed("safetensors-end", f"the tensors end at byte {end:,} of {data_bytes:,} of data")
