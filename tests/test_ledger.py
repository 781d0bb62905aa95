"""The book and its journal: nothing settled is lost, nothing opened is forgotten, nothing chained is changed unseen."""

import asyncio
import hashlib
import os
import time
from pathlib import Path

import msgspec
import pytest
from trails import a_record, an_event, book_in, breaks, tampering

from freehold.errors import FreeholdError
from freehold.ledger import audit, chain, report, sql, trail
from freehold.ledger import journal as journals
from freehold.ledger.audit import Audit
from freehold.ledger.book import SYNC_S, Book
from freehold.ledger.journal import Journal, left_behind, segments
from freehold.ledger.signing import signer
from freehold.ledger.sql import QUERIES
from freehold.ledger.trail import SEAL_ROWS
from freehold.types import Key, UsageRecord

COLUMNS = ", ".join(f'"{name}"' for name in UsageRecord.__struct_fields__)


def settle(journal, record, then=None):
    journal.settle(record.request, trail.settled(record).content, then)


def rows(folder, what="*"):
    with report.reading(folder) as db:
        return [tuple(row) for row in db.execute(f"select {what} from usage order by request")]


async def test_a_settled_record_is_in_the_book(tmp_path):
    book = Book(tmp_path)
    book.open_request(a_record())
    done = a_record(outcome="ok", prompt_tokens=3, completion_tokens=4, charge_pico=5, status=200)
    book.settle_request(done)
    await book.flush()
    assert rows(tmp_path, COLUMNS) == [msgspec.structs.astuple(done)]
    await book.close()


async def test_what_a_crash_left_open_is_closed_as_cut(tmp_path):
    journal = Journal(tmp_path)
    for name in ("settled", "open"):
        journal.open(a_record(name))
    settle(journal, a_record("settled", outcome="ok", completion_tokens=9))
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


@pytest.mark.parametrize("rest", [b"", b"\0" * 20, b"\xff\xfe", b'\n{"noted":"\xff"}'])
def test_a_torn_line_costs_only_itself(tmp_path, rest):
    """A power loss may leave anything in the place of what was not on the disk yet."""
    (tmp_path / "journal-1.bak").touch()  # somebody's copy
    journal = Journal(tmp_path)
    journal.open(a_record("whole"))
    journal.open(a_record("torn"))
    journal.close()
    (path,) = segments(tmp_path)
    path.write_bytes(path.read_bytes()[:-20] + rest + b'"\n')
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


async def test_events_are_chained_over_restarts(tmp_path):
    for start in range(2):
        book = Book(tmp_path)
        for number in range(3):
            book.add_event(an_event(number, subject=f"{start}-{number}"))
        await book.close()
    assert breaks(tmp_path) == []
    with report.reading(tmp_path) as db:
        assert [each["number"] for each in report.events(db, 100)] == [1, 2, 3, 4, 5, 6]


# sealing


def seals(folder):
    with report.reading(folder) as db:
        return [tuple(row) for row in db.execute("select first, last from seal order by first")]


async def test_rows_are_sealed_when_there_are_enough_when_they_have_waited_and_at_the_end(tmp_path, monkeypatch):
    monkeypatch.setattr(trail, "SEAL_S", 0.05)
    book = Book(tmp_path)
    for number in range(2 * SEAL_ROWS):
        book.settle_request(a_record(f"{number:04}"))
    await book.flush()
    assert sum(last - first + 1 for first, last in seals(tmp_path)) >= SEAL_ROWS
    async with asyncio.timeout(10):
        while not seals(tmp_path) or seals(tmp_path)[-1][1] < 2 * SEAL_ROWS:  # noqa: ASYNC110  the book tells nobody
            await asyncio.sleep(0.005)
    monkeypatch.setattr(trail, "SEAL_S", 1000.0)
    book.settle_request(a_record("last"))
    await book.close()
    assert seals(tmp_path)[-1] == (2 * SEAL_ROWS + 1, 2 * SEAL_ROWS + 1)
    assert breaks(tmp_path) == []


