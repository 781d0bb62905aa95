"""The journal: one write for all requests of a turn, everybody called in order, and what a crash leaves behind."""

import asyncio
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from trails import a_record, an_event, breaks

from freehold.errors import NotReady
from freehold.ledger import report, trail
from freehold.ledger.book import Book
from freehold.ledger.journal import Journal, left_behind, segments
from freehold.types import Price, Tokens

PRICE = Price(prompt_pico_per_token=3, completion_pico_per_token=7)


def settle(journal, record, then=None):
    journal.settle(record.request, trail.settled(record).content, then)


def lines(folder):
    return [line for path in segments(folder) for line in path.read_bytes().split(b"\n") if line]


@pytest.fixture
def writes(monkeypatch):
    """How many bytes each write(2) had."""
    sizes, write = [], os.write

    def noted(descriptor, content):
        sizes.append(len(content))
        return write(descriptor, content)

    monkeypatch.setattr("freehold.ledger.journal.os.write", noted)
    return sizes


async def turns(count=3):
    for _ in range(count):
        await asyncio.sleep(0)


@pytest.mark.parametrize("power_loss", [False, True])
async def test_what_comes_in_one_turn_shares_a_write_and_is_called_in_order(tmp_path, writes, power_loss):
    journal, called, done = Journal(tmp_path, power_loss=power_loss), [], asyncio.Event()
    for number in range(50):
        record = a_record(f"r{number}")
        journal.open(record, lambda error, number=number: called.append((number, "opened", error)))
        record.outcome = "ok"  # it may change at once
        settle(journal, record, lambda error, number=number: called.append((number, "settled", error)))
    journal.open(a_record("last"), lambda _: done.set())
    assert (writes, called) == ([], [])
    await done.wait()
    assert called == [(number, what, None) for number in range(50) for what in ("opened", "settled")]
    assert (len(writes), len(lines(tmp_path))) == (1, 101)
    journal.close()
    settled, cut = left_behind(tmp_path)
    assert ([r.request for r in settled], [r.request for r in cut]) == ([f"r{n}" for n in range(50)], ["last"])


async def test_one_who_raises_keeps_nobody_from_being_called(tmp_path, caplog):
    journal, called = Journal(tmp_path), []

    def fail(_):
        raise RuntimeError("what nobody foresaw")

    for then in (called.append, fail, called.append):
        journal.open(a_record(), then)
    await turns()
    assert (called, "what nobody foresaw" in caplog.text) == ([None, None], True)
    journal.close()


async def test_who_asks_for_nothing_has_it_written_at_once_behind_the_others(tmp_path, writes):
    journal, called = Journal(tmp_path), []
    journal.open(a_record("first"), called.append)
    journal.open(a_record("probe"))
    assert (len(writes), called) == (1, [])  # the first is called in its own time
    assert [r.request for r in left_behind(tmp_path)[1]] == ["first", "probe"]
    await turns()
    assert called == [None]
    journal.close()


@pytest.mark.parametrize("how", ["full", "short"])
async def test_a_write_that_fails_leaves_nothing_of_its_turn(tmp_path, how):
    """Openings are refused; what was settled goes on, for the book alone has it in a moment."""
    journal, called = Journal(tmp_path), []
    journal.open(a_record("before"))
    size = segments(tmp_path)[0].stat().st_size
    limits, real = resource.getrlimit(resource.RLIMIT_FSIZE), journal._fd
    for number in range(10):
        journal.open(a_record(f"r{number}"), called.append)
    settle(journal, a_record("before"), called.append)
    if how == "full":
        journal._fd = os.open("/dev/full", os.O_WRONLY)
    else:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 500, limits[1]))
    try:
        await turns()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    journal._fd = real
    assert [type(error) for error in called] == [NotReady] * 10 + [type(None)]
    assert (called[0].status, journal.in_flight, segments(tmp_path)[0].stat().st_size) == (503, 0, size)
    journal.open(a_record("after"), called.append)
    await turns()
    assert (called[-1], [r.request for r in left_behind(tmp_path)[1]]) == (None, ["before", "after"])
    journal.close()


