"""Whoever asked, and what Freehold itself says to them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from freehold.errors import FreeholdError
from freehold.gateway.openai import error_body

Pairs = Sequence[tuple[bytes, bytes]]

JSON = (b"content-type", b"application/json")
STREAM = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # or a proxy in front would gather the stream
)


class Caller(Protocol):
    """The way back to whoever asked. Nothing here waits: one who does not read calls `Passage.pause`."""

    def begin(self, status: int, headers: Pairs) -> None:
        """The head of a stream."""
        ...

    def write(self, piece: bytes) -> None: ...
    def end(self, piece: bytes) -> None: ...
    def answer(self, status: int, headers: Pairs, body: bytes) -> None:
        """All of it at once."""
        ...

    def drop(self) -> None:
        """They do not read: close the connection."""
        ...


def unforeseen() -> FreeholdError:
    return FreeholdError("something failed that Freehold did not foresee; its log says what")


def told(error: FreeholdError) -> tuple[int, Pairs, bytes]:
    """An error as callers get it: status, headers, body."""
    later = () if error.retry_after_s is None else ((b"retry-after", b"%d" % error.retry_after_s),)
    return error.status, (JSON, *later, *error.headers), error_body(error)
