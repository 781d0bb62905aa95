"""What is deleted is gone from the disk, its hashes stay, an event says so; prompts are kept only where a key asks."""

import asyncio
import contextlib
import os
import time

import pytest
from conftest import ME
from hypothesis import given
from hypothesis import strategies as st
from trails import DAY_NS, T0_NS, a_record, an_event, breaks, tampering

from freehold.errors import FreeholdError
from freehold.fleet.config import Trail
from freehold.gateway import custody as custodies
from freehold.gateway.custody import Custody
from freehold.ledger import deletion as deletions
from freehold.ledger import report
from freehold.ledger.book import Book
from freehold.ledger.deletion import Deletion
from freehold.ledger.ranges import Ranges
from freehold.types import Content

MARK = "mark-of-what-must-go"


def on_disk(folder, text):
    """The files of this folder, and below, in which the text stands."""
    return [path.name for path in folder.rglob("*") if path.is_file() and text.encode() in path.read_bytes()]


def events(folder, kind="trail.deleted"):
    with report.reading(folder) as db:
        return report.events(db, 10**6, kind=kind)


def deletion(what, before_ns=T0_NS + DAY_NS, **more):
    return Deletion(**({"what": what, "before_ns": before_ns, "actor": "ada", "why": "asked for"} | more))


async def filled(folder, rows=600):
    """Rows and events of two days, the older of which bear the mark."""
    book = Book(folder)
    started_ns = T0_NS
    book._trail.clock_ns = lambda: started_ns
    for number in range(rows):
        old = number < rows // 2
        key = f"{MARK}-{number}" * (1 + number % 7) if old else "k"
        started_ns = T0_NS + (0 if old else 2 * DAY_NS)
        record = a_record(f"{os.urandom(16).hex()}-{'old' if old else 'new'}", key=key, started_ns=started_ns)
        book.open_request(record)
        book.settle_request(record)
        book.add_event(an_event(at_ns=started_ns, subject=key * (1 + number % 40)))
        if number % 50 == 0:
            await book.seal()
    await book.seal()
    return book


@pytest.mark.parametrize("steps", [2000, 70])
async def test_what_is_deleted_is_gone_from_every_file_and_the_chain_holds(tmp_path, monkeypatch, steps):
    monkeypatch.setattr(deletions, "STEP_ROWS", steps)
    book = await filled(tmp_path)
    assert {"book.db", "journal-1"} <= set(on_disk(tmp_path, MARK))
    assert await book.delete(deletion("usage")) == [300]
    assert await book.delete(deletion("events")) == [300]
    assert on_disk(tmp_path, MARK) == []  # while the daemon runs
    assert breaks(tmp_path) == []
    assert await book.delete(deletion("usage"), deletion("events")) == [0, 0]
    await book.close()
    told = events(tmp_path)
    assert {(event["actor"], event["detail"]["why"]) for event in told} == {("ada", "asked for")}
    assert sum(event["detail"]["count"] for event in told) == 600
    with report.reading(tmp_path) as db:
        assert db.execute("select count(*), min(number) from usage").fetchone()[:] == (300, 301)
        assert {row["requests"] for row in report.usage(db, "key")} == {300}
    await Book(tmp_path).close()
    assert (breaks(tmp_path), on_disk(tmp_path, MARK)) == ([], [])


async def test_seals_and_deletions_are_never_deleted(tmp_path):
    book = await filled(tmp_path, rows=100)
    far_ns = time.time_ns() + DAY_NS
    await book.delete(deletion("usage", far_ns))
    await book.delete(deletion("events", far_ns))
    await book.delete(deletion("events", far_ns))
    await book.close()
    assert {event["kind"] for event in events(tmp_path, "*")} == {"usage.sealed", "trail.deleted"}
    assert breaks(tmp_path) == []


async def test_only_what_its_deletion_names_may_be_gone(tmp_path):
    book = await filled(tmp_path, rows=100)
    await book.delete(deletion("usage"))
    await book.close()
    with tampering(tmp_path) as db:
        db.execute("delete from usage where number = 77")
    assert breaks(tmp_path) == [("dropped", "usage row 77")]


async def test_a_reader_who_holds_old_pages_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("freehold.ledger.book.OPEN_S", 0.1)
    book = await filled(tmp_path, rows=100)
    with report.reading(tmp_path) as reader:
        reader.execute("select count(*) from usage").fetchone()
        with pytest.raises(FreeholdError, match="somebody reads it"):
            await book.delete(deletion("usage"))
    assert "book.db-wal" in on_disk(tmp_path, MARK)
    assert await book.delete(deletion("usage")) == [0]
    assert {name for name in on_disk(tmp_path, MARK) if name != "book.db"} == set()  # events have it still
    await book.delete(deletion("events"))
    assert (breaks(tmp_path), on_disk(tmp_path, MARK)) == ([], [])
    await book.close()


