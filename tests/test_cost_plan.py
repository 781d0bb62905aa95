"""Money: monotone where it must be, equal where it must be, and every step can be computed again."""

from __future__ import annotations

import math
import random
from timeit import timeit

import pytest
from hypothesis import given
from hypothesis import strategies as st
from steps import recomputes

from freehold.errors import BadRequest
from freehold.facts import ApiPrice, Offer, OfferKind, Rate
from freehold.plan import cost as money
from freehold.plan.cost import Interruptions, Owned, Wanted, break_even, cost, hourly, owned_cost, owned_hourly, reserve
from freehold.plan.traffic import Load, Sleep, Speed, always_on, awake, to_zero

EUR_USD = (Rate(base="EUR", quote="USD", rate=1.25, date="2026-10-05"),)
OFFICE = (0.0,) * 8 + (1.0,) * 10 + (0.2,) * 6
LOAD = Load(requests_a_day=2_000, prompt_tokens=1_000, completion_tokens=300, hours=OFFICE, days_a_month=21)
SPEED = Speed(prompt=20_000, completion=1_500, source="measured here")


def offer(price: float = 2.5, kind: OfferKind = "on-demand", **other) -> Offer:
    fields = {"card": "H100-SXM", "currency": "USD", "date": "2026-10-24", "billing_s": 1}
    return Offer(id=f"any-{kind}", provider="any", kind=kind, price=price, **{**fields, **other})


prices = st.floats(0.01, 1_000)
loads = st.builds(
    Load,
    requests_a_day=st.floats(0, 1e6),
    prompt_tokens=st.floats(1, 100_000),
    completion_tokens=st.floats(1, 10_000),
    hours=st.lists(st.floats(0, 10), min_size=24, max_size=24).filter(lambda w: sum(w) > 0.1).map(tuple),
    days_a_month=st.floats(1, 30),
)
speeds = st.builds(Speed, prompt=st.floats(100, 1e5), completion=st.floats(10, 1e4))
sleeps = st.builds(
    Sleep, idle_s=st.floats(0, 7200), start_s=st.floats(0, 1800), billing_s=st.sampled_from([1, 60, 3600])
)


@pytest.mark.parametrize(
    ("given_offer", "cards", "rate", "expected"),
    [
        (offer(2.5), 1, 1.0, 2.5),
        (offer(2.5), 3, 1.0, 7.5),
        (offer(55.04, cards=8), 1, 1.0, 55.04),
        (offer(55.04, cards=8), 9, 1.0, 110.08),
        (offer(2.5), 1, 0.8, 2.0),
        (offer(999, "dedicated", per="month", setup=999), 1, 1.0, 999 / 730 + 999 / 12 / 730),
        (offer(730, "dedicated", per="month"), 2, 1.0, 2.0),
    ],
)
def test_an_hour(given_offer, cards, rate, expected):
    assert hourly(given_offer, cards, rate) == pytest.approx(expected)


def test_an_hour_is_quick():
    one = offer()
    assert min(timeit(lambda: hourly(one, 2, 0.9), number=10_000) for _ in range(5)) / 10_000 < 3e-6


@given(prices, st.floats(1, 10), st.integers(1, 64), st.integers(0, 64), st.integers(1, 8))
def test_more_cards_or_a_higher_price_never_cost_less(price, factor, cards, more, per_machine):
    base = hourly(offer(price, cards=per_machine), cards)
    assert hourly(offer(price, cards=per_machine), cards + more) >= base
    assert hourly(offer(price * factor, cards=per_machine), cards) >= base


@given(loads, speeds, st.floats(1, 5))
def test_more_requests_never_take_fewer_hours(load, speed, factor):
    more = Load(
        **{**{n: getattr(load, n) for n in load.__struct_fields__}, "requests_a_day": load.requests_a_day * factor}
    )
    one, other = always_on(load, speed), always_on(more, speed)
    assert other.on_h >= one.on_h
    assert other.busy_h >= one.busy_h
    assert one.utilisation <= 1


@given(loads, speeds, sleeps)
def test_scaling_to_zero_never_costs_more_than_staying_on_and_the_starts(load, speed, sleep):
    kept, gone = always_on(load, speed), to_zero(load, speed, sleep)
    starts_h = gone.starts * (sleep.start_s + sleep.billing_s) / 3600
    assert gone.busy_h * (1 - 1e-9) <= gone.on_h <= (kept.on_h + starts_h) * (1 + 1e-9) + 1e-9


@given(st.floats(1e-9, 1), st.floats(0, 1), st.floats(0, 3600), st.floats(0, 1800))
def test_a_replica_is_on_between_busy_and_always(arrivals, busy, idle_s, start_s):
    share, starts = awake(arrivals, busy, Sleep(idle_s=idle_s, start_s=start_s))
    assert busy * (1 - 1e-9) <= share <= 1 + 1e-9
    assert 0 <= starts <= arrivals
    longer, fewer = awake(arrivals, busy, Sleep(idle_s=idle_s * 2, start_s=start_s))
    assert longer >= share * (1 - 1e-9)
    assert fewer <= starts * (1 + 1e-9)


