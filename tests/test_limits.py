"""Limits and budgets as pure arithmetic: never a token too many, and exact where a minute, a day or a month ends."""

from datetime import UTC, datetime, timedelta
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from freehold.errors import BadRequest, LimitHit, OverBudget
from freehold.policy.access import from_network, matches, network
from freehold.policy.limits import DAY_NS, MINUTE_NS, Account, Bucket, Reservation, Window, began_ns, ends_ns
from freehold.types import Grant, Spent

NOW_NS = int(datetime(2026, 12, 30, 23, 59, tzinfo=UTC).timestamp()) * 10**9
LIMITS = st.integers(1, 10**9)
AMOUNTS = st.integers(0, 10**9)
STEPS = st.lists(st.tuples(AMOUNTS, st.integers(0, 3 * MINUTE_NS)), max_size=30)


@given(LIMITS, STEPS)
def test_a_bucket_lets_through_its_limit_and_what_came_since_and_no_more(limit, steps):
    bucket, now_ns, taken = Bucket(limit), NOW_NS, 0
    for amount, later_ns in steps:
        now_ns += later_ns
        if not bucket.wait_ns(amount, now_ns):
            bucket.take(amount, now_ns)
            taken += amount
        assert 0 <= bucket.left(now_ns)[0] <= limit
        assert taken <= limit + Fraction(limit * (now_ns - NOW_NS), MINUTE_NS)


@given(LIMITS, STEPS, st.lists(st.integers(-(10**9), 10**9), min_size=30, max_size=30))
def test_a_bucket_is_never_fuller_than_its_limit_whatever_is_put_right(limit, steps, corrections):
    bucket, now_ns = Bucket(limit), NOW_NS
    for (amount, later_ns), correction in zip(steps, corrections, strict=False):
        bucket.take(amount, now_ns)
        bucket.take(correction, now_ns + later_ns)
        now_ns += later_ns
        left, whole_in_ns = bucket.left(now_ns)
        assert left <= limit
        assert bucket.left(now_ns + whole_in_ns) == (limit, 0)
        assert whole_in_ns == 0 or bucket.left(now_ns + whole_in_ns - 1)[0] < limit


@given(LIMITS, STEPS, AMOUNTS)
def test_how_long_to_wait_is_exact(limit, steps, amount):
    bucket, now_ns = Bucket(limit), NOW_NS
    for each, later_ns in steps:
        now_ns += later_ns
        bucket.take(each, now_ns)
    wait_ns = bucket.wait_ns(amount, now_ns)
    if amount <= limit:
        assert bucket.wait_ns(amount, now_ns + wait_ns) == 0
        assert not wait_ns or bucket.wait_ns(amount, now_ns + wait_ns - 1) == 1
    else:
        assert wait_ns > 0


def test_what_is_below_nothing_is_repaid_first():
    bucket = Bucket(60)
    bucket.take(10, NOW_NS)
    bucket.take(80, NOW_NS)  # it used 90
    assert bucket.left(NOW_NS) == (-30, 90 * 10**9)
    assert bucket.wait_ns(1, NOW_NS) == 31 * 10**9
    assert bucket.left(NOW_NS + 30 * 10**9) == (0, MINUTE_NS)
    bucket.take(-200, NOW_NS + 30 * 10**9)  # and gave back more than there ever was
    assert bucket.left(NOW_NS + 30 * 10**9) == (60, 0)


