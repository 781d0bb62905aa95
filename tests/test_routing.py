"""Which replica answers, who goes next, and what each may still hold in its cache."""

import asyncio
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from freehold.engines.external import External
from freehold.errors import NotReady, QueueFull, Refused
from freehold.fleet.config import Endpoint, Place
from freehold.fleet.external import ExternalReplica
from freehold.fleet.route import Route
from freehold.fleet.slots import Slots
from freehold.policy.balance import LOAD_FACTOR, Circuit, choose
from freehold.policy.fairness import FairQueue
from freehold.types import Objection


def served(queue, count=10**9):
    """In which order they go, up to so many."""
    order = []
    queue.take(lambda item: len(order) < count and (order.append(item) or True))
    return order


def test_keys_take_turns_whoever_came_first():
    queue = FairQueue()
    for number in range(100):
        queue.push("", "busy", 0, f"busy {number}")
    queue.push("", "rare", 0, "rare 0")
    assert served(queue, 3) == ["busy 0", "rare 0", "busy 1"]


def test_who_comes_late_has_no_turns_to_make_up_for():
    queue = FairQueue()
    for number in range(8):
        queue.push("", "busy", 0, f"busy {number}")
    served(queue, 5)
    for number in range(3):
        queue.push("", "late", 0, f"late {number}")
    assert served(queue) == ["late 0", "busy 5", "late 1", "busy 6", "late 2", "busy 7"]


def test_a_higher_priority_goes_first_and_turns_are_taken_within_one():
    queue = FairQueue()
    for key, priority in (("a", 0), ("a", 0), ("b", 0), ("c", 5), ("c", 5), ("d", 5)):
        queue.push("", key, priority, (key, priority, len(queue)))
    assert "".join(key for key, *_ in served(queue)) == "cdcaba"


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 1)), max_size=40), st.data())
def test_nobody_is_lost_or_served_twice(pushed, data):
    queue = FairQueue()
    items = [[key, number] for number, (key, _) in enumerate(pushed)]
    for item, (key, priority) in zip(items, pushed, strict=True):
        queue.push(data.draw(st.integers(0, 2)), key, priority, item)
    left = data.draw(st.lists(st.sampled_from(items), unique_by=id)) if items else []
    for item in left:
        queue.remove(item)
    assert len(queue) == len(items) - len(left)
    first = served(queue, data.draw(st.integers(0, len(items))))
    rest = served(queue) if data.draw(st.booleans()) else queue.clear()
    assert Counter(n for _, n in first + rest) == Counter(n for _, n in items if not any(i[1] == n for i in left))
    assert len(queue) == 0


@given(st.integers(2, 6), st.integers(1, 20))
def test_with_every_key_asking_alike_nobody_is_more_than_a_turn_ahead(keys, each):
    queue = FairQueue()
    for key in range(keys):
        for _ in range(each):
            queue.push("", str(key), 0, [key])
    seen = Counter()
    for (key,) in served(queue):
        seen[key] += 1
        assert max(seen.values()) - min(seen[k] for k in range(keys)) <= 1


def test_who_has_to_wait_lets_others_pass_and_keeps_its_place():
    queue = FairQueue()
    for name in ("here", "anywhere", "here too"):
        queue.push(name[:4], name, 0, name)
    passed = []
    queue.take(lambda item: not item.startswith("here") and (passed.append(item) or True))
    assert passed == ["anywhere"]
    assert served(queue) == ["here", "here too"]


@given(st.lists(st.integers(0, 50), min_size=1, max_size=8), st.binary(min_size=1, max_size=8))
def test_a_prefix_goes_to_the_same_replica_unless_that_has_more_than_its_share(loads, prefix):
    names = [f"replica-{i}" for i in range(len(loads))]
    chosen = choose(loads, names, prefix)
    assert loads[chosen] < LOAD_FACTOR * (sum(loads) + 1) / len(loads) + 1
    calm = [0] * len(loads)
    home = choose(calm, names, prefix)
    assert choose(calm, names, prefix) == home
    if len(loads) > 1:  # when another replica goes, its prefixes move and no others
        other = (home + 1) % len(loads)
        kept = [i for i in range(len(loads)) if i != other]
        assert kept[choose([0] * len(kept), [names[i] for i in kept], prefix)] == home


def test_without_a_prefix_the_one_with_the_least_to_do():
    assert choose([3, 1, 2], ["a", "b", "c"], b"") == 1


def test_a_circuit_opens_after_failures_in_a_row_and_an_answer_closes_it():
    circuit = Circuit()
    assert [circuit.failed() for _ in range(2)] == [False, False]
    assert not circuit.answered()
    assert [circuit.failed() for _ in range(4)] == [False, False, True, False]
    assert circuit.open
    assert circuit.answered()
    assert not circuit.open


