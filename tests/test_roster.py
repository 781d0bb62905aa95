"""Versions of adapters, and which of them a name means."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from freehold.errors import Unknown
from freehold.fleet.roster import Alias, Roster, Version
from freehold.types import Adapter


def version(number: int, name: str = "german") -> Version:
    path = f"/adapters/{name}-{number}/adapter.gguf"
    adapter = Adapter(name=f"{name}@{number}-dddddddd", path=path, digest="d" * 64, rank=16)
    return Version(
        name=name, number=number, adapter=adapter, source="/from", source_digest="s" * 64, base_digest="b" * 64,
        added_ns=number,
    )  # fmt: skip


ONE, TWO, THREE, FOUR = map(version, range(1, 5))
ALONE, AFTER = Alias(current=ONE), Alias(current=TWO, previous=ONE)
TRIED = Alias(current=TWO, previous=ONE, trial=THREE, percent=30)


def roster(alias: Alias | None) -> Roster:
    return Roster("demo", {"german": alias} if alias else {})


@given(percent=st.integers(1, 99), before=st.integers(0, 250))
def test_of_any_hundred_in_a_row_the_trial_gets_exactly_its_share(percent, before):
    names = roster(Alias(current=TWO, trial=THREE, percent=percent))
    for _ in range(before):
        names.pick("german")
    picked = [names.pick("german") for _ in range(100)]
    assert picked.count(THREE.adapter) == percent
    assert picked.count(TWO.adapter) == 100 - percent


@given(percent=st.integers(1, 99))
def test_the_share_is_spread_evenly(percent):
    names = roster(Alias(current=TWO, trial=THREE, percent=percent))
    at = [turn for turn in range(300) if names.pick("german") == THREE.adapter]
    gaps = {after - before for before, after in itertools.pairwise(at)}
    assert gaps <= {100 // percent, -(-100 // percent)}


def test_names_take_turns_apart_and_without_a_trial_all_go_to_the_current_one():
    other = Alias(current=version(1, "other"), trial=version(2, "other"), percent=50)
    names = Roster("demo", {"german": ALONE, "other": other})
    picked = [(names.pick("german").name, names.pick("other").name[:7]) for _ in range(4)]
    assert [other for _, other in picked] == ["other@1", "other@2"] * 2
    assert {german for german, _ in picked} == {ONE.adapter.name}


def test_names_are_closed_when_the_weights_are_others_than_they_were_accepted_on():
    names = roster(ALONE)
    assert names.close_others("b" * 64) == []
    assert names.close_others("c" * 64) == ["german"]
    assert names.wanted == ()
    with pytest.raises(Unknown):
        names.pick("german")


def test_a_name_that_is_not_there_says_which_are():
    with pytest.raises(Unknown, match="`demo` has no adapter called `french`") as error:
        roster(ALONE).pick("french")
    assert error.value.hint == "there are: german"
    with pytest.raises(Unknown) as error:
        roster(None).find("german")
    assert error.value.hint == "there are: none"


@pytest.mark.parametrize(
    ("before", "percent", "after"),
    [
        (None, 100, ALONE),
        (None, 30, ALONE),  # nothing to try it against
        (ALONE, 100, AFTER),
        (ALONE, 30, Alias(current=ONE, trial=TWO, percent=30)),
        (AFTER, 30, Alias(current=TWO, previous=ONE, trial=TWO, percent=30)),
        (TRIED, 100, Alias(current=TWO, previous=TWO)),
        (TRIED, 50, Alias(current=TWO, previous=ONE, trial=TWO, percent=50)),
    ],
)
def test_what_is_added(before, percent, after):
    version = ONE if before is None else TWO
    assert roster(before).added(version, percent) == after


@pytest.mark.parametrize(
    ("percent", "after"),
    [
        (0, AFTER),
        (1, Alias(current=TWO, previous=ONE, trial=THREE, percent=1)),
        (99, Alias(current=TWO, previous=ONE, trial=THREE, percent=99)),
        (100, Alias(current=THREE, previous=TWO)),
    ],
)
def test_what_a_trial_is_given(percent, after):
    assert roster(TRIED).shared("german", percent) == after


@pytest.mark.parametrize("percent", [0, 50, 100])
def test_without_a_trial_there_is_nothing_to_share(percent):
    with pytest.raises(Unknown, match="one version, 2, and no other on trial") as error:
        roster(AFTER).shared("german", percent)
    assert error.value.hint.startswith("freehold adapters add german PATH --base demo --percent N")


@pytest.mark.parametrize(("before", "after"), [(TRIED, AFTER), (AFTER, ALONE)])
def test_going_back(before, after):
    assert roster(before).rolled_back("german") == after


def test_there_is_nothing_before_the_first():
    with pytest.raises(Unknown, match="no version before 1") as error:
        roster(ALONE).rolled_back("german")
    assert error.value.hint == "freehold adapters remove german --base demo takes it away"


def test_every_version_that_a_name_or_a_change_needs_is_wanted_once():
    names = Roster("demo", {"german": TRIED, "other": Alias(current=version(1, "other"))})
    names.staged = FOUR
    expected = [TWO, ONE, THREE, version(1, "other"), FOUR]
    assert names.wanted == tuple(each.adapter for each in expected)
    names.staged = None
    assert FOUR.adapter not in names.wanted
    assert roster(None).wanted == ()


def test_a_number_is_given_once():
    names = roster(TRIED)
    assert names.next_number("german") == 4
    assert names.next_number("german") == 5  # that of 4 may still be in an engine
    assert names.next_number("other") == 1
    names.put("german", None)
    assert names.next_number("german") == 6
    tried = roster(TRIED)  # as a new daemon finds it
    tried.put("german", tried.rolled_back("german"))
    assert tried.next_number("german") == 4
    assert roster(None).next_number("german") == 1
