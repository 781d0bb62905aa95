"""Where requests go, end to end: a daemon, several engines of others behind it, and one of its own that hangs."""

import asyncio
import contextlib
import json
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest
from conftest import Team, team_in
from wild_engine import Wild
from wild_ways import PROMPT, WORDS, Talk, way

# Probes in quick succession: else each of these tests would take half a minute.
IMPATIENT = (
    "-c",
    """
import freehold.fleet.health as health
health.PROBE_S, health.PATIENCE_S, health.HUNG_PROBES = 0.05, 0.3, 5
from freehold.cli.main import main
main()
""",
)
DE, US = 'country = "DE", operator = "scaleway"', 'country = "US", operator = "aws"'
OPEN = threading.Event()


@way
async def holds(talk: Talk) -> None:
    """No answer before somebody opens."""
    await asyncio.to_thread(OPEN.wait)
    for piece in talk.pieces():
        await talk.say(piece)


@contextlib.contextmanager
def callers():
    """Threads that ask; at the end nobody holds any more."""
    OPEN.clear()
    with ThreadPoolExecutor(8) as pool:
        try:
            yield pool
        finally:
            OPEN.set()


class Two:
    """Two engines, in Germany and in the United States: `far-1` and `far-2`."""

    def __init__(self, team: Team, de: Wild, us: Wild) -> None:
        self.team, self.de, self.us = team, de, us

    def key(self, **ask) -> str:
        return self.team.daemon.ask("POST", "/keys", {"name": f"key-{time.time_ns()}", **ask})["secret"]

    def ask(self, model="far", content="hi", **more) -> tuple[int, dict]:
        answer = self.team.post(model, content, **more)
        return answer.status, json.loads(answer.read())

    def seen(self) -> tuple[int, int]:
        return len(self.de.seen), len(self.us.seen)

    def last(self) -> dict:
        return self.team.records()[-1]


def external(*lines: str, prices=(1, 2)) -> str:
    prompt, completion = prices
    return "\n".join(('engine = "external"', f"prompt_price = {prompt}\ncompletion_price = {completion}", *lines))


def at(de: Wild, us: Wild) -> str:
    return f'replicas = [{{ url = "{de.url}", {DE} }}, {{ url = "{us.url}", {US} }}]'


@contextlib.contextmanager
def two_in(folder, *, policy="", far="", **endpoints: str):
    with team_in(folder) as team, contextlib.ExitStack() as stack:
        de, us = (stack.enter_context(Wild(folder / f"{name}.sock").running()) for name in ("de", "us"))
        team.write(policy=policy, far=external(at(de, us), far), **endpoints)
        team.serve(*IMPATIENT)
        yield Two(team, de, us)


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    dead = 'url = "http://127.0.0.1:9"'
    endpoints = {
        "cheap": external(dead, 'fallback = ["gone", "far"]', "max_completion_tokens = 100", prices=(0.1, 0.2)),
        "gone": external(dead),
        "alone": external(dead),
    }
    with two_in(tmp_path_factory.mktemp("two"), far="max_completion_tokens = 100", **endpoints) as two:
        yield two


@pytest.fixture
def two(house):
    for wild in (house.de, house.us):
        wild.seen.clear()
        wild.always = ""
    return house


def of_germany(**more) -> dict:
    return {"limits": {"residency": ["DE"], "jurisdiction_not": ["US"]}, **more}


def test_a_key_that_must_stay_in_germany_is_answered_there_and_nowhere_else(two):
    key = two.key(**of_germany())
    assert {two.ask(content=f"{n}", key=key)[0] for n in range(12)} == {200}
    assert two.seen() == (12, 0)
    record = two.last()
    assert (record["replica"], record["policy"]) == ("far-1", "in DE; not under US")
    assert {two.ask(content=f"{n}")[0] for n in range(12)} == {200}
    assert min(two.seen()[0] - 12, two.seen()[1]) > 0  # other keys are answered by both
    assert {r["policy"] for r in two.team.records()[-12:]} == {""}


def test_nor_when_the_replica_there_does_not_answer(two):
    key = two.key(**of_germany())
    two.de.always = "closes_before_the_head"
    assert two.ask(key=key)[0] in (502, 503)
    assert two.ask("cheap", key=key)[0] in (502, 503)
    assert two.seen()[1] == 0
    assert {two.ask(content=f"{n}")[0] for n in range(6)} == {200}  # who may go elsewhere is answered there
    assert {(r["replica"], r["outcome"]) for r in two.team.records()[-6:]} == {("far-2", "ok")}
    two.de.always = ""
    two.team.until(lambda: two.ask(key=key)[0] == 200)


def test_another_endpoint_answers_where_configuration_and_key_allow_it(two):
    key = two.key(**of_germany())
    status, body = two.ask("cheap", key=key)
    assert (status, body["model"]) == (200, "far")  # who answered is not hidden
    record = two.last()
    assert (record["asked"], record["endpoint"], record["replica"]) == ("cheap", "far", "far-1")
    assert record["charge_pico"] == (PROMPT * 1 + WORDS * 2) * 10**6  # by the prices of who answered
    assert two.seen() == (1, 0)
    narrow = two.key(endpoints=["cheap", "gone"])
    assert (two.ask("cheap", key=narrow)[0], two.ask("alone")[0]) == (502, 502)
    assert two.last()["asked"] == ""
    assert two.seen() == (1, 0)


