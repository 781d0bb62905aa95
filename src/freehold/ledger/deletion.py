"""Deleting from the book: salts and contents go, hashes stay, and an event says which rows, why and by whom."""

from __future__ import annotations

import sqlite3
from typing import Literal

from msgspec import Struct

from freehold.ledger.ranges import Ranges
from freehold.ledger.sql import QUERIES
from freehold.ledger.trail import Trail

What = Literal["usage", "events", "content"]
STEP_ROWS = 2000  # in one transaction


class Deletion(Struct, frozen=True, kw_only=True):
    """Usage rows, events or kept contents from before a moment."""

    what: What
    before_ns: int
    actor: str
    why: str
    keys: tuple[str, ...] | None = None  # ids; of events there is no key
    due: bool = False  # contents whose own time was over before that moment, whenever they were kept


def delete(db: sqlite3.Connection, trail: Trail, deletion: Deletion) -> int:
    """One step, inside of a transaction: how many rows it took; 0 when nothing is left."""
    trail.seal()  # only what is sealed leaves its hash behind
    numbers = [row[0] for row in _found(db, trail, deletion)]
    if not numbers:
        return 0
    if deletion.what != "events":  # a usage row takes along what it commits to
        db.executemany(QUERIES["delete_content"], [(number,) for number in numbers])
    if deletion.what != "content":
        sql = QUERIES["delete_usage" if deletion.what == "usage" else "empty_event"]
        db.executemany(sql, [(number,) for number in numbers])
    if deletion.what == "usage":
        db.execute(QUERIES["delete_counts"], (deletion.before_ns,))
    rows, count = str(Ranges(numbers)), len(numbers)
    trail.tell("trail.deleted", deletion.what, actor=deletion.actor, rows=rows, count=count, why=deletion.why)
    return count


def _found(db: sqlite3.Connection, trail: Trail, deletion: Deletion) -> sqlite3.Cursor:
    if deletion.what == "events":
        return db.execute(QUERIES["old_events"], (deletion.before_ns, STEP_ROWS))
    keys = () if deletion.keys is None else deletion.keys
    whose = "true" if deletion.keys is None else f"key in ({', '.join('?' * len(keys))})"
    if deletion.what == "usage":
        sql = QUERIES["old_usage"].format(whose=whose)
    else:
        which = "content.until_ns" if deletion.due else "usage.started_ns"
        sql = QUERIES["old_content"].format(which=which, whose=whose)
    return db.execute(sql, (deletion.before_ns, trail.sealed, *keys, STEP_ROWS))