async def test_half_a_write_that_cannot_be_taken_back_costs_no_later_line(tmp_path, monkeypatch):
    """The disk is full and does not even shrink a file; later it is as it should be, and full once more."""
    journal = Journal(tmp_path)
    write = os.write

    def halve(descriptor, content):
        return write(descriptor, content[: len(content) // 2])

    def fail(*_):
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patched:
        patched.setattr("freehold.ledger.journal.os.write", halve)
        patched.setattr("freehold.ledger.journal.os.ftruncate", fail)
        with pytest.raises(NotReady):
            journal.open(a_record("refused"))
    journal.open(a_record("after"))
    with monkeypatch.context() as patched:
        patched.setattr("freehold.ledger.journal.os.write", halve)
        with pytest.raises(NotReady):
            journal.open(a_record("refused too"))
    assert [r.request for r in left_behind(tmp_path)[1]] == ["after"]
    journal.close()


async def test_what_was_refused_does_not_go_along_into_the_next_segment(tmp_path, monkeypatch):
    book, called = Book(tmp_path), []
    book.open_request(a_record("before"))
    book.open_request(a_record("refused"), called.append)
    with monkeypatch.context() as patched:
        patched.setattr("freehold.ledger.journal.os.write", lambda *_: 0)
        book.journal.write()  # as the book's rows have it written, before anybody is called
    book.journal.rotate()
    await turns()
    assert ([type(error) for error in called], book.journal.in_flight) == ([NotReady], 1)
    assert [r.request for r in left_behind(tmp_path)[1]] == ["before"]
    await book.close()


async def test_with_power_loss_nobody_goes_on_before_the_disk_has_it(tmp_path, monkeypatch, writes):
    loop, asked, may = asyncio.get_running_loop(), asyncio.Queue(), asyncio.Semaphore(0)
    journal, called = Journal(tmp_path, power_loss=True), []

    def sync():
        loop.call_soon_threadsafe(asked.put_nowait, len(writes))
        asyncio.run_coroutine_threadsafe(may.acquire(), loop).result()

    monkeypatch.setattr(journal, "sync", sync)
    journal.open(a_record("r0"), lambda _: called.append("r0"))
    assert await asked.get() == 1
    for name in ("r1", "r2"):  # meanwhile they gather
        journal.open(a_record(name), lambda _, name=name: called.append(name))
        await turns()
    assert (called, len(writes)) == ([], 1)
    may.release()
    assert (await asked.get(), called) == (2, ["r0"])
    may.release()
    async with asyncio.timeout(10):
        while len(called) < 3:  # noqa: ASYNC110
            await asyncio.sleep(0)
    assert called == ["r0", "r1", "r2"]
    may.release()
    await asyncio.to_thread(journal.close)


async def test_a_disk_that_fails_refuses_what_waits_for_it(tmp_path, monkeypatch):
    journal = Journal(tmp_path, power_loss=True)
    monkeypatch.setattr(journal, "sync", lambda: (_ for _ in ()).throw(OSError(5, "Input/output error")))
    refused = asyncio.get_running_loop().create_future()
    journal.open(a_record(), refused.set_result)
    assert "Input/output error" in str(await refused)
    journal.close()


# recovery


async def test_a_cut_record_has_what_was_noted_last_and_holds_the_rest(tmp_path):
    journal = Journal(tmp_path)
    journal.open(a_record("noted", held_tokens=1000, held_pico=7000), None, PRICE)
    journal.open(a_record("more than held", held_tokens=10, held_pico=7), None, PRICE)
    journal.open(a_record("untouched", held_tokens=1000, held_pico=7000), None, PRICE)
    journal.note("noted", Tokens(prompt=50, completion=1))
    journal.note("noted", Tokens(prompt=50, completion=20, cached=30, reasoning=5))
    journal.note("more than held", Tokens(prompt=50, completion=20))
    journal.note("nobody", Tokens(prompt=1))
    await turns()
    journal.close()
    await Book(tmp_path).close()
    with report.reading(tmp_path) as db:
        what = "prompt_tokens, completion_tokens, cached_tokens, reasoning_tokens, charge_pico, held_tokens, held_pico"
        rows = db.execute(f"select request, outcome, lower_bound, {what} from usage order by request")
        assert [tuple(row) for row in rows] == [
            ("more than held", "cut", 1, 50, 20, 0, 0, 290, 0, 0),
            ("noted", "cut", 1, 50, 20, 30, 5, 290, 930, 6710),
            ("untouched", "cut", 1, 0, 0, 0, 0, 0, 1000, 7000),
        ]
    assert breaks(tmp_path) == []


async def test_what_was_noted_goes_along_into_the_next_segment(tmp_path):
    book = Book(tmp_path)
    book.open_request(a_record(held_tokens=100), None, PRICE)
    book.note_progress("r1", Tokens(prompt=3, completion=4))
    await book._rotate_now()
    assert [path.name for path in segments(tmp_path)] == ["journal-2"]
    (cut,) = left_behind(tmp_path)[1]
    assert (cut.prompt_tokens, cut.completion_tokens, cut.charge_pico, cut.held_tokens) == (3, 4, 37, 93)
    await book.close()


async def test_the_book_has_no_row_that_the_journal_does_not_have(tmp_path):
    """Else a check at that moment would take it for one that somebody put there."""
    book, called = Book(tmp_path), []
    book.settle_request(a_record(outcome="ok"), None, called.append)
    assert left_behind(tmp_path) == ([], [])
    book.add_event(an_event())
    assert [r.request for r in left_behind(tmp_path)[0]] == ["r1"]
    await book.flush()
    assert called == [None]
    await book.close()


def test_lines_of_the_first_editions_are_understood(tmp_path):
    old = b'"key":"k","endpoint":"demo","kind":"chat","stream":true,"started_ns":1,"status":0,"outcome":"cut"'
    lines = (b'{"settled":false,"record":{"request":"a",%b}}', b'{"settled":true,"record":{"request":"b",%b}}')
    (tmp_path / "journal-1").write_bytes(b"".join(b"\n" + line % old for line in lines))
    settled, cut = left_behind(tmp_path)
    assert ([r.request for r in settled], [r.request for r in cut]) == (["b"], ["a"])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(("open", "settle", "note", "turn")), st.integers(0, 5)), max_size=40))
