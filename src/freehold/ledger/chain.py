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

# The content of a usage row is its record as JSON, the fields in their order. Those behind content_hash came later, and
# are left out while they have their default: so rows that were written before still give their hashes.
_FIELDS = msgspec.structs.fields(UsageRecord)
_FIRST = [field.name for field in _FIELDS].index("content_hash") + 1
_Row = msgspec.defstruct(
    "_Row",
    [(f.name, f.type) for f in _FIELDS[:_FIRST]] + [(f.name, f.type, f.default) for f in _FIELDS[_FIRST:]],
    omit_defaults=True,
    gc=False,
)
_FLAGS = [UsageRecord.__struct_fields__.index(name) for name in ("stream", "lower_bound")]
_NO_WAKE = next(field.default for field in _FIELDS if field.name == "wake_ms")
encode = msgspec.json.Encoder().encode


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


def leaves(first: int, salts: Sequence[bytes], contents: Sequence[bytes]) -> list[bytes]:
    """Those of usage rows that follow each other; at the cost of the hashes alone."""
    sha = hashlib.sha256
    return [
        sha(b"\0" + number.to_bytes(8, "big") + sha(salt + content).digest()).digest()
        for number, (salt, content) in enumerate(zip(salts, contents, strict=True), start=first)
    ]


def root(leaves: Sequence[bytes]) -> bytes:
    """RFC 6962, section 2.1: a node without a sibling moves up as it is."""
    level = leaves
    while len(level) > 1:
        level = _above(level)
    return level[0]


def content_of(row: Sequence[Any]) -> bytes:
    """The content of a usage row: the values of a UsageRecord."""
    sealed: Any = _Row(*row)
    if not sealed.wake_ms:
        sealed.wake_ms = _NO_WAKE  # one 0.0 is not another: defaults are known by their identity
    return encode(sealed)


def row_content(row: Sequence[Any]) -> bytes:
    """The same of a row as the table has it, which knows no booleans."""
    values = list(row)
    for flag in _FLAGS:
        values[flag] = bool(values[flag])
    return content_of(values)


def kept(salt: bytes, question: bytes, answer: bytes) -> str:
    """What a usage row says of a question and answer that were kept: 64 hex digits."""
    return hashlib.sha256(salt + _eight(len(question)) + question + answer).hexdigest()


def _above(level: Sequence[bytes]) -> list[bytes]:
    sha = hashlib.sha256
    pairs = [sha(b"\1" + left + right).digest() for left, right in zip(level[::2], level[1::2], strict=False)]
    return [*pairs, level[-1]] if len(level) % 2 else pairs


def _eight(number: int) -> bytes:
    return (number % 2**64).to_bytes(8, "big")  # below 0, and too large: nobody wrote it, but it may stand there
