"""Goes through rows in the order in which they stand, and names what is not as it was written.

A hash covers each row's number. So of a row that does not fit, trying numbers and neighbours tells where it belongs,
and whether rows before it are gone or were put there. What is farther off than WINDOW is not found again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, Literal, NamedTuple

from msgspec import Struct

from freehold.ledger.chain import GENESIS, chained

WINDOW = 1000  # rows, and numbers, among which a row's place is looked for
NEAR = 32  # rows side by side that may all be broken

Kind = Literal["changed", "dropped", "re-ordered", "inserted", "emptied", "cut", "recomputed", "unknown"]


class Row(NamedTuple):
    """What stands in a table."""

    number: int
    commitment: bytes
    hash: bytes = b""  # where rows have one of their own
    rest: Any = None  # whatever else whoever walks wants to have of it


class Break(Struct, frozen=True, kw_only=True):
    """One thing that is not as it was written."""

    kind: Kind
    where: str
    why: str


class Placed(Struct, frozen=True):
    """A row, and the number it was written with."""

    number: int
    row: Row
    holds: bool = True


class Gone(Struct, frozen=True):
    """Numbers of which there is no row."""

    first: int
    last: int


class Walk:
    """`steps` is one pass, with a window of rows in memory. A table says what it means that a row `fits`."""

    name: str
    last = 2**63  # the last number that there is, if one knows

    def __init__(self, rows: Iterable[Row]) -> None:
        self._rows = iter(rows)
        self._ahead: deque[Row] = deque()
        self._aside: list[Row] = []  # in the way where they stand; perhaps their place comes
        self._number, self._hash = 0, GENESIS
        self._behind = deque([(0, GENESIS, 0)], maxlen=NEAR)  # numbers and hashes taken, and where they stood
        self._shift = 0  # how far rows stand from their numbers

    def fits(self, before: bytes | None, number: int, row: Row) -> bool:
        """Whether it is the row of this number, behind one with this hash; None: that is not known."""
        raise NotImplementedError

    def vouched(self, number: int, row: Row, after: Row | None) -> bool:
        """Whether it is the row of this number, whatever stands before it."""
        raise NotImplementedError

    def next(self, number: int) -> int:
        """The number that a row is to be there of after this one."""
        return number + 1

    def steps(self) -> Iterator[Placed | Gone | Break]:
        while (number := self.next(self._number)) <= self.last and (self._look(1) or self._aside):
            if self._ahead and self.fits(self._hash, number, self._ahead[0]):
                yield from self._take(self._ahead.popleft(), number)
            elif moved := next((row for row in self._aside if self.fits(self._hash, number, row)), None):
                self._aside.remove(moved)
                yield from self._take(moved, number, moved=True)
            elif not self._ahead:
                break
            elif inserted := self._put_between():
                yield from inserted
            elif self._gap(number):
                yield from self._go_on(0, min(self._written(self._ahead[0]), self.last + 1))
            elif later := self._later(number):
                yield from self._fetch(later, number)
            else:
                yield from self._go_on(*self._foothold(number))
            if len(self._aside) > WINDOW:
                yield self._inserted(self._aside.pop(0))
        if number <= self.last < Walk.last:
            yield Gone(number, self.last)
        yield from map(self._inserted, self._aside)

    def rest(self) -> Iterator[Row]:
        """The rows behind the last number."""
        yield from self._ahead
        yield from self._rows

    def _look(self, count: int) -> int:
        """Have so many rows in sight, if there are; how many there are."""
        if (missing := count - len(self._ahead)) > 0:
            self._ahead += islice(self._rows, missing)
        return len(self._ahead)

    def _after(self, at: int) -> Row | None:
        return self._ahead[at + 1] if self._look(at + 2) > at + 1 else None

    def _written(self, row: Row) -> int:
        """Its number, if it was renumbered like the rows before it, or not at all."""
        return row.number - self._shift

    def _take(self, row: Row, number: int, *, moved: bool = False) -> Iterator[Placed | Break]:
        if moved or self._written(row) != number:
            yield self._break("re-ordered", number, f"it stands at number {row.number}")
            alone = moved or (self._look(1) and self._written(self._ahead[0]) == self.next(number))
            self._shift = self._shift if alone else row.number - number
        self._number, self._hash = number, row.hash
        self._behind.append((number, row.hash, row.number))
        yield Placed(number, row)

    def _put_between(self) -> list[Break]:
        """What was taken already, and yet is not what the next row goes on from."""
        return []

    def _gap(self, number: int) -> bool:
        written = self._written(self._ahead[0])
        return written > number and (written > self.last or self.vouched(written, self._ahead[0], self._after(0)))

    def _later(self, number: int) -> int:
        """How many rows stand before the one that fits; 0 when none does."""
        count = self._look(WINDOW)
        return next((at for at in range(1, count) if self.fits(self._hash, number, self._ahead[at])), 0)

    def _fetch(self, at: int, number: int) -> Iterator[Placed | Break]:
        """The row that fits was moved there; or, if others follow it there, those before it do not belong here."""
        row, after = self._ahead[at], self._after(at)
        following = [after] if after else list(self._ahead)[: min(at, 2)]
        if any(self.fits(row.hash, self.next(number), each) for each in following) == (after is not None):
            self._aside += (self._ahead.popleft() for _ in range(at))
            self._shift = row.number - number
        else:
            del self._ahead[at]
            yield from self._take(row, number, moved=True)

    def _foothold(self, number: int) -> tuple[int, int]:
        """Where it goes on: how many rows to pass over, and the number that the one behind them has.

        The next number of which there is a row: one that was moved here may have a number far ahead.
        """
        best, end = (0, max(number, self._written(self._ahead[0]))), number + WINDOW
        for numbers in (range(number, end), range(max(1, number - NEAR), number)):
            for skipped in range(self._look(NEAR)):
                row, after = self._ahead[skipped], self._after(skipped)
                if found := next((n for n in numbers if n < end and self.vouched(n, row, after)), 0):
                    best, end = (skipped, found), found
            if end < number + WINDOW:
                break
        return best

    def _go_on(self, skipped: int, found: int) -> Iterator[Placed | Gone | Break]:
        """With the row behind so many, which is of the number found."""
        number = self.next(self._number)
        # The next row must follow the row before it as it stands or, where its hash was changed, as it should be.
        stored: bytes | None = self._hash
        due: bytes | None = self._hash
        for row in [self._ahead.popleft() for _ in range(skipped)]:
            at = self._written(row)
            if not number <= at < found:
                self._aside.append(row)
                continue
            if at > number:
                yield Gone(number, at - 1)
                due = None
            yield self._break("changed", at, "it is not what its hash covers, or its hash was changed")
            yield Placed(at, row, holds=False)
            stored, due, number = row.hash, due and chained(due, at, row.commitment), self.next(at)
        if found != number:
            stored = due = None
        if number < found:
            yield Gone(number, found - 1)
        self._number = found - 1
        if found > self.last:
            return
        row = self._ahead.popleft()
        self._shift = row.number - found
        if found < number:
            where = row.number - (number - found)
            yield self._break("inserted", where, "what follows goes on from what stands before it", at_number=True)
        if self.fits(stored, found, row) or (due and self.fits(due, found, row)):
            yield from self._take(row, found)
            return
        yield self._break("changed", found, "it does not fit to what stands before it: one of them was changed")
        yield Placed(found, row, holds=False)
        self._number, self._hash = found, row.hash
        if due and self._look(1) and self.fits(right := chained(due, found, row.commitment), found + 1, self._ahead[0]):
            self._hash = right

    def _inserted(self, row: Row) -> Break:
        return self._break("inserted", row.number, "nothing commits to it", at_number=True)

    def _break(self, kind: Kind, number: int, why: str, *, at_number: bool = False) -> Break:
        return Break(kind=kind, where=f"{self.name} {'at ' * at_number}{number}", why=why)


class EventWalk(Walk):
    """An event follows from the hash of the one before it, and is vouched for by the hash of the one behind it."""

    name = "event"

    def fits(self, before: bytes | None, number: int, row: Row) -> bool:
        return before is None or chained(before, number, row.commitment) == row.hash

    def vouched(self, number: int, row: Row, after: Row | None) -> bool:
        return after is not None and self.fits(row.hash, number + 1, after)

    def _put_between(self) -> list[Break]:
        """The next row follows one further back: those in between were put there, with hashes of their own."""
        for back in range(1, len(self._behind)):
            number, before, _ = self._behind[-1 - back]
            copied = self._behind[-back][1] == self._ahead[0].hash
            if not copied and self.fits(before, number + 1, self._ahead[0]):
                wrong = [self._behind.pop() for _ in range(back)]
                self._number, self._hash = number, before
                self._shift = self._ahead[0].number - number - 1
                why = "what follows does not know it, but goes on from the event before it"
                return [self._break("inserted", at, why, at_number=True) for _, _, at in reversed(wrong)]
        return []


def span(name: str, first: int, last: int) -> str:
    return f"{name} {first}" if first == last else f"{name}s {first} to {last}"
