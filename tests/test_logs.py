"""The daemon's log: JSON a line, and what must not be in it."""

import asyncio
import io
import json
import logging
import os
import sys
import warnings
from datetime import UTC, datetime

import pytest
from msgspec.structs import replace

from freehold.cli.logs import readable
from freehold.gateway.logs import JsonFormatter, RequestLog, write_json
from freehold.types import UsageRecord


@pytest.fixture
def said(monkeypatch):
    """What a daemon that logs as ours does has said so far."""
    root, stream = logging.getLogger(), io.StringIO()
    before = root.handlers[:], root.level
    monkeypatch.setattr(sys, "stderr", stream)
    write_json()
    yield lambda: [json.loads(line) for line in stream.getvalue().splitlines()]
    logging.captureWarnings(capture=False)
    root.handlers[:], root.level = before


def test_a_line_is_an_object_with_time_level_logger_and_message(said):
    logging.getLogger("freehold.x").error("no %s\nleft", "room", extra={"request": "req-1"})
    (line,) = said()
    assert datetime.fromisoformat(line.pop("time")).tzinfo == UTC
    assert line == {"level": "error", "logger": "freehold.x", "message": "no room\nleft", "request": "req-1"}


def test_an_exception_is_told_whole(said):
    try:
        int("so it goes")
    except ValueError:
        logging.getLogger("freehold.x").exception("request %s", "req-1")
    (line,) = said()
    assert line["exception"].startswith("Traceback")
    assert line["exception"].endswith("'so it goes'")


def test_warnings_and_what_libraries_say_are_json_too(said):
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("old", stacklevel=1)
    logging.getLogger("uvicorn.error").warning("Invalid HTTP request received.")
    assert [line["logger"] for line in said()] == ["py.warnings", "uvicorn.error"]


def test_a_key_that_somebody_logs_by_mistake_is_cut_out(said):
    logging.getLogger("x").error("asked with %s", {"authorization": "Bearer fh-" + "Ab_-" * 11})
    assert said()[0]["message"] == "asked with {'authorization': 'Bearer fh-…'}"


def test_people_read_it_as_text():
    record = logging.LogRecord("freehold.x", logging.ERROR, "", 0, "no room", (), None)
    record.created = 1_790_000_000.25
    record.request = "req-1"
    assert readable(JsonFormatter().format(record)) == [
        "2026-09-21T14:13:20.250Z ERROR freehold.x: no room request=req-1"
    ]
    trace = {"time": "t", "level": "error", "logger": "x", "message": "m", "exception": "Traceback\n  ValueError"}
    assert readable(json.dumps(trace)) == ["t ERROR x: m", "Traceback", "  ValueError"]
    for other in ("error: the port is taken", "[1]", "null", "{}", ""):
        assert readable(other) == [other]


async def test_a_line_for_each_request():
    reading, writing = os.pipe()
    log = RequestLog(writing)
    record = UsageRecord(
        request="", key="k1", endpoint="demo", kind="chat", stream=True, started_ns=1_790_000_000 * 10**9
    )
    record = replace(record, total_ms=250.0, status=200, outcome="ok", prompt_tokens=7)
    for number in range(3):
        log.settled(replace(record, request=f"req-{number}"))
    await asyncio.sleep(0)
    lines = [json.loads(line) for line in os.read(reading, 1 << 16).splitlines()]
    assert [line["request"] for line in lines] == ["req-0", "req-1", "req-2"]
    assert lines[0]["time"] == "2026-09-21T14:13:20.250Z"
    assert (lines[0]["logger"], lines[0]["prompt_tokens"], lines[0]["outcome"]) == ("freehold.requests", 7, "ok")
    os.close(reading)
    os.close(writing)
    log.settled(record)  # nobody reads it any more: no harm
    await asyncio.sleep(0)
