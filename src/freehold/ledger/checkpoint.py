"""Signed statements of where the chain stands, to be kept where nobody who can write the book can write."""

from __future__ import annotations

import sqlite3
import time
from typing import Annotated

import msgspec
from msgspec import Struct

from freehold.errors import Unknown
from freehold.ledger.signing import Signer, holds
from freehold.ledger.sql import QUERIES


class Stated(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is signed, as JSON with its fields in this order."""

    version: int = 1
    book: str  # made with the book, so that no other one passes for it
    event: Annotated[int, msgspec.Meta(ge=1, le=2**63 - 1)]  # number of the last event
    hash: str  # its hash, 64 hex digits
    at_ns: int


class Checkpoint(Stated, frozen=True, kw_only=True):
    """With who signed it."""

    public: str  # 64 hex digits
    signature: str

    @property
    def line(self) -> bytes:
        return msgspec.json.encode(self) + b"\n"

    @property
    def genuine(self) -> bool:
        """Whether `public` made the signature; whose that is, is another question."""
        return holds(self.public, self.signature, "checkpoint", _message(self))


read = msgspec.json.Decoder(Checkpoint).decode


def state_of(db: sqlite3.Connection) -> Stated | None:
    """Where the book's chain stands now; None when there is nothing in it."""
    last = db.execute(QUERIES["last_event"]).fetchone()
    if last is None:
        return None
    book = db.execute(QUERIES["about"], ("book",)).fetchone()[0]
    return Stated(book=book, event=last[0], hash=last[1].hex(), at_ns=time.time_ns())


def sign(stated: Stated | None, signer: Signer) -> Checkpoint:
    """Raises Unknown when there is nothing to sign."""
    if stated is None:
        raise Unknown("the book has no event yet", hint="the first `freehold up` makes some")
    signature = signer.sign("checkpoint", msgspec.json.encode(stated))
    return Checkpoint(**msgspec.structs.asdict(stated), public=signer.public, signature=signature)


def _message(checkpoint: Stated) -> bytes:
    return msgspec.json.encode(Stated(**{name: getattr(checkpoint, name) for name in Stated.__struct_fields__}))
