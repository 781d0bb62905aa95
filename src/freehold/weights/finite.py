"""Whether all numbers of a file are finite: an adapter with one that is not answers nonsense, and slowly."""

from __future__ import annotations

import re
from collections.abc import Sequence

from freehold.weights import gguf, safetensors
from freehold.weights.files import File

_PIECE_BYTES = 8 << 20
# The exponent of what is no finite number has all bits set: by type, the bytes of one number, the pattern of
# its highest byte, and whether one bit of the next belongs to the exponent.
_TYPES = {
    "F32": (4, re.compile(rb"[\x7f\xff]"), True),
    "BF16": (2, re.compile(rb"[\x7f\xff]"), True),
    "F16": (2, re.compile(rb"[\x7c-\x7f\xfc-\xff]"), False),
}


def not_finite(files: Sequence[File]) -> list[str]:
    """Names of tensors with such a number, of the kinds that adapters have. The gate has read the headers by now."""
    return [name for file in files if file.suffix in (".safetensors", ".gguf") for name in _of(file)]


def _of(file: File) -> list[str]:
    found = []
    with file.open() as stream:
        if file.suffix == ".gguf":
            header = gguf.read_header(stream, file.size_bytes)
            spans = [(each.name, each.type, each.offset, each.size_bytes) for each in header.tensors]
        else:
            header = safetensors.read_header(stream, file.size_bytes)
            spans = [(each.name, each.dtype, each.start, each.end - each.start) for each in header.tensors]
        for name, kind, start, size in spans:
            if kind not in _TYPES:
                continue
            stream.seek(header.data_offset + start)
            for at in range(0, size, _PIECE_BYTES):
                if _has(stream.read(min(_PIECE_BYTES, size - at)), *_TYPES[kind]):
                    found.append(name)
                    break
    return found


def _has(data: bytes, width: int, highest: re.Pattern[bytes], next_bit: bool) -> bool:
    """Little-endian numbers."""
    for match in highest.finditer(data[width - 1 :: width]):
        if not next_bit or data[match.start() * width + width - 2] & 0x80:
            return True
    return False
