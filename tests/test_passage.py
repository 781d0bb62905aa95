"""Nobody sees the last byte of an answer before its record is safe: the front door, driven by a `send` that looks into
the journal each time it is given something."""

import asyncio
import contextlib
import json

import pytest
from fake_start import Stage, stage_in

from freehold.fleet.config import Config, Endpoint
from freehold.fleet.fleet import Fleet
from freehold.fleet.probing import PROBE_KEY, Asked, probe_completion
from freehold.fleet.route import Route
from freehold.fleet.upstream import Upstream
from freehold.gateway.app import Gateway
from freehold.gateway.desk import Desk, Head
from freehold.gateway.keyring import Keyring
from freehold.gateway.meter import StreamMeter, WholeMeter
from freehold.gateway.passage import Passage
from freehold.ledger.journal import left_behind
from freehold.types import UsageRecord

USAGE = '"usage":{"prompt_tokens":7,"completion_tokens":2}'
STREAM = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
WORDS = 'data: {"choices":[{"index":0,"delta":{"content":"a"}}]}\n\ndata: {"choices":[],' + USAGE + "}\n\n"
BODY = '{"choices":[{"index":0,"message":{"content":"a b"}}],' + USAGE + "}"
WHOLE = "HTTP/1.1 %s\r\ncontent-length: %d\r\n\r\n%s"
ASKED = b'{"model":"far","messages":[{"role":"user","content":"hi"}]}'
DONE = "data: [DONE]\n\n"
SAID = '{"error":{"message":"it hurts"}}'


def chunk(text: str) -> str:
    return f"{len(text):x}\r\n{text}\r\n"


@contextlib.asynccontextmanager
async def engine(path, answer: str):
    """An engine that says this, whatever it is asked, and hangs up."""

    async def say(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer.encode())
        writer.close()

    async with await asyncio.start_unix_server(say, path):
        yield


async def ask(stage: Stage, url: str, *, stream: bool) -> list[tuple[bytes, list[UsageRecord]]]:
    """One request: each message that leaves for its caller, with the records that the journal holds settled then."""
    fleet = Fleet(Config(endpoints={"far": Endpoint(engine="external", url=url)}), stage.ground)
    keyring = Keyring(stage.ground)
    await keyring.load()
    _, secret = await keyring.create("ada", (), None, "a test")
    body = json.dumps({"model": "far", "stream": stream, "messages": [{"role": "user", "content": "hi"}]}).encode()
    inbox = asyncio.Queue()
    inbox.put_nowait({"type": "http.request", "body": body, "more_body": False})
    left = []

    async def send(message):
        left.append((message.get("body", b""), left_behind(stage.book.journal._folder)[0]))

    scope = {
        "path": "/v1/chat/completions",
        "method": "POST",
        "client": ("127.0.0.1", 1),
        "headers": [(b"authorization", f"Bearer {secret}".encode())],
    }
    await Gateway(Desk(fleet, keyring))(scope, inbox.get, send)
    return left


@pytest.mark.parametrize(
    ("stream", "answer", "last", "outcome"),
    [
        (True, STREAM + chunk(WORDS) + chunk(DONE) + chunk(""), DONE, "ok"),
        (True, STREAM + chunk(WORDS) + chunk(""), "", "ok"),  # its end is all that tells that it is over
        (False, WHOLE % ("200 OK", len(BODY), BODY), '"content":"a b"', "ok"),
        (True, STREAM + chunk(WORDS), "engine_failed", "error"),
        (False, WHOLE % ("500 No", len(SAID), SAID), "it hurts", "error"),
        (False, "", "engine_failed", "error"),
    ],
    ids=["done", "without done", "whole", "cut", "refused", "silent"],
)
async def test_the_record_is_safe_before_the_last_byte_leaves(tmp_path, stream, answer, last, outcome):
    async with stage_in(tmp_path) as stage, engine(tmp_path / "e.sock", answer):
        left = await ask(stage, f"unix:{tmp_path / 'e.sock'}", stream=stream)
        end = next(n for n, (body, _) in enumerate(left) if last in body.decode()) if last else len(left) - 1
        (record,) = left[end][1]
        assert record.outcome == outcome
        if outcome == "ok":
            assert (record.prompt_tokens, record.completion_tokens, record.lower_bound) == (7, 2, False)
        if stream:
            assert left[0][1] == []  # nor is it settled before anything was said
        assert stage.book.journal.in_flight == 0


async def test_a_probe_is_on_record_while_it_runs(tmp_path):
    seen = []

    async def say(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        seen.extend(left_behind(tmp_path)[1])
        writer.write((WHOLE % ("200 OK", len(BODY), BODY)).encode())
        writer.close()

    async with stage_in(tmp_path) as stage, await asyncio.start_unix_server(say, tmp_path / "e.sock"):
        upstream = Upstream(f"unix:{tmp_path / 'e.sock'}")
        used = (await probe_completion(Asked(upstream, "far", "far"), {"model": "theirs"}, stage.ground)).tokens
        assert [(record.kind, record.endpoint, record.key) for record in seen] == [("probe", "far", PROBE_KEY)]
        ((settled,), left) = left_behind(tmp_path)
        assert left == []
        assert (settled.request, settled.outcome, settled.completion_tokens) == (seen[0].request, "ok", 2)
        assert (used.prompt, used.completion) == (7, 2)


@pytest.mark.parametrize(
    ("whose", "what", "stream"), [(StreamMeter, "feed", True), (WholeMeter, "close", False), (Route, "place", False)]
)
async def test_a_fault_of_ours_ends_its_request_with_a_record(tmp_path, monkeypatch, whose, what, stream):
    def fail(*_):
        raise ZeroDivisionError

    answer = STREAM + chunk(WORDS) + chunk("") if stream else WHOLE % ("200 OK", len(BODY), BODY)
    async with stage_in(tmp_path) as stage, engine(tmp_path / "e.sock", answer):
        monkeypatch.setattr(whose, what, fail)
        left = await ask(stage, f"unix:{tmp_path / 'e.sock'}", stream=stream)
        assert "did not foresee" in left[-1][0].decode()
        assert [record.outcome for record in left[-1][1]] == ["error"]
        assert stage.book.journal.in_flight == 0


class Told:
    """A caller who waits for a whole answer."""

    def __init__(self):
        self.status = asyncio.get_running_loop().create_future()

    def answer(self, status, headers, body):
        self.status.set_result(status)


async def test_nobody_is_asked_before_the_record_is_open(tmp_path):
    """Not even by the clock, when a caller would wait for nothing."""
    async with stage_in(tmp_path) as stage, engine(tmp_path / "e.sock", WHOLE % ("200 OK", len(BODY), BODY)):
        url = f"unix:{tmp_path / 'e.sock'}"
        endpoints = {
            "far": Endpoint(engine="external", url=url, fallback=("other",)),
            "other": Endpoint(engine="external", url=url),
        }
        keyring = Keyring(stage.ground)
        await keyring.load()
        key, _ = await keyring.create("ada", (), None, "a test")
        passage = Passage(
            Desk(Fleet(Config(endpoints=endpoints), stage.ground), keyring), key, Head(wait_s=0), ASKED, "chat"
        )
        told = Told()
        passage.start(told)
        passage.tick(stage.ground.clock_ns() + 10**9)
        assert await told.status == 200
        assert (passage.record.endpoint, passage.record.asked) == ("far", "")
