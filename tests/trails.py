"""Books with something in them, for the tests of the trail, and what is wrong with a book."""

import contextlib
import sqlite3
from pathlib import Path

from freehold.ledger import report
from freehold.ledger.audit import Audit
from freehold.ledger.book import Book
from freehold.types import Event, UsageRecord

DAY_NS = 86_400 * 10**9
T0_NS = 1_700_000_000 * 10**9


def a_record(request="r1", **changes) -> UsageRecord:
    base = {"request": request, "key": "k", "endpoint": "demo", "kind": "chat", "stream": True, "started_ns": T0_NS}
    return UsageRecord(**(base | changes))


def an_event(number=0, **changes) -> Event:
    base = {"at_ns": T0_NS + number, "actor": "ada", "kind": "key.created", "subject": f"s{number}"}
    return Event(**(base | changes))


async def book_in(folder: Path, *, events=0, rows=0, seal_each=10) -> None:
    """A book with so many events and usage rows, closed."""
    book = Book(folder)
    for number in range(rows):
        book.settle_request(a_record(f"r{number}", prompt_tokens=number, queue_ms=number / 8, outcome="ok"))
        if (number + 1) % seal_each == 0:
            await book.seal()
    for number in range(events):
        book.add_event(an_event(number))
    await book.close()


def breaks(folder: Path) -> list[tuple[str, str]]:
    """What `freehold audit verify` would name, without the reasons."""
    with report.reading(folder, exact=True) as db:
        return [(found.kind, found.where) for found in Audit(db, folder).breaks()]


@contextlib.contextmanager
def tampering(folder: Path):
    """The book's file as anybody with a shell has it."""
    with contextlib.closing(sqlite3.connect(folder / "book.db", isolation_level=None)) as db:
        yield db
