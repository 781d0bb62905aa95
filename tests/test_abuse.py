"""What a caller without manners, a broken engine or a full disk can do: nothing that lasts."""

import asyncio
import contextlib
import json
import os
import socket
import sqlite3
import time
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import pytest
from trails import breaks

from freehold.errors import EngineFailed, FreeholdError
from freehold.executors import log as logs
from freehold.fleet.upstream import Upstream
from freehold.gateway.assembly import AssembledMeter
from freehold.gateway.meter import StreamMeter
from freehold.ledger import report
from freehold.ledger.book import Book
from freehold.ledger.journal import Journal, left_behind
from freehold.types import Event, Price, Tokens, UsageRecord


def a_record(request="r1", **changes) -> UsageRecord:
    base = {"request": request, "key": "k", "endpoint": "demo", "kind": "chat", "stream": True, "started_ns": 1}
    return UsageRecord(**(base | changes))


# callers


def test_a_revoked_name_leaves_no_key_alive(team):
    team.write(demo=team.fake())
    team.serve()
    team.run("keys", "create", "bob", "--expires", "1s")
    team.until(lambda: "bob" not in team.run("keys", "list"))
    secret = team.run("keys", "create", "bob").split()[0]
    assert team.post("demo", key=secret).status == 200
    team.run("keys", "revoke", "bob")
    assert team.post("demo", key=secret).status == 401


def test_a_request_that_waited_is_refused_when_its_key_was_revoked(team):
    team.write(demo=team.fake(delay_s=1.0))
    team.serve()
    secret = team.run("keys", "create", "ada").split()[0]
    with ThreadPoolExecutor(1) as caller:
        waiting = caller.submit(team.post, "demo", key=secret)
        team.until(lambda: team.status("demo")["waiting"] == 1)
        team.run("keys", "revoke", "ada")
        assert waiting.result().status == 401
    assert [(r["outcome"], r["status"]) for r in team.records()] == [("error", 401)]


def test_a_caller_who_does_not_read_holds_no_engine_past_the_deadline(team):
    team.write(demo=team.fake("request_seconds = 2"))
    team.serve()
    team.run("up")
    team.post("demo", "@@n=3000000", stream=True)
    team.until(lambda: json.loads(team.engine("demo", "/counts"))["cancelled"] == 1)
    (record,) = [r for r in team.records() if r["outcome"] != "ok"]
    assert (record["outcome"], record["lower_bound"]) == ("error", 1)


def test_headers_have_an_end(team):
    team.write(demo=team.fake())
    team.serve()
    with socket.create_connection((urlsplit(team.url).hostname, urlsplit(team.url).port)) as caller:
        caller.sendall(b"GET /healthz HTTP/1.1\r\nx: ")
        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            caller.sendall(b"x" * 100_000_000)
    assert team.daemon.running()


def test_headers_behind_a_large_body_are_not_taken_for_large_headers(team):
    team.write(demo=team.fake())
    team.serve()
    team.run("up")
    body = json.dumps({"model": "demo", "messages": [{"content": "x" * 900_000}]}).encode()
    head = f"Host: x\r\nAuthorization: Bearer {team.key}\r\n"
    first = f"POST /v1/chat/completions HTTP/1.1\r\n{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
    with socket.create_connection((urlsplit(team.url).hostname, urlsplit(team.url).port)) as caller:
        caller.sendall(first + f"GET /v1/models HTTP/1.1\r\n{head}Connection: close\r\n\r\n".encode())
        with caller.makefile("rb") as answers:
            assert answers.read().count(b"HTTP/1.1 200 OK") == 2


@pytest.mark.parametrize(
    "body", ["[" * 100_000, '{"model":"demo","messages":' + "[" * 100_000, '{"model":"demo","n":1e400}', "", "null"]
)
def test_bodies_that_are_no_request(team, body):
    team.write(demo=team.fake())
    team.serve()
    connection = team.connect()
    connection.request("POST", "/v1/chat/completions", body, {"Authorization": f"Bearer {team.key}"})
    answer = connection.getresponse()
    assert (answer.status, json.loads(answer.read())["error"]["type"]) == (400, "invalid_request_error")


def test_who_waits_when_the_daemon_ends_is_told_so(team):
    team.write(demo=team.fake(delay_s=30))
    team.serve()
    with ThreadPoolExecutor(1) as caller:
        waiting = caller.submit(team.post, "demo")
        team.until(lambda: team.status("demo")["waiting"] == 1)
        team.run("down")
        answer = waiting.result()
        assert (answer.status, "shutting down" in answer.read().decode()) == (503, True)
    assert [(r["outcome"], r["status"]) for r in team.records()] == [("error", 503)]


# engines


@contextlib.asynccontextmanager
async def an_engine(serve):
    """A server whose connections are each given to `serve(reader, writer)`; its URL, and how many it had."""
    ended: list[asyncio.Event] = []

    async def door(reader, writer):
        ended.append(asyncio.Event())
        number = len(ended) - 1
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            await serve(reader, writer)
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
        ended[number].set()

    server = await asyncio.start_server(door, "127.0.0.1")
    yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", ended
    server.close()
    for connection in ended:
        await connection.wait()


