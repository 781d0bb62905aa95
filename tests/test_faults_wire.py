"""What callers may send that is no request, or two at once, on both paths: nothing gets through that should not, and
nobody's answer gets into another's."""

import contextlib
import json

import pytest
from wild_caller import HOST, PATHS, Line, house_in, question

TEXT = " w0 w1 w2 w3"
MIB = 1 << 20


@pytest.fixture(scope="module", params=PATHS)
def shared(request, tmp_path_factory):
    with house_in(tmp_path_factory.mktemp("wild"), request.param, calm="") as house:
        yield house


@pytest.fixture
def house(shared):
    shared.begin()
    yield shared
    shared.rest()


@pytest.fixture
def line(house):
    with Line(house.team) as line:
        yield line


def post(team, *headers: bytes, version=b"1.1") -> bytes:
    first = b"POST /v1/chat/completions HTTP/%b\r\nAuthorization: Bearer %b\r\n" % (version, team.key.encode())
    return b"".join((first, HOST, *headers, b"\r\n"))


ASKED = json.dumps({"model": "calm", "messages": [{"role": "user", "content": "hi"}]}).encode()
LENGTH = b"Content-Length: %d\r\n" % len(ASKED)
CHUNKED = b"Transfer-Encoding: chunked\r\n"
IN_CHUNKS = b"%x\r\n%b\r\n0\r\n\r\n" % (len(ASKED), ASKED)
SMUGGLED = b"GET /v1/models HTTP/1.1\r\nHost: x\r\n\r\n"

NO_REQUESTS = {
    "two lengths": ((LENGTH, b"Content-Length: 0\r\n"), ASKED),
    "the same length twice": ((LENGTH, LENGTH), ASKED),
    "lengths in a list": ((b"Content-Length: %d, 0\r\n" % len(ASKED),), ASKED),
    "length and chunks": ((LENGTH, CHUNKED), IN_CHUNKS),
    "chunks and length": ((CHUNKED, LENGTH), IN_CHUNKS),
    "negative length": ((b"Content-Length: -1\r\n",), ASKED),
    "length with a sign": ((b"Content-Length: +%d\r\n" % len(ASKED),), ASKED),
    "endless length": ((b"Content-Length: 99999999999999999999999\r\n",), ASKED),
    "chunked is not last": ((b"Transfer-Encoding: chunked, identity\r\n",), IN_CHUNKS),
    "chunks of no size": ((CHUNKED,), b"zz\r\n" + ASKED),
    "chunks of negative size": ((CHUNKED,), b"-5\r\n" + ASKED),
    "chunks of endless size": ((CHUNKED,), b"fffffffffffffffff\r\n" + ASKED),
    "chunk longer than it says": ((CHUNKED,), b"5\r\n%b\r\n0\r\n\r\n" % ASKED),
    "space before a colon": ((b"Content-Length : 5\r\n",), ASKED),
    "folded header": ((b"X: 1\r\n Transfer-Encoding: chunked\r\n", LENGTH), ASKED),
    "no colon": ((b"nonsense\r\n", LENGTH), ASKED),
    "zero byte": ((b"X: a\0b\r\n", LENGTH), ASKED),
    "carriage return": ((b"X: a\rTransfer-Encoding: chunked\r\n", LENGTH), ASKED),
}
NO_HTTP = {
    "HTTP/0.9": b"GET /v1/models\r\n",
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "HTTP/9.9": b"GET /v1/models HTTP/9.9\r\n\r\n",
    "TLS": bytes.fromhex("16030100f8010000f40303") + bytes(64),
    "SSH": b"SSH-2.0-OpenSSH_9.6\r\n",
    "zeroes": bytes(2000),
    "proxy": b"CONNECT example.org:443 HTTP/1.1\r\nHost: example.org\r\n\r\n",
    "URL beyond ASCII": b"GET /v1/\xff\xfe HTTP/1.1\r\nHost: x\r\n\r\n",
}


def refused(line) -> None:
    """With a 400, or without a word; and the connection ends, with nothing served behind it."""
    with contextlib.suppress(ConnectionError):
        heard = line.answer()
        assert 400 <= heard.status < 500
        assert TEXT.encode() not in heard.body
    assert line.ended


@pytest.mark.parametrize("what", NO_REQUESTS)
def test_no_request(house, line, what):
    headers, body = NO_REQUESTS[what]
    line.send(post(house.team, *headers), body, SMUGGLED)
    refused(line)
    assert house.wild.seen == []
    assert house.new() == []


@pytest.mark.parametrize("what", NO_HTTP)
def test_no_http(house, line, what):
    line.send(NO_HTTP[what])
    with contextlib.suppress(OSError):
        line.send(question(house.team, "calm"))
    refused(line)
    assert house.wild.seen == []
    assert house.new() == []


@pytest.mark.parametrize("behind", [b"garbage\r\n\r\n", SMUGGLED[:-30] + b"\0\0\r\n\r\n", b"\r\n\r\nzz" * 100])
def test_garbage_behind_a_request_does_not_get_into_its_answer(house, line, behind):
    line.send(question(house.team, "calm", "@@paced=20", stream=True), behind)
    with contextlib.suppress(ConnectionError):
        heard = line.answer()
        assert heard.status == 200
        assert b"Invalid HTTP" not in heard.body
        assert heard.text == TEXT[: len(heard.text)]
    assert line.ended or line.answer().status == 400
    assert house.record()["outcome"] in ("ok", "cut")