def test_the_reservation_covers_the_dearer_of_them(two):
    """100 tokens at 2 a million, and about 1,100 at 1: 0.0013. Of `cheap` alone it would be a tenth."""
    assert two.ask("cheap", key=two.key(limits={"budget_per_day": 0.0010}))[0] == 429
    assert two.ask("cheap", key=two.key(limits={"budget_per_day": 0.0015}))[0] == 200


def test_requests_that_begin_alike_go_to_the_same_replica_unless_it_has_more_than_its_share(two):
    assert {two.ask(content="the same")[0] for _ in range(8)} == {200}
    assert sorted(two.seen()) == [0, 8]
    for wild in (two.de, two.us):
        wild.seen.clear()
    with callers() as pool:
        answers = [pool.submit(two.ask, content="the same @@holds") for _ in range(8)]
        two.team.until(lambda: sum(two.seen()) == 8)
        assert sorted(two.seen()) == [3, 5]  # its share of eight is four, and it may have 1.25 times that
        OPEN.set()
        assert {answer.result()[0] for answer in answers} == {200}


def test_policys_own_rules_leave_out_a_replica(tmp_path):
    with two_in(tmp_path, policy='country = "DE"\nresidency = ["EU"]\njurisdiction_not = ["US"]') as two:
        assert two.team.up("far") == {"up": "far"}  # it was asked for an answer
        assert {two.ask(content=f"{n}")[0] for n in range(8)} == {200}
        assert two.seen() == (9, 0)
        nowhere = two.key(limits={"residency": ["FR"]})
        status, body = two.ask(key=nowhere)
        assert (status, body["error"]["code"]) == (403, "refused")
        assert two.seen() == (9, 0)


def test_a_replica_that_is_down_is_left_out_and_comes_back_by_a_probe(tmp_path):
    with team_in(tmp_path) as team, Wild(tmp_path / "us.sock").running() as us:
        de = Wild(tmp_path / "de.sock")
        team.write(far=external(at(de, us)))
        team.serve(*IMPATIENT)
        (silent,) = team.until(lambda: team.events("replica.silent"))
        assert (silent["subject"], silent["detail"]["replica"]) == ("far", "far-1")
        for number in range(4):
            team.ask("far", f"{number}")
        assert len(us.seen) == 4
        rows = [line.split() for line in team.run("ps").splitlines() if line.startswith("far-")]
        assert [(row[0], row[2], row[5]) for row in rows] == [("far-1", "silent", "0"), ("far-2", "external", "0")]
        with de.running():
            (back,) = team.until(lambda: team.events("replica.answers"))
            assert back["detail"]["replica"] == "far-1"
            team.until(lambda: team.ask("far", f"{time.time_ns()}") and de.seen)


def test_an_engine_of_ours_that_hangs_is_started_anew_and_who_waits_is_served(team):
    team.write(demo=team.fake())
    team.serve(*IMPATIENT)
    team.ask("demo")
    daemon = psutil.Process(team.process.pid)
    engine = next(p for p in daemon.children(recursive=True) if any("fake_engine" in arg for arg in p.cmdline()[:3]))
    engine.send_signal(signal.SIGSTOP)
    body = team.ask("demo")  # sent to it before anybody knew, and again to its next run
    assert body["choices"]
    assert not psutil.pid_exists(engine.pid)
    assert team.events("replica.silent")
    (failed,) = team.events("engine.failed")
    assert "hangs" in failed["detail"]["reason"]
    assert [(row["outcome"], row["run"]) for row in team.records()] == [("ok", 1), ("ok", 2)]


def test_when_slots_are_full_keys_take_turns_and_priority_goes_first(tmp_path):
    with team_in(tmp_path) as team, Wild(tmp_path / "one.sock").running() as one, callers() as pool:
        team.write(far=external(f'url = "{one.url}"', "parallel = 1"))
        team.serve()
        two = Two(team, one, one)
        keys = {"a": two.key(), "b": two.key(), "c": two.key(limits={"priority": 5})}
        for number, name in enumerate(["a0 @@holds", "a1", "a2", "a3", "b1", "c1"]):
            pool.submit(two.ask, content=name, key=keys[name[0]])
            team.until(lambda: one.seen and team.status("far")["waiting"] == number)  # noqa: B023  it is waited for
        slots = team.run("ps").splitlines()[1].split()
        assert (slots[5], slots[6]) == ("1/1", "5")
        OPEN.set()
        team.until(lambda: len(team.records()) == 6)
        order = [talk.asked["messages"][0]["content"][:2] for talk in one.seen]
        assert order == ["a0", "c1", "a1", "b1", "a2", "a3"]
        assert all(row["queue_ms"] > 0 for row in team.records()[1:])


def test_a_fresh_replica_is_not_given_everything_at_once(tmp_path):
    with team_in(tmp_path) as team, Wild(tmp_path / "one.sock").running() as one, callers() as pool:
        team.write(far=external(f'url = "{one.url}"', "parallel = 8"))
        team.serve()
        two = Two(team, one, one)
        answers = [pool.submit(two.ask, content="@@holds") for _ in range(8)]
        team.until(lambda: team.status("far")["waiting"] == 6 and len(one.seen) >= 2)
        assert len(one.seen) == 2  # a quarter of its slots, until it has begun to answer
        OPEN.set()
        assert {answer.result()[0] for answer in answers} == {200}
        assert len(one.seen) == 8