async def test_what_a_kill_left_unsealed_is_sealed_at_the_next_start(tmp_path):
    await book_in(tmp_path, rows=5)
    with tampering(tmp_path) as db:  # as if the process had ended between the row and its seal
        db.execute("delete from seal")
        db.execute("delete from event")
    assert breaks(tmp_path) == []  # the journal has them still
    for path in segments(tmp_path):
        path.unlink()
    assert breaks(tmp_path) == [("inserted", "usage rows 1 to 5")]
    await Book(tmp_path).close()
    assert (breaks(tmp_path), seals(tmp_path)) == ([], [(1, 5)])


async def test_a_book_of_the_first_edition_is_brought_up_to_date_and_sealed(tmp_path):
    migrations = sorted((Path(sql.__file__).parent / "migrations").glob("*.sql"))
    with tampering(tmp_path) as db:
        db.executescript(migrations[0].read_text() + "pragma user_version = 1;")
        columns = UsageRecord.__struct_fields__[:17]
        for number in range(450):
            record = a_record(f"r{number}", queue_ms=number / 3, first_byte_ms=0.1 * number or None, outcome="ok")
            marks = ", ".join("?" * len(columns))
            row = [getattr(record, name) for name in columns]
            db.execute(f"insert into usage ({', '.join(columns)}) values ({marks})", row)
        for row in chained([an_event(n) for n in range(3)]):
            db.execute(QUERIES["insert_event"], row)
    with pytest.raises(FreeholdError, match="edition 1"):
        breaks(tmp_path)
    await Book(tmp_path).close()
    assert breaks(tmp_path) == []
    assert seals(tmp_path) == [(1, 200), (201, 400), (401, 450)]


def chained(events):
    before = chain.GENESIS
    for seq, event in enumerate(events, start=1):
        row = chain.link(seq, before, b"s" * 16, msgspec.json.encode(event))
        before = row.hash
        yield row._replace(content=row.content.decode())


async def test_a_full_disk_while_sealing_ends_the_daemon_and_loses_nothing(tmp_path, monkeypatch):
    book = Book(tmp_path)
    failed = asyncio.Event()
    book.on_failure = failed.set
    book.settle_request(a_record("before"))
    await book.flush()
    pages = await book.do(lambda db: db.execute("pragma page_count").fetchone()[0])
    await book.do(lambda db: db.execute(f"pragma max_page_count = {pages}").fetchone())
    for number in range(SEAL_ROWS * 5):
        book.settle_request(a_record(f"r{number}"))
    await failed.wait()
    assert book.broken
    await book.close()
    book = Book(tmp_path)
    await book.close()
    assert len(rows(tmp_path)) == SEAL_ROWS * 5 + 1
    assert breaks(tmp_path) == []


@pytest.mark.parametrize(("at", "size"), [(0, 100), (100, 3000), (4096, 1 << 20)])
async def test_a_damaged_book_is_a_clear_error_and_the_journal_stays(tmp_path, at, size):
    await book_in(tmp_path, rows=300, events=50)
    path = tmp_path / "book.db"
    content = bytearray(path.read_bytes())
    damaged = len(content[at : at + size])
    content[at : at + damaged] = b"\xff" * damaged
    path.write_bytes(content)
    kept = {path.name: path.read_bytes() for path in segments(tmp_path)}
    with pytest.raises(FreeholdError, match="the book cannot be opened"):
        Book(tmp_path)
    with pytest.raises(FreeholdError, match="cannot be read") as said:
        breaks(tmp_path)
    assert said.value.exit_code == 3
    assert {path.name: path.read_bytes() for path in segments(tmp_path)} == kept


