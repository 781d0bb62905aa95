"""Six ways to rewrite what happened, of events and of usage rows, and what verify names: neither less nor more."""

import asyncio
import json
import random
import sqlite3

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from trails import T0_NS, a_record, an_event, book_in, breaks, tampering

from freehold.ledger import chain, report
from freehold.ledger.audit import Audit, against
from freehold.ledger.book import Book
from freehold.ledger.checkpoint import sign, state_of
from freehold.ledger.deletion import Deletion
from freehold.ledger.follow import Break, EventWalk, Placed, Row
from freehold.ledger.signing import signer
from freehold.ledger.sql import QUERIES

EVENTS, ROWS = 40, 60  # after 6 seals of 10 rows: events 7 to 46


@pytest.fixture
def folder(tmp_path):
    asyncio.run(book_in(tmp_path, events=EVENTS, rows=ROWS))
    assert breaks(tmp_path) == []
    return tmp_path


def shift(table, column, after, by):
    """Renumber what stands behind, past each other's numbers."""
    return (
        f"update {table} set {column} = -{column} where {column} > {after}",
        f"update {table} set {column} = {by} - {column} where {column} < 0",
    )


def swap(table, column, one, other):
    return (
        f"update {table} set {column} = -1 where {column} = {one}",
        f"update {table} set {column} = {one} where {column} = {other}",
        f"update {table} set {column} = {other} where {column} = -1",
    )


COPY = "insert into event select {0}, salt, content, commitment, hash from event where seq = 10"
USAGE_COPY = (
    "create table copy as select * from usage where number = 5",
    "update copy set request = 'forged', number = {0}",
    "insert into usage select * from copy",
    "drop table copy",
)


def events(kind, *numbers):
    return [(kind, f"event {number}") for number in numbers]


def rows(kind, *numbers):
    return [(kind, f"usage row {number}") for number in numbers]


