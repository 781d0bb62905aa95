"""What a person decided on the command line, into the book: by the daemon, or by the command itself where none runs."""

from __future__ import annotations

import asyncio
import os
import time
from hashlib import sha256
from pathlib import Path
from typing import Annotated

import msgspec

from freehold.errors import BadRequest
from freehold.gateway.rundir import lock, own_folder, user
from freehold.ledger.book import Book
from freehold.ledger.measured import memory_of
from freehold.plan.cohorts import MOST_BYTES
from freehold.plan.cpu_speed import Memory
from freehold.types import Detail, Event

# What only a person does. What the daemon sees and does itself, nobody can put into its mouth.
KINDS = (
    *("decision.made", "content.read", "weights.pulled", "weights.pull_refused", "weights.pinned"),
    *("engine.installed", "engine.removed", "machine.measured", "scores.imported", "scores.removed"),
)
_PINNING = ("weights.pulled", "weights.pinned")


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """An event of one of KINDS; with `pin` the digest that `subject` must have from now on.

    With `scores` the table that is imported as `subject`.
    """

    kind: str
    subject: str
    detail: Detail = {}
    pin: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")] | None = None
    scores: Annotated[str, msgspec.Meta(max_length=MOST_BYTES)] | None = None


async def record(book: Book, report: Report, actor: str) -> None:
    """Durable when this returns. Raises BadRequest for another kind."""
    kind, detail, pin = report.kind, report.detail, report.pin
    if kind not in KINDS:
        raise BadRequest(f"`{kind}` is no event that a person reports", hint=f"there are: {', '.join(KINDS)}")
    if pin is not None:
        if kind not in _PINNING:
            raise BadRequest(f"`{kind}` pins nothing", hint=f"these do: {', '.join(_PINNING)}")
        detail = {**detail, "pin": pin, "before": await book.pin(report.subject)}
        await book.set_pin(report.subject, pin, actor, replace=True)
    if kind == "machine.measured":
        await book.set_about(memory_of(report.subject), msgspec.json.encode(_memory(detail)).decode())
    if (kind == "scores.imported") != (report.scores is not None):
        raise BadRequest(f"`{kind}` {'needs' if report.scores is None else 'has no'} table of scores")
    if kind.startswith("scores."):
        await book.set_scores(report.subject, report.scores, actor)
    if report.scores is not None:
        detail = {**detail, "sha256": sha256(report.scores.encode()).hexdigest()}
    book.add_event(Event(at_ns=time.time_ns(), actor=actor, kind=kind, subject=report.subject, detail=detail))
    await book.flush()


def _memory(detail: Detail) -> Memory:
    try:
        return msgspec.convert(detail, Memory)
    except msgspec.ValidationError as error:
        raise BadRequest(f"not what was measured of a memory: {error}", hint="freehold doctor --measure") from None


def write(state: Path, report: Report) -> None:
    """Without a daemon. Raises Refused while one runs."""

    async def work() -> None:
        book = Book(state)
        try:
            await record(book, report, user(os.getuid()))
        finally:
            await book.close()

    # commands take turns, so that what still holds the other lock is a daemon
    with lock(own_folder(state), wait=True, name="turn"), lock(state):
        asyncio.run(work())