async def test_daily_a_large_book_is_not_written_anew_but_overwritten(tmp_path, monkeypatch):
    monkeypatch.setattr("freehold.ledger.book.REWRITE_BYTES", 0)
    book = await filled(tmp_path, rows=100)
    book.settle_request(a_record("kept", started_ns=T0_NS), a_content(T0_NS + DAY_NS, "another"))
    pages = await book.do(lambda db: db.execute("pragma page_count").fetchone()[0])
    assert await book.delete(deletion("content"), deletion("usage"), thorough=False) == [1, 51]
    assert await book.do(lambda db: db.execute("pragma page_count").fetchone()[0]) >= pages
    assert on_disk(tmp_path, "another") == []
    assert "book.db-wal" not in on_disk(tmp_path, MARK)
    await book.delete(deletion("usage"), deletion("events"))
    assert on_disk(tmp_path, MARK) == []
    assert await book.do(lambda db: db.execute("pragma page_count").fetchone()[0]) < pages
    await book.close()


class Stand:
    """What `Custody` uses of a Ground."""

    def __init__(self, folder, book):
        self.state, self.book, self.clock_ns, self.told = folder, book, lambda: T0_NS + 10 * DAY_NS, []

    def tell(self, kind, subject, **detail):
        self.told.append((kind, subject))


async def test_the_daemon_keeps_what_the_configuration_says(tmp_path):
    book = await filled(tmp_path, rows=100)
    stand = Stand(tmp_path, book)
    await Custody(stand, Trail()).retain()
    assert events(tmp_path) == []
    await Custody(stand, Trail(keep_usage_days=9, keep_event_days=9)).retain()
    await book.close()
    assert {event["detail"]["why"] for event in events(tmp_path)} == {
        "trail.keep_usage_days = 9",
        "trail.keep_event_days = 9",
    }
    assert (breaks(tmp_path), on_disk(tmp_path, MARK)) == ([], [])


class Broken:
    """A book whose folder cannot be read any more, or worse."""

    def __init__(self, failure):
        self.failure, self.tries = failure, 0

    async def delete(self, *_, **__):
        self.tries += 1
        raise self.failure