@given(st.integers(0, 4 * 10**9))
def test_days_and_months_join_without_a_gap(now_s):
    now_ns = now_s * 10**9 + 5
    for span in ("day", "month"):
        began, ends = began_ns(span, now_ns), ends_ns(span, now_ns)
        assert began <= now_ns < ends
        assert (began_ns(span, began), began_ns(span, ends), began_ns(span, ends - 1)) == (began, ends, began)
        assert began % DAY_NS == ends % DAY_NS == 0
    assert datetime.fromtimestamp(ends_ns("month", now_ns) // 10**9, UTC).day == 1


@pytest.mark.parametrize(
    ("moment", "month"), [("2026-12-31", ("2026-12-01", "2027-01-01")), ("2028-02-29", ("2028-02-01", "2028-03-01"))]
)
def test_months_are_those_of_the_calendar(moment, month):
    at_ns = int((datetime.fromisoformat(moment).replace(tzinfo=UTC) + timedelta(hours=23)).timestamp()) * 10**9
    found = (datetime.fromtimestamp(f("month", at_ns) // 10**9, UTC).date().isoformat() for f in (began_ns, ends_ns))
    assert tuple(found) == month


# reserve so much, settle the eldest with a share of it, or let time pass
HAPPENINGS = st.lists(
    st.one_of(
        st.tuples(st.just("reserve"), st.integers(0, 60)),
        st.tuples(st.just("settle"), st.integers(0, 100)),
        st.tuples(st.just("wait"), st.integers(0, DAY_NS * 3 // 2)),
    ),
    max_size=60,
)


@given(st.integers(0, 200), st.sampled_from(["day", "month"]), HAPPENINGS)
def test_what_is_spent_and_reserved_never_passes_the_budget(limit, span, happenings):
    now_ns = NOW_NS
    window, open_ = Window(span, limit, money=False, spent=0, now_ns=now_ns), []
    spent = {}  # by when the window began, in our own books
    for what, amount in happenings:
        if what == "wait":
            now_ns += amount
        elif what == "reserve":
            fits = spent.get(began_ns(span, now_ns), 0) + sum(
                each for each, at_ns in open_ if at_ns >= began_ns(span, now_ns)
            )
            assert window.fits(amount, now_ns) == (fits + amount <= limit)
            if window.fits(amount, now_ns):
                window.reserved += amount
                open_.append((amount, now_ns))
        elif open_:
            reserved, at_ns = open_.pop(0)
            used = reserved * amount // 100
            window.settle(reserved, used, at_ns, now_ns)
            spent[began_ns(span, at_ns)] = spent.get(began_ns(span, at_ns), 0) + used
        assert window.spent + window.reserved <= limit
        assert all(used <= limit for used in spent.values())


def test_a_request_that_lasts_past_midnight_is_of_the_day_it_came():
    window = Window("day", 100, money=False, spent=90, now_ns=NOW_NS)
    assert window.fits(10, NOW_NS)
    window.reserved += 10
    midnight = window.ends_ns
    assert not window.fits(1, midnight - 1)
    assert window.fits(100, midnight)
    window.settle(10, 10, NOW_NS, midnight)
    assert (window.spent, window.reserved) == (0, 0)


# an account


def asked(tokens=0, pico=0, rate=0, at_ns=NOW_NS):
    return Reservation((), tokens, rate, pico, at_ns)


def account(**grant):
    made = Account("key", "ada")
    made.grant(Grant(**grant), (), NOW_NS)
    return made


REFUSALS = {
    "parallel": ({"parallel": 2}, asked(), LimitHit, 1, "has 2 requests on their way"),
    "requests_per_minute": ({"requests_per_minute": 2}, asked(), LimitHit, 30, "may ask 2 times a minute"),
    "tokens_per_minute": (
        {"tokens_per_minute": 60},
        asked(rate=25),
        LimitHit,
        15,
        "has 10 left, and this needs about 25",
    ),
    "tokens_per_day": ({"tokens_per_day": 50}, asked(tokens=25), OverBudget, 1, "of 50 a day the key `ada` has 0 left"),
    "tokens_per_month": ({"tokens_per_month": 50}, asked(tokens=25), OverBudget, 1, "25 tokens"),
    "budget_per_day": ({"pico_per_day": 3 * 10**11}, asked(pico=15 * 10**10), OverBudget, 1, "0.15 of money"),
    "budget_per_month": ({"pico_per_month": 3}, asked(pico=1), OverBudget, None, "a month"),
}


@pytest.mark.parametrize("limit", REFUSALS)
def test_a_refusal_says_which_limit_and_when_to_try_again(limit):
    grant, each, error, retry_after_s, says = REFUSALS[limit]
    one = account(**grant)
    if limit == "budget_per_month":
        each = asked(pico=4)  # never
    else:
        for _ in range(2):
            assert one.refusal(each) is None
            one.take(each)
    refused = one.refusal(each)
    assert isinstance(refused, error)
    assert (refused.param, refused.retry_after_s, refused.status) == (f"key.{limit}", retry_after_s, 429)
    assert says in str(refused)


def test_what_is_spent_is_there_again_when_the_next_window_begins():
    one = account(tokens_per_day=100)
    one.take(asked(tokens=80))
    one.settle(asked(tokens=80), 60, 0, NOW_NS)
    refused = one.refusal(asked(tokens=50))
    assert refused.retry_after_s == 60
    assert "begins in 60 s" in refused.hint
    (level,) = one.levels(NOW_NS)
    assert (level.most, level.used, level.reserved, level.left, level.whole_in_s) == (100, 60, 0, 40, 60)
    assert one.refusal(asked(tokens=50, at_ns=NOW_NS + 60 * 10**9)) is None


def test_what_the_book_says_was_spent_counts_once():
    one, spent = (
        account(),
        [Spent(key="k", group="", tokens_day=5, tokens_month=30), Spent(key="l", group="g", tokens_month=1)],
    )
    assert not one.limited
    one.grant(Grant(tokens_per_month=100), spent, NOW_NS)
    one.take(asked(tokens=10))
    one.grant(Grant(tokens_per_month=200, tokens_per_day=9), spent, NOW_NS)  # it kept count of the month itself
    assert [(level.limit, level.used, level.reserved) for level in one.levels(NOW_NS)] == [
        ("tokens_per_day", 5, 0),
        ("tokens_per_month", 31, 10),
    ]


# who may from where


@pytest.mark.parametrize(
    ("networks", "address", "may"),
    [
        ((), "anything", True),
        (("10.0.0.0/8",), "10.200.3.4", True),
        (("10.0.0.0/8",), "11.0.0.1", False),
        (("10.0.0.0/8",), "::ffff:10.0.0.1", True),
        (("10.0.0.0/8", "2001:db8::/32"), "2001:db8::5", True),
        (("2001:db8::/32",), "10.0.0.1", False),
        (("fe80::/10",), "fe80::1%eth0", True),
        (("0.0.0.0/0",), "", False),
        (("0.0.0.0/0",), "10.0.0.1, 10.0.0.2", False),
        (("0.0.0.0/0",), "1" * 10_000, False),
    ],
)
def test_networks(networks, address, may):
    assert from_network(networks, address) is may


def test_networks_are_written_one_way():
    assert [network(text) for text in (" 10.0.0.0/8", "192.0.2.7", "2001:DB8::/32")] == [
        "10.0.0.0/8",
        "192.0.2.7/32",
        "2001:db8::/32",
    ]
    with pytest.raises(BadRequest, match="host bits"):
        network("10.0.0.1/8")


def test_endpoints_by_name_and_by_glob():
    assert matches(("*",), "a")
    assert matches(("a", "team-*"), "team-b")
    assert not matches(("a", "team-*"), "b")
    assert not matches((), "a")
