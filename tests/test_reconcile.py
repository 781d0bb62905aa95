"""What the records say against what the engines counted, and what keys and groups have used."""

import json
import os
import shutil
import signal
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from trails import DAY_NS, T0_NS, a_record, breaks, tampering

from freehold.ledger import chain, report, sql, trail
from freehold.ledger.book import Book
from freehold.ledger.deletion import Deletion
from freehold.ledger.reconcile import reconcile
from freehold.types import Grant, Key, Spent, Tokens, UsageRecord

OLD = UsageRecord.__struct_fields__[:18]


# rows of before


def old_content(record):
    """The rule of the third edition: every field, and no other."""
    return msgspec.json.encode({name: getattr(record, name) for name in OLD})


async def test_rows_that_the_third_edition_sealed_still_hold(tmp_path):
    with tampering(tmp_path) as db:
        for path in sorted((Path(sql.__file__).parent / "migrations").glob("000[123]*.sql")):
            db.executescript(path.read_text())
        db.execute("pragma user_version = 3")
        leaves = []
        for number in range(1, 41):
            record = a_record(f"r{number}", queue_ms=number / 3, first_byte_ms=0.1 * number, outcome="ok")
            salt = bytes([number]) * 16
            row = [number, salt, *(getattr(record, name) for name in OLD)]
            db.execute(f"insert into usage values ({', '.join('?' * len(row))})", row)
            leaves.append(chain.leaf(number, chain.commitment(salt, old_content(record))))
        said = {"first": 1, "last": 40, "root": chain.root(leaves).hex()}
        event = {"at_ns": T0_NS, "actor": "freehold", "kind": "usage.sealed", "subject": "usage", "detail": said}
        row = chain.link(1, chain.GENESIS, b"s" * 16, msgspec.json.encode(event))
        db.execute(
            "insert into event values (?, ?, ?, ?, ?)", (*row[:2], msgspec.json.encode(event).decode(), *row[3:])
        )
        db.execute("insert into seal values (1, 1, 40, ?)", (b"".join(leaves),))
    book = Book(tmp_path)
    book.settle_request(a_record("new", group="research", replica="demo-1", run=3, wake_ms=0.0))
    await book.close()
    assert breaks(tmp_path) == []
    with tampering(tmp_path) as db:
        db.execute("update usage set \"group\" = 'other' where number = 7")
    assert breaks(tmp_path) == [("changed", "usage row 7")]


TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=5)
COUNT, MS = st.integers(0, 2**63 - 1), st.floats(0, 1e9)


@settings(max_examples=100, deadline=None)
@given(st.builds(
    a_record, request=TEXT, group=TEXT, caller_request=TEXT, replica=TEXT, run=COUNT, reasoning_tokens=COUNT,
    wake_ms=MS, held_tokens=COUNT, held_pico=COUNT, queue_ms=MS, first_byte_ms=st.none() | MS,
    lower_bound=st.booleans(),
))  # fmt: skip
def test_a_row_of_the_table_has_the_content_of_its_record(record):
    db = sqlite3.connect(":memory:", isolation_level=None)
    sql.migrate(db)
    row = trail.settled(record)
    added = trail.Trail(db)
    added.reload()
    assert added.add_usage([row]) == 1
    _, _, *values = db.execute(sql.QUERIES["usage"]).fetchone()
    assert chain.row_content(values) == row.content
    later = UsageRecord.__struct_fields__[18:]
    said = json.loads(row.content)
    assert {name: said.get(name) for name in later} == {name: getattr(record, name) or None for name in later}
    assert list(said)[:18] == list(OLD)
    assert msgspec.json.decode(row.content, type=UsageRecord) == record
    db.close()


def test_what_is_twice_or_impossible_in_a_batch_costs_only_itself(caplog):
    db = sqlite3.connect(":memory:", isolation_level=None)
    sql.migrate(db)
    writer = trail.Trail(db)
    writer.reload()
    rows = [trail.settled(a_record(f"r{number % 190}")) for number in range(200)]
    rows[50] = trail.settled(a_record("huge", prompt_tokens=2**63))
    assert writer.add_usage(rows) == 189
    assert writer.add_usage(rows) == 0
    assert writer.add_usage([trail.settled(a_record(f"n{number}")) for number in range(337)]) == 337
    assert [row[0] for row in db.execute("select number from usage order by number")] == list(range(1, 527))
    assert "huge" in caplog.text
    assert writer.sealed == 0
    writer.seal()
    assert writer.sealed == 526
    db.close()


# keys, and what they used


async def test_a_key_has_a_group_and_a_grant(tmp_path):
    book = Book(tmp_path)
    grant = Grant(requests_per_minute=5, pico_per_month=10**18, priority=-3, residency=("DE", "FR"))
    key = Key(id="1", name="ada", endpoints=("*",), created_ns=1, group="research", grant=grant)
    await book.add_key(key, b"hash")
    assert await book.keys() == {b"hash": key}
    await book.close()