def test_a_fresh_replica_is_given_more_with_each_answer_it_begins():
    slots = Slots(8)
    let_in = []
    for _ in range(10):
        while slots.fits(1):
            slots.take("g", 1)
        let_in.append(slots.held)
        slots.widen()
    assert let_in == [2, 3, 4, 5, 6, 7, 8, 8, 8, 8]


def test_a_slot_goes_back_to_the_group_whose_prompt_it_has():
    slots = Slots(4)
    for _ in range(4):
        slots.widen()
    mine, same = slots.take("mine", 1)
    assert not same
    slots.answered(mine, "mine")
    slots.give(mine, 1)
    theirs, same = slots.take("theirs", 1)
    assert (theirs != mine, same) == (True, False)  # while there is an unused one
    slots.answered(theirs, "theirs")
    slots.give(theirs, 1)
    assert slots.take("mine", 1) == (mine, True)
    slots.give(mine, 1)
    again, same = slots.take("mine", 1)
    assert not same  # the engine did not answer what came before: nobody knows what it has
    slots.give(again, 1)
    slots.give(slots.take("mine", 3)[0], 3)  # several choices: nobody knows where
    assert [slots.take("mine", 1)[1], slots.take("theirs", 1)[1]] == [False, False]


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 6), st.booleans(), st.booleans()), max_size=60))
def test_no_group_is_told_that_anothers_prompt_is_its_own(steps):
    slots, holding, last = Slots(4), [], {}
    for _ in range(4):
        slots.widen()
    for group, choices, give, answered in steps:
        if give and holding:
            slots.give(*holding.pop(0))
        elif slots.fits(choices):
            slot, same = slots.take(group, choices)
            assert not same or last[slot] == group
            if slot is None:
                last.clear()
            else:
                assert slot not in [held for held, _ in holding]
                last.pop(slot, None)
                if answered:
                    slots.answered(slot, group)
                    last[slot] = group
            holding.append((slot, choices))
    assert slots.held == len(holding)


class Asking:
    """Somebody who asks a route, and what they were told."""

    group, affinity = "g", b""

    def __init__(self, account="a", *, priority=0, rules=(), choices=1):
        self.account, self.priority, self.rules, self.choices = account, priority, rules, choices
        self.tried, self.told = set(), []
        self.adapter = ""

    def placed(self, hold):
        self.told.append(hold.replica.name)

    def refused(self, error):
        self.told.append(error)


class Ground:
    """What an external replica needs of it, before anybody calls."""

    def clock_ns(self):
        return 0

    def tell(self, *_, **__): ...


def route_of(count=2, permission=None, **endpoint):
    places = tuple(Place(url=f"http://127.0.0.1:{n + 1}") for n in range(count))
    route = Route("far", Endpoint(engine="external", replicas=places, **endpoint), permission, External())
    for number, place in enumerate(places):
        ExternalReplica(f"far-{number}", route, place, route.engine, Ground())
    return route


def test_each_goes_where_least_is_to_do_and_waits_when_all_is_taken():
    route = route_of(2, parallel=1)
    first, second, third = (Asking() for _ in range(3))
    holds = [route.place(first), route.place(second)]
    assert {hold.replica.name for hold in holds} == {"far-0", "far-1"}
    assert route.place(third) is None
    assert route.waiting == 1
    route.release(holds[1], served=True)
    assert third.told == [holds[1].replica.name]
    assert route.waiting == 0


def test_more_may_not_wait_than_the_endpoint_allows():
    route = route_of(1, parallel=1, max_waiting=1)
    route.place(Asking())
    route.place(Asking())
    with pytest.raises(QueueFull, match="1 requests already wait"):
        route.place(Asking())


def test_who_asks_for_more_choices_is_not_overtaken_for_ever():
    route = route_of(1, parallel=4)
    (replica,) = route.replicas
    for _ in range(4):
        replica.slots.widen()
    holds = [route.place(Asking()) for _ in range(4)]
    many, one = Asking("many", choices=3), Asking("one")
    route.place(many)
    route.place(one)
    route.release(holds[0], served=True)
    assert (many.told, one.told) == ([], [])
    route.release(holds[1], served=True)
    route.release(holds[2], served=True)
    assert (many.told, one.told) == (["far-0"], [])


class Only:
    """A permission for some of the replicas, by who asks."""

    def objections(self, replica, rules):
        return [] if not rules or replica == 0 else [Objection(rule="residency", reason="it is elsewhere")]


