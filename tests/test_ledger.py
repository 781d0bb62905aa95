"""The book and its journal: nothing settled is lost, nothing opened is forgotten, nothing chained is changed unseen."""

import asyncio
import os
import sqlite3

import msgspec
import pytest

from freehold.ledger import journal as journals
from freehold.ledger import report
from freehold.ledger.book import SYNC_S, Book
from freehold.ledger.journal import Journal, left_behind, segments
from freehold.types import Event, Key, UsageRecord


def a_record(request="r1", **changes) -> UsageRecord:
    base = {"request": request, "key": "k", "endpoint": "demo", "kind": "chat", "stream": True, "started_ns": 1}
    return UsageRecord(**(base | changes))


def rows(folder, what="*"):
    with report.reading(folder) as db:
        return [tuple(row) for row in db.execute(f"select {what} from usage order by request")]


async def test_a_settled_record_is_in_the_book(tmp_path):
    book = Book(tmp_path)
    book.open_request(a_record())
    done = a_record(outcome="ok", prompt_tokens=3, completion_tokens=4, charge_pico=5, status=200)
    book.settle_request(done)
    await book.flush()
    assert rows(tmp_path) == [msgspec.structs.astuple(done)]
    await book.close()


async def test_what_a_crash_left_open_is_closed_as_cut(tmp_path):
    journal = Journal(tmp_path)
    for name in ("settled", "open"):
        journal.open(a_record(name))
    journal.settle(a_record("settled", outcome="ok", completion_tokens=9))
    journal.close()  # and the daemon is gone, before anything reached the book

    book = Book(tmp_path)
    assert book.recovered == 1
    await book.close()
    assert rows(tmp_path, "request, outcome, completion_tokens, lower_bound") == [
        ("open", "cut", 0, 1),
        ("settled", "ok", 9, 0),
    ]


async def test_recovery_may_repeat_itself(tmp_path):
    book = Book(tmp_path)
    book.open_request(a_record())
    book.settle_request(a_record(outcome="ok"))
    await book.flush()
    kept = [(path, path.read_bytes()) for path in segments(tmp_path)]
    await book.close()
    for path, content in kept:  # killed after the commit, before the segment was removed
        path.write_bytes(content)
    await Book(tmp_path).close()
    assert len(rows(tmp_path)) == 1


def test_a_torn_line_costs_only_itself(tmp_path):
    journal = Journal(tmp_path)
    journal.open(a_record("whole"))
    journal.open(a_record("torn"))
    journal.close()
    (path,) = segments(tmp_path)
    path.write_bytes(path.read_bytes()[:-20])
    settled, cut = left_behind(tmp_path)
    assert ([r.request for r in settled], [r.request for r in cut]) == ([], ["whole"])


async def test_a_full_journal_begins_anew_and_loses_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(journals, "ROTATE_BYTES", 4096)
    book = Book(tmp_path)
    book.open_request(a_record("stays open"))
    for number in range(200):
        book.open_request(a_record(f"r{number}"))
        book.settle_request(a_record(f"r{number}", outcome="ok"))
        await asyncio.sleep(0)
    await book.flush()
    while len(segments(tmp_path)) > 1:  # noqa: ASYNC110  the book tells nobody
        await asyncio.sleep(0.001)
    (path,) = segments(tmp_path)
    assert path.name != "journal-1"
    assert [r.request for r in left_behind(tmp_path)[1]] == ["stays open"]
    await book.close()
    assert len(rows(tmp_path)) == 200


async def test_events_are_chained_over_restarts_and_every_change_shows(tmp_path):
    for start in range(2):
        book = Book(tmp_path)
        for number in range(3):
            book.add_event(Event(at_ns=number, actor="ada", kind="key.created", subject=f"{start}-{number}"))
        await book.close()
    with report.reading(tmp_path) as db:
        assert report.chain_break(db) is None
    for change in (
        "update event set content = replace(content, 'ada', 'bob') where seq = 2",
        "update event set salt = x'00' where seq = 3",
        "delete from event where seq = 4",
        "update event set hash = x'00' where seq = 6",
    ):
        with sqlite3.connect(tmp_path / "book.db") as db:
            db.execute("begin")
            db.execute(change)
            db.row_factory = sqlite3.Row
            assert report.chain_break(db) == int(change[-1]), change
            db.rollback()
        db.close()


async def test_retention_may_empty_an_event_and_the_chain_holds(tmp_path):
    book = Book(tmp_path)
    for number in range(3):
        book.add_event(Event(at_ns=number, actor="ada", kind="x.y", subject="s"))
    await book.do(lambda db: db.execute("update event set salt = null, content = null where seq = 2"))
    await book.close()
    with report.reading(tmp_path) as db:
        assert report.chain_break(db) is None


async def test_keys_and_pins(tmp_path):
    book = Book(tmp_path)
    key = Key(id="1", name="ada", endpoints=("a", "b-*"), created_ns=1, expires_ns=2)
    await book.add_key(key, b"hash")
    assert await book.keys() == {b"hash": key}
    await book.revoke_key("1")
    assert (await book.keys())[b"hash"].revoked_ns is not None
    assert await book.pin("weights") is None
    await book.set_pin("weights", "digest", "ada")
    await book.set_pin("weights", "another", "eve")  # a pin is not overwritten
    assert await book.pin("weights") == "digest"
    await book.close()


async def test_a_failed_write_fails_alone(tmp_path):
    book = Book(tmp_path)
    fine = asyncio.ensure_future(book.set_pin("a", "1", "x"))
    broken = asyncio.ensure_future(book.do(lambda db: db.execute("insert into nowhere values (1)")))
    also_fine = asyncio.ensure_future(book.set_pin("b", "2", "x"))
    with pytest.raises(Exception, match="nowhere"):
        await broken
    await fine
    await also_fine
    assert (await book.pin("a"), await book.pin("b")) == ("1", "2")
    await book.close()


async def test_a_batch_is_shared_and_in_order(tmp_path):
    book = Book(tmp_path)
    for number in range(1000):
        book.settle_request(a_record(f"{number:04}", outcome="ok"))
    await book.flush()
    assert len(rows(tmp_path)) == 1000
    await book.close()


async def test_what_is_in_the_journal_reaches_the_disk_soon(tmp_path, monkeypatch):
    loop, synced, sync = asyncio.get_running_loop(), asyncio.Queue(), Journal.sync

    def noted(journal):
        sync(journal)
        loop.call_soon_threadsafe(synced.put_nowait, loop.time())

    book = Book(tmp_path)
    monkeypatch.setattr(Journal, "sync", noted)
    for what, record in ((book.open_request, a_record()), (book.settle_request, a_record(outcome="ok"))):
        began_s = loop.time()
        what(record)
        async with asyncio.timeout(10):
            assert await synced.get() - began_s >= SYNC_S * 0.9  # one for all that comes in between
    await book.close()


async def test_only_its_owner_can_read_the_book(tmp_path):
    before = os.umask(0)
    try:
        book = Book(tmp_path)
    finally:
        os.umask(before)
    await book.add_key(Key(id="1", name="ada", endpoints=("*",), created_ns=1), b"hash")
    book.open_request(a_record())
    modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()}
    assert modes == dict.fromkeys(("book.db", "book.db-wal", "book.db-shm", "journal-1"), 0o600)
    await book.close()