async def test_what_was_used_is_summed_by_key_and_group_beyond_the_largest_integer(tmp_path):
    book, month_ns = Book(tmp_path), T0_NS - 5 * DAY_NS
    huge = {"charge_pico": 2**62, "held_pico": 2**62 + 1, "prompt_tokens": 5, "completion_tokens": 6, "held_tokens": 7}
    for number, (began_ns, group) in enumerate(
        [(T0_NS, "a"), (T0_NS + 1, "a"), (T0_NS - 1, "a"), (month_ns, "b"), (month_ns - 1, "a")]
    ):
        book.settle_request(a_record(f"r{number}", started_ns=began_ns, group=group, **huge))
    one = 2**63 + 1
    assert await book.spent(T0_NS, month_ns) == [
        Spent(key="k", group="a", tokens_day=36, pico_day=2 * one, tokens_month=54, pico_month=3 * one),
        Spent(key="k", group="b", tokens_month=18, pico_month=one),
    ]
    await book.close()


# reconciling


class Team:
    """A book with one run of one replica, as the daemon fills it."""

    def __init__(self, folder):
        self.folder, self.book, self.number = folder, Book(folder), 0

    def serve(self, run=1, **what):
        self.number += 1
        now_ns = self.book.clock_ns()
        base = {"prompt_tokens": 10, "completion_tokens": 20, "outcome": "ok", "started_ns": now_ns}
        self.book.settle_request(a_record(f"r{self.number}", replica="demo-1", run=run, **(base | what)))

    def read(self, prompt, completion, run=1, *, at_ns=0, in_flight=0, final=False):
        at_ns = at_ns or self.book.clock_ns()
        counted = Tokens(prompt=prompt, completion=completion)
        self.book.save_counts("demo", "demo-1", run, counted, at_ns=at_ns, in_flight=in_flight, final=final)

    async def runs(self, *alive, daemon=True):
        """`alive`: runs that are; by default the first."""
        await self.book.flush()
        with report.reading(self.folder) as db:
            processes = {("demo", "demo-1", run) for run in alive or (1,)}
            return reconcile(db, self.folder, processes if daemon else None)

    async def verdict(self, *alive, daemon=True):
        (run,) = await self.runs(*alive, daemon=daemon)
        return run.difference, run.verdict, run.wrong


@pytest.fixture
async def served(tmp_path):
    team = Team(tmp_path)
    team.serve(kind="probe")
    team.serve()
    yield team
    await team.book.close()


async def test_a_drained_run_that_agrees_is_exact(served):
    served.read(5, 5)
    served.read(20, 40, final=True)
    served.read(5, 5, at_ns=1)  # late news
    assert await served.verdict() == (0, "exact", False)
    (run,) = await served.runs(daemon=False)
    assert (run.requests, run.probes, run.final, run.verdict) == (2, 1, True, "exact")


async def test_a_drained_run_that_differs_is_wrong(served):
    served.read(20, 47, final=True)
    said = "differs by 7 tokens, of which its requests explain at most 0"
    assert await served.verdict() == (7, said, True)
    served.read(19, 41, final=True)  # one too few, one too many: that is not nothing
    assert (await served.verdict())[::2] == (2, True)


async def test_cut_requests_bound_what_nobody_can_attribute(served):
    served.serve(outcome="cut", lower_bound=True, held_tokens=30)
    served.read(30, 85, final=True)
    assert await served.verdict() == (25, "unattributed 25 tokens, at most 30", False)
    served.read(30, 95, final=True)
    assert (await served.verdict())[::2] == (35, True)
    served.serve(outcome="cut", lower_bound=True)
    served.read(40, 85, final=True)
    said = "unattributed 5 tokens, at most 30, and what was still produced for 1 that nobody saw the end of"
    assert await served.verdict() == (5, said, False)


async def test_what_is_under_way_at_the_reading_is_a_bound(served):
    began_ns = served.book.clock_ns()
    served.read(30, 45, at_ns=began_ns + 10**6, in_flight=2)
    served.serve(started_ns=began_ns, total_ms=10.0)  # ended after it
    served.serve(started_ns=began_ns + 10**8, total_ms=1.0)  # and one that came later
    open_one = a_record("open", started_ns=began_ns, held_tokens=100)
    served.book.open_request(open_one)
    assert await served.verdict() == (15, "unattributed 15 tokens, at most 130", False)
    (run,) = await served.runs()
    assert (run.requests, run.in_flight, run.cut) == (2, 2, 1)


async def test_without_a_last_reading_it_says_why(served):
    served.read(20, 45)
    said = "at the last one, 5 tokens unattributed, at most 0"
    assert await served.verdict(daemon=False) == (5, f"no final reading: the daemon was killed; {said}", False)
    served.serve(run=2)
    first, second = await served.runs(2)
    assert first.verdict == f"no final reading: the engine ended by itself; {said}"
    assert second.verdict == "its counters were never read"


async def test_an_engine_that_died_after_its_last_reading_is_not_exact(served):
    """What came between that reading and its end is compared with nothing."""
    served.read(20, 40)
    served.serve(outcome="cut", lower_bound=True)
    assert await served.verdict(99) == (0, "no final reading: the engine ended by itself", False)


