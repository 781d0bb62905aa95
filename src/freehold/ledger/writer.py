"""The thread that writes the book: it takes what comes in batches, and commits each.

Rows of usage come many at a time, everything else as jobs; their order is kept. Only the event loop hands things over.
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
from concurrent.futures import Future
from typing import Any, NamedTuple

from freehold.errors import FreeholdError
from freehold.ledger.journal import Journal
from freehold.ledger.trail import Settled, Trail

NICE = 5  # who waits for an answer goes before who keeps the book
BATCH = 200  # rows; more hold the interpreter so long that the gateway's p99 shows it

_log = logging.getLogger("freehold.ledger")

Write = Callable[[sqlite3.Connection], Any]


class _Job(NamedTuple):
    write: Write
    done: Future[Any] | None = None  # who waits for it


_Answer = tuple[Future[Any] | None, Any, FreeholdError | None]


class Writer:
    """`on_failure` is called in the loop that made it when the book cannot be written any more (`broken`)."""

    def __init__(self, db: sqlite3.Connection, trail: Trail, journal: Journal, on_failure: Callable[[], None]) -> None:
        self.broken = False
        self._db, self._trail, self._journal, self._on_failure = db, trail, journal, on_failure
        self._loop = asyncio.get_running_loop()
        self._rows: list[Settled] = []  # not yet handed over
        self._queue: queue.SimpleQueue[_Job | list[Settled] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="book", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Batches on their way into the book."""
        return self._queue.qsize() + bool(self._rows)

    def add(self, row: Settled) -> None:
        """Its line must be with the journal. It waits for others, at most until `hand_over`."""
        self._rows.append(row)
        if len(self._rows) >= BATCH:
            self.hand_over()

    def hand_over(self) -> None:
        if self._rows:
            self._journal.write()  # the book has no row that the journal does not have
            self._queue.put(self._rows)
            self._rows = []

    def put(self, write: Write) -> None:
        self._put(_Job(write))

    async def do(self, write: Write) -> Any:
        """Run one write (or a read that must see all writes before it); returns its answer once it is committed."""
        done = Future[Any]()
        self._put(_Job(write, done))
        return await asyncio.wrap_future(done)

    async def close(self) -> None:
        """Everything is written when this returns, and sealed."""
        self._put(None)
        await asyncio.to_thread(self._thread.join)

    def _put(self, job: _Job | None) -> None:
        self.hand_over()
        self._queue.put(job)

    def _run(self) -> None:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)  # of this thread, on Linux
        going_on = True
        while going_on:
            batch, going_on = self._next_batch()
            try:
                answers = self._commit(batch, ending=not going_on)
            except Exception as failure:  # noqa: BLE001  the door of this thread: nothing may end it unheard
                answers = self._lost(batch, failure)
            for done, answer, error in answers:
                if done and done.set_running_or_notify_cancel():
                    done.set_exception(error) if error else done.set_result(answer)
        with contextlib.suppress(OSError):
            self._journal.sync()

    def _next_batch(self) -> tuple[list[_Job | list[Settled]], bool]:
        """The next jobs, none when usage rows have waited long enough for their seal; False at the end."""
        due_s = None if self.broken else self._trail.due_s
        try:
            job = self._queue.get(timeout=None if due_s is None else max(0.0, due_s - time.monotonic()))
        except queue.Empty:
            return [], True
        return self._batch(job) if job else ([], False)

    def _batch(self, job: _Job | list[Settled]) -> tuple[list[_Job | list[Settled]], bool]:
        """This and what waits behind it, to the next rows; False when the end was among them."""
        batch = [job]
        while isinstance(batch[-1], _Job) and len(batch) < BATCH and not self._queue.empty():
            if (more := self._queue.get()) is None:
                return batch, False
            batch.append(more)
        return batch, True

    def _commit(self, batch: list[_Job | list[Settled]], *, ending: bool) -> list[_Answer]:
        self._begin()
        answers = [self._do(job) for job in batch]
        if not self.broken and (ending or self._trail.due):
            self._trail.seal()
        self._db.execute("commit")
        return answers

    def _do(self, job: _Job | list[Settled]) -> _Answer:
        if not isinstance(job, _Job):
            self._trail.add_usage(job)
            return None, None, None
        self._db.execute("savepoint job")
        try:
            answer, error = job.write(self._db), None
        except (sqlite3.Error, OverflowError) as failure:
            if job.done is None and not isinstance(failure, (sqlite3.IntegrityError, OverflowError)):
                raise  # no fault of this row: the disk is full, the file is damaged, or worse
            self._db.execute("rollback to job")
            self._trail.reload()
            answer, error = None, FreeholdError(f"the book refused a write: {failure}")
            _log.error("the book refused a write: %s", failure)
        self._db.execute("release job")
        return job.done, answer, error

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

    def _lost(self, batch: list[_Job | list[Settled]], failure: Exception) -> list[_Answer]:
        """The disk is full, or worse. Whoever waits is told; requests stay in the journal, for the next start."""
        with contextlib.suppress(sqlite3.Error):  # SQLite may have rolled back by itself
            self._db.execute("rollback")
        with contextlib.suppress(sqlite3.Error):
            self._trail.reload()
        _log.error("the book cannot be written: %s", failure)
        self.broken = True
        self._loop.call_soon_threadsafe(self._on_failure)
        error = FreeholdError(f"the book cannot be written: {failure}", hint="is the disk full? freehold doctor")
        return [(job.done, None, error) for job in batch if isinstance(job, _Job)]
