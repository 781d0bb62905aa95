"""Whether the book is as it was written. Read-only; rows stream through, so memory does not grow with the book.

Without a checkpoint that was kept elsewhere, nobody can see that the end of the chain was cut off, or that all of it
was written anew.
"""

from __future__ import annotations

import sqlite3
from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec
from msgspec import Struct

from freehold.ledger import chain
from freehold.ledger.checkpoint import Checkpoint, read
from freehold.ledger.follow import Break, EventWalk, Gone, Kind, Row, Walk, span
from freehold.ledger.journal import left_behind
from freehold.ledger.ranges import Ranges
from freehold.ledger.sql import QUERIES
from freehold.ledger.trail import settled as row_of
from freehold.types import UsageRecord

LARGEST_SEAL_ROWS = 10**6
_REQUEST, _CONTENT_HASH = (UsageRecord.__struct_fields__.index(name) for name in ("request", "content_hash"))
_NO_EVENT = "no event says that it was deleted"


class _Detail(Struct):
    """What an event tells the check."""

    rows: str = ""  # trail.deleted
    first: int = 0  # usage.sealed
    last: int = 0
    root: str = ""


class _Event(Struct):
    kind: str
    subject: str
    detail: _Detail


class _Seals:
    """The leaves that events have the roots of, by the number of the row."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db
        self._events, self._firsts, self._lasts = array("q"), array("q"), array("q")  # each in ascending order
        self._unknown = Ranges()
        self._now = range(0)  # whose leaves are at hand
        self._leaves = b""
        self.last = 0

    def add(self, event: int, said: _Detail) -> Iterator[Break]:
        """The next seal."""
        following = self.last + 1
        if not following <= said.first <= said.last < following + LARGEST_SEAL_ROWS:
            why = f"it seals usage rows {said.first} to {said.last} out of turn"
            yield Break(kind="changed", where=f"event {event}", why=why)
            return
        if said.first > following:
            where = span("usage row", following, said.first - 1)
            yield Break(kind="dropped", where=where, why=f"no seal before event {event} has them")
            self._unknown.add(following, said.first - 1)
        self.last = said.last
        for known, number in ((self._events, event), (self._firsts, said.first), (self._lasts, said.last)):
            known.append(number)
        leaves = self._read(said.first)
        if len(leaves) != (said.last - said.first + 1) * chain.HASH_BYTES or _root(leaves) != said.root:
            where = span("usage row", said.first, said.last)
            yield Break(
                kind="changed", where=where, why=f"their hashes in the table `seal` are not those of event {event}"
            )
            self._unknown.add(said.first, said.last)

    def leaf(self, number: int) -> bytes | None:
        """None where no seal can tell."""
        if number not in self._now:
            at = bisect_right(self._firsts, number)
            if not at or self._unknown.has(number):
                return None
            self._leaves = self._read(first := self._firsts[at - 1])
            self._now = range(first, first + len(self._leaves) // chain.HASH_BYTES)
        at_byte = (number - self._now[0]) * chain.HASH_BYTES
        return self._leaves[at_byte : at_byte + chain.HASH_BYTES]

    def strays(self) -> Iterator[Break]:
        """What the table has without its event, which vouches for nothing: put there, or left by a cut of the chain."""
        for event, first, last in self._db.execute(QUERIES["seals"]):
            at = bisect_right(self._firsts, first) - 1
            if at >= 0 and (event, first, last) == (self._events[at], self._firsts[at], self._lasts[at]):
                continue
            if not first <= last or any(self._unknown.holes(first, last)):  # else it is said already
                why = f"event {event} does not say so, or is not here"
                yield Break(kind="inserted", where=f"seal of {span('usage row', first, last)}", why=why)

    def _read(self, first: int) -> bytes:
        row = self._db.execute(QUERIES["leaves"], (first,)).fetchone()
        return row[0] if row else b""


class _UsageWalk(Walk):
    """A usage row is what its leaf says; where no leaf can tell, the number has to do."""

    name = "usage row"

    def __init__(self, rows: Iterable[Row], seals: _Seals, deleted: Ranges) -> None:
        super().__init__(rows)
        self._seals, self._deleted, self.last = seals, deleted, seals.last

    def next(self, number: int) -> int:
        return next(self._deleted.holes(number + 1, self.last + 1), (self.last + 1,))[0]

    def fits(self, before: bytes | None, number: int, row: Row) -> bool:  # noqa: ARG002
        if number > self.last:
            return False
        leaf = self._seals.leaf(number)
        return row.number == number if leaf is None else chain.leaf(number, row.commitment) == leaf

    def vouched(self, number: int, row: Row, after: Row | None) -> bool:  # noqa: ARG002
        return self.fits(None, number, row)


class Audit:
    """One pass over the book in a folder, through a connection that sees one state of it."""

    def __init__(self, db: sqlite3.Connection, folder: Path) -> None:
        self._db = db
        db.row_factory = None  # rows by name take twice the time
        settled, cut = left_behind(folder)  # now: what this state has not sealed may soon leave the journal
        self._journal = {record.request: row_of(record).content for record in (*settled, *cut)}
        self.events = self.rows = 0  # that hold, so far
        self._deleted = {what: Ranges() for what in ("events", "usage", "content")}
        self._seals = _Seals(db)
        self._head = 0, chain.GENESIS  # the last event that there is: its number and hash

    def breaks(self) -> Iterator[Break]:
        """Whatever is not as it was written. Raises sqlite3.DatabaseError where the file itself is damaged."""
        yield from self._check_events()
        yield from self._seals.strays()
        yield from self._check_usage()
        for (request,) in self._db.execute(QUERIES["stray_content"]):
            yield Break(kind="inserted", where=f"what was kept of {request}", why="no usage row commits to it")

    def _check_events(self) -> Iterator[Break]:
        empty = Ranges()
        for step in EventWalk(self._events()).steps():
            if isinstance(step, Break):
                yield step
            elif isinstance(step, Gone):
                why = "what stands behind goes on from something that is not here"
                yield Break(kind="dropped", where=span("event", step.first, step.last), why=why)
            else:
                self._head = step.number, step.row.hash
                self.events += step.holds
                yield from self._check_event(step.number, step.row, empty, holds=step.holds)
        for number in empty:
            yield from self._unless_deleted("events", "emptied", "event", *number)

    def _events(self) -> Iterator[Row]:
        for number, salt, content, committed, hashed in self._db.execute(QUERIES["events"]):
            yield Row(number, committed, hashed, (salt, content))

    def _check_event(self, number: int, row: Row, empty: Ranges, *, holds: bool) -> Iterator[Break]:
        """What it says, also when only its hash is wrong: or that one would be many."""
        salt, content = row.rest
        if salt is None and content is None:
            empty.add(number, number)
        elif chain.commitment(salt or b"", content or b"") == row.commitment:
            yield from self._note(number, content or b"")
        elif holds:
            self.events -= 1
            yield Break(kind="changed", where=f"event {number}", why="its content is not what it commits to")

    def _note(self, number: int, content: bytes) -> Iterator[Break]:
        """What an event tells of other rows."""
        if b'"kind":"usage.sealed"' not in content and b'"kind":"trail.deleted"' not in content:
            return
        try:
            event = msgspec.json.decode(content, type=_Event)
        except msgspec.DecodeError:  # another one, that only has the words in it
            return
        if event.kind == "usage.sealed":
            yield from self._seals.add(number, event.detail)
        elif event.kind == "trail.deleted" and event.subject in self._deleted:
            self._deleted[event.subject].add_text(event.detail.rows)

    def _check_usage(self) -> Iterator[Break]:
        walk = _UsageWalk(self._usage(), self._seals, self._deleted["usage"])
        for step in walk.steps():
            if isinstance(step, Break):
                yield step
            elif isinstance(step, Gone):
                yield from self._unless_deleted("usage", "dropped", "usage row", step.first, step.last)
            elif step.holds:
                self.rows += 1
                yield from self._check_content(step.number, step.row)
        yield from self._check_unsealed([row for row in walk.rest() if not self._in_journal(row)])

    def _usage(self) -> Iterator[Row]:
        for number, salt, *row in self._db.execute(QUERIES["usage"]):
            committed = chain.commitment(salt, chain.row_content(row))
            yield Row(number, committed, rest=(row[_REQUEST], row[_CONTENT_HASH]))

    def _unless_deleted(self, what: str, kind: Kind, name: str, first: int, last: int) -> Iterator[Break]:
        for gap in self._deleted[what].holes(first, last):
            yield Break(kind=kind, where=span(name, *gap), why=_NO_EVENT)

    def _check_content(self, number: int, row: Row) -> Iterator[Break]:
        request, content_hash = row.rest
        if not content_hash:
            return
        where, kept = f"what was kept of usage row {number}", self._db.execute(QUERIES["content_of"], (request,))
        if (found := kept.fetchone()) is None:
            if not self._deleted["content"].has(number):
                yield Break(kind="emptied", where=where, why=_NO_EVENT)
        elif chain.kept(*found[:3]) != content_hash:
            yield Break(kind="changed", where=where, why="it is not what the row commits to")

    def _in_journal(self, row: Row) -> bool:
        """Rows behind the last seal: the daemon has not come to seal them, and the journal has them still."""
        request, _ = row.rest
        found = self._db.execute(QUERIES["usage_of_request"], (request,)).fetchone()
        return self._journal.get(request) == chain.row_content(found[2:])

    def _check_unsealed(self, rows: list[Row]) -> Iterator[Break]:
        """A daemon that writes may have sealed them since this state of the book: look at it as it is now."""
        if not rows:
            return
        unknown = Ranges()
        self._db.execute("commit")
        self._db.execute("begin")
        yield from self._check_later()
        for row in rows:
            known = row.number <= self._seals.last and self._seals.leaf(row.number)
            if known != chain.leaf(row.number, row.commitment):
                unknown.add(row.number, row.number)
        for each in unknown:
            yield Break(kind="inserted", where=span("usage row", *each), why="no seal commits to it")

    def _check_later(self) -> Iterator[Break]:
        """The events that came meanwhile: a seal counts only with an event that goes on from those checked before."""
        number, before = self._head
        for at, salt, content, committed, hashed in self._db.execute(QUERIES["later_events"], (number,)):
            number += 1
            good = content is None or chain.commitment(salt or b"", content) == committed
            if at != number or not good or chain.chained(before, number, committed) != hashed:
                yield Break(kind="changed", where=f"event {at}", why="it does not go on from what was there before")
                return
            before = hashed
            yield from self._note(number, content or b"")


def _root(leaves: bytes) -> str:
    size = chain.HASH_BYTES
    return chain.root([leaves[at : at + size] for at in range(0, len(leaves), size)]).hex()


def against(db: sqlite3.Connection, lines: Iterable[bytes], public: str | None) -> Iterator[Checkpoint | Break]:
    """Each checkpoint that the book still fulfils, or what is wrong; `public`: who must have signed, if known."""
    book = (db.execute(QUERIES["about"], ("book",)).fetchone() or ("unknown",))[0]
    head = (db.execute(QUERIES["last_event"]).fetchone() or (0,))[0]
    for at, line in enumerate(filter(None, map(bytes.strip, lines)), start=1):
        try:
            checkpoint = read(line)
        except msgspec.DecodeError as error:
            yield Break(kind="unknown", where=f"checkpoint {at}", why=f"it cannot be read: {error}")
            continue
        where = f"checkpoint {at}, of event {checkpoint.event}"
        row = db.execute(QUERIES["event_hash"], (checkpoint.event,)).fetchone()
        if not checkpoint.genuine or public not in (None, checkpoint.public):
            why = "its signature is wrong" if not checkpoint.genuine else f"another key signed it: {checkpoint.public}"
            yield Break(kind="unknown", where=where, why=why)
        elif checkpoint.book != book:
            yield Break(kind="recomputed", where=where, why=f"it is of the book {checkpoint.book}, and this is {book}")
        elif row is None and checkpoint.event > head:
            yield Break(kind="cut", where=where, why=f"the book ends with event {head}: what came after was cut off")
        elif row is None or row[0].hex() != checkpoint.hash:
            why = "the book has another event there: up to this point, it was written anew"
            yield Break(kind="recomputed", where=where, why=why)
        else:
            yield checkpoint