def test_rules_on_place_hold_for_every_pick():
    route = route_of(2, permission=Only(), parallel=1)
    bound = Asking(rules=((("DE",), ()),))
    hold = route.place(bound)
    assert hold.replica.name == "far-0"
    again, free = Asking(rules=bound.rules), Asking()
    assert route.place(again) is None  # though far-1 is free
    assert route.allowed(bound.rules) == [route.replicas[0]]
    route.place(free)
    assert free.told == ["far-1"]  # it may pass whoever has to wait for far-0
    again.tried.add("far-0")
    with pytest.raises(NotReady, match="does not answer now"):
        route.place(again)


def test_no_replica_where_the_rules_allow():
    class Nobody:
        def objections(self, replica, rules):
            return [Objection(rule="residency", reason="it is elsewhere")]

    with pytest.raises(Refused, match="rules on place allow: it is elsewhere"):
        route_of(2, permission=Nobody()).place(Asking())


async def test_a_replica_that_does_not_answer_is_left_out_until_it_does():
    route = route_of(2)
    for _ in range(3):
        route.replicas[0].unanswered(0)
    assert {route.place(Asking()).replica.name for _ in range(4)} == {"far-1"}
    for _ in range(3):
        route.replicas[1].unanswered(0)
    with pytest.raises(NotReady) as refused:
        route.place(Asking())
    assert refused.value.retry_after_s == 2
    route.replicas[0].answering(None, 200)
    assert route.place(Asking()).replica.name == "far-0"


def test_a_replica_that_was_silent_is_not_given_everything_at_once_when_it_is_back():
    route = route_of(1, parallel=8)
    (replica,) = route.replicas
    for _ in range(8):
        replica.slots.widen()
    for _ in range(3):
        replica.unanswered(0)
    replica.answering(None, 200)
    askers = [Asking(str(number)) for number in range(8)]
    assert sum(route.place(asker) is not None for asker in askers) == 3  # a quarter, and one for the answer


def test_many_who_wait_for_one_replica_do_not_slow_down_the_others():
    route = route_of(2, permission=Only(), parallel=1, max_waiting=10_000)
    looked_at = 0
    pick = route._pick

    def count(allowed, asker):
        nonlocal looked_at
        looked_at += 1
        return pick(allowed, asker)

    route._pick = count
    for number in range(1000):
        route.place(Asking(str(number), rules=((("DE",), ()),)))
    looked_at = 0
    hold = Asking("free")
    route.place(hold)
    assert hold.told == ["far-1"]
    assert looked_at < 10


def test_who_may_be_answered_by_nobody_else_does_not_wait_for_who_is_gone():
    route = route_of(2, permission=Only(), parallel=1)
    bound, free = Asking(rules=((("DE",), ()),)), Asking()
    held = [route.place(Asking()), route.place(Asking())]
    route.place(bound)
    route.place(free)
    for _ in range(3):
        route.replicas[0].unanswered(0)
    assert isinstance(bound.told[0], NotReady)
    route.release(next(hold for hold in held if hold.replica.name == "far-1"), served=True)
    assert free.told == ["far-1"]


def test_who_found_a_replica_silent_lets_others_have_it():
    route = route_of(2, parallel=1)
    held = {hold.replica.name: hold for hold in (route.place(Asking()), route.place(Asking()))}
    unlucky, other = Asking("unlucky"), Asking("other")
    unlucky.tried.add("far-0")
    route.place(unlucky)
    route.place(other)
    route.release(held["far-0"], served=True)
    assert (unlucky.told, other.told) == ([], ["far-0"])


def test_who_waits_is_told_when_its_operator_stops_it():
    route = route_of(1, parallel=1)
    hold, waiting = route.place(Asking()), Asking()
    route.place(waiting)
    route.post("stop")
    assert "stopped by its operator" in str(waiting.told[0])
    route.release(hold, served=True)
    route.post("open")
    assert route.place(Asking())


async def test_an_operator_may_stop_and_open_all_of_it():
    route = route_of(2)
    route.post("stop")
    with pytest.raises(NotReady, match="stopped by its operator"):
        await route.hold()
    route.post("open")
    assert await asyncio.wait_for(route.hold(), 5)


def test_who_waits_is_let_in_as_soon_as_the_replica_bears_more():
    route = route_of(1, parallel=4)
    askers = [Asking(str(number)) for number in range(4)]
    first = route.place(askers[0])
    for asker in askers[1:]:
        route.place(asker)
    assert route.waiting == 3
    route.replicas[0].answering(first, 200)
    assert [bool(asker.told) for asker in askers[1:]] == [True, False, False]
