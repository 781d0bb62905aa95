"""What a key and its group may use together: all of it or nothing, once, and exactly so much."""

import asyncio
import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from freehold.errors import Forbidden, LimitHit, OverBudget
from freehold.fleet.config import Group
from freehold.gateway.accounts import Accounts
from freehold.types import Grant, Key, Spent

NOW_NS = 1_800_000_000 * 10**9
MINUTE_NS = 60 * 10**9


def a_key(name="ada", group="", key_id="", endpoints=("*",), **grant) -> Key:
    grant = Grant(**grant)
    return Key(id=key_id or name, name=name, endpoints=endpoints, created_ns=1, group=group, grant=grant)


def accounts(*keys, spent=(), hit=lambda *_: None, **groups) -> Accounts:
    return Accounts(groups, keys, spent, now_ns=NOW_NS, hit=hit)


def reserve(held: Accounts, key: Key, *, prompt=0, completion=0, rate=0, pico=0, now_ns=NOW_NS):
    return held.terms(key).reserve(prompt + completion, rate, pico, now_ns)


def used(held: Accounts, key: Key, now_ns=NOW_NS) -> dict[str, tuple[int, int]]:
    return {f"{each.of}.{each.limit}": (each.used, each.reserved) for each in held.terms(key).levels(now_ns)}


def test_where_there_are_no_limits_nothing_is_kept():
    key = a_key(group="open")
    held = accounts(key, open=Group())
    assert reserve(held, key, prompt=10**9) is None
    assert (held.terms(key).headers(NOW_NS), held.terms(key).levels(NOW_NS), held.terms(key).budgeted) == (
        [],
        [],
        False,
    )


async def test_a_thousand_at_once_against_a_budget_for_ten():
    key = a_key(group="team", pico_per_month=10**6)
    held = accounts(key, team=Group(tokens_per_day=10**9))
    engine, passed = asyncio.Event(), []

    async def request():
        try:
            taken = reserve(held, key, prompt=40, completion=60, pico=10**5)
        except OverBudget:
            return
        passed.append(taken)
        await engine.wait()  # all ten are on their way together
        taken.settle(100, 10**5, NOW_NS)

    requests = [asyncio.create_task(request()) for _ in range(1000)]
    await asyncio.sleep(0)
    assert used(held, key)["key.budget_per_month"] == (0, 10**6)
    engine.set()
    await asyncio.gather(*requests)
    assert len(passed) == 10
    assert used(held, key) == {"key.budget_per_month": (10**6, 0), "group.tokens_per_day": (1000, 0)}


@pytest.mark.parametrize("limit", [{"tokens_per_day": 5}, {"parallel": 1}, {"budget_per_day": 0}], ids=str)
def test_when_the_group_refuses_nothing_is_taken_of_the_key(limit):
    key = a_key(group="team", requests_per_minute=5, tokens_per_minute=50, parallel=1, tokens_per_day=9, pico_per_day=9)
    other = a_key("bob", "team")
    held = accounts(key, other, team=Group(**limit))
    reserve(held, other)
    before = used(held, key)
    with pytest.raises((OverBudget, LimitHit), match="the group `team`"):
        reserve(held, key, prompt=4, completion=4, rate=8, pico=5)
    assert used(held, key) == before


def test_the_keys_of_a_group_share_its_limits():
    ada, bob = a_key("ada", "team"), a_key("bob", "team")
    held = accounts(ada, bob, team=Group(requests_per_minute=2))
    reserve(held, ada)
    reserve(held, bob)
    with pytest.raises(LimitHit) as refused:
        reserve(held, ada)
    assert (refused.value.param, refused.value.retry_after_s) == ("group.requests_per_minute", 30)
    reserve(held, ada, now_ns=NOW_NS + 30 * 10**9)


