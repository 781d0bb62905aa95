"""Walks the chain of events and names what is wrong with it; after a break it finds its feet again.

Every event's hash covers the hash before it and its own number, so of a row that does not fit one can tell what does:
it is tried against its neighbours, and whatever follows by its hash shows where the chain goes on.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Generic, Literal, TypeVar

from msgspec import Struct

from freehold.ledger.chain import GENESIS, Link, chained, commitment

FAR = 1000  # rows among which one that was moved is looked for
NEAR = 32  # rows, and numbers, that are tried each with each

T = TypeVar("T")
Kind = Literal["changed", "dropped", "re-ordered", "inserted", "emptied", "cut", "recomputed", "unknown"]


class Break(Struct, frozen=True, kw_only=True):
    """One thing that is not as it was written."""

    kind: Kind
    where: str
    why: str


class Placed(Struct, frozen=True):
    """A row in its place: the number it was written with."""

    number: int
    row: Link


class Ahead(Generic[T]):
    """A stream of which one can see the next items before they are taken."""

    def __init__(self, items: Iterable[T]) -> None:
        self._items = iter(items)
        self.seen: deque[T] = deque()

    def look(self, count: int) -> int:
        """Have so many items in `seen`, if there are; how many there are."""
        if (missing := count - len(self.seen)) > 0:
            self.seen += islice(self._items, missing)
        return len(self.seen)


class Walk:
    """`steps` yields every row in its place and every break, in one pass; it holds a window of rows at a time."""

    def __init__(self, rows: Iterable[Link]) -> None:
        self._rows = Ahead(rows)
        self._ahead = self._rows.seen
        self._aside: list[Link] = []  # in the way where they stand; perhaps their place comes
        self._behind: deque[tuple[int, bytes, int]] = deque(maxlen=NEAR)  # numbers, hashes, and where they stand
        self._number, self._hash = 0, GENESIS
        self._shift: int | None = 0  # how far rows stand from their numbers; None: to be seen at the next

    def steps(self) -> Iterator[Placed | Break]:
        while self._rows.look(1):
            number, row = self._number + 1, self._ahead[0]
            if chained(self._hash, number, row.commitment) == row.hash:
                yield from self._renumbered(row, number)
                yield from self._take(self._ahead.popleft(), number)
            elif moved := self._standing_aside(number):
                yield from moved
            elif later := self._standing_later(number):
                yield from self._fetched(number, later)
            elif inserted := self._inserted_before(row):
                yield from inserted
            else:
                yield from self._broken(number)
            yield from self._never_placed(keep=FAR)
        while moved := self._standing_aside(self._number + 1):
            yield from moved
        yield from self._never_placed(keep=0)

    def _take(self, row: Link, number: int) -> Iterator[Placed | Break]:
        """Go on from this row."""
        self._behind.append((number, row.hash, row.seq))
        self._number, self._hash = number, row.hash
        if row.salt is not None and row.content is not None:
            if commitment(row.salt, row.content) != row.commitment:
                yield Break(kind="changed", where=f"event {number}", why="its content is not what it commits to")
                return
        elif row.salt is not None or row.content is not None:
            yield Break(kind="changed", where=f"event {number}", why="its salt or its content alone is gone")
            return
        yield Placed(number, row)

    def _renumbered(self, row: Link, number: int) -> Iterator[Break]:
        shift = row.seq - number
        if self._shift in (shift, None):
            self._shift = shift
        elif self._rows.look(2) > 1 and self._ahead[1].seq - number - 1 == self._shift:
            yield Break(kind="re-ordered", where=f"event {number}", why=f"it stands at number {row.seq}")
        else:
            self._shift = shift
            why = f"from event {number} on all numbers were changed: it stands at {row.seq}"
            yield Break(kind="re-ordered", where=f"event {number}", why=why)

    def _standing_aside(self, number: int) -> list[Placed | Break]:
        for row in self._aside:
            if chained(self._hash, number, row.commitment) == row.hash:
                self._aside.remove(row)
                said = Break(kind="re-ordered", where=f"event {number}", why=f"it stands at number {row.seq}")
                return [said, *self._take(row, number)]
        return []

    def _standing_later(self, number: int) -> int:
        """How many rows stand before the one that follows by its hash; 0 when none does."""
        for skipped in range(1, self._rows.look(FAR)):
            row = self._ahead[skipped]
            if chained(self._hash, number, row.commitment) == row.hash:
                return skipped
        return 0

    def _fetched(self, number: int, skipped: int) -> Iterator[Placed | Break]:
        """The row that follows stands later: it was moved there, or those before it do not belong where they are."""
        row = self._ahead[skipped]
        after = self._ahead[skipped + 1] if skipped + 1 < len(self._ahead) else None
        if after is None or chained(row.hash, number + 1, after.commitment) == after.hash:
            self._aside += [self._ahead.popleft() for _ in range(skipped)]
            self._shift = None
            return
        del self._ahead[skipped]
        yield Break(kind="re-ordered", where=f"event {number}", why=f"it stands at number {row.seq}")
        yield from self._take(row, number)

    def _inserted_before(self, row: Link) -> list[Break]:
        """This row follows from one further back: what was taken in between was put there, with hashes of its own."""
        for back, (number, before, _) in enumerate(reversed(self._behind)):
            if back and chained(before, number + 1, row.commitment) == row.hash:
                why = "what follows does not know it, but goes on from the event before it"
                wrong = [self._behind.pop() for _ in range(back)]
                self._number, self._hash, self._shift = number, before, None
                return [Break(kind="inserted", where=f"event at number {at}", why=why) for _, _, at in reversed(wrong)]
        return []

    def _never_placed(self, *, keep: int) -> Iterator[Break]:
        while len(self._aside) > keep:
            row = self._aside.pop(0)
            why = "nothing before or after it commits to it"
            yield Break(kind="inserted", where=f"event at number {row.seq}", why=why)

    def _broken(self, number: int) -> Iterator[Placed | Break]:
        """Nothing in sight follows: something here was changed, or what came next is gone."""
        if hashes := self._wrong_hashes(number):
            for at in range(hashes):
                yield Break(kind="changed", where=f"event {number + at}", why="its hash is not that of what it covers")
                row = self._ahead.popleft()
                self._number, self._hash = number + at, chained(self._hash, number + at, row.commitment)
            return
        skipped, found = self._foothold(number)
        in_the_way = [self._ahead.popleft() for _ in range(skipped)]
        row = self._ahead.popleft()
        self._shift = None
        missing = found - number - skipped  # below 0: rows too many
        changed = skipped + (not missing) if missing >= 0 else 0
        for at in range(changed):
            why = f"its hash does not follow from what it and event {number + at - 1} say now: one of them was changed"
            yield Break(kind="changed", where=f"event {number + at}", why=why)
        if not missing:
            self._number, self._hash = found, row.hash
            return
        self._aside += in_the_way[changed:]
        first, last = number + changed, found - 1
        if first <= last:
            where = f"event {last}" if first == last else f"events {first} to {last}"
            yield Break(kind="dropped", where=where, why=f"event {found} follows on something that is not here")
        elif found < number:
            yield Break(kind="inserted", where=f"before event {found}", why=f"{number - found} too many, by its hash")
        yield from self._take(row, found)

    def _wrong_hashes(self, number: int) -> int:
        """How many rows from here have a hash that is wrong, while one soon after them has that which is right."""
        before = self._hash
        for at in range(self._rows.look(NEAR)):
            before = chained(before, number + at, self._ahead[at].commitment)
            if before == self._ahead[at].hash:
                return at
        return 0

    def _foothold(self, number: int) -> tuple[int, int]:
        """Where the chain can be taken up again: rows to pass over, and the number that the one after them has.

        A row can be told by the one after it, which covers its hash.
        """
        count = self._rows.look(NEAR)
        for skipped in range(count - 1):
            row, after = self._ahead[skipped], self._ahead[skipped + 1]
            least = number + skipped
            near = range(max(1, least - NEAR), least + NEAR)
            for found in (least, max(least, row.seq), *sorted(near, key=lambda n: (n < least, abs(n - least)))):
                if chained(row.hash, found + 1, after.commitment) == after.hash:
                    return skipped, found
        return 0, max(number, self._ahead[0].seq - (self._shift or 0))
