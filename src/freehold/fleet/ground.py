"""What the replicas of one machine share: its executor, its account, the book, and one stream of events."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from freehold.executors.local import Local
from freehold.fleet.cards import Cards
from freehold.fleet.occupancy import Occupancy
from freehold.ledger.book import Book
from freehold.types import Event

Clock = Callable[[], int]  # nanoseconds since 1970


@dataclass(frozen=True, kw_only=True)
class Ground:
    """One for each machine; today there is one machine."""

    executor: Local
    book: Book
    occupancy: Occupancy
    clock_ns: Clock
    state: Path  # the book, the signing key, manifests
    run_dir: Path  # sockets
    log_dir: Path
    engines_dir: Path = Path()  # environments of engines
    cards: Cards = field(default_factory=Cards)
    # Memory of this machine that starts under way will take, by replica: what is available does not show it yet.
    promised_bytes: dict[str, int] = field(default_factory=dict)
    listeners: set[asyncio.Queue[Event]] = field(default_factory=set)

    def tell(self, kind: str, subject: str, *, actor: str = "freehold", **detail: str | float | bool | None) -> None:
        """Something changed: into the book's chain, and to whoever listens."""
        event = Event(at_ns=self.clock_ns(), actor=actor, kind=kind, subject=subject, detail=detail)
        self.book.add_event(event)
        for listener in self.listeners:
            listener.put_nowait(event)

    @contextmanager
    def listening(self):  # noqa: ANN201
        queue: asyncio.Queue[Event] = asyncio.Queue()
        self.listeners.add(queue)
        try:
            yield queue
        finally:
            self.listeners.discard(queue)
