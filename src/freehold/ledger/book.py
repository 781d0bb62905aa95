"""The book in SQLite: one thread owns the connection and writes, in batches; readers open it read-only.

Writes that arrive while a commit is running share the next one. Usage records need no waiting: they are safe in the
journal until they are here.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import queue
import sqlite3
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from freehold.errors import FreeholdError, NotReady
from freehold.ledger import made
from freehold.ledger.chain import SALT_BYTES, content_of, kept
from freehold.ledger.deletion import Deletion, delete
from freehold.ledger.journal import Journal, left_behind, segments
from freehold.ledger.ranges import Ranges
from freehold.ledger.sql import QUERIES, migrate
from freehold.ledger.trail import Trail
from freehold.types import Content, Event, Key, UsageRecord

BATCH = 200  # larger ones hold the interpreter so long that the gateway's p99 shows it
OPEN_S = 15.0  # how long to wait, at the start, for who else holds the book
BUSY_MS = 1000  # and later, before saying so and waiting on
REWRITE_BYTES = 256 << 20  # takes 2 s; a larger book is not written anew daily
SYNC_S = 0.05  # the journal is on the disk at least this often

_log = logging.getLogger("freehold.ledger")

Write = Callable[[sqlite3.Connection], Any]


class _Job(NamedTuple):
    write: Write
    tell: Callable[[Any, Exception | None], None] | None


_Answer = tuple[Callable[[Any, Exception | None], None] | None, Any, Exception | None]


class Verified(NamedTuple):
    """One pass over all bytes of some weights that found nothing."""

    digest: str
    looks: str  # what stands for the names, sizes, times and inodes of their files
    at_ns: int


class Book:
    """Open it from the event loop that will use it.

    `folder` holds the database and the journal. `on_failure` is called in that loop when the book cannot be written
    any more (`broken`): nothing should be served that is not recorded.
    """

    def __init__(self, folder: Path) -> None:
        self.on_failure: Callable[[], None] = lambda: None
        self.broken = False
        self._loop = asyncio.get_running_loop()
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
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
        self.journal = Journal(folder)
        self._rotating: asyncio.Task[None] | None = None
        self._unclear = False  # deleted rows are still in the file
        self._sync_timer: asyncio.TimerHandle | None = None
        self._thread = threading.Thread(target=self._run, name="book", daemon=True)
        self._thread.start()

    def _recover(self, folder: Path) -> int:
        """Move what a crashed daemon left in the journal; returns how many requests it had not settled."""
        settled, cut = left_behind(folder)
        trail = self._trail
        self._db.execute("begin immediate")
        trail.reload(sealing=True)
        known = trail.sealed
        for record in (*settled, *cut):
            try:
                trail.add_usage(record, content_of(record))
            except (sqlite3.IntegrityError, OverflowError) as failure:  # one bad record must not end the start
                _log.error("the book refused %s: %s", record, failure)
            if trail.due:
                trail.seal()
        if lost := [row[0] for row in self._db.execute(QUERIES["lost_content"], (known,))]:
            trail.tell("trail.deleted", "content", rows=str(Ranges(lost)), count=len(lost), why="lost in a crash")
        trail.seal()
        self._db.execute("commit")
        _to_disk(self._wal)  # before the journal goes, which so far held them
        for segment in segments(folder):
            segment.unlink()
        return len(cut)

    # requests

    def open_request(self, record: UsageRecord) -> None:
        self.journal.open(record)
        self._sync_soon()

    def settle_request(self, record: UsageRecord, content: Content | None = None) -> None:
        """Durable against a crash of the daemon when this returns; in the table soon after.

        `content`, which only some keys ask to keep, is not in the journal: a crash in between loses it.
        """
        keep = None
        if content:
            salt = os.urandom(SALT_BYTES)
            keep = salt, content
            record = msgspec.structs.replace(record, content_hash=kept(salt, content.question, content.answer))
        raw = content_of(record)
        self._jobs.put(_Job(lambda _: self._trail.add_usage(record, raw, keep), None))
        try:
            self.journal.settle(record, raw)
        except NotReady as failure:  # then the book alone has it, in a moment
            _log.error("request %s: %s", record.request, failure)
        self._sync_soon()
        if self.journal.full:
            self._rotate_soon()

    def _sync_soon(self) -> None:
        """What is in the journal is on the disk within SYNC_S."""
        if self._sync_timer is None:
            self._sync_timer = self._loop.call_later(SYNC_S, self._sync)

    def _sync(self) -> None:
        self._sync_timer = None
        self._jobs.put(_Job(lambda _: self.journal.sync(), None))

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
            await asyncio.to_thread(_to_disk, self._wal)
            if not self.broken:  # else the journal alone has them
                for segment in old:
                    segment.unlink(missing_ok=True)
        except (OSError, FreeholdError) as failure:
            _log.error("the journal goes on in its old file: %s", failure)
        finally:
            self._rotating = None

    # events

    def add_event(self, event: Event) -> None:
        self._jobs.put(_Job(lambda _: self._trail.add_event(event), None))

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
            )
            for row in rows
        }  # fmt: skip

    async def add_key(self, key: Key, secret_hash: bytes) -> None:
        row = (key.id, secret_hash, key.name, " ".join(key.endpoints), key.created_ns, key.expires_ns, key.content_days)
        await self.do(lambda db: db.execute(QUERIES["insert_key"], row))

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

    async def recent_starts(self, count: int) -> dict[str, list[float]]:
        """Seconds that the last `count` starts of each endpoint took, the newest last."""
        starts: dict[str, list[float]] = {}
        for endpoint, seconds in await self.do(lambda db: db.execute(QUERIES["recent_starts"], (count,)).fetchall()):
            starts.setdefault(endpoint, []).append(seconds)
        return starts

    # the machine's time

    def save_occupancy(self, tenure: tuple[Any, ...], rows: list[tuple[Any, ...]]) -> None:
        def write(db: sqlite3.Connection) -> None:
            db.execute(QUERIES["save_tenure"], tenure)
            db.executemany(QUERIES["add_occupancy"], rows)

        self._jobs.put(_Job(write, None))

    # the writer

    async def do(self, write: Write) -> Any:
        """Run one write (or a read that must see all writes before it); returns its answer once it is committed."""
        done: asyncio.Future[Any] = self._loop.create_future()

        def settle(answer: Any, error: Exception | None) -> None:
            if done.cancelled():
                return
            done.set_result(answer) if error is None else done.set_exception(error)

        def tell(answer: Any, error: Exception | None) -> None:
            self._loop.call_soon_threadsafe(settle, answer, error)

        self._jobs.put(_Job(write, tell))
        return await done

    async def flush(self) -> None:
        """Everything handed over so far is committed when this returns."""
        await self.do(lambda _: None)

    async def close(self) -> None:
        if self._sync_timer:
            self._sync_timer.cancel()
        if self._rotating:
            await asyncio.wait((self._rotating,))
        self._jobs.put(None)
        await asyncio.to_thread(self._thread.join)
        self.journal.close()
        self._db.close()

    def _run(self) -> None:
        going_on = True
        while going_on:
            batch, going_on = self._next_batch()
            try:
                answers = self._commit(batch, ending=not going_on)
            except Exception as failure:  # noqa: BLE001  the door of this thread: nothing may end it unheard
                answers = self._lost(batch, failure)
            for tell, answer, error in answers:
                if tell:
                    tell(answer, error)
        with contextlib.suppress(OSError):
            self.journal.sync()

    def _next_batch(self) -> tuple[list[_Job], bool]:
        """The next jobs, none when usage rows have waited long enough for their seal; False at the end."""
        due_s = None if self.broken else self._trail.due_s
        try:
            job = self._jobs.get(timeout=None if due_s is None else max(0.0, due_s - time.monotonic()))
        except queue.Empty:
            return [], True
        return self._batch(job) if job else ([], False)

    def _batch(self, job: _Job) -> tuple[list[_Job], bool]:
        """This job and those that wait behind it; False when the end was among them."""
        batch = [job]
        while len(batch) < BATCH and not self._jobs.empty():
            if (more := self._jobs.get()) is None:
                return batch, False
            batch.append(more)
        return batch, True

    def _commit(self, batch: list[_Job], *, ending: bool) -> list[_Answer]:
        answers: list[_Answer] = []
        self._begin()
        for write, tell in batch:
            self._db.execute("savepoint job")
            try:
                answer, error = write(self._db), None
            except (sqlite3.Error, OverflowError) as failure:
                if tell is None and not isinstance(failure, (sqlite3.IntegrityError, OverflowError)):
                    raise  # no fault of this row: the disk is full, the file is damaged, or worse
                self._db.execute("rollback to job")
                self._trail.reload()
                answer, error = None, FreeholdError(f"the book refused a write: {failure}")
                _log.error("the book refused a write: %s", failure)
            self._db.execute("release job")
            answers.append((tell, answer, error))
        if not self.broken and (ending or self._trail.due):
            self._trail.seal()
        self._db.execute("commit")
        return answers

    def _begin(self) -> None:
        """Begin, however long somebody else holds the book: a backup, or a person with a shell."""
        while True:
            try:
                self._db.execute("begin immediate")
            except sqlite3.OperationalError as failure:
                if failure.sqlite_errorcode != sqlite3.SQLITE_BUSY:
                    raise
                _log.warning("somebody else holds the book: %s", failure)
            else:
                return

    def _lost(self, batch: list[_Job], failure: Exception) -> list[_Answer]:
        """The disk is full, or worse. Whoever waits is told; requests stay in the journal, for the next start."""
        with contextlib.suppress(sqlite3.Error):  # SQLite may have rolled back by itself
            self._db.execute("rollback")
        with contextlib.suppress(sqlite3.Error):
            self._trail.reload()
        _log.error("the book cannot be written: %s", failure)
        self.broken = True
        self._loop.call_soon_threadsafe(self.on_failure)
        error = FreeholdError(f"the book cannot be written: {failure}", hint="is the disk full? freehold doctor")
        return [(tell, None, error) for _, tell in batch]


def _to_disk(path: Path) -> None:
    """A commit is in the write-ahead log, but not on the disk before this."""
    with path.open("rb") as file:
        os.fdatasync(file.fileno())
