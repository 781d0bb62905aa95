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
_PIECE, _UNKNOWN, _TYPES = 1, 2, range(1, 7)
# The other fields: what the trainer was told, two normalizers with their character maps, texts to test itself with.
_MAX_BYTES = {2: 1 << 20, 3: 4 << 20, 4: 32 << 10, 5: 4 << 20}
_MAX_OTHER_BYTES = 4_096  # of newer versions
_TRAINER, _NORMALIZERS, _CHARSMAP = 2, (3, 5), 2
_MODEL, _MODELS = 3, range(1, 5)  # what the trainer was told to make: unigram, BPE, words or characters
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


def check(data: bytes) -> None:
    """Raises Malformed for what SentencePiece would not have written."""
    pieces: set[bytes] = set()
    unknown = 0
    for number, value in _fields(data):
        if not isinstance(value, bytes):
            raise Malformed("sentencepiece-shape", f"field {number} is a number; the model's fields are messages")
        if number == _PIECE:
            piece, kind = _piece(value)
            if piece in pieces:
                raise Malformed("sentencepiece-piece", f"the piece {_shown(piece)} occurs twice")
            pieces.add(piece)
            unknown += kind == _UNKNOWN
        elif len(value) > _MAX_BYTES.get(number, _MAX_OTHER_BYTES):
            raise Malformed("sentencepiece-size", f"{len(value):,} bytes in field {number}")
        elif number == _TRAINER or number in _NORMALIZERS:
            _settings(number, value)
    if not 0 < len(pieces) <= MAX_PIECES or unknown != 1:
        raise Malformed("sentencepiece-shape", f"{len(pieces):,} pieces, {unknown} of them for the unknown")


def _settings(number: int, data: bytes) -> None:
    for each, value in _fields(data):
        if number == _TRAINER and each == _MODEL and value not in _MODELS:
            raise Malformed("sentencepiece-shape", f"a model of the unknown type {quoted(str(value))}")
        if number != _TRAINER and each == _CHARSMAP and isinstance(value, bytes) and value:
            check_charsmap(value, len(value))


def check_charsmap(head: bytes, size_bytes: int) -> None:
    """A map of characters, which begins with `head`: the bytes of a tree with 4 in a node, the tree, texts.

    Readers look the tree's nodes up without a check. Raises Malformed.
    """
    tree_bytes = int.from_bytes(head[:4], "little")
    if not tree_bytes or tree_bytes % 4 or tree_bytes + 4 >= size_bytes:
        why = f"a map of characters of {size_bytes:,} bytes that claims a tree of {tree_bytes:,}"
        raise Malformed("sentencepiece-shape", why)


def _piece(data: bytes) -> tuple[bytes, int]:
    fields = dict(_fields(data))
    piece, score, kind = fields.pop(1, b""), fields.pop(2, 0.0), fields.pop(3, 1)
    if not isinstance(piece, bytes) or not 1 <= len(piece) <= MAX_PIECE_BYTES:
        raise Malformed("sentencepiece-piece", f"a piece that is no text of 1 to {MAX_PIECE_BYTES:,} bytes")
    try:
        piece.decode()
    except UnicodeDecodeError:
        raise Malformed("sentencepiece-piece", f"the piece {_shown(piece)} is not UTF-8") from None
    if kind not in _TYPES or not isinstance(score, float) or not math.isfinite(score) or fields:
        why = f"the piece {_shown(piece)} has score {score}, type {kind} and {len(fields)} more fields"
        raise Malformed("sentencepiece-piece", why)
    return piece, int(kind)


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
