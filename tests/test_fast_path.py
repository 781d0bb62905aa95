"""Both paths of the front door, over bare connections: they serve the same, and the fast one steps aside when uvicorn
is not as it knows it."""

import contextlib
import http.client
import re
import time
from types import SimpleNamespace

import pytest
from fake_start import stage_in
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from wild_caller import PATHS, Line, house_in, question

from freehold.fleet.config import Config, Server
from freehold.fleet.fleet import Fleet
from freehold.gateway import serve
from freehold.gateway.app import Gateway
from freehold.gateway.desk import Desk
from freehold.gateway.fast import FastProtocol
from freehold.gateway.keyring import Keyring
from freehold.gateway.protocol import MOST_PIPELINED, BoundedProtocol, fits

TEXT = " w0 w1 w2 w3"
TRACE = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture(scope="module", params=PATHS)
def shared(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("paths")
    server = 'idle_seconds = 1\nmax_body_mib = 2\ntrusted_proxies = ["127.0.0.1"]'
    with house_in(folder, request.param, server=server, far="") as house:
        yield house


@pytest.fixture
def house(shared):
    shared.begin()
    return shared


@pytest.fixture
def line(house):
    with Line(house.team) as line:
        yield line


def heads(line, count: int) -> list[tuple[int, http.client.HTTPMessage, bytes]]:
    """So many answers, with their headers."""
    answers = []
    for _ in range(count):
        status = int(line._file.readline().split()[1])
        headers = http.client.parse_headers(line._file)
        if headers.get("transfer-encoding") == "chunked":
            body = b""
            while size := int(line._file.readline(), 16):
                body += line._file.read(size + 2)[:-2]
            line._file.readline()
        else:
            body = line._file.read(int(headers.get("content-length", 0)))
        answers.append((status, headers, body))
    return answers


# the contract with uvicorn's insides


def test_this_uvicorn_is_one_that_the_fast_path_knows():
    assert fits()


@pytest.mark.parametrize("method", ["on_body", "on_response_complete", "send_400_response", "connection_lost"])
def test_a_method_that_is_gone(monkeypatch, method):
    monkeypatch.delattr(HttpToolsProtocol, method)
    assert not fits()


@pytest.mark.parametrize("method", ["on_headers_complete", "shutdown", "data_received"])
def test_a_method_that_takes_something_else(monkeypatch, method):
    monkeypatch.setattr(HttpToolsProtocol, method, lambda self, data, more: None)
    assert not fits()


def test_a_name_that_nothing_uses_any_more(monkeypatch):
    for name, method in list(vars(HttpToolsProtocol).items()):
        if "pipeline" in getattr(getattr(method, "__code__", None), "co_names", ()):
            code = method.__code__
            names = tuple("queued" if each == "pipeline" else each for each in code.co_names)
            monkeypatch.setattr(method, "__code__", code.replace(co_names=names))
            assert name
    assert not fits()


async def test_where_it_does_not_fit_the_ordinary_way_serves_everything(tmp_path, monkeypatch):
    async with stage_in(tmp_path) as stage:
        told = []
        ground = SimpleNamespace(tell=lambda kind, *_, **detail: told.append(kind))
        gateway = Gateway(Desk(Fleet(Config(), stage.ground), Keyring(stage.ground)))
        kinds = []
        for fast_path, fitting in ((True, True), (True, False), (False, True)):
            monkeypatch.setattr(serve, "fits", lambda fitting=fitting: fitting)
            front = serve._front(gateway, Server(fast_path=fast_path), ground, None)
            kinds.append(front.config.http_protocol_class.__mro__[1])
        assert kinds == [FastProtocol, BoundedProtocol, BoundedProtocol]
        assert told == ["gateway.fast_path_off"]


# one connection


def test_a_stream_on_a_connection_that_was_used_before_is_not_taken_for_idle(house, line):
    line.send(question(house.team, "far"))
    assert line.answer().text == TEXT
    line.send(question(house.team, "far", "@@paced=600", stream=True, headers=b"Expect: 100-continue\r\n"))
    assert line._file.readline() + line._file.readline() == b"HTTP/1.1 100 Continue\r\n\r\n"
    heard = line.answer()
    assert (heard.text, heard.done) == (TEXT, True)


@pytest.mark.parametrize("used", [True, False])
def test_a_connection_that_nobody_uses_ends(house, line, used):
    if used:
        line.send(question(house.team, "far"))
    else:
        line.send(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n")
    assert line.answer().status == 200
    assert line.ended


def test_who_asks_too_much_at_once_is_not_kept_in_memory(house, line):
    line.send(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n" * 1000)
    answers = 0
    with contextlib.suppress(ConnectionError):
        while line._file.readline().startswith(b"HTTP/1.1 200"):
            answers += 1
            http.client.parse_headers(line._file)
            line._file.read(len(b'{"status":"ok"}'))
    assert answers == MOST_PIPELINED + 1


def test_the_daemon_ends_while_a_body_is_on_its_way(tmp_path):
    asked = None
    with house_in(tmp_path, "fast", far="") as house, Line(house.team) as line:
        asked = question(house.team, "far")
        line.send(asked[:-5])
        time.sleep(0.2)
        house.team.process.terminate()
        time.sleep(0.5)
        line.send(asked[-5:])
        assert line.answer().text == TEXT
        assert line.ended


def test_a_body_in_pieces_of_a_byte_takes_no_more_than_itself(house, line):
    line.send(question(house.team, "far", key="x"))  # so that the path is warm
    assert line.answer().status == 401
    before = house.process.memory_info().rss
    head = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer %b\r\ntransfer-encoding: chunked\r\n\r\n"
    line.send(head % house.team.key.encode(), b"1\r\n \r\n" * 1_900_000)
    house.team.until(lambda: settled(house))
    assert house.process.memory_info().rss - before < 24 << 20
    line.send(b"0\r\n\r\n")
    assert line.answer().status == 400


def settled(house) -> bool:
    """The daemon has nothing to do."""
    return house.process.cpu_percent(0.2) < 10


# before the body


def test_who_has_no_key_is_told_before_their_body_is_there(house, line):
    head, _, body = question(house.team, "far", "x" * (4 << 20), key="fh-wrong").partition(b"\r\n\r\n")
    line.send(head, b"\r\n\r\n", body[:1000])
    heard = line.answer()
    assert (heard.status, heard.error) == (401, "invalid_api_key")
    line.send(body[1000:], question(house.team, "far"))
    assert line.answer().text == TEXT


# headers


@pytest.mark.parametrize("stream", [True, False])
def test_a_request_has_an_id(house, line, stream):
    line.send(question(house.team, "far", stream=stream), question(house.team, "far", stream=stream))
    ids = [headers["x-request-id"] for _, headers, _ in heads(line, 2)]
    assert len(set(ids)) == 2
    assert ids == [talk.request for talk in house.wild.seen] == [row["request"] for row in house.new()]
    assert all(re.fullmatch("req-[0-9a-f]{32}", each) for each in ids)


@pytest.mark.parametrize(
    ("theirs", "taken"),
    [(b"abc-1/2", True), (b"x" * 128, True), (b"x" * 129, False), (b"a b", False), (b"\xc3\xa9", False), (b"", False)],
)
def test_the_callers_own_id_comes_back(house, line, theirs, taken):
    line.send(question(house.team, "far", headers=b"X-Request-Id: %b\r\n" % theirs))
    ((_, headers, _),) = heads(line, 1)
    row = house.record()
    assert (row["caller_request"] or "") == (theirs.decode() if taken else "")
    ours = headers["x-freehold-request-id"] if taken else headers["x-request-id"]
    assert ours == row["request"] == house.wild.seen[0].request  # which is what the engine's log has
    assert headers["x-request-id"] == (theirs.decode() if taken else ours)


@pytest.mark.parametrize(
    ("sent", "passed"),
    [
        (b"traceparent: %b\r\ntracestate: a=1,b=2\r\n" % TRACE, ["traceparent", "tracestate"]),
        (b"traceparent: %b\r\n" % TRACE, ["traceparent"]),
        (b"traceparent: %b\r\ntracestate: %b\r\n" % (TRACE, b"x" * 513), ["traceparent"]),
        (b"traceparent: %b\r\ntracestate: \xff\r\n" % TRACE, ["traceparent"]),
        (b"traceparent: nonsense\r\ntracestate: a=1\r\n", []),
        (b"tracestate: a=1\r\n", []),
    ],
)
def test_the_trace_goes_on_to_the_engine(house, line, sent, passed):
    line.send(question(house.team, "far", headers=sent))
    assert line.answer().status == 200
    lines = house.wild.seen[0].head.lower().split("\r\n")
    assert [each.partition(":")[0] for each in lines if each.startswith("trace")] == passed
    assert all(each.encode() in sent.lower() for each in lines if each.startswith("trace"))


def test_limits_are_told_with_answers_and_with_refusals(house, line):
    made = house.team.run("keys", "create", f"limited-{time.time_ns()}", "--rpm", "2", "--network", "10.0.0.0/8")
    key, inside = made.split()[0], b"X-Forwarded-For: 10.1.2.3\r\n"
    line.send(question(house.team, "far", key=key, headers=inside, stream=True))
    line.send(
        question(house.team, "far", key=key, headers=inside), question(house.team, "far", key=key, headers=inside)
    )
    line.send(question(house.team, "far", key=key))  # the proxy itself is not there
    line.send(question(house.team, "far", key=key, headers=b"X-Forwarded-For: 10.1.2.3, 192.0.2.1\r\n"))  # a claim
    answers = heads(line, 5)
    assert [status for status, *_ in answers] == [200, 200, 429, 403, 403]
    told = [headers["x-ratelimit-remaining-requests"] for _, headers, _ in answers]
    assert told == ["1", "0", "0", None, None]
    assert answers[2][1]["x-ratelimit-limit-requests"] == "2"
    assert 1 <= int(answers[2][1]["retry-after"]) <= 30