def test_settled_once_with_what_was_used():
    key = a_key(parallel=1, tokens_per_minute=1000, tokens_per_day=1000, pico_per_day=10**6)
    held = accounts(key)
    taken = reserve(held, key, prompt=100, completion=400, rate=200, pico=10**6)
    for _ in range(3):
        taken.settle(100, 300, NOW_NS)
    assert used(held, key) == {
        "key.parallel": (0, 0),
        "key.tokens_per_minute": (100, 0),
        "key.tokens_per_day": (100, 0),
        "key.budget_per_day": (300, 0),
    }


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 30), st.integers(0, 100)), max_size=80))
def test_however_requests_of_several_keys_interleave_no_budget_is_passed(steps):
    """Two keys of one group: each step reserves for one of them, or settles the eldest with a share of it."""
    keys = [a_key("ada", "team", tokens_per_day=100), a_key("bob", "team", tokens_per_month=150)]
    held, open_, settled = accounts(*keys, team=Group(tokens_per_day=200)), [], {"ada": 0, "bob": 0}
    for whose, tokens, share in steps:
        if whose < 2:
            with contextlib.suppress(OverBudget):
                open_.append((keys[whose], reserve(held, keys[whose], prompt=tokens), tokens))
        elif open_:
            key, taken, reserved = open_.pop(0)
            taken.settle(reserved * share // 100, 0, NOW_NS)
            settled[key.name] += reserved * share // 100
        both = {**used(held, keys[0]), **{f"bob.{name}": each for name, each in used(held, keys[1]).items()}}
        assert both["key.tokens_per_day"][0] == settled["ada"]
        assert both["group.tokens_per_day"][0] == sum(settled.values())
        assert sum(both["key.tokens_per_day"]) <= 100
        assert sum(both["bob.key.tokens_per_month"]) <= 150
        assert sum(both["group.tokens_per_day"]) <= 200


def test_what_the_book_has_counts_for_all_keys_of_a_name_and_for_the_group():
    old, new, other = (
        a_key(key_id="1", tokens_per_month=100),
        a_key(key_id="2", tokens_per_month=100),
        a_key("bob", "team"),
    )
    spent = [
        Spent(key="1", group="", tokens_month=30),
        Spent(key="2", group="", tokens_month=20),
        Spent(key="2", group="team", tokens_month=7),  # it was of the group then
        Spent(key="probe", group="", tokens_month=1000),
    ]
    held = accounts(old, new, other, spent=spent, team=Group(tokens_per_month=1000))
    assert used(held, old) == used(held, new) == {"key.tokens_per_month": (57, 0)}
    assert used(held, other) == {"group.tokens_per_month": (7, 0)}
    reserve(held, old, prompt=43)
    with pytest.raises(OverBudget):
        reserve(held, new, prompt=1)


def test_a_key_that_takes_anothers_place_goes_on_where_it_stood():
    old, new = (
        a_key(key_id="1", requests_per_minute=60, tokens_per_day=50),
        a_key(key_id="2", requests_per_minute=60, tokens_per_day=50),
    )
    held = accounts(old)
    taken = reserve(held, old, prompt=20)
    held.add(new, [Spent(key="1", group="", tokens_day=0)], now_ns=NOW_NS)
    assert used(held, new) == {"key.requests_per_minute": (1, 0), "key.tokens_per_day": (0, 20)}
    taken.settle(15, 0, NOW_NS)
    assert used(held, new)["key.tokens_per_day"] == (15, 0)


def test_a_key_whose_group_is_gone_opens_nothing():
    key = a_key(group="gone")
    held = accounts(key, team=Group())
    with pytest.raises(Forbidden, match="group `gone`, which is not there"):
        held.terms(key)


def test_key_and_group_must_both_allow():
    key = a_key(group="team", endpoints=("a", "b"), networks=("10.0.0.0/8",))
    hits = []
    held = accounts(key, hit=lambda *hit: hits.append(hit), team=Group(endpoints=("b", "c"), networks=("10.1.0.0/16",)))
    assert [name for name in "abc" if held.terms(key).may_use(name)] == ["b"]
    terms = held.terms(key)
    terms.require_address("10.1.2.3")
    terms.require_endpoint("b")
    for address, endpoint in (("10.2.0.1", "b"), ("192.0.2.1", "b"), ("10.1.2.3", "a"), ("10.1.2.3", "c")):
        with pytest.raises(Forbidden):  # noqa: PT012  either of them
            terms.require_address(address)
            terms.require_endpoint(endpoint)
    assert hits == [("networks", "ada", "")] * 2


def test_rules_on_place_of_key_and_group_are_each_told():
    group = Group(residency=("Germany", "FR"), jurisdiction_not=("US",), priority=3)
    both, one, none = a_key("a", "team", residency=("DE",)), a_key("b", "team", priority=-1), a_key("c")
    held = accounts(both, one, none, team=group)
    of_group = (("DE", "FR"), ("US",))
    assert held.terms(both).rules == ((("DE",), ()), of_group)
    assert held.terms(one).rules == (of_group,)
    assert held.terms(none).rules == ()
    assert {held.terms(both).rules: 1}  # a router keeps what it found for them
    assert [held.terms(key).priority for key in (both, one, none)] == [3, -1, 0]


def test_headers_are_those_of_whoever_has_less_left():
    key = a_key(group="team", requests_per_minute=100, tokens_per_minute=1000)
    other = a_key("bob", "team")
    held = accounts(key, other, team=Group(requests_per_minute=60))
    for _ in range(3):
        reserve(held, key, rate=400 if not used(held, key)["key.tokens_per_minute"][0] else 0)
    assert dict(held.terms(key).headers(NOW_NS)) == {
        b"x-ratelimit-limit-requests": b"60",
        b"x-ratelimit-remaining-requests": b"57",
        b"x-ratelimit-reset-requests": b"3s",
        b"x-ratelimit-limit-tokens": b"1000",
        b"x-ratelimit-remaining-tokens": b"600",
        b"x-ratelimit-reset-tokens": b"24s",
    }
    assert dict(held.terms(other).headers(NOW_NS))[b"x-ratelimit-remaining-requests"] == b"57"
    assert b"x-ratelimit-limit-tokens" not in dict(held.terms(other).headers(NOW_NS))


@pytest.mark.parametrize(
    ("limit", "rate", "settled", "remaining", "reset"),
    [
        (60_000, 12, 12, b"59988", b"12ms"),
        (60, 1, 1, b"59", b"1s"),
        (60, 60, 360, b"0", b"6m0s"),
        (1000, 0, 0, b"1000", b"0ms"),
    ],
)
def test_times_in_headers_are_written_as_openai_does(limit, rate, settled, remaining, reset):
    key = a_key(tokens_per_minute=limit)
    held = accounts(key)
    reserve(held, key, rate=rate).settle(settled, 0, NOW_NS)
    told = dict(held.terms(key).headers(NOW_NS))
    assert (told[b"x-ratelimit-remaining-tokens"], told[b"x-ratelimit-reset-tokens"]) == (remaining, reset)


def test_every_refusal_is_told():
    hits = []
    key = a_key(requests_per_minute=1, parallel=5)
    held = accounts(key, hit=lambda *hit: hits.append(hit))
    reserve(held, key)
    with pytest.raises(LimitHit):
        held.terms(key).reserve(0, 0, 0, NOW_NS, "demo")
    assert hits == [("key.requests_per_minute", "ada", "demo")]


def test_only_budgets_need_a_bound():
    plain, budgeted, grouped = a_key("a", tokens_per_minute=5), a_key("b", pico_per_day=0), a_key("c", "team")
    held = accounts(plain, budgeted, grouped, team=Group(tokens_per_month=5))
    assert [held.terms(key).budgeted for key in (plain, budgeted, grouped)] == [False, True, True]
