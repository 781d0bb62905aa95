"""The pure decisions: every interleaving of a replica's life, who may call, how long to wait, exact money."""

from itertools import pairwise
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from freehold.policy.access import expired
from freehold.policy.lifecycle import Happening, Life, step
from freehold.policy.price import NS_PER_HOUR, machine_pico, split
from freehold.policy.waiting import backoff_s, retry_after_s
from freehold.types import Key

# What the world can report in a state; everything else may be asked for at any time.
CAN_HAPPEN = {
    "up": {"starting"},
    "failed": {"starting", "ready"},
    "exited": {"starting", "ready"},
    "stopped": {"stopping"},
    "due": {"backoff"},
}


def lives(events):
    """(event, life before, life after, effects) for every event that can happen."""
    life = Life()
    for event in events:
        if event in CAN_HAPPEN and life.state not in CAN_HAPPEN[event]:
            continue
        before = life
        life, effects = step(before, event)
        yield event, before, life, effects


HAPPENINGS = st.lists(st.sampled_from(get_args(Happening)), max_size=60)


@given(HAPPENINGS)
def test_nobody_who_waits_is_forgotten(events):
    """Whoever asked is admitted, refused, or a start that will admit them is on its way (cf. llama-swap #946)."""
    waiting = False
    for event, _, life, effects in lives(events):
        waiting = (waiting or event == "wanted") and not {"admit", "refuse"} & set(effects)
        if waiting:
            assert life.state == "starting" or (life.state in ("stopping", "backoff") and life.wanted)


@given(HAPPENINGS)
def test_one_process_at_a_time(events):
    running = 0
    for event, before, life, effects in lives(events):
        if event in ("failed", "exited", "stopped"):
            running -= 1
        running += effects.count("start")
        assert running == (life.state in ("starting", "ready", "stopping"))
        assert life.run == before.run + effects.count("start")
        assert effects.count("start") + effects.count("stop") <= 1


@given(HAPPENINGS)
def test_a_closed_replica_lets_nobody_in(events):
    for event, before, life, effects in lives(events):
        if before.closed and event != "open":
            assert "start" not in effects
            assert "admit" not in effects
        if event == "stop":
            assert life.closed
            assert life.state not in ("ready", "starting")


@given(HAPPENINGS)
def test_failures_are_retried_later_and_forgotten_when_it_serves(events):
    for event, before, life, effects in lives(events):
        if event in ("failed", "exited") and before.state in ("starting", "ready"):
            assert life.failures == before.failures + 1
            assert "schedule" in effects
        if event == "served" and before.state == "ready":
            assert life.failures == 0


def test_a_replica_that_crashes_again_and_again_is_left_alone_until_wanted():
    life = Life(state="ready", run=7, failures=5)
    life, effects = step(life, "exited")
    assert effects == ("schedule",)
    life, effects = step(life, "due")
    assert (life.state, effects) == ("cold", ())
    assert step(life, "wanted")[1] == ("start",)


@pytest.mark.parametrize(
    ("changes", "now_ns", "status"),
    [
        ({}, 50, None),
        ({"expires_ns": 51}, 50, None),
        ({"expires_ns": 50}, 50, 401),
        ({"revoked_ns": 10}, 50, 401),
    ],
)
def test_the_end_of_a_key(changes, now_ns, status):
    key = Key(**{"id": "k", "name": "ada", "endpoints": ("*",), "created_ns": 0, **changes})
    error = expired(key, now_ns)
    assert (error.status if error else None) == status


def test_waiting():
    assert [backoff_s(n) for n in range(10)] == [0, 0, 1, 2, 4, 8, 16, 32, 60, 60]
    assert retry_after_s([], 0) == 10  # nothing measured yet
    assert retry_after_s([4.0, 6.0, 5.0], 3.0) == 2
    assert retry_after_s([4.0], 60.0) == 1  # it should have been there long ago
    assert retry_after_s([4.0], 0.0, 8.0) == 12


@given(st.integers(0, 10**14), st.lists(st.integers(0, NS_PER_HOUR), max_size=30).map(sorted), st.integers(1, 9))
def test_intervals_cost_what_the_whole_costs(pico_per_hour, times, ways):
    edges = [0, *times]
    parts = [machine_pico(pico_per_hour, b) - machine_pico(pico_per_hour, a) for a, b in pairwise(edges)]
    assert sum(sum(split(part, ways)) for part in parts) == machine_pico(pico_per_hour, edges[-1])
    assert machine_pico(pico_per_hour, NS_PER_HOUR) == pico_per_hour
