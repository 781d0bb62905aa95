"""The hash chain of events: nothing in it can be changed or taken out of the middle unseen.

A chain alone cannot show that its tail was cut or that all of it was recomputed; for that its last hash must be kept
somewhere else.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import NamedTuple

GENESIS = bytes(32)


class Link(NamedTuple):
    """A row of the event table."""

    seq: int
    salt: bytes | None
    content: str | None  # JSON of a types.Event; None once retention has emptied it
    commitment: bytes
    hash: bytes


def link(seq: int, previous: bytes, salt: bytes, content: str) -> Link:
    commitment = hashlib.sha256(salt + content.encode()).digest()
    return Link(seq, salt, content, commitment, _hash(previous, seq, commitment))


def first_break(links: Iterable[Link]) -> int | None:
    """The number of the first row that does not follow from those before it, or None when all do."""
    previous = GENESIS
    for expected, row in enumerate(links, start=1):
        content_holds = (
            row.salt is None
            or row.content is None
            or row.commitment == hashlib.sha256(row.salt + row.content.encode()).digest()
        )
        if row.seq != expected or not content_holds or row.hash != _hash(previous, row.seq, row.commitment):
            return expected
        previous = row.hash
    return None


def _hash(previous: bytes, seq: int, commitment: bytes) -> bytes:
    return hashlib.sha256(previous + seq.to_bytes(8, "big") + commitment).digest()
