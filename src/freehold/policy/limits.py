"""What may be used in a minute, a day or a month, in whole numbers only: pure, the time is handed in.

Times are nanoseconds since 1970, by a clock that never goes back; days and months are those of UTC.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from decimal import Decimal
from typing import Literal

from msgspec import Struct

from freehold.errors import FreeholdError, LimitHit, OverBudget
from freehold.types import PICO_PER_UNIT, Grant, Spent

MINUTE_NS = 60 * 10**9
DAY_NS = 86_400 * 10**9
Span = Literal["day", "month"]
Unit = Literal["requests", "tokens", "pico"]
Kind = Literal["key", "group"]


def began_ns(span: Span, now_ns: int) -> int:
    """When this day or month of UTC began."""
    return now_ns // DAY_NS * DAY_NS if span == "day" else _month_ns(now_ns, 0)


def ends_ns(span: Span, now_ns: int) -> int:
    """When the next one begins."""
    return (now_ns // DAY_NS + 1) * DAY_NS if span == "day" else _month_ns(now_ns, 1)


def _month_ns(now_ns: int, later: int) -> int:
    now = datetime.fromtimestamp(now_ns // 10**9, UTC)
    years, month = divmod(now.month - 1 + later, 12)
    return int(datetime(now.year + years, month + 1, 1, tzinfo=UTC).timestamp()) * 10**9


class Bucket:
    """`limit` at once, and `limit` more a minute, coming without steps.

    All it knows is when it will be full again, times `limit`: so nothing is ever rounded.
    """

    __slots__ = ("_full", "limit")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._full = 0

    def take(self, amount: int, now_ns: int) -> None:
        """There or not: what is below nothing is repaid first. A negative amount is given back."""
        now, full = now_ns * self.limit, self._full
        self._full = (full if full > now else now) + amount * MINUTE_NS  # noqa: FURB136  max() takes longer

    def wait_ns(self, amount: int, now_ns: int) -> int:
        """How long until `amount` is there; 0 when it is. (Of more than `limit` that moment never comes.)"""
        now, full = now_ns * self.limit, self._full
        short = (full - now if full > now else 0) + (amount - self.limit) * MINUTE_NS
        return -(-short // self.limit) if short > 0 else 0

    def left(self, now_ns: int) -> tuple[int, int]:
        """How much is there, and how long until it is full.

        Never more than `limit`; less than nothing while that is repaid.
        """
        short = self._full - now_ns * self.limit
        return (self.limit + -short // MINUTE_NS, -(-short // self.limit)) if short > 0 else (self.limit, 0)


class Window:
    """One day or month after the other: what was spent in it, and what requests on their way may spend yet.

    A request belongs to the window in which it was let in, whenever it ends. As long as none costs more than it
    reserved, spent + reserved never pass the limit. One that was on its way before there was this limit reserved
    nothing of it.
    """

    __slots__ = ("began_ns", "ends_ns", "limit", "made_ns", "money", "reserved", "span", "spent")

    def __init__(self, span: Span, limit: int, *, money: bool, spent: int, now_ns: int) -> None:
        self.span: Span = span
        self.money = money  # in pico; else tokens
        self.limit, self.made_ns = limit, now_ns
        self.turn(now_ns)
        self.spent = spent

    def turn(self, now_ns: int) -> None:
        """Begin the one that this moment is in."""
        self.began_ns, self.ends_ns = began_ns(self.span, now_ns), ends_ns(self.span, now_ns)
        self.spent = self.reserved = 0

    def fits(self, amount: int, now_ns: int) -> bool:
        if now_ns >= self.ends_ns:
            self.turn(now_ns)
        return self.spent + self.reserved + amount <= self.limit

    def settle(self, reserved: int, spent: int, at_ns: int, now_ns: int) -> None:
        """So much of what was reserved at that time was spent."""
        if now_ns >= self.ends_ns:
            self.turn(now_ns)
        if at_ns >= self.began_ns:
            self.spent += spent
            if at_ns >= self.made_ns:
                self.reserved -= reserved


class Level(Struct, frozen=True):
    """How one limit stands."""

    of: Kind
    limit: str  # as [groups] calls it
    unit: Unit
    most: int
    used: int
    left: int  # less than nothing: more was used than could be foreseen
    reserved: int = 0  # by requests on their way, beside what is used
    whole_in_s: int = 0  # until all of it is there again; of `parallel` nobody knows


class Reservation:
    """What one request may use at most, until it is settled."""

    __slots__ = ("accounts", "at_ns", "pico", "rate_tokens", "tokens")

    def __init__(self, accounts: tuple[Account, ...], tokens: int, rate_tokens: int, pico: int, at_ns: int) -> None:
        self.accounts = accounts  # () once it is settled
        self.tokens, self.rate_tokens, self.pico, self.at_ns = tokens, rate_tokens, pico, at_ns

    def settle(self, tokens: int, pico: int, now_ns: int) -> None:
        """The request is over, and used this. Later calls change nothing."""
        accounts, self.accounts = self.accounts, ()
        for account in accounts:
            account.settle(self, tokens, pico, now_ns)


class Account:
    """What one key, or all keys of one group, have of their limits."""

    __slots__ = ("_parallel", "_running", "_windows", "kind", "name", "requests", "tokens")

    def __init__(self, kind: Kind, name: str) -> None:
        self.kind: Kind = kind
        self.name = name
        self.requests: Bucket | None = None
        self.tokens: Bucket | None = None
        self._parallel: int | None = None
        self._running = 0
        self._windows: tuple[Window, ...] = ()

    @property
    def limited(self) -> bool:
        return bool(self.requests or self.tokens or self._windows) or self._parallel is not None

    @property
    def budgeted(self) -> bool:
        return bool(self._windows)

    def grant(self, grant: Grant, spent: Iterable[Spent], now_ns: int) -> None:
        """From now on these are its limits. `spent`, of this day and month, is for budgets it did not have so far."""
        self._parallel = grant.parallel
        self.requests = _bucket(self.requests, grant.requests_per_minute)
        self.tokens = _bucket(self.tokens, grant.tokens_per_minute)
        have, rows = {(w.span, w.money): w for w in self._windows}, list(spent)
        budgets: tuple[tuple[Span, bool, int | None, int], ...] = (
            ("day", False, grant.tokens_per_day, sum(row.tokens_day for row in rows)),
            ("day", True, grant.pico_per_day, sum(row.pico_day for row in rows)),
            ("month", False, grant.tokens_per_month, sum(row.tokens_month for row in rows)),
            ("month", True, grant.pico_per_month, sum(row.pico_month for row in rows)),
        )
        windows = []
        for span, money, limit, so_far in budgets:
            if limit is not None:
                window = have.get((span, money)) or Window(span, limit, money=money, spent=so_far, now_ns=now_ns)
                window.limit = limit
                windows.append(window)
        self._windows = tuple(windows)

    def refusal(self, asked: Reservation) -> FreeholdError | None:
        """Why this may not be taken now, or None."""
        at_ns = asked.at_ns
        if self._parallel is not None and self._running >= self._parallel:
            return self._hit("parallel", f"has {self._running} requests on their way, and may have no more", 1)
        if (bucket := self.requests) and (wait_ns := bucket.wait_ns(1, at_ns)):
            return self._hit("requests_per_minute", f"may ask {bucket.limit} times a minute", seconds(wait_ns))
        if (bucket := self.tokens) and (wait_ns := bucket.wait_ns(asked.rate_tokens, at_ns)):
            never, left = asked.rate_tokens > bucket.limit, max(0, bucket.left(at_ns)[0])
            what = f"may use {bucket.limit} tokens a minute, has {left} left, and this needs about {asked.rate_tokens}"
            return self._hit("tokens_per_minute", what, None if never else seconds(wait_ns))
        for window in self._windows:
            amount = asked.pico if window.money else asked.tokens
            if not window.fits(amount, at_ns):
                return self._over(window, amount, at_ns)
        return None

    def take(self, asked: Reservation) -> None:
        """What `refusal` had nothing against."""
        self._running += 1
        if self.requests:
            self.requests.take(1, asked.at_ns)
        if self.tokens:
            self.tokens.take(asked.rate_tokens, asked.at_ns)
        for window in self._windows:
            window.reserved += asked.pico if window.money else asked.tokens

    def settle(self, asked: Reservation, tokens: int, pico: int, now_ns: int) -> None:
        """It is over, and used this."""
        self._running -= 1
        if self.tokens and tokens != asked.rate_tokens:
            self.tokens.take(tokens - asked.rate_tokens, now_ns)
        for window in self._windows:
            if window.money:
                window.settle(asked.pico, pico, asked.at_ns, now_ns)
            else:
                window.settle(asked.tokens, tokens, asked.at_ns, now_ns)

    def levels(self, now_ns: int) -> Iterator[Level]:
        """How each of its limits stands."""
        if (most := self._parallel) is not None:
            yield self._level("parallel", "requests", most, self._running)
        buckets: tuple[tuple[Unit, Bucket | None], ...] = ("requests", self.requests), ("tokens", self.tokens)
        for unit, bucket in buckets:
            if bucket:
                left, whole_in_ns = bucket.left(now_ns)
                yield self._level(f"{unit}_per_minute", unit, bucket.limit, bucket.limit - left, 0, whole_in_ns)
        for window in self._windows:
            window.fits(0, now_ns)  # so that it is today's
            unit, whole_in_ns = "pico" if window.money else "tokens", window.ends_ns - now_ns
            yield self._level(_budget(window), unit, window.limit, window.spent, window.reserved, whole_in_ns)

    def _level(  # noqa: PLR0917  as the table that it is a row of
        self, limit: str, unit: Unit, most: int, used: int, reserved: int = 0, whole_in_ns: int = 0
    ) -> Level:
        left, whole_in_s = most - used - reserved, seconds(whole_in_ns)
        return Level(self.kind, limit, unit, most, used, left, reserved, whole_in_s)

    def _hit(self, limit: str, what: str, retry_after_s: int | None) -> LimitHit:
        hint = "ask for fewer tokens" if retry_after_s is None else f"try again in {retry_after_s} s"
        message = f"the {self.kind} `{self.name}` {what}"
        return LimitHit(message, hint=hint, param=f"{self.kind}.{limit}", retry_after_s=retry_after_s)

    def _over(self, window: Window, amount: int, now_ns: int) -> OverBudget:
        """When to try again: as soon as others are done if it would fit without them, else in the next window."""
        shown = _units if window.money else str
        costs = f"{shown(amount)} {'of money' if window.money else 'tokens'}"
        left = shown(window.limit - window.spent - window.reserved)
        message = (
            f"this request may need {costs}, and of {shown(window.limit)} a {window.span} "
            f"the {self.kind} `{self.name}` has {left} left"
        )
        retry_after_s, hint = None, "ask for fewer tokens"
        if window.spent + amount <= window.limit:
            retry_after_s, hint = 1, f"{shown(window.reserved)} are reserved by requests on their way: try again soon"
        elif amount <= window.limit:
            retry_after_s = seconds(window.ends_ns - now_ns)
            hint = f"the next {window.span} begins in {retry_after_s} s, by UTC"
        return OverBudget(message, hint=hint, param=f"{self.kind}.{_budget(window)}", retry_after_s=retry_after_s)


def seconds(span_ns: int) -> int:
    """Whole ones, rounded up."""
    return -(-span_ns // 10**9)


def _bucket(have: Bucket | None, limit: int | None) -> Bucket | None:
    if have and have.limit == limit:
        return have
    return None if limit is None else Bucket(limit)


def _budget(window: Window) -> str:
    return f"{'budget' if window.money else 'tokens'}_per_{window.span}"


def _units(pico: int) -> str:
    return f"{(Decimal(pico) / PICO_PER_UNIT).normalize():f}"