def test_the_formula_for_sleep_agrees_with_a_simulation():
    draw, rate, work, sleep = random.Random(5), 1 / 400, 60.0, Sleep(idle_s=300, start_s=120)
    now = free = off = 0.0
    starts = 0
    for _ in range(60_000):
        now += draw.expovariate(rate)
        if now > free + sleep.idle_s:
            off, starts = off + now - free - sleep.idle_s, starts + 1
            free = now + sleep.start_s
        free = max(free, now) + work
    share, often = awake(rate, rate * work, sleep)
    assert 1 - share == pytest.approx(off / now, rel=0.02)
    assert often == pytest.approx(starts / now, rel=0.02)


@given(loads.filter(lambda load: load.requests_a_day > 1), speeds, prices, sleeps | st.none())
def test_a_month_is_tokens_times_their_price_and_its_steps_recompute(load, speed, price, sleep):
    found = cost(offer(price), Wanted(rates=EUR_USD, load=load, speed=speed, sleep=sleep))
    assert found.per_million * load.tokens_a_month / 1e6 == pytest.approx(found.month)
    requests = load.requests_a_day * load.days_a_month / 1e6
    split = found.per_million_prompt * load.prompt_tokens + found.per_million_completion * load.completion_tokens
    assert split * requests == pytest.approx(found.month)
    assert recomputes(found.steps) == pytest.approx(found.per_million, rel=2e-5)


@given(loads.filter(lambda load: load.requests_a_day > 1), speeds, prices, st.floats(0.01, 50), st.floats(0.01, 50))
def test_break_even_is_where_both_cost_the_same(load, speed, price, prompt, completion):
    wanted = Wanted(rates=EUR_USD, load=load, speed=speed)
    found = cost(offer(price), wanted)
    api = ApiPrice(id="api", publisher="any", prompt=prompt, completion=completion, date="2026-09-22")
    even = break_even(found, api, wanted)
    assert even.tokens / 1e6 * even.api_per_million == pytest.approx(found.month)
    assert even.capacity is not None
    assert even.deliverable == (even.tokens <= even.capacity)
    assert recomputes(even.steps) == pytest.approx(even.tokens, rel=2e-5, abs=1)
    assert load.tokens_a_month <= even.capacity * (1 + 1e-6)  # the replicas were chosen for this load


def test_the_claim_that_spot_saves_sixty_per_cent():
    saved = lambda cut: 1 - money.spot_hourly(1.03, 2.50, cut) / 2.50  # noqa: E731
    assert saved(Interruptions(a_day=0)) == pytest.approx(0.588)
    assert saved(Interruptions(a_day=2, lost_minutes=10)) == pytest.approx(0.58219, abs=1e-4)
    assert saved(Interruptions(a_day=6, lost_minutes=20, fallback=0.1)) == pytest.approx(0.4955, abs=1e-4)
    cheap = money.spot_hourly(1.03, 2.50, Interruptions(a_day=0, fallback=1))
    assert cheap == 2.50


@given(st.floats(0, 20), st.floats(0, 60), st.floats(0, 1))
def test_interruptions_never_make_spot_cheaper(a_day, minutes, fallback):
    assert money.spot_hourly(1, 2, Interruptions(a_day=a_day, lost_minutes=minutes, fallback=fallback)) >= 1


def test_owned_by_hand():
    owned = Owned(capex=35_040, years=4, power_w=1_000, price_kwh=0.25, pue=1.2, hosting_month=73, staff_month=0)
    assert owned_hourly(owned) == pytest.approx(1.0 + 0.3 + 0.1)
    idle = Owned(capex=35_040, years=4, power_w=1_000, price_kwh=0.25, pue=1.2, utilisation=0, idle_power=0.5)
    assert owned_hourly(idle) == pytest.approx(1.0 + 0.15)
    lent = Owned(capex=35_040, years=4, power_w=1_000, price_kwh=0, interest_pct=10)
    assert owned_hourly(lent) == pytest.approx(1.0 + 0.2)