async def test_connections_to_an_engine_are_used_again():
    async def serve(reader, writer):
        while await reader.readuntil(b"\r\n\r\n"):
            writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n")

    async with an_engine(serve) as (url, connections):
        upstream = Upstream(url)
        assert {(await upstream.fetch("GET", "/")).body for _ in range(10)} == {b"abc"}
        assert len(connections) == 1
        upstream.close()
        with pytest.raises(EngineFailed):
            await upstream.fetch("GET", "/")  # its address may be somebody else's by now


PIECES = 64


class SlowReader:
    """Stops reading in the middle, and never goes on."""

    wanted = True

    def __init__(self):
        self.connection = None
        self.body, self.over = b"", asyncio.get_running_loop().create_future()

    def on_head(self, status): ...

    def on_piece(self, piece):
        self.body += piece
        if len(self.body) >= PIECES // 2 and self.connection:
            self.connection.transport.pause_reading()
            asyncio.get_running_loop().call_later(0.05, self.connection.let_finish)

    def on_end(self):
        self.over.set_result("ended")

    def on_failure(self, reason, *, answered):
        self.over.set_exception(EngineFailed(reason))


async def test_a_connection_paused_for_a_slow_reader_is_used_again():
    written = asyncio.Semaphore(0)

    async def serve(reader, writer):
        while await reader.readuntil(b"\r\n\r\n"):
            writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
            for number in range(PIECES):
                writer.write(b"1\r\nx\r\n" + (b"0\r\n\r\n" if number == PIECES - 1 else b""))
                await writer.drain()
                await asyncio.sleep(0.001)  # each piece by itself
            written.release()

    async with an_engine(serve) as (url, connections):
        upstream = Upstream(url)
        upstream.send(SlowReader(), upstream.request("GET", "/", b""))
        async with asyncio.timeout(10):
            await written.acquire()
            while not upstream.idle:  # noqa: ASYNC110  nobody tells
                await asyncio.sleep(0.01)
            assert (await upstream.fetch("GET", "/")).body == b"x" * PIECES
        assert len(connections) == 1
        upstream.close()


class Leaving:
    """Has enough before the answer is over."""

    wanted = True
    connection = None

    def __init__(self, how):
        self._how, self.left = how, asyncio.get_running_loop().create_future()

    def on_head(self, status): ...

    def on_piece(self, piece):
        getattr(self.connection, self._how)()
        self.left.set_result(self.connection)


def answers(behind=b""):
    async def serve(reader, writer):
        while await reader.readuntil(b"\r\n\r\n"):
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nabc" + behind)

    return serve


@pytest.mark.parametrize("how", ["abort", "let_finish"])
async def test_who_is_done_has_no_hold_on_a_connection_that_may_serve_another(how):
    async with an_engine(answers()) as (url, connections):
        upstream, leaving = Upstream(url), Leaving(how)
        upstream.send(leaving, upstream.request("GET", "/", b""))
        assert await leaving.left is None
        assert (await upstream.fetch("GET", "/")).body == b"abc"
        assert len(connections) == 1 + (how == "abort")
        upstream.close()


ANOTHER = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nxy"


@pytest.mark.parametrize("behind", [ANOTHER, ANOTHER[:-1], ANOTHER[:10], b"\0"])
async def test_what_an_engine_says_behind_its_answer_is_nobodys(behind):
    async with an_engine(answers(behind)) as (url, connections):
        upstream = Upstream(url)
        assert [(await upstream.fetch("GET", "/")).body for _ in range(3)] == [b"abc"] * 3
        assert len(connections) == 3
        upstream.close()


async def test_a_host_that_can_be_none_is_said():
    with pytest.raises(EngineFailed, match="cannot be reached"):
        await Upstream("http://a..b:1").fetch("GET", "/")


@pytest.mark.parametrize("count", [-5, 2**63, 10**30, 1.5, "7", None])
def test_counts_that_are_none_are_not_believed(count):
    meter = StreamMeter("ours", hide_usage=False)
    usage = {"prompt_tokens": count, "completion_tokens": 3}
    passed = meter.feed(b"data: " + json.dumps({"model": "secret", "choices": [], "usage": usage}).encode() + b"\n\n")
    assert b"secret" not in passed
    assert meter.tokens.prompt == 0


@pytest.mark.parametrize(
    "frame",
    [
        {"choices": [{"index": 0, "delta": {"tool_calls": [{"index": 30_000_000}]}}]},
        {"choices": [{"delta": {"content": "x"}}]},
        {"choices": ["x"]},
        {"choices": 7},
        [],
        {"error": "no"},
    ],
)
def test_a_stream_that_makes_no_answer(frame):
    meter = AssembledMeter("ours", 1)
    with pytest.raises(EngineFailed):  # noqa: PT012  while it comes, or at its end
        meter.feed(b"data: " + json.dumps(frame).encode() + b"\n\ndata: [DONE]\n\n")
        meter.close()


