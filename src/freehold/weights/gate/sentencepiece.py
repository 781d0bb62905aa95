"""SentencePiece models: a bounded walk over the protobuf, without a library.

Format: https://github.com/google/sentencepiece/blob/master/src/sentencepiece_model.proto and
https://protobuf.dev/programming-guides/encoding/.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator

from freehold.weights.reading import Malformed, quoted

MAX_PIECES = 2_000_000
MAX_PIECE_BYTES = 1_024
MAX_CHARSMAP_BYTES = 4 << 20
MAX_SPEC_BYTES = 1 << 20  # what the trainer was told
MAX_UNKNOWN_BYTES = 4_096  # fields of newer versions, all together
MAX_SAMPLES = 10_000
_PIECE, _NORMALIZER, _SELF_TEST, _DENORMALIZER = 1, 3, 4, 5
_NORMAL, _UNKNOWN, _TYPES = 1, 2, range(1, 7)

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


def check(data: bytes) -> None:
    """Raises Malformed for what SentencePiece would not have written."""
    pieces: set[bytes] = set()
    unknown_pieces = unknown_bytes = 0
    for number, value in _fields(data):
        if not isinstance(value, bytes):
            raise Malformed("sentencepiece-shape", f"field {number} is a number; the model's fields are messages")
        if number == _PIECE:
            piece, kind = _piece(value)
            if piece in pieces:
                raise Malformed("sentencepiece-piece", f"the piece {_shown(piece)} occurs twice")
            pieces.add(piece)
            unknown_pieces += kind == _UNKNOWN
        elif number <= _DENORMALIZER:
            _check_spec(number, value)
        else:
            unknown_bytes += len(value)
        if len(pieces) > MAX_PIECES or unknown_bytes > MAX_UNKNOWN_BYTES:
            why = f"{len(pieces):,} pieces, and {unknown_bytes:,} bytes in fields that are not known"
            raise Malformed("sentencepiece-shape", why)
    if not pieces or unknown_pieces != 1:
        raise Malformed("sentencepiece-shape", f"{len(pieces):,} pieces, {unknown_pieces} of them for the unknown")


def _check_spec(number: int, value: bytes) -> None:
    if number in {_NORMALIZER, _DENORMALIZER}:
        _check_normalizer(value)
    elif len(value) > MAX_SPEC_BYTES:
        raise Malformed("sentencepiece-size", f"{len(value):,} bytes on how it was trained or tests itself")
    elif number == _SELF_TEST and (samples := sum(1 for _ in _fields(value))) > MAX_SAMPLES:
        raise Malformed("sentencepiece-size", f"{samples:,} samples to test itself with")


def _piece(data: bytes) -> tuple[bytes, int]:
    end = 2 + data[1] if data[:1] == b"\n" and len(data) > 1 else 0
    if end and data[1] < 0x80 and data[end : end + 1] == b"\x15" and len(data) == end + 5:  # most, and so at once
        piece, kind, others = data[2:end], _NORMAL, 0
        score = struct.unpack_from("<f", data, end + 1)[0]
    else:
        piece, score, kind, others = _piece_fields(data)
    if not 1 <= len(piece) <= MAX_PIECE_BYTES:
        raise Malformed("sentencepiece-piece", f"a piece of {len(piece):,} bytes; 1 to {MAX_PIECE_BYTES:,} are read")
    try:
        piece.decode()
    except UnicodeDecodeError:
        raise Malformed("sentencepiece-piece", f"the piece {_shown(piece)} is not UTF-8") from None
    if kind not in _TYPES or not math.isfinite(score) or others:
        why = f"the piece {_shown(piece)} has score {score}, type {kind} and {others} more fields"
        raise Malformed("sentencepiece-piece", why)
    return piece, kind


def _piece_fields(data: bytes) -> tuple[bytes, float, int, int]:
    piece, score, kind, others = b"", 0.0, _NORMAL, 0
    for number, value in _fields(data):
        if number == 1 and isinstance(value, bytes):
            piece = value
        elif number == 2 and isinstance(value, float):
            score = value
        elif number == 3 and isinstance(value, int):
            kind = value
        else:
            others += 1
    return piece, score, kind, others


def _check_normalizer(data: bytes) -> None:
    for number, value in _fields(data):
        if number in {2, 6} and isinstance(value, bytes) and len(value) > MAX_CHARSMAP_BYTES:
            raise Malformed("sentencepiece-size", f"a character map of {len(value):,} bytes")
        if number not in {2, 6} and isinstance(value, bytes) and len(value) > MAX_UNKNOWN_BYTES:
            raise Malformed("sentencepiece-shape", f"{len(value):,} bytes in field {number} of a normalizer")


def _fields(data: bytes) -> Iterator[tuple[int, int | float | bytes]]:
    """Each field's number and value; a message is bytes. Every byte belongs to one."""
    position, end = 0, len(data)
    while position < end:
        tag, position = _varint(data, position)
        number, kind = tag >> 3, tag & 7
        if kind == _VARINT:
            value, position = _varint(data, position)
        elif kind == _BYTES:
            length, position = _varint(data, position)
            value = data[position : position + length]
            position += length
        elif kind == _FIXED32 and position + 4 <= end:
            value, position = struct.unpack_from("<f", data, position)[0], position + 4
        elif kind == _FIXED64 and position + 8 <= end:
            value, position = struct.unpack_from("<d", data, position)[0], position + 8
        else:
            raise Malformed("sentencepiece-shape", f"byte {position:,} is not part of a SentencePiece model")
        if position > end or not number:
            raise Malformed("sentencepiece-shape", f"field {number} goes beyond the {end:,} bytes there are")
        yield number, value


def _varint(data: bytes, position: int) -> tuple[int, int]:
    if position < len(data) and data[position] < 0x80:  # nearly always
        return data[position], position + 1
    value = shift = 0
    for at in range(position, min(position + 10, len(data))):
        byte = data[at]
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at + 1
        shift += 7
    raise Malformed("sentencepiece-shape", f"a number at byte {position:,} that does not end")


def _shown(piece: bytes) -> str:
    return quoted(piece.decode(errors="replace"))