@pytest.mark.parametrize("how", ["empty", "gone", "of edition 0"])
async def test_a_book_that_was_there_and_is_none_any_more_is_not_begun_anew(tmp_path, how):
    signer(tmp_path)  # made before the first book, as by a pin
    await book_in(tmp_path, events=3)
    kept = (tmp_path / "book.db").read_bytes()
    for path in tmp_path.glob("book.db*"):
        path.unlink()
    if how == "empty":
        (tmp_path / "book.db").touch()
    elif how == "of edition 0":
        with tampering(tmp_path) as db:
            db.execute("create table event (seq integer primary key)")
    with pytest.raises(FreeholdError, match="empty or tampered with") as said:
        Book(tmp_path)
    assert (said.value.exit_code, "restore" in said.value.hint, "book.id" in said.value.hint) == (3, True, True)
    with pytest.raises(FreeholdError, match="empty or tampered with"):
        breaks(tmp_path)
    (tmp_path / "book.db").write_bytes(kept)
    await Book(tmp_path).close()
    for path in tmp_path.glob("book.*"):
        path.unlink()
    await Book(tmp_path).close()  # somebody wants it so
    assert breaks(tmp_path) == []


async def test_times_in_the_book_never_go_back(tmp_path):
    ahead_ns = time.time_ns() + 3600 * 10**9
    book = Book(tmp_path)
    book.add_event(an_event(at_ns=ahead_ns))
    await book.close()
    book = Book(tmp_path)
    assert 3590 < book.behind_s <= 3600
    book.add_event(an_event(at_ns=time.time_ns()))
    assert book.clock_ns() >= ahead_ns
    await book.close()
    with report.reading(tmp_path) as db:
        times_ns = [event["at_ns"] for event in report.events(db, 10)]
    assert times_ns == sorted(times_ns)
    assert times_ns[-1] >= ahead_ns


def test_the_root_is_that_of_rfc_6962():
    """Its definition, word for word: split at the largest power of two."""

    def defined(leaves):
        if len(leaves) == 1:
            return leaves[0]
        k = 1 << (len(leaves) - 1).bit_length() - 1
        return hashlib.sha256(b"\1" + defined(leaves[:k]) + defined(leaves[k:])).digest()

    for count in range(1, 70):
        leaves = [bytes([n]) * 32 for n in range(count)]
        assert chain.root(leaves) == defined(leaves)


async def test_keys_and_pins(tmp_path):
    book = Book(tmp_path)
    key = Key(id="1", name="ada", endpoints=("a", "b-*"), created_ns=1, expires_ns=2, content_days=30)
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
    assert modes == dict.fromkeys(("book.db", "book.id", "book.db-wal", "book.db-shm", "journal-1"), 0o600)
    await book.close()


async def test_threads_that_need_the_signing_key_at_once_get_one(tmp_path):
    (tmp_path / f"signing-{os.getpid()}.new").touch()  # left by a kill; numbers of processes come again
    signers = await asyncio.gather(*(asyncio.to_thread(signer, tmp_path) for _ in range(20)))
    assert len({each.public for each in signers}) == 1


async def test_a_book_that_is_written_to_is_checked_without_a_false_alarm(tmp_path, monkeypatch):
    """What one state of the book has not sealed yet has left the journal before the check comes to it."""
    monkeypatch.setattr(trail, "SEAL_S", 1000.0)
    book = Book(tmp_path)
    for number in range(20):
        book.settle_request(a_record(f"r{number}"))
    await book.flush()
    with report.reading(tmp_path, exact=True) as db:
        early = Audit(db, tmp_path)
        monkeypatch.setattr(audit, "left_behind", lambda _: ([], []))
        late = Audit(db, tmp_path)
        await book.seal()
        await book._rotate_now()
        assert list(early.breaks()) == list(late.breaks()) == []
    book.settle_request(a_record("last"))
    await book._rotate_now()  # what leaves the journal is sealed
    assert breaks(tmp_path) == []
    await book.close()


def test_a_journal_that_goes_while_it_is_read_is_no_error(tmp_path, monkeypatch):
    monkeypatch.setattr(journals, "segments", lambda folder: [folder / "journal-1"])
    assert left_behind(tmp_path) == ([], [])
