"""The daemon's log: a JSON object a line, on its standard error. No question, no answer and no key is ever in it."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import sys
from datetime import UTC, datetime

import msgspec

from freehold.gateway.keyring import PREFIX
from freehold.types import UsageRecord

_encode = msgspec.json.Encoder().encode
_SECRET = re.compile(rf"{PREFIX}[A-Za-z0-9_-]{{8,}}")


class JsonFormatter(logging.Formatter):
    """`time` is RFC 3339 in UTC; `request` and `exception` are there where there is one."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": _time(record.created),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if request := getattr(record, "request", None):
            line["request"] = request
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return _SECRET.sub(f"{PREFIX}…", _encode(line).decode())  # nobody logs one; should somebody ever, it ends here


def write_json() -> None:
    """From now on all that is logged in this process, warnings of Python's among it."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    logging.captureWarnings(capture=True)


class RequestLog:
    """A line for each request, from its record. Those of one turn of the event loop share a write(2)."""

    def __init__(self, file: int = 2) -> None:
        self._file = file
        self._lines: list[bytes] = []

    def settled(self, record: UsageRecord) -> None:
        if not self._lines:
            asyncio.get_running_loop().call_soon(self.flush)
        head = b'{"time":"%b","level":"info","logger":"freehold.requests","message":"request",'
        now = record.started_ns / 1e9 + record.total_ms / 1e3
        self._lines.append(head % _time(now).encode() + _encode(record)[1:] + b"\n")

    def flush(self) -> None:
        text, self._lines = b"".join(self._lines), []
        try:
            while text:
                text = text[os.write(self._file, text) :]
        except OSError:  # a full disk costs the log, not the request
            return


def _time(at_s: float) -> str:
    return datetime.fromtimestamp(at_s, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
