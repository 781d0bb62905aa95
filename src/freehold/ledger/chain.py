"""The rules of hashing: what binds an event to those before it, and a usage row to its seal.

A chain alone cannot show that its tail was cut or that all of it was recomputed; for that its last hash must be kept
somewhere else. docs/trail.md says all of this for people who write their own check.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec

from freehold.types import UsageRecord

GENESIS = bytes(32)
HASH_BYTES = 32
SALT_BYTES = 16

# The content of a usage row is its record as JSON, the fields in their order. A field that is added one day has to be
# left out while it has its default, or older rows would no longer give their hashes.
content_of = msgspec.json.Encoder().encode
_Row = msgspec.defstruct("_Row", [(field.name, field.type) for field in msgspec.structs.fields(UsageRecord)])
_FLAGS = [UsageRecord.__struct_fields__.index(name) for name in ("stream", "lower_bound")]


class Link(NamedTuple):
    """A row of the event table."""

    number: int
    salt: bytes | None
    content: bytes | None  # JSON of a types.Event; None once retention has emptied it
    commitment: bytes
    hash: bytes


def link(number: int, previous: bytes, salt: bytes, content: bytes) -> Link:
    """The event of this number, bound to the hash of the one before it."""
    committed = commitment(salt, content)
    return Link(number, salt, content, committed, chained(previous, number, committed))


def commitment(salt: bytes, content: bytes) -> bytes:
    return hashlib.sha256(salt + content).digest()


def chained(previous: bytes, number: int, committed: bytes) -> bytes:
    return hashlib.sha256(previous + _eight(number) + committed).digest()


def leaf(number: int, committed: bytes) -> bytes:
    """A usage row in its seal's tree."""
    return hashlib.sha256(b"\0" + _eight(number) + committed).digest()


def root(leaves: Sequence[bytes]) -> bytes:
    """RFC 6962, section 2.1: a node without a sibling moves up as it is."""
    level = leaves
    while len(level) > 1:
        level = _above(level)
    return level[0]


def row_content(row: Sequence[Any]) -> bytes:
    """The content of a usage row as the table has it, which knows no booleans."""
    values = list(row)
    for flag in _FLAGS:
        values[flag] = bool(values[flag])
    return content_of(_Row(*values))


def kept(salt: bytes, question: bytes, answer: bytes) -> str:
    """What a usage row says of a question and answer that were kept: 64 hex digits."""
    return hashlib.sha256(salt + _eight(len(question)) + question + answer).hexdigest()


def _above(level: Sequence[bytes]) -> list[bytes]:
    pairs = [_node(level[i], level[i + 1]) for i in range(0, len(level) - 1, 2)]
    return [*pairs, level[-1]] if len(level) % 2 else pairs


def _node(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(b"\1" + left + right).digest()


def _eight(number: int) -> bytes:
    return (number % 2**64).to_bytes(8, "big")  # below 0, and too large: nobody wrote it, but it may stand there
