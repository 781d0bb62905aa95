"""What the book's writer thread adds to the trail: events to their chain, usage rows to their seals.

Nothing here commits: it all happens inside of the transaction that the writer has begun.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from msgspec import Struct
from msgspec.structs import astuple, replace

from freehold.ledger import chain
from freehold.ledger.sql import INSERT_USAGE, QUERIES
from freehold.types import Content, Event, UsageRecord

SEAL_ROWS = 200
SEAL_S = 1.0  # a row waits so long at most

_log = logging.getLogger("freehold.ledger")


def steady_clock(not_before_ns: int = 0) -> Callable[[], int]:
    """Nanoseconds since 1970 that never go back: what is paid by the second must not follow a clock being set."""
    offset_ns = max(time.time_ns(), not_before_ns) - time.monotonic_ns()
    return lambda: offset_ns + time.monotonic_ns()


class Settled(Struct, frozen=True, gc=False):
    """A row to be: the values of a UsageRecord, the same as JSON, and the question and answer with their salt."""

    values: tuple[Any, ...]
    content: bytes
    kept: tuple[bytes, Content] | None = None


def settled(record: UsageRecord, kept: tuple[bytes, Content] | None = None) -> Settled:
    values = astuple(record)
    return Settled(values, chain.content_of(values), kept)


class Trail:
    """Belongs to the thread that writes; `reload` it first.

    `due_s`: when the open rows must be sealed, by time.monotonic().
    """

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db
        self._last_ns = self._last_time_ns()
        self.clock_ns = steady_clock(self._last_ns)
        self.behind_s = max(0, self._last_ns - time.time_ns()) / 1e9  # a clock set back since the last event
        self._next = 1
        self._leaves: list[bytes] = []
        self.due_s: float | None = None

    def add_event(self, event: Event) -> int:
        """Its number. Times in the book never go back, whoever's clock they were taken from."""
        self._last_ns = max(self._last_ns, event.at_ns)
        content = chain.encode(replace(event, at_ns=self._last_ns))
        seq, before = self._db.execute(QUERIES["last_event"]).fetchone() or (0, chain.GENESIS)
        row = chain.link(seq + 1, before, os.urandom(chain.SALT_BYTES), content)
        self._db.execute(QUERIES["insert_event"], row._replace(content=content.decode()))  # type: ignore[arg-type]
        return row.number

    def begin(self) -> int:
        """The clock goes on behind every event and every request; the time from which on it does."""
        newest_ns = self._db.execute(QUERIES["newest_usage"]).fetchone()[0] or 0
        self.clock_ns = steady_clock(max(self._last_ns, newest_ns + 1))
        return self.clock_ns()

    def tell(self, kind: str, subject: str, *, actor: str = "freehold", **detail: str | float | bool | None) -> int:
        return self.add_event(Event(at_ns=self.clock_ns(), actor=actor, kind=kind, subject=subject, detail=detail))

    def add_usage(self, rows: Sequence[Settled]) -> int:
        """How many were not there already. One that cannot be written is left out, and said."""
        added, leaves, failure = 0, [], None
        self._db.execute("savepoint rows")
        try:
            added, leaves = self._insert(rows)
        except (sqlite3.IntegrityError, OverflowError) as error:
            failure = error
        if leaves and added == len(rows):
            self._leaves += leaves
            self._next += added
            if self.due_s is None:
                self.due_s = time.monotonic() + SEAL_S
        else:
            self._db.execute("rollback to rows")
            if len(rows) > 1:
                added = sum(self.add_usage((row,)) for row in rows)
            elif failure:
                added = 0
                _log.error("the book refused a write: %s: %s", failure, rows[0].content.decode())
        self._db.execute("release rows")
        return added

    def _insert(self, rows: Sequence[Settled]) -> tuple[int, list[bytes]]:
        """As few statements as may be: each lets go of the interpreter, and has it again when the loop lets it."""
        blob = os.urandom(chain.SALT_BYTES * len(rows))
        salts = [blob[at : at + chain.SALT_BYTES] for at in range(0, len(blob), chain.SALT_BYTES)]
        values: list[Any] = []
        for number, (salt, row) in enumerate(zip(salts, rows, strict=True), start=self._next):
            values += (number, salt, *row.values)
        width, at, added = len(values) // len(rows), 0, 0
        for size, sql in INSERT_USAGE.items():
            while len(rows) - at >= size:
                added += self._db.execute(sql, values[at * width : (at + size) * width]).rowcount
                at += size
        for row in rows:
            if row.kept:
                salt, content = row.kept
                kept = (row.values[0], content.until_ns, salt, content.question, content.answer)
                self._db.execute(QUERIES["insert_content"], kept)
        return added, chain.leaves(self._next, salts, [row.content for row in rows])

    @property
    def due(self) -> bool:
        return self.due_s is not None and (len(self._leaves) >= SEAL_ROWS or time.monotonic() >= self.due_s)

    @property
    def sealed(self) -> int:
        """The number of the last row that a seal commits to."""
        return self._next - 1 - len(self._leaves)

    def seal(self) -> None:
        """Bind the open rows to the chain."""
        if leaves := self._leaves:
            first, last = self._next - len(leaves), self._next - 1
            event = self.tell("usage.sealed", "usage", first=first, last=last, root=chain.root(leaves).hex())
            self._db.execute(QUERIES["insert_seal"], (event, first, last, b"".join(leaves)))
            self._leaves = []
        self.due_s = None

    def reload(self, *, sealing: bool = False) -> None:
        """Begin from what the book holds: at the start, and when a transaction was lost.

        `sealing`: what a crash or an older edition left open is sealed. In a transaction.
        """
        sealed = self._db.execute(QUERIES["last_sealed"]).fetchone()[0] or 0
        self._leaves, self._next = [], sealed + 1
        for number, leaf in self._unsealed(sealed):
            if sealing and (number != self._next or len(self._leaves) == SEAL_ROWS):
                self.seal()
                self._next = number  # where somebody took rows out: the hole stays to be seen
            self._leaves.append(leaf)
            self._next += 1
        if sealing:
            self.seal()
        self.due_s = time.monotonic() if self._leaves else None

    def _unsealed(self, sealed: int) -> Iterator[tuple[int, bytes]]:
        for number, salt, *row in self._db.execute(QUERIES["unsealed"], (sealed,)):
            yield number, chain.leaf(number, chain.commitment(salt, chain.row_content(row)))

    def _last_time_ns(self) -> int:
        row = self._db.execute(QUERIES["last_time"]).fetchone()
        return row[0] if row and isinstance(row[0], int) else 0
