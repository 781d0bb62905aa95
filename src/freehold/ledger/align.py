"""Holds usage rows against the leaves of their seals, both in the order of their numbers, and names what differs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from freehold.ledger.chain import leaf
from freehold.ledger.follow import FAR, Ahead, Break


class Leaf(NamedTuple):
    """What a seal says of the row of this number."""

    number: int
    hash: bytes  # b"" where the seal itself is gone

    def fits(self, row: Row) -> bool:
        return leaf(self.number, row.commitment) == self.hash if self.hash else row.number == self.number


class Row(NamedTuple):
    """A usage row as it stands in the table."""

    number: int
    commitment: bytes
    request: str
    content_hash: str


class Alignment:
    """`breaks` goes through all of it, once.

    `take` gets each row that holds, with the number it was written with; `miss` the number of each that is not there.
    """

    def __init__(
        self, leaves: Iterable[Leaf], rows: Iterable[Row], take: Callable[[Row, int], None], miss: Callable[[int], None]
    ) -> None:
        self._leaves, self._rows = Ahead(leaves), Ahead(rows)
        self._take, self._miss = take, miss
        self._aside: list[Row] = []  # in the way where they stand; perhaps their place comes
        self._shift: int | None = 0  # how far rows stand from their numbers; None: to be seen at the next

    def breaks(self) -> Iterator[Break]:
        while self._leaves.look(1):
            expected = self._leaves.seen[0]
            row = self._rows.seen[0] if self._rows.look(1) else None
            if row and expected.fits(row):
                yield from self._hold(self._rows.seen.popleft())
            elif moved := next(filter(expected.fits, self._aside), None):
                self._aside.remove(moved)
                yield self._moved(moved)
            elif row is None or (self._shift is not None and row.number - self._shift > expected.number):
                self._miss_next()
            else:
                yield from self._misfit(row)
        for row in self._aside:
            yield Break(kind="inserted", where=f"usage row at {row.number}", why="no seal commits to it")

    def rest(self) -> Iterator[Row]:
        """The rows behind the last seal."""
        while self._rows.look(1):
            yield self._rows.seen.popleft()

    def _miss_next(self) -> None:
        gone = self._leaves.seen.popleft()
        if gone.hash:
            self._miss(gone.number)

    def _hold(self, row: Row) -> Iterator[Break]:
        number, sealed = self._leaves.seen.popleft()
        if not sealed:
            return
        self._take(row, number)
        shift = row.number - number
        if self._shift in (shift, None):
            self._shift = shift
            return
        alone = self._rows.look(1) and self._rows.seen[0].number - number - 1 == self._shift
        more = "" if alone else "; from there on all numbers were changed"
        self._shift = self._shift if alone else shift
        yield Break(kind="re-ordered", where=f"usage row {number}", why=f"it stands at number {row.number}{more}")

    def _moved(self, row: Row) -> Break:
        number = self._leaves.seen.popleft().number
        self._take(row, number)
        return Break(kind="re-ordered", where=f"usage row {number}", why=f"it stands at number {row.number}")

    def _misfit(self, row: Row) -> Iterator[Break]:
        """A row stands in the place of another."""
        expected, rows, leaves = self._leaves.seen[0], self._rows.seen, self._leaves.seen
        later = next((at for at in range(1, self._rows.look(FAR)) if expected.fits(rows[at])), 0)
        if later:  # it was moved, or those before it do not belong here
            if self._leaves.look(2) < 2 or (len(rows) > later + 1 and leaves[1].fits(rows[later + 1])):
                self._aside += [rows.popleft() for _ in range(later)]
                self._shift = None
            else:
                moved = rows[later]
                del rows[later]
                yield self._moved(moved)
        elif gone := next((at for at in range(1, self._leaves.look(FAR)) if leaves[at].fits(row)), 0):
            for _ in range(gone):  # and the numbers behind them were made to hide it
                self._miss_next()
            self._shift = None
        elif self._shift is not None and row.number - self._shift < expected.number:
            self._aside.append(rows.popleft())
        else:
            rows.popleft()
            leaves.popleft()
            why = "it is not what its seal commits to"
            yield Break(kind="changed", where=f"usage row {expected.number}", why=why)