async def test_a_log_has_an_end(tmp_path, monkeypatch):
    monkeypatch.setattr(logs, "LARGEST_LOG_BYTES", 1000)
    log = logs.Log(tmp_path / "x.log")
    for _ in range(5):
        os.write(log.write_end, b"y" * 600)
        log.copy()
    os.close(log.write_end)
    log.close()
    sizes = [path.stat().st_size for path in sorted(tmp_path.iterdir())]
    assert len(sizes) == 2
    assert max(sizes) <= 1600


async def test_a_full_disk_costs_the_log_and_nothing_else(tmp_path):
    log = logs.Log(tmp_path / "x.log")
    os.close(log._file)
    log._file = os.open("/dev/full", os.O_WRONLY)
    os.write(log.write_end, b"said in vain")
    os.close(log.write_end)
    log.copy()
    log.close()


# the book


async def test_a_book_that_cannot_be_written_ends_the_daemon_and_loses_nothing(tmp_path):
    book = Book(tmp_path)
    failed = asyncio.Event()
    book.on_failure = failed.set
    book.add_event(Event(at_ns=1, actor="a", kind="x.y", subject="s"))
    await book.do(lambda db: db.execute("alter table usage rename to gone"))
    book.open_request(a_record())
    book.settle_request(a_record(outcome="ok", prompt_tokens=7))
    await failed.wait()
    assert book.broken
    await book.close()
    with sqlite3.connect(tmp_path / "book.db") as db:
        db.execute("alter table gone rename to usage")
    db.close()
    again = Book(tmp_path)
    again.add_event(Event(at_ns=2, actor="a", kind="x.y", subject="s"))
    await again.close()
    with report.reading(tmp_path) as db:
        assert [tuple(row) for row in db.execute("select request, prompt_tokens from usage")] == [("r1", 7)]
    assert breaks(tmp_path) == []


async def test_one_impossible_row_is_said_and_the_others_are_kept(tmp_path, caplog):
    book = Book(tmp_path)
    for name in ("fine", "huge", "also fine"):
        book.open_request(a_record(name))
        book.settle_request(a_record(name, outcome="ok", prompt_tokens=2**63 if name == "huge" else 1))
    await book.flush()
    assert not book.broken
    assert "refused a write" in caplog.text
    await book.close()
    await Book(tmp_path).close()
    with report.reading(tmp_path) as db:
        assert [row[0] for row in db.execute("select request from usage order by 1")] == ["also fine", "fine"]


def test_a_charge_beyond_all_measure_still_fits_the_book():
    price = Price(prompt_pico_per_token=10**12, completion_pico_per_token=10**12)
    assert price.charge_pico(Tokens(prompt=2**31, completion=2**31)) == 2**63 - 1


async def test_a_settled_request_needs_no_journal(tmp_path):
    book = Book(tmp_path)
    book.open_request(a_record())
    real, book.journal._fd = book.journal._fd, os.open("/dev/full", 1)
    book.settle_request(a_record(outcome="ok"))
    assert book.journal.in_flight == 0
    os.close(book.journal._fd)
    book.journal._fd = real
    await book.close()
    with report.reading(tmp_path) as db:
        assert [tuple(row) for row in db.execute("select request, outcome from usage")] == [("r1", "ok")]


async def test_a_fault_of_the_disk_ends_no_thread_unheard(tmp_path, monkeypatch):
    book = Book(tmp_path)
    failed = asyncio.Event()
    book.on_failure = failed.set
    monkeypatch.setattr(book.journal, "sync", lambda: (_ for _ in ()).throw(OSError(5, "Input/output error")))
    book.open_request(a_record())
    await failed.wait()
    assert await book.pin("x") is None  # it still answers
    await book.close()


async def test_a_book_that_somebody_else_holds_is_waited_for(tmp_path):
    book = Book(tmp_path)
    other = sqlite3.connect(tmp_path / "book.db", isolation_level=None)
    other.execute("begin immediate")
    pinned = asyncio.ensure_future(book.set_pin("a", "1", "x"))
    await asyncio.to_thread(time.sleep, 1.3)
    assert not pinned.done()
    other.execute("rollback")
    other.close()
    await pinned
    assert not book.broken
    await book.close()


def test_a_full_disk_is_told_and_what_was_refused_is_not_in_flight(tmp_path):
    journal = Journal(tmp_path)
    journal.open(a_record("fine"))
    real, journal._fd = journal._fd, os.open("/dev/full", 1)
    with pytest.raises(FreeholdError, match="cannot be recorded"):
        journal.open(a_record("refused"))
    assert journal.in_flight == 1
    journal._fd = real
    journal.close()
    assert [r.request for r in left_behind(tmp_path)[1]] == ["fine"]


def test_nobody_else_can_look_into_the_state(team):
    team.write(demo=team.fake())
    team.run("up")
    team.run("down")
    modes = {path.name: oct(path.stat().st_mode & 0o777) for path in (team.state, *team.state.iterdir())}
    assert {name: mode for name, mode in modes.items() if mode not in ("0o700", "0o600")} == {}