async def test_retention_goes_on_after_a_failure_that_is_said(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(custodies, "RETAIN_S", 0.01)
    for failure in (OSError("input/output error"), RuntimeError("what nobody foresaw")):
        book = Broken(failure)
        keeping = asyncio.create_task(Custody(Stand(tmp_path, book), Trail()).keep())
        await asyncio.sleep(0.2)
        assert book.tries > 1
        keeping.cancel()
        await asyncio.wait((keeping,))
        assert str(failure) in caplog.text


# questions and answers


def a_content(until_ns, mark=MARK):
    return Content(question=f"{mark}?".encode() * 900, answer=f"{mark}!".encode() * 3000, until_ns=until_ns)


async def test_content_is_bound_to_its_row_and_goes_when_its_time_is_over(tmp_path):
    book = Book(tmp_path)
    for name, days in (("short", 5), ("long", 50)):
        book.settle_request(a_record(name), a_content(T0_NS + days * DAY_NS, f"{MARK}-{name}"))
    book.settle_request(a_record("without"))
    await book.seal()
    assert breaks(tmp_path) == []
    await Custody(Stand(tmp_path, book), Trail()).retain()
    assert on_disk(tmp_path, f"{MARK}-short") == []
    with report.reading(tmp_path) as db:
        assert report.content(db, "short") is None
        assert report.content(db, "long").answer.startswith(b"mark")
    assert breaks(tmp_path) == []
    await book.close()
    with tampering(tmp_path) as db:
        db.execute("update content set answer = x'00'")
    assert breaks(tmp_path) == [("changed", "what was kept of usage row 2")]
    with tampering(tmp_path) as db:
        db.execute("update content set request = 'without'")
    found = [("emptied", "what was kept of usage row 2"), ("inserted", "what was kept of without")]
    assert sorted(breaks(tmp_path)) == found


async def test_with_a_usage_row_goes_what_was_kept_of_it(tmp_path):
    book = Book(tmp_path)
    book.settle_request(a_record("r1", key="a"), a_content(T0_NS + DAY_NS))
    book.settle_request(a_record("r2", key="b"), a_content(T0_NS + DAY_NS, "another"))
    assert await book.delete(deletion("usage", keys=("a",))) == [1]
    assert (on_disk(tmp_path, MARK), breaks(tmp_path)) == ([], [])
    assert await book.delete(deletion("content", keys=("b",))) == [1]
    assert (on_disk(tmp_path, "another"), breaks(tmp_path)) == ([], [])
    await book.close()


async def test_content_that_a_crash_lost_is_said(tmp_path):
    book = Book(tmp_path)
    book.settle_request(a_record("r1"), a_content(T0_NS))
    await book.flush()
    journals = {path: path.read_bytes() for path in tmp_path.glob("journal-*")}
    await book.close()
    for path in tmp_path.glob("book.*"):  # the kill came before the commit
        path.unlink()
    for path, content in journals.items():
        path.write_bytes(content)
    await Book(tmp_path).close()
    assert [event["detail"]["why"] for event in events(tmp_path)] == ["lost in a crash"]
    assert breaks(tmp_path) == []


SECRET = "the-heron-flies-at-noon"


def test_who_reads_what_was_kept_is_noted_without_a_daemon_too(team):
    team.write(demo=team.fake())
    team.serve()
    secret = team.daemon.ask("POST", "/keys", {"name": "kept", "content_days": 30})["secret"]
    with contextlib.closing(team.post("demo", SECRET, key=secret)) as reply:
        reply.read()
    team.end()
    assert SECRET in team.run("audit", "content", reply.headers["x-request-id"])
    (read,) = team.events("content.read")
    assert (read["subject"], read["actor"]) == (reply.headers["x-request-id"], ME)
    assert "the trail holds" in team.run("audit", "verify")


def test_no_byte_of_a_prompt_or_answer_is_kept_unless_the_key_asks(team):
    team.write(demo=team.fake())
    team.serve()
    answer = team.ask("demo", SECRET)["choices"][0]["message"]["content"]
    with contextlib.closing(team.post("demo", f"{SECRET} @@n=5,us=1000", stream=True)) as stream:
        stream.read()
    team.daemon.ask("POST", "/flush")
    assert on_disk(team.state, SECRET) == []
    assert "keeps content" not in str(team.events("key.created"))

    team.run("keys", "create", "kept", "--keep-content", "30d")
    secret = team.daemon.ask("POST", "/keys", {"name": "kept2", "content_days": 30})["secret"]
    for stream in (True, False):
        reply = team.post("demo", SECRET, key=secret, stream=stream)
        body = reply.read().decode()
        shown = team.run("audit", "content", reply.headers["x-request-id"])
        assert SECRET in shown
        read = team.events("content.read")[-1]
        assert (read["subject"], read["actor"]) == (reply.headers["x-request-id"], ME)
        assert body.strip() in shown.strip() or answer in shown
    assert set(on_disk(team.state, SECRET)) <= {"book.db", "book.db-wal"}
    assert "the trail holds" in team.run("audit", "verify")
    assert "30d" in team.run("keys", "list")

    said = team.run("audit", "delete", "--before", "0s", "--content", "--key", "kept2")
    assert "deleted 2 of content" in said
    assert on_disk(team.state, SECRET) == []
    assert [event["actor"] for event in team.events("trail.deleted")] == [ME]
    assert "x-request-id" in team.run("audit", "content", reply.headers["x-request-id"], code=2)
    assert len(team.events("content.read")) == 2
    assert "the trail holds" in team.run("audit", "verify")
    assert "key" in team.run("audit", "delete", "--before", "1d", "--events", "--key", "kept2", code=2)
    assert "say what" in team.run("audit", "delete", "--before", "1d", code=2)
    team.run("audit", "delete", "--before", "yesterday", "--usage", code=2)
    team.run("audit", "delete", "--before", "1d", "--usage", "--key", "nobody", code=2)


@given(st.lists(st.tuples(st.integers(1, 40), st.integers(0, 6)), max_size=12), st.integers(1, 40), st.integers(0, 20))
def test_ranges_are_sets_of_numbers(parts, first, more):
    ranges, numbers = Ranges(), set()
    for low, length in parts:
        ranges.add(low, low + length)
        numbers |= {*range(low, low + length + 1)}
    again = Ranges(numbers)
    again.add_text("x")
    again.add_text("1-2,")
    assert str(again) == str(ranges)
    holes = [number for low, high in ranges.holes(first, first + more) for number in range(low, high + 1)]
    assert holes == [number for number in range(first, first + more + 1) if number not in numbers]
    assert ranges.has(first) == (first in numbers)