LARGE = {
    "headers": (431, "headers_too_large", lambda team: post(team, b"x: %b\r\n" % (b"y" * MIB), LENGTH) + ASKED),
    "many headers": (431, "headers_too_large", lambda team: post(team, b"x: y\r\n" * 200_000, LENGTH) + ASKED),
    "url": (431, "headers_too_large", lambda team: question(team, "calm", path="/v1/chat/completions?" + "x" * MIB)),
    "body": (
        413,
        "request_too_large",
        lambda team: post(team, b"Content-Length: %d\r\n" % (50 * MIB)) + bytes(50 * MIB),
    ),
    "chunks": (
        413,
        "request_too_large",
        lambda team: post(team, CHUNKED) + (b"100000\r\n" + bytes(MIB) + b"\r\n") * 50,
    ),
    "model": (400, None, lambda team: question(team, "m" * MIB)),
    "name": (400, None, lambda team: question(team, "calm", **{"x" * MIB: 1})),
    "UTF-8": (400, None, lambda team: post(team, LENGTH) + ASKED.replace(b"hi", b"\xff\xfe")),
    "surrogate": (400, None, lambda team: question(team, "calm\\ud800")),
}


@pytest.mark.parametrize("what", LARGE)
def test_too_large(house, line, what):
    status, code, make = LARGE[what]
    data = make(house.team)
    before = house.process.memory_info().rss
    for at in range(0, len(data), MIB):
        try:
            line.send(data[at : at + MIB])
        except ConnectionError:
            break
    heard = line.answer()
    assert heard.status in (status, 404 if what == "surrogate" else status)
    if code:
        assert heard.error == code
    assert house.process.memory_info().rss - before < 80 * MIB
    assert house.wild.seen == []
    assert house.new() == []


# ways to ask that are unusual and good


def test_two_at_once_are_answered_in_order(house, line):
    line.send(
        question(house.team, "calm", "@@paced=30", stream=True),
        question(house.team, "calm", "@@well"),
        question(house.team, "calm", "@@well", stream=True),
    )
    answers = [line.answer() for _ in range(3)]
    assert [each.text for each in answers] == [TEXT] * 3
    assert [bool(each.frames) for each in answers] == [True, False, True]
    assert [row["request"] for row in house.new()] == [each.request for each in answers]


ASK_MODELS = b"GET /v1/models HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %b\r\n\r\n"
UNKNOWN = {"key": "fh-" + "a" * 43}


def test_others_among_completions_are_answered_in_order(house, line):
    models = ASK_MODELS % house.team.key.encode()
    line.send(
        question(house.team, "calm", "@@paced=30", stream=True), models, question(house.team, "calm", **UNKNOWN),
        question(house.team, "calm", "@@paced=10"), b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n",
        question(house.team, "no-such-model"), question(house.team, "calm", "@@well"), models,
    )  # fmt: skip
    answers = [line.answer() for _ in range(8)]
    assert [each.status for each in answers] == [200, 200, 401, 200, 200, 404, 200, 200]
    assert answers[0].text == answers[3].text == answers[6].text == TEXT
    assert b'"list"' in answers[1].body
    assert b'"list"' in answers[7].body
    assert answers[4].body == b'{"status":"ok"}'
    assert len(house.new()) == 3


@pytest.mark.parametrize("first", ["@@paced=20", "@@stalls_in_the_middle"])
def test_who_leaves_with_two_at_once(house, first):
    with Line(house.team) as line:
        line.send(question(house.team, "calm", first, stream=True), question(house.team, "calm", "@@paced=20"))
        house.talk()
    house.team.until(lambda: all(talk.over for talk in house.wild.seen), 5)
    house.rest()
    assert {row["outcome"] for row in house.new()} <= {"cut", "ok"}
    assert len(house.new()) == len(house.wild.seen)


def test_many_on_one_connection(house, line):
    for number in range(30):
        line.send(question(house.team, "calm", "hi", stream=number % 3 == 0))
        assert line.answer().text == TEXT
        line.send(question(house.team, "calm", **UNKNOWN, padding="x" * 300_000))
        assert line.answer().status == 401
    assert len(house.new()) == 30


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
@pytest.mark.parametrize(
    "how",
    [
        {"headers": b"Expect: 100-continue\r\n"},
        {"version": "1.0"},
        {"path": "http://x/v1/chat/completions"},
        {"path": "/v1/chat/completions?api-version=1"},
        {"headers": b"Connection: close\r\n"},
    ],
    ids=["expect", "HTTP 1.0", "absolute", "query", "close"],
)
def test_unusual_and_good(house, line, how, stream):
    line.send(question(house.team, "calm", "@@well", stream=stream, **how))
    heard = line.answer()
    assert (heard.status, heard.text) == (200, TEXT)
    assert house.record()["outcome"] == "ok"
    if "version" in how or b"close" in how.get("headers", b""):
        assert line.ended


def test_a_body_in_chunks_and_in_drops(house, line):
    line.send(post(house.team, CHUNKED))
    for at in range(0, len(ASKED), 7):
        line.send(b"%x\r\n%b\r\n" % (len(ASKED[at : at + 7]), ASKED[at : at + 7]))
    line.send(b"0\r\n\r\n")
    assert line.answer().text == TEXT
