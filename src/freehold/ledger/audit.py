"""Whether the book is as it was written. Read-only; rows stream through, so memory does not grow with the book.

Without a checkpoint that was kept elsewhere, nobody can see that the end of the chain was cut off, or that all of it
was written anew.
"""

from __future__ import annotations

import sqlite3
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from freehold.ledger import chain
from freehold.ledger.align import Alignment, Leaf, Row
from freehold.ledger.checkpoint import Checkpoint, read
from freehold.ledger.follow import Ahead, Break, Walk
from freehold.ledger.journal import left_behind
from freehold.ledger.ranges import Ranges
from freehold.ledger.sql import QUERIES
from freehold.types import UsageRecord

LARGEST_SEAL_ROWS = 10**6
_REQUEST, _CONTENT_HASH = (UsageRecord.__struct_fields__.index(name) for name in ("request", "content_hash"))


class _Deleted(Struct):
    rows: str


class _DeletedEvent(Struct):
    kind: str
    subject: str
    detail: _Deleted


class _Sealed(Struct):
    first: int
    last: int
    root: str


class _SealedEvent(Struct):
    kind: str
    detail: _Sealed


class Audit:
    """One pass over the book in a folder, through a connection that sees one state of it."""

    def __init__(self, db: sqlite3.Connection, folder: Path) -> None:
        self._db, self._folder = db, folder
        db.row_factory = None  # rows by name take twice the time
        self.events = self.rows = 0  # that hold, so far
        self._deleted = {what: Ranges() for what in ("events", "usage", "content")}
        self._gone = {what: Ranges() for what in ("events", "usage", "content")}
        self._found: deque[Break] = deque()

    def breaks(self) -> Iterator[Break]:
        """Whatever is not as it was written. Raises sqlite3.DatabaseError where the file itself is damaged."""
        yield from self._events()
        usage = Alignment(self._leaves(), self._usage(), self._hold, self._miss)
        for found in usage.breaks():
            yield from self._drain()
            yield found
        yield from self._unsealed(usage.rest())
        yield from self._strays()
        yield from self._drain()
        self._deleted["content"].add_text(str(self._deleted["usage"]))
        why = "no event says that it was deleted"
        for what, name in (("events", "event"), ("usage", "usage row"), ("content", "what was kept of usage row")):
            for first, last in self._gone[what].without(self._deleted[what]):
                where = f"{name} {first}" if first == last else f"{name} {first} to {last}"
                yield Break(kind="dropped" if what == "usage" else "emptied", where=where, why=why)

    def _drain(self) -> Iterator[Break]:
        while self._found:
            yield self._found.popleft()

    def _say(self, kind: Any, where: str, why: str) -> None:
        self._found.append(Break(kind=kind, where=where, why=why))

    def _events(self) -> Iterator[Break]:
        for step in Walk(chain.Link(*row) for row in self._db.execute(QUERIES["events"])).steps():
            if isinstance(step, Break):
                yield step
                continue
            self.events += 1
            if (content := step.row.content) is None:
                self._gone["events"].add(step.number, step.number)
            elif (event := _decoded(content, "trail.deleted", _DeletedEvent)) and event.subject in self._deleted:
                self._deleted[event.subject].add_text(event.detail.rows)

    def _usage(self) -> Iterator[Row]:
        for number, salt, *row in self._db.execute(QUERIES["unsealed"], (-(2**63),)):
            committed = chain.commitment(salt, chain.row_content(row))
            yield Row(number, committed, row[_REQUEST], row[_CONTENT_HASH])

    def _leaves(self) -> Iterator[Leaf]:
        """What the seals say, each compared with the root in its event."""
        following = 1
        kept = self._kept_leaves()
        for seq, salt, content, committed in self._db.execute(QUERIES["seals"]):
            event = _decoded(content, "usage.sealed", _SealedEvent)
            if event is None or salt is None or chain.commitment(salt, content) != committed:
                continue  # no seal; or it was said of the event already
            said = event.detail
            if not following <= said.first <= said.last < following + LARGEST_SEAL_ROWS:
                self._say("changed", f"event {seq}", f"it seals usage rows {said.first} to {said.last} out of turn")
                continue
            if said.first > following:
                self._say(
                    "dropped", f"usage rows {following} to {said.first - 1}", f"no seal before event {seq} has them"
                )
                yield from (Leaf(number, b"") for number in range(following, said.first))
            following = said.last + 1
            numbers = range(said.first, following)
            hashes = kept(said)
            if len(hashes) != len(numbers) or chain.root(hashes).hex() != said.root:
                hashes = self._recomputed(seq, said)
            yield from (Leaf(number, each) for number, each in zip(numbers, hashes, strict=True))

        kept(None)

    def _kept_leaves(self) -> Callable[[_Sealed | None], list[bytes]]:
        """The leaves that the book kept for a seal, [] if there are none; None: there is no other seal."""
        seals = Ahead(self._db.execute(QUERIES["leaves"]))

        def kept(said: _Sealed | None) -> list[bytes]:
            while seals.look(1) and (said is None or seals.seen[0][0] <= said.first):
                first, last, leaves = seals.seen.popleft()
                if said and (first, last) == (said.first, said.last):
                    return [leaves[at : at + chain.HASH_BYTES] for at in range(0, len(leaves), chain.HASH_BYTES)]
                self._say("inserted", f"the hashes of usage rows {first} to {last}", "no event seals them")
            return []

        return kept

    def _recomputed(self, seq: int, said: _Sealed) -> list[bytes]:
        """The leaves of a seal from the rows themselves, because those that the book kept are not what was sealed."""
        numbers, where = range(said.first, said.last + 1), f"usage rows {said.first} to {said.last}"
        rows = self._db.execute(QUERIES["usage_between"], (said.first, said.last))
        found = {row[0]: chain.leaf(row[0], chain.commitment(row[1], chain.row_content(row[2:]))) for row in rows}
        hashes = [found.get(number, bytes(32)) for number in numbers]
        if chain.root(hashes).hex() == said.root:
            self._say("changed", where, f"their hashes in the table `seal` (of event {seq}); the rows themselves hold")
        else:
            self._say("changed", where, f"they do not give the root in event {seq}: a row, or its hash, was changed")
        return hashes

    def _hold(self, row: Row, number: int) -> None:
        self.rows += 1
        if not row.content_hash:
            return
        kept = self._db.execute(QUERIES["content_of"], (row.request,)).fetchone()
        if kept is None:
            self._gone["content"].add(number, number)
        elif chain.kept(*kept[:3]) != row.content_hash:
            self._say("changed", f"what was kept of usage row {number}", "it is not what the row commits to")

    def _miss(self, number: int) -> None:
        self._gone["usage"].add(number, number)

    def _unsealed(self, rows: Iterable[Row]) -> Iterator[Break]:
        """Rows behind the last seal: the daemon has not come to seal them, and the journal has them still."""
        settled, cut = left_behind(self._folder)
        known = {record.request: chain.content_of(record) for record in (*settled, *cut)}
        for row in rows:
            raw = self._db.execute(QUERIES["usage_of_request"], (row.request,)).fetchone()
            if known.get(row.request) != chain.row_content(raw[2:]):
                yield Break(kind="inserted", where=f"usage row at {row.number}", why="no seal commits to it")

    def _strays(self) -> Iterator[Break]:
        for (request,) in self._db.execute(QUERIES["stray_content"]):
            yield Break(kind="inserted", where=f"what was kept of {request}", why="no usage row commits to it")


def against(db: sqlite3.Connection, lines: Iterable[bytes], public: str | None) -> Iterator[Checkpoint | Break]:
    """Each checkpoint that the book still fulfils, or what is wrong; `public`: who must have signed, if known."""
    book = db.execute(QUERIES["about"], ("book",)).fetchone()[0]
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


def _decoded(content: bytes, kind: str, event: Any) -> Any:
    """An event of this kind, or None: what only looks like one was put there by somebody else."""
    if f'"kind":"{kind}"'.encode() not in content:
        return None
    try:
        read = msgspec.json.decode(content, type=event)
    except msgspec.DecodeError:
        return None
    return read if read.kind == kind else None