def test_side_by_side():
    owned = Owned(capex=30_000, power_w=1_200, price_kwh=0.3, card="H100-SXM", currency="EUR")
    options = [
        offer(2.5),
        offer(1.03, "spot", date=""),
        reserve(offer(2.5), discount_pct=30, months=12),
        offer(999, "dedicated", currency="EUR", per="month", setup=999),
    ]
    cut = Interruptions(a_day=2, lost_minutes=10, fallback=0.1)
    wanted = Wanted(rates=EUR_USD, load=LOAD, speed=SPEED, sleep=Sleep(), interruptions=cut)
    rows = [owned_cost(owned, wanted), *(cost(each, wanted, on_demand=offer(2.5)) for each in options)]
    assert {row.kind for row in rows} == {"on-demand", "spot", "reserved", "owned", "dedicated"}
    assert {row.currency for row in rows} == {"EUR"}
    by_kind = {row.kind: row for row in rows}
    assert by_kind["on-demand"].scaling == by_kind["spot"].scaling == "to zero"
    assert by_kind["owned"].scaling == by_kind["reserved"].scaling == "always on"
    assert any("no date" in remark for remark in by_kind["spot"].remarks)
    assert any("EUR/USD 1.25 of 2026-10-05" in step for step in by_kind["on-demand"].steps)
    for row in rows:
        assert recomputes(row.steps) == pytest.approx(row.per_million, rel=2e-5)
        assert "measured here" in " ".join(row.steps)


def test_break_even_is_of_replicas_that_stay_on():
    sleeping = Wanted(currency="USD", load=LOAD, speed=SPEED, sleep=Sleep())
    api = ApiPrice(id="api", publisher="any", prompt=1, completion=2, date="2026-09-22")
    found = cost(offer(2), sleeping)
    assert (found.scaling, found.month < 1460) == ("to zero", True)
    assert break_even(found, api, sleeping).tokens == pytest.approx(1460 / (1000 * 1 + 300 * 2) * 1300 * 1e6)


def test_hourly_billing_makes_a_sleeper_stay_on():
    wanted = Wanted(load=LOAD, speed=SPEED, sleep=Sleep(idle_s=60), currency="USD")
    by_second, by_hour = cost(offer(2.5), wanted), cost(offer(2.5, billing_s=3600), wanted)
    assert by_second.month < by_hour.month <= 730 * 2.5 + 1e-9


def test_without_a_speed_nothing_is_guessed():
    found = cost(offer(2), Wanted(currency="USD", load=LOAD))
    assert (found.month, found.per_million, found.utilisation) == (1460, None, None)
    assert "unknown" in found.remarks[-1]
    included = cost(offer(2), Wanted(currency="USD", load=LOAD, speed=Speed(completion=500)))
    assert included.per_million is not None
    assert included.per_million_prompt is included.per_million_completion is None


def test_money_of_two_currencies_meets_only_through_a_rate():
    assert money.exchange("USD", "EUR", EUR_USD) == pytest.approx(0.8)
    assert money.exchange("EUR", "USD", EUR_USD) == 1.25
    with pytest.raises(BadRequest, match="no rate between USD and CHF") as refused:
        cost(offer(2), Wanted(currency="CHF", rates=EUR_USD))
    assert "rate" in refused.value.hint


def test_egress():
    assert money.egress(900, 0.09) == pytest.approx(81)
    wanted = Wanted(currency="USD", egress_month=81)
    assert recomputes(cost(offer(1), wanted).steps) == cost(offer(1), wanted).month == 811


@pytest.mark.parametrize(
    "absurd",
    [
        lambda: hourly(offer(), 0),
        lambda: hourly(offer(-1)),
        lambda: hourly(offer(math.nan)),
        lambda: hourly(offer(), 1, 0),
        lambda: hourly(offer(), 1, math.inf),
        lambda: Load(requests_a_day=-1, prompt_tokens=1, completion_tokens=1),
        lambda: Load(requests_a_day=1, prompt_tokens=0, completion_tokens=0),
        lambda: Load(requests_a_day=math.nan, prompt_tokens=1, completion_tokens=1),
        lambda: Load(requests_a_day=1, prompt_tokens=1, completion_tokens=1, hours=(1.0,) * 23),
        lambda: Load(requests_a_day=1, prompt_tokens=1, completion_tokens=1, hours=(0.0,) * 24),
        lambda: Load(requests_a_day=1, prompt_tokens=1, completion_tokens=1, days_a_month=32),
        lambda: Speed(completion=0),
        lambda: Speed(completion=1, prompt=-3),
        lambda: Sleep(idle_s=-1),
        lambda: Owned(capex=1, power_w=100, price_kwh=0.3, years=0),
        lambda: Owned(capex=1, power_w=100, price_kwh=0.3, pue=0.5),
        lambda: Owned(capex=math.inf, power_w=100, price_kwh=0.3),
        lambda: Interruptions(a_day=100, lost_minutes=60),
        lambda: Interruptions(fallback=1.5),
        lambda: reserve(offer(), discount_pct=100, months=12),
        lambda: money.egress(-1, 0.09),
        lambda: Wanted(cards=0),
    ],
)
def test_what_cannot_be_is_refused_with_the_valid_range(absurd):
    with pytest.raises(BadRequest, match=r"must be from .* to "):
        absurd()


def test_spot_that_falls_back_on_nothing_says_so():
    with pytest.raises(BadRequest, match="falls back"):
        cost(offer(1, "spot"), Wanted(currency="USD", interruptions=Interruptions(fallback=0.2)))
