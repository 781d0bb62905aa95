"""The book in SQLite: one thread owns the connection and writes, in batches; readers open it read-only.

Writes that arrive while a commit is running share the next one. Usage records need no waiting: they are safe in the
journal until they are here.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from freehold.errors import FreeholdError
from freehold.ledger import made, measured
from freehold.ledger.chain import SALT_BYTES, kept
from freehold.ledger.deletion import Deletion, delete
from freehold.ledger.journal import Journal, Then, left_behind, segments
from freehold.ledger.ranges import Ranges
from freehold.ledger.sql import QUERIES, migrate
from freehold.ledger.trail import Trail, settled
from freehold.ledger.writer import BATCH, Write, Writer
from freehold.types import Content, Event, Grant, Key, Measurement, Price, Spent, Tokens, UsageRecord

OPEN_S = 15.0  # how long to wait, at the start, for who else holds the book
BUSY_MS = 1000  # and later, before saying so and waiting on
REWRITE_BYTES = 256 << 20  # takes 2 s; a larger book is not written anew daily
SYNC_S = 0.05  # the journal is on the disk at least this often

_log = logging.getLogger("freehold.ledger")


class Verified(NamedTuple):
    """One pass over all bytes of some weights that found nothing."""

    digest: str
    looks: str  # what stands for the names, sizes, times and inodes of their files
    at_ns: int


class Book:
    """Open it from the event loop that will use it.

    `folder` holds the database and the journal. `on_failure` is called in that loop when the book cannot be written
    any more (`broken`): nothing should be served that is not recorded. With `power_loss` no request goes on before
    its line is on the disk.
    """

    def __init__(self, folder: Path, *, power_loss: bool = False) -> None:
        self.on_failure: Callable[[], None] = lambda: None
        self._loop = asyncio.get_running_loop()
        self._path = folder / "book.db"
        made.check(self._path)
        self._db = sqlite3.connect(self._path, timeout=OPEN_S, isolation_level=None, check_same_thread=False)
        self._path.chmod(0o600)
        self._wal = folder / "book.db-wal"
        try:
            self._db.executescript("pragma journal_mode = wal; pragma synchronous = normal; pragma foreign_keys = on;")
            migrate(self._db)
            self._db.execute("pragma secure_delete = on")  # what retention takes is overwritten
            self._trail = Trail(self._db)
            self.recovered = self._recover(folder)
            made.note(self._path, self._db)  # not before the book is on the disk
        except sqlite3.DatabaseError as failure:
            self._db.close()
            raise FreeholdError(
                f"the book cannot be opened: {failure}",
                hint="does a backup or a shell hold it? If it is damaged: freehold audit verify, and a backup",
            ) from None
        self.clock_ns, self.behind_s = self._trail.clock_ns, self._trail.behind_s
        self._db.execute(f"pragma busy_timeout = {BUSY_MS}")
        self.journal = Journal(folder, power_loss=power_loss)
        self._rotating: asyncio.Task[None] | None = None
        self._unclear = False  # deleted rows are still in the file
        self._soon_timer: asyncio.TimerHandle | None = None
        self._writer = Writer(self._db, self._trail, self.journal, lambda: self.on_failure())  # noqa: PLW0108  the one it has then

    @property
    def broken(self) -> bool:
        return self._writer.broken

    @property
    def batches_waiting(self) -> int:
        return self._writer.waiting

    def _recover(self, folder: Path) -> int:
        """Move what a crashed daemon left in the journal; returns how many requests it had not settled."""
        done, cut = left_behind(folder)
        trail = self._trail
        self._db.execute("begin immediate")
        trail.reload(sealing=True)
        known = trail.sealed
        self._move(done)
        closed = self._move(cut)
        if lost := [row[0] for row in self._db.execute(QUERIES["lost_content"], (known,))]:
            trail.tell("trail.deleted", "content", rows=str(Ranges(lost)), count=len(lost), why="lost in a crash")
        trail.seal()
        self._boot_ns = trail.begin()
        self._db.execute(QUERIES["add_boot"], (self._boot_ns,))
        self._db.execute("commit")
        _to_disk(self._wal)  # before the journal goes, which so far held them
        for segment in segments(folder):
            segment.unlink()
        return closed

    def _move(self, records: list[UsageRecord]) -> int:
        """How many of them the book did not have."""
        new = 0
        for at in range(0, len(records), BATCH):
            new += self._trail.add_usage([settled(record) for record in records[at : at + BATCH]])
            if self._trail.due:
                self._trail.seal()
        return new

    # requests

    def open_request(self, record: UsageRecord, then: Then | None = None, price: Price | None = None) -> None:
        """Before the engine sees it; `price` is what recovery charges for it if this daemon dies.

        `then` is called when it is durable, soon and once, or with NotReady when it could not be recorded. Without it
        the record is durable against a crash when this returns; raises NotReady.
        """
        self.journal.open(record, then, price)
        if self._soon_timer is None:
            self._soon()

    def note_progress(self, request: str, tokens: Tokens) -> None:
        """What was counted so far of a request that was opened: if this daemon dies, its record says so much."""
        self.journal.note(request, tokens)

    def settle_request(self, record: UsageRecord, content: Content | None = None, then: Then | None = None) -> None:
        """`then` as above, but never with an error: what the journal could not take the book has, in a moment.

        `content`, which only some keys ask to keep, is not in the journal: a crash in between loses it.
        """
        keep = None
        if content:
            salt = os.urandom(SALT_BYTES)
            keep = salt, content
            record.content_hash = kept(salt, content.question, content.answer)
        row = settled(record, keep)
        self.journal.settle(record.request, row.content, then)
        self._writer.add(row)
        if self._soon_timer is None:
            self._soon()
        if self.journal.full:
            self._rotate_soon()

    def _soon(self) -> None:
        """In SYNC_S what has come is handed to the writer, and what is in the journal is on the disk."""
        self._soon_timer = self._loop.call_later(SYNC_S, self._sync)

    def _sync(self) -> None:
        self._soon_timer = None
        self._writer.put(lambda _: self.journal.sync())

    def _rotate_soon(self) -> asyncio.Task[None]:
        if self._rotating is None:
            self._rotating = asyncio.create_task(self._rotate())
        return self._rotating

    async def _rotate_now(self) -> None:
        """What was settled before this is in the book and no journal has it any more."""
        if self._rotating:
            await asyncio.wait((self._rotating,))
        await asyncio.wait((self._rotate_soon(),))

    async def _rotate(self) -> None:
        try:
            old = self.journal.rotate()
            await self.seal()  # what is not sealed is in the journal: so verify knows it from what somebody put there
            await asyncio.to_thread(self._retire, old)
        except (OSError, FreeholdError) as failure:
            _log.error("the journal goes on in its old file: %s", failure)
        finally:
            self._rotating = None

    def _retire(self, old: list[Path]) -> None:
        """In a thread: a large file takes as long to go as to be written."""
        self.journal.sync()
        _to_disk(self._wal)
        if not self.broken:  # else the journal alone has them
            for segment in old:
                segment.unlink(missing_ok=True)

    # events

    def add_event(self, event: Event) -> None:
        self._writer.put(lambda _: self._trail.add_event(event))

    async def seal(self) -> None:
        """Everything handed over so far is committed, and bound to the chain."""
        await self.do(lambda _: self._trail.seal())

    async def delete(self, *deletions: Deletion, thorough: bool = True) -> list[int]:
        """How many rows each of them took, in steps so that others can write in between.

        They are overwritten, and gone from the log and the journal; remnants in pages that SQLite once rearranged go
        when the file is written anew: always if `thorough`, else while it is no larger than REWRITE_BYTES.
        Raises FreeholdError when they are deleted, but the file could not be cleared of them: the next one tries again.
        """
        await self._rotate_now()  # the journal has records too
        counts = [0] * len(deletions)
        for at, deletion in enumerate(deletions):
            while taken := await self.do(lambda db, deletion=deletion: delete(db, self._trail, deletion)):
                counts[at] += taken
                self._unclear = True
        if self._unclear or thorough:
            await asyncio.to_thread(self._clear, rewrite=thorough or self._path.stat().st_size <= REWRITE_BYTES)
            self._unclear = False
        return counts

    def _clear(self, *, rewrite: bool) -> None:
        """Nobody else can write meanwhile: requests go on in the journal, everything else waits."""
        try:
            with contextlib.closing(sqlite3.connect(self._path, timeout=OPEN_S)) as db:
                if rewrite:
                    db.execute("vacuum")
                busy = db.execute("pragma wal_checkpoint(truncate)").fetchone()[0]
        except sqlite3.DatabaseError as failure:
            busy = str(failure)
        if busy:
            raise FreeholdError(
                f"deleted, but not cleared from the book's file: {'somebody reads it' if busy == 1 else busy}",
                hint="end whoever reads it, or make room for two more of the book; the next deletion clears it too",
            )

    # keys and pins

    async def keys(self) -> dict[bytes, Key]:
        rows = await self.do(lambda db: db.execute(QUERIES["keys"]).fetchall())
        return {
            row[0]: Key(
                id=row[1], name=row[2], endpoints=tuple(row[3].split()),
                created_ns=row[4], expires_ns=row[5], revoked_ns=row[6], content_days=row[7],
                group=row[8], grant=msgspec.json.decode(row[9], type=Grant),
            )
            for row in rows
        }  # fmt: skip

    async def add_key(self, key: Key, secret_hash: bytes, others_until_ns: int | None = None) -> None:
        """Others of its name open nothing any more after `others_until_ns`."""
        endpoints, grant = " ".join(key.endpoints), msgspec.json.encode(key.grant).decode()
        row = (key.id, secret_hash, key.name, endpoints, key.created_ns, key.expires_ns, key.content_days)

        def write(db: sqlite3.Connection) -> None:
            if others_until_ns is not None:
                db.execute(QUERIES["end_keys"], (others_until_ns, key.name))
            db.execute(QUERIES["insert_key"], (*row, key.group, grant))

        await self.do(write)

    async def revoke_key(self, key_id: str) -> None:
        await self.do(lambda db: db.execute(QUERIES["revoke_key"], (time.time_ns(), key_id)))

    async def pin(self, subject: str) -> str | None:
        row = await self.do(lambda db: db.execute(QUERIES["pin"], (subject,)).fetchone())
        return row and row[0]

    async def set_pin(self, subject: str, digest: str, actor: str, *, replace: bool = False) -> None:
        sql = QUERIES["replace_pin" if replace else "set_pin"]
        await self.do(lambda db: db.execute(sql, (subject, digest, time.time_ns(), actor)))

    async def verified(self, subject: str) -> Verified | None:
        """When these weights were last read in full, and how their files looked then."""
        row = await self.do(lambda db: db.execute(QUERIES["verified"], (subject,)).fetchone())
        return Verified(*row) if row else None

    async def forget_verified(self, subject: str) -> None:
        await self.do(lambda db: db.execute(QUERIES["forget_verified"], (subject,)))

    async def set_verified(self, subject: str, digest: str, looks: str, at_ns: int) -> None:
        await self.do(lambda db: db.execute(QUERIES["set_verified"], (subject, digest, looks, at_ns)))

    async def about(self, name: str) -> str | None:
        """One of the things that a book has once."""
        row = await self.do(lambda db: db.execute(QUERIES["about"], (name,)).fetchone())
        return row and row[0]

    async def set_about(self, name: str, value: str) -> None:
        await self.do(lambda db: db.execute(QUERIES["set_about"], (name, value)))

    async def adapters(self) -> list[tuple[str, str, str]]:
        """Endpoint, name and what that means, as JSON, of each adapter."""
        return await self.do(lambda db: db.execute(QUERIES["adapters"]).fetchall())

    async def set_adapter(self, endpoint: str, name: str, content: str | None) -> None:
        """None: there is none of that name any more."""
        if content is None:
            await self.do(lambda db: db.execute(QUERIES["remove_adapter"], (endpoint, name)))
        else:
            await self.do(lambda db: db.execute(QUERIES["set_adapter"], (endpoint, name, content)))

    async def set_scores(self, name: str, table: str | None, actor: str) -> None:
        """An import of scores under its name, in place of one of that name; None: there is none any more."""
        if table is None:
            await self.do(lambda db: db.execute(QUERIES["remove_scores"], (name,)))
        else:
            await self.do(lambda db: db.execute(QUERIES["set_scores"], (name, time.time_ns(), actor, table)))

    async def recent_starts(self, count: int) -> dict[str, list[float]]:
        """Seconds that the last `count` starts of each endpoint took, the newest last."""
        starts: dict[str, list[float]] = {}
        for endpoint, seconds in await self.do(lambda db: db.execute(QUERIES["recent_starts"], (count,)).fetchall()):
            starts.setdefault(endpoint, []).append(seconds)
        return starts

    # what was used

    async def spent(self, day_ns: int, month_ns: int) -> list[Spent]:
        """By key and group, since the beginning of a day and of its month; with what is held for cut ones."""
        rows = await self.do(lambda db: db.execute(QUERIES["spent"], (day_ns, month_ns)).fetchall())
        return [
            Spent(
                key=key, group=group, tokens_day=day[0], pico_day=day[1] * 10**6 + day[2],
                tokens_month=month[0], pico_month=month[1] * 10**6 + month[2],
            )
            for key, group, *sums in rows
            for day, month in [(sums[:3], sums[3:])]
        ]  # fmt: skip

    def save_counts(
        self, endpoint: str, replica: str, run: int, counted: Tokens, *, at_ns: int, in_flight: int, final: bool = False
    ) -> None:
        """What the engine's counters said at `at_ns`; `final`: it was drained, and is about to end."""
        counts = (counted.prompt, counted.completion, counted.cached, in_flight, final)
        row = (endpoint, replica, run, self._boot_ns, at_ns, *counts)
        self._writer.put(lambda db: db.execute(QUERIES["save_counts"], row))

    # the machine's memory and time

    def save_measurement(self, measurement: Measurement) -> None:
        """What one start of an engine took."""
        row = measured.row(measurement)
        self._writer.put(lambda db: db.execute(measured.INSERT, row))

    def save_occupancy(self, tenure: tuple[Any, ...], rows: list[tuple[Any, ...]]) -> None:
        def write(db: sqlite3.Connection) -> None:
            db.execute(QUERIES["save_tenure"], tenure)
            db.executemany(QUERIES["add_occupancy"], rows)

        self._writer.put(write)

    async def do(self, write: Write) -> Any:
        """Run one write (or a read that must see all writes before it); returns its answer once it is committed."""
        return await self._writer.do(write)

    async def flush(self) -> None:
        """Everything handed over so far is committed when this returns."""
        await self.do(lambda _: None)

    async def close(self) -> None:
        if self._soon_timer:
            self._soon_timer.cancel()
        if self._rotating:
            await asyncio.wait((self._rotating,))
        await self._writer.close()
        self.journal.close()
        self._db.close()


def _to_disk(path: Path) -> None:
    """A commit is in the write-ahead log, but not on the disk before this."""
    with path.open("rb") as file:
        os.fdatasync(file.fileno())
