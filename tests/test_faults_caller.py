"""Callers without manners, on both paths: who is slow, who leaves, who is many."""

import contextlib
import resource
import select
import socket
import time
from urllib.parse import urlsplit

import pytest
from wild_caller import HOST, PATHS, Line, house_in, question

SERVER = "header_seconds = 0.6\nbody_seconds = 0.6\nidle_seconds = 1"
MIB = 1 << 20
TEXT = " w0 w1 w2 w3"


@pytest.fixture(scope="module", params=PATHS)
def shared(request, tmp_path_factory):
    with house_in(
        tmp_path_factory.mktemp("wild"), request.param, server=SERVER, calm="", stall="stall_seconds = 0.6"
    ) as house:
        yield house


@pytest.fixture
def house(shared):
    shared.begin()
    yield shared
    shared.rest()
    assert shared.ask("calm", "hi", stream=True).text == TEXT


@pytest.fixture
def line(house):
    with Line(house.team) as line:
        yield line


def post(team, *headers: bytes) -> bytes:
    first = b"POST /v1/chat/completions HTTP/1.1\r\nAuthorization: Bearer %b\r\n" % team.key.encode()
    return b"".join((first, HOST, *headers, b"\r\n"))


# who does not read


def test_a_stream_that_nobody_reads_stops_in_the_engine(house):
    before = house.process.memory_info().rss
    with Line(house.team, receive_bytes=4096) as line:
        line.send(question(house.team, "stall", "@@flood=100", stream=True))
        talk = house.talk()
        house.team.until(lambda: talk.over, 5)
        assert talk.left  # so it stood still, until that was too long
        assert talk.said_bytes < 24 * MIB
        assert house.process.memory_info().rss - before < 24 * MIB
        row = house.record()
        assert (row["outcome"], row["lower_bound"]) == ("cut", 1)
        assert 0 < row["completion_tokens"] < 100 << 6
        house.team.until(lambda: not house.callers(), 5)  # the connection is gone, though its caller never looked


def test_a_whole_answer_that_nobody_reads_is_not_kept_for_ever(house):
    with Line(house.team, receive_bytes=4096) as line:
        line.send(question(house.team, "stall", "@@fat=24"))
        row = house.team.until(lambda: next(iter(house.new()), None), 5)
        assert (row["outcome"], row["lower_bound"]) == ("ok", 0)
        house.team.until(lambda: not house.callers(), 5)


def test_who_reads_slowly_gets_all_of_it(house):
    with Line(house.team, receive_bytes=4096) as line:
        line.send(question(house.team, "stall", "@@flood=4", stream=True))
        heard = line.answer()
        assert heard.done
        assert len(heard.text) == 4 * MIB
        assert house.record()["outcome"] == "ok"


# who leaves


@pytest.mark.parametrize(
    ("way", "stream"),
    [
        ("stalls_before_the_head", True), ("stalls_before_the_head", False), ("stalls_in_the_middle", True),
        ("stalls_in_the_middle", False), ("trickles_for_ever", True), ("trickles_for_ever", False),
    ],
)  # fmt: skip
@pytest.mark.parametrize("rudely", [False, True], ids=["fin", "reset"])
def test_the_engine_stops_working_for_who_has_left(house, way, stream, rudely):
    with Line(house.team) as line:
        line.send(question(house.team, "calm", f"@@{way}", stream=stream))
        talk = house.talk()
        if way != "stalls_before_the_head" and stream:
            assert line.socket.recv(1, socket.MSG_PEEK)
        if rudely:
            line.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    house.team.until(lambda: talk.left, 5)
    row = house.record()
    assert (row["outcome"], row["lower_bound"]) == ("cut", 1)


def test_who_leaves_in_the_middle_of_the_question_costs_nothing(house):
    with contextlib.ExitStack() as stack:
        for _ in range(20):
            line = stack.enter_context(Line(house.team))
            line.send(question(house.team, "calm", "@@well", stream=True)[:-5])
    assert house.ask("calm", "hi").text == TEXT
    assert len(house.new()) == len(house.wild.seen) == 1


def test_half_closed(house, line):
    """Who says no more may still listen: they are answered, or cut, but do not wait for nothing."""
    line.send(question(house.team, "calm", "@@paced=20", stream=True))
    house.talk()
    line.socket.shutdown(socket.SHUT_WR)
    with contextlib.suppress(ConnectionError):
        while line.socket.recv(1 << 16):
            pass
    assert house.record()["outcome"] in ("ok", "cut")


# who is slow to say it


LATE = {
    "headers": (b"", b"x: " + b"y" * 1000),
    "body": (b"content-length: 1000\r\n\r\n", b" " * 1000),
    "chunks": (b"transfer-encoding: chunked\r\n\r\n", b"1\r\n \r\n" * 200),
}


def drip(lines: dict[Line, bytes]) -> None:
    """To each a byte at a time, until all of them are told something."""
    for number in range(1000):
        told, _, _ = select.select([line.socket for line in lines], [], [], 0.02)
        lines = {line: late for line, late in lines.items() if line.socket not in told}
        if not lines:
            return
        for line, late in lines.items():
            line.send(late[number : number + 1])


def test_slow_loris(house):
    with contextlib.ExitStack() as stack:
        lines = {stack.enter_context(Line(house.team)): late for _, late in LATE.values()}
        for line, (head, _) in zip(lines, LATE.values(), strict=True):
            line.send(post(house.team).removesuffix(b"\r\n"), head)
        began_s = time.monotonic()
        drip(lines)
        assert 0.4 < time.monotonic() - began_s < 3.5
        for line in lines:
            heard = line.answer()
            assert (heard.status, heard.error) == (408, "request_timeout")
            assert line.ended
    assert house.new() == []


def test_who_says_nothing_is_sent_away(house, line):
    assert line.answer().status == 408
    assert line.ended


HALVES = b"GET /v1/models HTT", b"POST /v1/chat/completions HTTP/1.1\r\ncontent-length: 5\r\n\r\n12"


def test_half_a_request_behind_another_does_not_get_into_its_answer(house):
    with contextlib.ExitStack() as stack:
        lines = [stack.enter_context(Line(house.team)) for _ in HALVES]
        for line, half in zip(lines, HALVES, strict=True):
            line.send(question(house.team, "calm", "@@paced=250", stream=True), half)
        for line in lines:
            heard = line.answer()
            assert (heard.text, heard.done) == (TEXT, True)
            with contextlib.suppress(ConnectionError, ValueError):
                assert line.answer().status in (401, 408)
            assert line.ended
        assert [row["outcome"] for row in house.new()] == ["ok", "ok"]


# who is many

CROWD = 10_000


@pytest.mark.parametrize("path", PATHS)
def test_ten_thousand_open_idle_connections(tmp_path, path):
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    crowd = min(CROWD, hard - 500)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with house_in(tmp_path, path, calm="") as house, contextlib.ExitStack() as stack:
        house.begin()
        before = house.process.memory_info().rss
        parts = urlsplit(house.team.url)
        for _ in range(crowd):
            stack.enter_context(socket.create_connection((parts.hostname, parts.port)))
        house.team.until(lambda: house.process.num_fds() > crowd)
        took_s = []
        for number in range(50):
            began_s = time.monotonic()
            assert house.ask("calm", "hi", stream=number % 2 == 0).text == TEXT
            took_s.append(time.monotonic() - began_s)
        assert sorted(took_s)[25] < 0.2
        assert house.process.memory_info().rss - before < crowd * 16 << 10
        stack.close()
        house.team.until(lambda: house.process.num_fds() < 100)