async def test_what_a_crash_cut_without_a_bound_is_said(served):
    served.read(20, 90)
    served.book.open_request(a_record("limitless", started_ns=served.book.clock_ns()))
    said = "50 tokens unattributed, at most 0, and what was still produced for 1 that nobody saw the end of"
    verdict = (50, f"no final reading: the daemon was killed; at the last one, {said}", False)
    assert await served.verdict(daemon=False) == verdict
    shutil.copytree(served.folder, crashed := served.folder / "crashed", ignore=lambda *_: ["crashed"])
    await Book(crashed).close()
    with report.reading(crashed) as db:
        (run,) = reconcile(db, crashed, None)
    assert (run.difference, run.verdict, run.wrong) == verdict


async def test_runs_of_two_daemons_are_not_mixed(served):
    served.read(20, 40, final=True)
    await served.book.close()
    served.book = Book(served.folder)
    served.serve()
    served.read(10, 20)
    runs = await served.runs()
    assert [(run.run, run.requests, run.verdict) for run in runs] == [(1, 2, "exact"), (1, 1, "exact")]
    assert runs[0].daemon_began_ns < runs[1].daemon_began_ns


async def test_what_retention_took_is_compared_with_nothing(served):
    served.read(20, 40, final=True)
    before_ns = served.book.clock_ns()
    served.serve()
    await served.book.delete(Deletion(what="usage", before_ns=before_ns, actor="ada", why="asked for"))
    assert [run.verdict for run in await served.runs()] == ["its counters were never read"]


# the command


def test_the_command_says_so_and_ends_with_three(team):
    team.write(demo=team.fake())
    team.serve()
    team.ask("demo")
    assert "exact" in team.run("usage", "--reconcile")  # by a fresh reading
    team.daemon.ask("POST", "/endpoints/demo/stop")
    team.until(lambda: team.status("demo")["state"] == "stopped")
    (run,) = json.loads(team.run("usage", "--reconcile", "--json"))
    assert (run["verdict"], run["difference"], run["probes"], run["requests"]) == ("exact", 0, 1, 2)
    team.end()
    with tampering(team.state) as db:
        db.execute("update counted set completion_tokens = completion_tokens + 1")
    assert "differs by 1 tokens" in team.run("usage", "--reconcile", code=3)
    assert "exact" not in team.run("usage", "--reconcile", "--csv", code=3)
    team.run("usage", "--reconcile", "--cost", code=2)


def reconciled(team):
    return json.loads(team.run("usage", "--reconcile", "--json"))


def test_llama_cpp_counts_as_the_records_do_and_says_so_while_nobody_leaves(team):
    """The real engine, asked in every way; then callers leave in the middle, and then it is killed."""
    team.write(demo=team.demo())
    team.serve()
    ways = ({}, {"stream": True}, {"n": 2}, {"n": 2, "stream": True}, {"max_tokens": 3}, {"max_tokens": 1})
    with ThreadPoolExecutor(12) as callers:
        said = callers.map(lambda n: team.post("demo", f"Who made {n}?", **ways[n % len(ways)]).read(), range(36))
        assert all(said)
    (run,) = reconciled(team)
    assert (run["verdict"], run["difference"], run["requests"], run["probes"]) == ("exact", 0, 37, 1)
    assert run["recorded_completion"] > 36

    for _ in range(6):
        answer = team.post("demo", "Tell me all.", max_tokens=300, stream=True, ignore_eos=True)
        answer.read(200)
        answer.connection.close()
    team.until(lambda: len(team.records()) == 42)
    (run,) = reconciled(team)
    assert (run["cut"], run["unknown"], run["wrong"]) == (6, 6, False)
    assert run["verdict"] == "exact" or "for 6 that nobody saw the end of" in run["verdict"]

    os.kill(team.status("demo")["pid"], signal.SIGKILL)
    team.until(lambda: (found := team.status("demo"))["run"] == 2 and found["state"] == "ready")
    first, second = reconciled(team)
    assert first["verdict"].startswith("no final reading: the engine ended by itself")
    assert (second["verdict"], second["requests"]) == ("exact", 1)


def test_one_record_is_found_by_either_id(team):
    team.write(demo=team.fake())
    team.serve()
    team.ask("demo")
    (record,) = json.loads(team.run("usage", "--by", "group", "--json"))
    assert (record["name"], record["requests"]) == ("", 2)
    request = team.records()[-1]["request"]
    (record,) = json.loads(team.run("usage", "--request", request, "--json"))
    assert record["request"] == request
    assert f"request            {request}" in team.run("usage", "--request", request)
    with tampering(team.state) as db:
        db.execute("update usage set caller_request = 'theirs', reasoning_tokens = 4 where request = ?", (request,))
    assert request in team.run("usage", "--request", "theirs")
    assert "REASONING" in team.run("usage")
    assert "no record" in team.run("usage", "--request", "nobody", code=2)
