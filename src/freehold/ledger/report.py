"""What the book says, read without disturbing who writes it: usage, occupancy, pins, events."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal, NamedTuple

import msgspec

from freehold.errors import FreeholdError, Unknown
from freehold.ledger import made
from freehold.ledger.sql import EDITION, QUERIES
from freehold.policy.price import machine_pico
from freehold.types import Content, Event

By = Literal["key", "group", "endpoint", "day"]
_WHAT = {
    "key": "coalesce(key.name, '(smoke probes)')",  # they alone have no key
    "group": 'usage."group"',  # the key's, at that time
    "endpoint": "usage.endpoint",
    "day": "strftime('%Y-%m-%d', usage.started_ns / 1000000000, 'unixepoch')",  # UTC
}
_LAST_NS = 2**62


@contextmanager
def reading(
    folder: Path, *, exact: bool = False, making: Callable[[], bool] = lambda: True
) -> Iterator[sqlite3.Connection]:
    """One state of the book, read-only. Raises Unknown when there is none yet, FreeholdError when it is damaged.

    `exact`: also when an older or newer edition of Freehold wrote it. `making`: whether somebody may be making it.
    """
    path = folder / "book.db"
    if not path.exists():
        if made.once(path):
            raise made.lost(path)
        raise Unknown(f"no book at {path}", hint="it is made by the first `freehold up`")
    db = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, isolation_level=None)
    db.row_factory = sqlite3.Row
    try:
        db.execute("begin")
        if not path.stat().st_size or not db.execute("pragma user_version").fetchone()[0]:
            if made.once(path) or not making():
                raise made.lost(path)
            raise Unknown(f"the book at {path} is being made", hint="try again in a moment")
        if exact and (edition := db.execute("pragma user_version").fetchone()[0]) != EDITION:
            hint = "freehold up brings an older one up to date; a newer one needs the Freehold that wrote it"
            raise FreeholdError(f"the book is of edition {edition}, and this Freehold reads {EDITION}", hint=hint)
        yield db
    except sqlite3.DatabaseError as failure:
        error = FreeholdError(
            f"the book at {path} cannot be read: {failure}",
            hint="stop the daemon, keep a copy, and restore a backup or what `sqlite3 book.db .recover` can save",
        )
        error.exit_code = 3
        raise error from None
    finally:
        db.close()


def usage(
    db: sqlite3.Connection, by: By, since_ns: int | None = None, until_ns: int | None = None
) -> list[dict[str, Any]]:
    """Totals of requests that began in the time given."""
    sql = QUERIES["usage_totals"].format(what=_WHAT[by])
    rows = [dict(row) for row in db.execute(sql, (since_ns or 0, until_ns or _LAST_NS))]
    for row in rows:
        row["charge_pico"] = row.pop("charge_micro") * 10**6 + row.pop("charge_rest")
    return rows


def request(db: sqlite3.Connection, request_id: str) -> dict[str, Any] | None:
    row = db.execute(QUERIES["usage_of_request"], (request_id,)).fetchone()
    return dict(row) if row else None


def requests(db: sqlite3.Connection, request_id: str) -> list[dict[str, Any]]:
    """The records of this id: ours, or the caller's own, which several may have."""
    rows = [dict(row) for row in db.execute(QUERIES["usage_of_caller"], (request_id,))]
    return [{name: value for name, value in row.items() if name not in ("number", "salt")} for row in rows]


def pin(db: sqlite3.Connection, subject: str) -> str | None:
    row = db.execute(QUERIES["pin"], (subject,)).fetchone()
    return row["digest"] if row else None


class Imported(NamedTuple):
    """Scores that a company brought, as the table that was given."""

    name: str
    at_ns: int
    actor: str
    content: str


def imported_scores(db: sqlite3.Connection) -> list[Imported]:
    """None of a book from before there were."""
    if not db.execute(QUERIES["has_imported_scores"]).fetchone():
        return []
    return [Imported(*row) for row in db.execute(QUERIES["imported_scores"])]


def cost(db: sqlite3.Connection) -> dict[str, Any]:
    """Both accounts of money over the whole book, and whether occupancy adds up to host-seconds x price."""
    occupancy = [dict(row) for row in db.execute(QUERIES["occupancy_totals"])]
    for row in occupancy:
        row["pico"] = row.pop("micro") * 10**6 + row.pop("rest")
    tenures = [dict(row) for row in db.execute(QUERIES["tenures"])]
    for tenure in tenures:
        tenure["pico"] = machine_pico(tenure["pico_per_hour"], tenure["lasted_ns"])
    by_endpoint = usage(db, "endpoint")
    paid = sum(t["pico"] for t in tenures)
    occupied = sum(row["pico"] for row in occupancy)
    tokens = sum(row["prompt_tokens"] + row["completion_tokens"] for row in by_endpoint)
    useful = sum(row["pico"] for row in occupancy if row["phase"] == "serving")
    return {
        "endpoints": by_endpoint,
        "occupancy": occupancy,
        "tenures": tenures,
        "charged_pico": sum(row["charge_pico"] for row in by_endpoint),
        "machine_pico": paid,
        "occupied_pico": occupied,
        "difference_pico": paid - occupied,
        "tokens": tokens,
        "pico_per_token": paid // tokens if tokens else None,
        "serving_share": useful / paid if paid else None,
    }


def events(
    db: sqlite3.Connection, last: int, *, since_ns: int = 0, kind: str = "*", subject: str = "*"
) -> list[dict[str, Any]]:
    """The last so many events that fit and that retention has not emptied, oldest first, with their numbers."""
    found: list[dict[str, Any]] = []
    for number, content in db.execute(QUERIES["newest_events"]):
        try:
            event = msgspec.json.decode(content, type=Event)
        except msgspec.DecodeError:  # somebody was at it
            event = Event(at_ns=since_ns, actor="?", kind="?", subject=content.decode(errors="replace"))
        if event.at_ns < since_ns or len(found) == last:
            break  # times in the book never go back
        if fnmatchcase(event.kind, kind) and fnmatchcase(event.subject, subject):
            found.append({"number": number, **msgspec.structs.asdict(event)})
    return found[::-1]


def content(db: sqlite3.Connection, request_id: str) -> Content | None:
    """The question and the answer, where its key asked to keep them and they are not deleted."""
    row = db.execute(QUERIES["content_of"], (request_id,)).fetchone()
    return Content(question=row[1], answer=row[2], until_ns=row[3]) if row else None
