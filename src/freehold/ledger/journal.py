"""Requests in flight, safe against `kill -9` of the daemon.

A request is opened with one write(2) before the engine sees it and settled with another before its caller sees the
last byte. The kernel has the bytes from then on, whatever becomes of this process; the book's writer fsyncs them too.
At the next start whatever was opened and never settled is closed as `cut`.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path

import msgspec

from freehold.errors import NotReady
from freehold.ledger.chain import content_of
from freehold.types import UsageRecord

ROTATE_BYTES = 16 << 20


class _Line(msgspec.Struct):
    settled: bool
    record: UsageRecord


_decode = msgspec.json.Decoder(_Line).decode


class Journal:
    """Append-only segments `journal-N` in a folder. One owner: the daemon's event loop."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._in_flight: dict[str, UsageRecord] = {}
        self._segment = max((int(p.name.partition("-")[2]) for p in segments(folder)), default=0)
        self._written_bytes = 0
        self._fd_lock = threading.Lock()  # the writer thread syncs what the loop may be about to close
        self._fd = self._next_segment()

    @property
    def in_flight(self) -> int:
        return len(self._in_flight)

    def open(self, record: UsageRecord) -> None:
        self._append(content_of(record), settled=False)
        self._in_flight[record.request] = record

    def settle(self, record: UsageRecord, content: bytes | None = None) -> None:
        """`content`: the record as JSON, where somebody has it already."""
        self._in_flight.pop(record.request, None)
        self._append(content or content_of(record), settled=True)

    def sync(self) -> None:
        """Put what was written on the disk. Called from the book's writer thread."""
        with self._fd_lock:
            os.fdatasync(self._fd)

    def rotate(self) -> list[Path]:
        """Begin a new segment; the old ones, returned, may go once the book holds everything settled so far."""
        old = segments(self._folder)
        new = self._next_segment()
        with self._fd_lock:
            os.close(self._fd)
            self._fd = new
        self._written_bytes = 0
        for record in self._in_flight.values():
            self._append(content_of(record), settled=False)
        return old

    @property
    def full(self) -> bool:
        return self._written_bytes >= ROTATE_BYTES

    def close(self) -> None:
        os.close(self._fd)

    def _append(self, content: bytes, *, settled: bool) -> None:
        """The empty line before it makes a torn one cost only itself."""
        line = b'\n{"settled":%b,"record":%b}' % (b"true" if settled else b"false", content)
        try:
            written_bytes = os.write(self._fd, line)
        except OSError as error:
            raise _unwritable(error.strerror or str(error)) from error
        self._written_bytes += written_bytes
        if written_bytes < len(line):
            raise _unwritable("no space left")

    def _next_segment(self) -> int:
        self._segment += 1
        path = self._folder / f"journal-{self._segment}"
        return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)


def _unwritable(why: str) -> NotReady:
    return NotReady(
        f"the request cannot be recorded: {why}", hint="is the disk full? freehold doctor", retry_after_s=30
    )


def segments(folder: Path) -> list[Path]:
    return sorted(folder.glob("journal-*"), key=lambda p: int(p.name.partition("-")[2]))


def left_behind(folder: Path) -> tuple[list[UsageRecord], list[UsageRecord]]:
    """What a daemon left in the journal: the settled records, and those it never settled, closed as `cut`."""
    opened: dict[str, UsageRecord] = {}
    settled: list[UsageRecord] = []
    for path in segments(folder):
        try:
            lines = path.read_bytes().split(b"\n")
        except FileNotFoundError:  # a daemon that runs has just put all of it into the book
            continue
        for raw in lines:
            try:
                line = _decode(raw)
            except msgspec.DecodeError:
                continue  # empty, or the torn last line of a write that a power loss cut
            if line.settled:
                opened.pop(line.record.request, None)
                settled.append(line.record)
            else:
                opened[line.record.request] = line.record
    return settled, [msgspec.structs.replace(r, outcome="cut", lower_bound=True) for r in opened.values()]