TAMPERING = {
    # events
    "content": (["update event set content = replace(content, 'ada', 'eve') where seq = 20"], events("changed", 20)),
    "salt": (["update event set salt = zeroblob(16) where seq = 20"], events("changed", 20)),
    "not JSON": (["update event set content = 'x' where seq = 20"], events("changed", 20)),
    "commitment": (["update event set commitment = zeroblob(32) where seq = 20"], events("changed", 20)),
    "hash": (["update event set hash = zeroblob(32) where seq = 20"], events("changed", 20)),
    "last hash": (["update event set hash = zeroblob(32) where seq = 46"], events("changed", 46)),
    "two hashes": (["update event set hash = zeroblob(32) where seq in (20, 21)"], events("changed", 20, 21)),
    "two commitments": (
        ["update event set commitment = zeroblob(32) where seq in (20, 21)"], events("changed", 20, 21)
    ),
    "two apart": (
        ["update event set content = 'x' where seq in (10, 40)"], events("changed", 10, 40)
    ),
    "dropped": (["delete from event where seq = 20"], events("dropped", 20)),
    "first dropped": (
        ["delete from event where seq = 1"],
        [("dropped", "event 1"), ("dropped", "usage rows 1 to 10")],
    ),
    "several dropped": (["delete from event where seq between 20 and 30"], [("dropped", "events 20 to 30")]),
    "dropped, renumbered": (
        ["delete from event where seq = 20", *shift("event", "seq", 20, -1)], events("dropped", 20)
    ),
    "re-ordered": (swap("event", "seq", 20, 21), events("re-ordered", 20, 21)),
    "re-ordered far": (swap("event", "seq", 10, 40), events("re-ordered", 10, 40)),
    "inserted": ([*shift("event", "seq", 20, 1), COPY.format(21)], [("inserted", "event at 21")]),
    "inserted at the end": ([COPY.format(47)], events("changed", 47)),
    "emptied": (["update event set salt = null, content = null where seq = 20"], events("emptied", 20)),
    "half emptied": (["update event set content = null where seq = 20"], events("changed", 20)),
    "inserted before the last": ([*shift("event", "seq", 45, 1), COPY.format(46)], [("inserted", "event at 46")]),
    "last with one far": (swap("event", "seq", 10, 46), events("re-ordered", 10, 46)),
    "a number that cannot be": ([COPY.format(2**63 - 1)], [("dropped", f"events 47 to {2**63 - 2}")]),
    "seal's hash": (["update event set hash = zeroblob(32) where seq = 3"], events("changed", 3)),
    "seal gone": (
        ["delete from event where seq = 3", *shift("event", "seq", 3, -1)],
        [("dropped", "event 3"), ("dropped", "usage rows 21 to 30")],
    ),
    # usage rows
    "usage changed": (["update usage set prompt_tokens = 9 where number = 15"], rows("changed", 15)),
    "usage salt": (["update usage set salt = zeroblob(16) where number = 15"], rows("changed", 15)),
    "all of a seal": (
        ["update usage set key = 'eve' where number between 11 and 20"], rows("changed", *range(11, 21))
    ),
    "usage dropped": (["delete from usage where number = 15"], rows("dropped", 15)),
    "usage dropped, renumbered": (
        ["delete from usage where number = 15", *shift("usage", "number", 15, -1)], rows("dropped", 15)
    ),
    "last usage dropped": (["delete from usage where number > 57"], [("dropped", "usage rows 58 to 60")]),
    "usage re-ordered": (swap("usage", "number", 15, 16), rows("re-ordered", 15, 16)),
    "usage re-ordered far": (swap("usage", "number", 5, 55), rows("re-ordered", 5, 55)),
    "usage inserted": (
        [*shift("usage", "number", 14, 1), *(q.format(15) for q in USAGE_COPY)], [("inserted", "usage row at 15")]
    ),
    "usage inserted before all": ([q.format(-(2**63)) for q in USAGE_COPY], [("inserted", f"usage row at {-(2**63)}")]),
    "usage inserted at the end": ([q.format(61) for q in USAGE_COPY], [("inserted", "usage row 61")]),
    "leaves": (["update seal set leaves = zeroblob(320) where first = 11"], [("changed", "usage rows 11 to 20")]),
    "leaves gone": (["delete from seal where first = 11"], [("changed", "usage rows 11 to 20")]),
    "leaves and a row": (
        ["update seal set leaves = zeroblob(320) where first = 11", "update usage set key = 'eve' where number = 15"],
        [("changed", "usage rows 11 to 20")],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", TAMPERING)
def test_tampering_is_named_and_nothing_else_is(folder, name):
    statements, expected = TAMPERING[name]
    with tampering(folder) as db:
        for statement in statements:
            db.execute(statement)
    assert sorted(breaks(folder)) == sorted(expected)


async def test_between_rows_that_were_deleted_tampering_is_named_as_well(tmp_path):
    book = Book(tmp_path)
    for number in range(1, 121):
        book.settle_request(a_record(f"r{number:03}", key="kept" if number % 3 == 0 else "gone"))
    await book.delete(Deletion(what="usage", before_ns=T0_NS + 1, actor="ada", why="asked for", keys=("gone",)))
    await book.close()
    assert breaks(tmp_path) == []
    with tampering(tmp_path) as db:
        for statement in swap("usage", "number", 30, 90):
            db.execute(statement)
        db.execute("update usage set key = 'eve' where number = 12")
        db.execute("delete from usage where number = 51")
        seal, content = db.execute("select seq, content from event where content like '%trail.deleted%'").fetchone()
        db.execute("update event set hash = zeroblob(32) where seq = ?", (seal,))
    found = [("changed", f"event {seal}"), *rows("changed", 12), *rows("re-ordered", 30, 90), *rows("dropped", 51)]
    assert sorted(breaks(tmp_path)) == sorted(found), content


@pytest.mark.parametrize("event", [46, 999])  # of another kind, and none
def test_a_seal_without_its_event_vouches_for_no_row(folder, event):
    with tampering(folder) as db:
        for statement in USAGE_COPY:
            db.execute(statement.format(61))
        (forged,) = (row for row in db.execute(QUERIES["usage"]) if row[0] == 61)
        leaf = chain.leaf(61, chain.commitment(forged[1], chain.row_content(forged[2:])))
        db.execute(QUERIES["insert_seal"], (event, 61, 61, leaf))
    assert breaks(folder) == [("inserted", "seal of usage row 61"), ("inserted", "usage row 61")]


def test_a_cut_that_leaves_the_seals_behind_is_seen(tmp_path):
    asyncio.run(book_in(tmp_path, events=20))
    asyncio.run(book_in(tmp_path, rows=40))
    assert breaks(tmp_path) == []
    with tampering(tmp_path) as db:
        db.execute("delete from event where seq > 22")
    assert breaks(tmp_path) == [
        ("inserted", "seal of usage rows 21 to 30"),
        ("inserted", "seal of usage rows 31 to 40"),  # the rows themselves are in the journal still
    ]


async def test_a_seal_that_comes_while_the_book_is_checked_needs_its_event_too(tmp_path):
    book = Book(tmp_path)
    book.settle_request(a_record("r1"))
    await book.seal()
    book.settle_request(a_record("r2"))
    await book.flush()
    with report.reading(tmp_path, exact=True) as db:
        check = Audit(db, tmp_path)
        check._journal = {}  # as if the row had been sealed, and had left the journal, in between
        await book.seal()
        with tampering(tmp_path) as other:
            other.execute("update event set content = replace(content, 'usage.sealed', 'usage.s') where seq = 2")
        found = [(each.kind, each.where) for each in check.breaks()]
    await book.close()
    assert found == [("changed", "event 2"), ("inserted", "usage row 2")]


def test_many_events_dropped_and_renumbered_are_one_finding(tmp_path):
    asyncio.run(book_in(tmp_path, events=300))
    with tampering(tmp_path) as db:
        for statement in ("delete from event where seq between 20 and 150", *shift("event", "seq", 150, -131)):
            db.execute(statement)
    assert breaks(tmp_path) == [("dropped", "events 20 to 150")]


def test_a_checkpoint_of_a_book_without_its_name_or_of_no_number_is_no_crash(folder):
    line = checkpoints(folder)
    assert compared(folder, [json.dumps(json.loads(line) | {"event": 2**70}).encode()]) == ["unknown"]
    with tampering(folder) as db:
        db.execute("delete from about")
    assert compared(folder, [line]) == ["recomputed"]


def rewritten(folder, change, first=1):
    """Everything from an event on written anew by somebody who knows how: nothing in the book itself shows it."""
    with tampering(folder) as db:
        before = chain.GENESIS
        for seq, salt, content, commitment, hashed in db.execute(QUERIES["events"]).fetchall():
            row = chain.Link(seq, salt, content, commitment, hashed)
            if seq >= first:
                row = chain.link(seq, before, salt, change(content))
            before = row.hash
            db.execute("delete from event where seq = ?", (seq,))
            db.execute(QUERIES["insert_event"], row._replace(content=row.content.decode()))


def checkpoints(folder):
    with report.reading(folder) as db:
        return sign(state_of(db), signer(folder)).line


def compared(folder, lines, public=None):
    with report.reading(folder) as db:
        return [each.kind if isinstance(each, Break) else each.event for each in against(db, lines, public)]


def test_a_cut_tail_and_a_full_recomputation_are_found_against_a_checkpoint_only(folder):
    line = checkpoints(folder)
    assert compared(folder, [line]) == [46]
    with tampering(folder) as db:
        db.execute("delete from event where seq > 40")
    assert breaks(folder) == []
    assert compared(folder, [line]) == ["cut"]
    rewritten(folder, lambda content: content.replace(b'"ada"', b'"eve"'))
    assert breaks(folder) == []
    assert compared(folder, [line]) == ["cut"]


def test_a_recomputation_is_found_where_it_began(folder, tmp_path_factory):
    early = tmp_path_factory.mktemp("early")
    lines = [checkpoints(folder)]
    asyncio.run(book_in(folder, events=5))
    lines.append(checkpoints(folder))
    assert compared(folder, lines) == [46, 51]
    rewritten(folder, lambda content: content.replace(b'"ada"', b'"eve"'), first=48)
    assert breaks(folder) == []
    assert compared(folder, lines) == [46, "recomputed"]
    asyncio.run(book_in(early, events=60))
    assert compared(early, lines, signer(folder).public) == ["recomputed", "recomputed"]


def test_a_checkpoint_says_nothing_if_its_signature_does_not(folder, tmp_path_factory):
    line = checkpoints(folder)
    said = json.loads(line)
    others = signer(tmp_path_factory.mktemp("other"))
    for change in ({"event": 45}, {"hash": "0" * 64}, {"at_ns": 1}, {"version": 2}, {"public": others.public}):
        assert compared(folder, [json.dumps(said | change).encode()]) == ["unknown"]
    assert compared(folder, [line], others.public) == ["unknown"]
    assert compared(folder, [b"{}", b"", b"\xff", line], said["public"]) == ["unknown", "unknown", 46]


def links(count):
    before = chain.GENESIS
    for seq in range(1, count + 1):
        row = chain.link(seq, before, bytes(16), msgspec.json.encode(an_event(seq)))
        before = row.hash
        yield Row(seq, row.commitment, row.hash)


LINKS = tuple(links(80))


@settings(max_examples=200)
@given(st.data())
def test_any_damage_to_rows_is_seen_and_stays_small(data):
    """Rows dropped, swapped, changed or doubled at random: something is said, of few rows, and the walk ends."""
    rows = list(LINKS)
    seed = random.Random(data.draw(st.integers(0, 2**32)))
    for _ in range(data.draw(st.integers(1, 3))):
        at, other = seed.randrange(len(rows) - 1), seed.randrange(len(rows) - 1)
        match data.draw(st.sampled_from(["drop", "swap", "hash", "commitment", "double"])):
            case "drop":
                del rows[at]
            case "swap":
                rows[at], rows[other] = rows[other], rows[at]
            case "hash":
                rows[at] = rows[at]._replace(hash=bytes([1]) * 32)
            case "commitment":
                rows[at] = rows[at]._replace(commitment=bytes([2]) * 32)
            case "double":
                rows.insert(other, rows[at])
    if rows == list(LINKS):
        return
    if data.draw(st.booleans()):  # and the numbers made to look well
        rows = [row._replace(number=seq) for seq, row in enumerate(rows, start=1)]
    steps = list(EventWalk(rows).steps())
    found = [step for step in steps if not isinstance(step, Placed)]
    assert 1 <= len(found) <= 12, found
    assert sum(isinstance(step, Placed) and step.holds for step in steps) >= len(LINKS) - 15


def test_a_thousand_rows_that_do_not_fit_are_gone_through_in_time(folder):
    with tampering(folder) as db:
        db.execute("update event set hash = randomblob(32), commitment = randomblob(32)")
    assert len(breaks(folder)) <= EVENTS + 60


def test_a_page_of_the_table_that_is_damaged_is_an_error_with_what_to_do(folder):
    with tampering(folder) as db:
        page = db.execute("select rootpage from sqlite_schema where name = 'event'").fetchone()[0]
        size = db.execute("pragma page_size").fetchone()[0]
        db.execute("pragma wal_checkpoint(truncate)")
    with (folder / "book.db").open("r+b") as file:
        file.seek((page - 1) * size)
        file.write(b"\xff" * size)
    with pytest.raises(Exception, match="cannot be read") as said:
        breaks(folder)
    assert (said.value.exit_code, "backup" in said.value.hint) == (3, True)
    assert not isinstance(said.value, sqlite3.Error)


@pytest.mark.parametrize("after", [1, 20, 44, 45])
@pytest.mark.parametrize("count", [1, 3])
def test_events_put_between_with_hashes_of_their_own_are_named(folder, after, count):
    with sqlite3.connect(folder / "book.db") as db:
        for statement in shift("event", "seq", after, count):
            db.execute(statement)
        (before,) = db.execute("select hash from event where seq = ?", (after,)).fetchone()
        for number in range(after + 1, after + 1 + count):
            row = chain.link(number, before, bytes(chain.SALT_BYTES), chain.encode(an_event(number)))
            db.execute("insert into event values (?, ?, ?, ?, ?)", row._replace(content=row.content.decode()))
            before = row.hash
    assert breaks(folder) == [("inserted", f"event at {number}") for number in range(after + 1, after + 1 + count)]