def test_wherever_it_is_killed_each_opened_request_is_settled_or_cut(tmp_path_factory, steps):
    folder, state, written = tmp_path_factory.mktemp("journal"), {}, {}

    async def run():
        journal = Journal(folder)
        for what, number in steps:
            name = f"r{number}"
            if what == "open" and name not in state:
                state[name] = "cut"
                journal.open(a_record(name), lambda _, name=name: written.setdefault(name, "cut"))
            elif what == "settle" and state.get(name) == "cut":
                state[name] = "settled"
                settle(journal, a_record(name), lambda _, name=name: written.update({name: "settled"}))
            elif what == "note":
                journal.note(name, Tokens(completion=1))
            elif what == "turn":
                await turns()
        left = left_behind(folder), dict(written)  # killed here
        journal.close()
        return left

    (settled, cut), told = asyncio.run(run())
    found = dict.fromkeys([r.request for r in cut], "cut") | dict.fromkeys([r.request for r in settled], "settled")
    assert len(settled) + len(cut) == len(found)
    assert found == told


GATEWAY = """
import asyncio, os, sys
from pathlib import Path
from functools import partial
from trails import a_record
from freehold.ledger.book import Book

async def main():
    book, number = Book(Path(sys.argv[1])), 0

    def opened(record, error):
        os.write(1, f"cut {record.request}\\n".encode())
        record.outcome = "ok"
        book.settle_request(record, None, partial(settled, record.request))

    def settled(request, error):
        os.write(1, f"ok {request}\\n".encode())

    while True:
        for _ in range(20):
            number += 1
            record = a_record(f"{sys.argv[2]}-{number}")
            book.open_request(record, partial(opened, record))
        await asyncio.sleep(0)

asyncio.run(main())
"""


def test_kill_9_amid_a_flood_costs_no_request_that_went_on(tmp_path):
    """Whoever was told that their line is written finds it: exactly one record, and the one that was settled last."""
    told = {}
    for number in range(6):
        argv = (sys.executable, "-c", GATEWAY, str(tmp_path), str(number))
        path = f"{Path(__file__).parent}:{os.environ.get('PYTHONPATH', '')}"
        with subprocess.Popen(argv, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": path}) as gateway:
            assert gateway.stdout
            for _ in range(1 + 997 * number):
                gateway.stdout.readline()
            gateway.kill()
            rest = gateway.stdout.read()
        for line in rest.split(b"\n")[:-1]:
            outcome, _, request = line.decode().partition(" ")
            told[request] = outcome
    asyncio.run(reopen(tmp_path))
    with report.reading(tmp_path) as db:
        found = dict(map(tuple, db.execute("select request, outcome from usage")))
    wrong = {request for request, outcome in told.items() if found.get(request) not in (outcome, "ok")}
    assert (wrong, len(told) > 100) == (set(), True)
    assert breaks(tmp_path) == []


async def reopen(folder):
    await Book(folder).close()
