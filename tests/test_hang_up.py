"""Who hangs up, and an engine that fails, cannot make what was used free of charge to a budget."""

import time

import pytest
from wild_caller import PATHS, Line, house_in, question

BUDGET = 20_000  # tokens a day
MOST = 2_000  # of an answer


@pytest.fixture(scope="module", params=PATHS)
def shared(request, tmp_path_factory):
    with house_in(
        tmp_path_factory.mktemp("hang"), request.param, far="prompt_price = 100\ncompletion_price = 100"
    ) as house:
        yield house


@pytest.fixture
def house(shared):
    shared.begin()
    return shared


@pytest.fixture
def key(house):
    ask = {"name": f"key-{time.time_ns()}", "limits": {"tokens_per_day": BUDGET}}
    return house.team.daemon.ask("POST", "/keys", ask)["secret"]


def used(house) -> int:
    """Of the newest key's budget."""
    newest = max(house.team.daemon.ask("GET", "/keys"), key=lambda each: each["created_ns"])
    (level,) = newest["limits"]
    assert level["reserved"] == 0
    return level["used"]


def leave(house, key, **more) -> None:
    with Line(house.team) as line:
        line.send(question(house.team, "far", "@@stalls_before_the_head", key=key, max_tokens=MOST, **more))
        house.team.until(lambda: house.wild.seen)
    house.team.until(lambda: house.busy() == 0)


def test_who_leaves_before_a_whole_answer_has_used_what_was_reserved(house, key):
    leave(house, key)
    row = house.record()
    assert (row["outcome"], row["lower_bound"], row["completion_tokens"]) == ("cut", 1, 0)
    assert row["held_tokens"] > MOST
    assert row["held_pico"] == row["held_tokens"] * 100 * 10**6
    assert used(house) == row["held_tokens"]


def test_nobody_hangs_up_for_ever(house, key):
    for _ in range(BUDGET // MOST):
        house.wild.seen.clear()
        if house.team.daemon.ask("GET", "/keys") and used(house) + MOST + 1024 > BUDGET:
            break
        leave(house, key)
    heard = house.ask("far", "hi", key=key, max_tokens=MOST * 2)
    assert (heard.status, heard.error) == (429, "insufficient_quota")


def test_of_a_stream_the_prompt_and_what_an_engine_may_add_before_it_notices(house, key):
    leave(house, key, stream=True)
    row = house.record()
    assert 1024 < row["held_tokens"] < 1024 + 512  # the question, and 32 tokens
    assert used(house) == row["held_tokens"]


def test_an_answer_without_usage_is_not_for_nothing(house, key):
    heard = house.ask("far", "@@usage_never", key=key, max_tokens=MOST)
    assert heard.text == " w0 w1 w2 w3"
    row = house.record()
    assert (row["lower_bound"], row["held_tokens"] > MOST) == (1, True)
    assert used(house) == row["held_tokens"] + row["prompt_tokens"] + row["completion_tokens"]


def test_an_answer_with_usage_gives_back_the_rest(house, key):
    house.ask("far", "hi", key=key, max_tokens=MOST)
    row = house.record()
    assert (row["held_tokens"], row["held_pico"]) == (0, 0)
    assert used(house) == row["prompt_tokens"] + row["completion_tokens"] == 11


def test_a_connection_is_sent_over_once_more_and_not_by_all_that_wait(house, key):
    """The pool has several connections; the engine closes each as soon as it is used."""
    lines = [Line(house.team) for _ in range(6)]
    for line in lines:
        line.send(question(house.team, "far", "hi"))
    for line in lines:
        assert line.answer().text == " w0 w1 w2 w3"
        line.socket.close()
    house.wild.seen.clear()
    heard = house.ask("far", "@@closes_before_the_head")
    assert (heard.status, heard.error) == (502, "engine_failed")
    assert len(house.wild.seen) <= 2


@pytest.mark.parametrize("upgrade", ["h2c", "websocket"])
def test_an_offer_to_upgrade_is_not_taken(house, upgrade):
    offer = (
        f"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: {upgrade}\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n".encode()
    )
    heard = house.ask("far", "an upgrade: h2c, as they say", headers=offer)
    assert heard.text == " w0 w1 w2 w3"
