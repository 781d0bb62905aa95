"""Requests in flight, safe against `kill -9` of the daemon.

A request is opened with a line here before the engine sees it, and settled with another before its caller sees the
last byte. What comes in one turn of the event loop shares one write(2); the kernel has the bytes from then on, whatever
becomes of this process, and the book's writer fsyncs them too. At the next start whatever was opened and never settled
is closed as `cut`, with the tokens that were noted last.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import msgspec

from freehold.errors import FreeholdError, NotReady
from freehold.types import Price, Tokens, UsageRecord

ROTATE_BYTES = 64 << 20  # two seconds of the most that one core can serve; half a second to recover

Then = Callable[[FreeholdError | None], None]
_Waiting = tuple[Then, str]  # and the request that it opened; "" where it goes on, written or not

_log = logging.getLogger("freehold.ledger")
_encode = msgspec.json.Encoder().encode


class _Line(msgspec.Struct):
    """A record that was opened or settled, or what was counted meanwhile."""

    settled: bool = False
    record: UsageRecord | None = None
    price: Price = Price()  # of an opened one: recovery charges by it what was counted
    noted: str = ""  # the request that was counted
    tokens: Tokens = Tokens()


_decode = msgspec.json.Decoder(_Line).decode


class Journal:
    """Append-only segments `journal-N` in a folder. One owner: the daemon's event loop.

    Whoever gives `then` is called once, in order, when its line is written, or with the error when it could not be;
    with `power_loss` not before the line is on the disk. Who gives none has its line written at once.
    """

    def __init__(self, folder: Path, *, power_loss: bool = False) -> None:
        self._folder = folder
        self._in_flight: dict[str, bytes] = {}  # the lines that opened them, for the next segment
        self._noted: dict[str, bytes] = {}
        self._priced: tuple[Price | None, bytes] = None, b""
        self._lines: list[bytes] = []
        self._waiting: list[_Waiting] = []  # for these lines
        self._written: list[tuple[FreeholdError | None, list[_Waiting]]] = []  # not yet told
        self._scheduled = False  # also while the disk is busy: then lines gather
        self._disk = ThreadPoolExecutor(1, "journal") if power_loss else None
        self._segment = max((int(_number(p)) for p in segments(folder)), default=0)
        self._written_bytes = 0
        self._fd_lock = threading.Lock()  # other threads sync what the loop may be about to close
        self._fd = self._next_segment()

    @property
    def size_bytes(self) -> int:
        """Of this segment."""
        return self._written_bytes

    @property
    def in_flight(self) -> int:
        return len(self._in_flight)

    def open(self, record: UsageRecord, then: Then | None = None, price: Price | None = None) -> None:
        """Raises NotReady when it could not be written and nobody is to be called."""
        priced = self._priced
        if price is not None and price is not priced[0]:  # most often that of the request before
            priced = self._priced = price, _encode(price)
        line = b'\n{"record":%b,"price":%b}' % (_encode(record), priced[1] if price else _FREE)
        self._in_flight[record.request] = line
        self._lines.append(line)
        if then:
            self._waiting.append((then, record.request))
            if not self._scheduled:
                self._schedule()
        elif error := self.write():
            self._in_flight.pop(record.request, None)
            raise error

    def settle(self, request: str, content: bytes, then: Then | None = None) -> None:
        """`content`: the record as JSON. It goes on without an error: then the book alone has it, in a moment."""
        self._in_flight.pop(request, None)
        if self._noted:
            self._noted.pop(request, None)
        self._lines.append(b'\n{"settled":true,"record":%b}' % content)
        if then:
            self._waiting.append((then, ""))
            if not self._scheduled:
                self._schedule()
        else:
            self.write()

    def note(self, request: str, tokens: Tokens) -> None:
        """What was counted of a request so far."""
        if request in self._in_flight:
            self._noted[request] = line = b'\n{"noted":%b,"tokens":%b}' % (_encode(request), _encode(tokens))
            self._lines.append(line)
            if not self._scheduled:
                self._schedule()

    def write(self) -> FreeholdError | None:
        """Give the kernel what there is. Who waits for it is called later."""
        if not self._lines:
            return None
        error = self._append(b"".join(self._lines))
        if error:
            _log.error("%d lines of the journal: %s", len(self._lines), error)
            for _, opened in self._waiting:
                self._in_flight.pop(opened, None)  # now, or a new segment would have it
        self._lines = []
        if self._waiting:
            self._written.append((error, self._waiting))
            self._waiting = []
        return error

    def sync(self) -> None:
        """Put what was written on the disk. Called from other threads. Raises OSError."""
        with self._fd_lock:
            os.fdatasync(self._fd)

    def rotate(self) -> list[Path]:
        """Begin a new segment; the old ones, returned, may go once the book holds everything settled so far.

        Raises NotReady or OSError: then they have to stay.
        """
        self.write()
        if self._disk:
            self.sync()  # some wait for what is in it
        old = segments(self._folder)
        new = self._next_segment()
        with self._fd_lock:
            os.close(self._fd)
            self._fd = new
        self._written_bytes = 0
        if error := self._append(b"".join((*self._in_flight.values(), *self._noted.values()))):
            raise error
        return old

    @property
    def full(self) -> bool:
        return self._written_bytes >= ROTATE_BYTES

    def close(self) -> None:
        """Everybody has been called when this returns."""
        self.write()
        if self._disk:
            self._disk.shutdown()
            with contextlib.suppress(OSError):
                self.sync()
        self._tell(len(self._written))
        os.close(self._fd)

    def _schedule(self) -> None:
        self._scheduled = True
        asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        """All lines of one turn."""
        self._scheduled = False
        self.write()
        if self._disk and self._written:
            self._scheduled = True
            syncing = asyncio.get_running_loop().run_in_executor(self._disk, self.sync)
            syncing.add_done_callback(partial(self._synced, len(self._written)))
        else:
            self._tell(len(self._written))

    def _synced(self, writes: int, synced: asyncio.Future[None]) -> None:
        failed = synced.exception()
        if failed:
            _log.error("the journal does not reach the disk: %s", failed)
        self._tell(writes, _unwritable(str(failed)) if failed else None)
        self._flush()

    def _tell(self, writes: int, failed: FreeholdError | None = None) -> None:
        """Whoever waits for the first so many writes."""
        told, self._written = self._written[:writes], self._written[writes:]
        for error, waiting in told:
            for then, opened in waiting:
                if failed and opened:
                    self._in_flight.pop(opened, None)
                try:
                    then((error or failed) if opened else None)
                except Exception:  # noqa: BLE001  the door of whoever waited: the others must be called too
                    _log.exception("after a line of the journal")

    def _append(self, lines: bytes) -> FreeholdError | None:
        """All of it or nothing. The empty line before each makes a torn one cost only itself."""
        try:
            written_bytes = os.write(self._fd, lines)
        except OSError as failure:
            return _unwritable(failure.strerror or str(failure))
        if written_bytes == len(lines):
            self._written_bytes += written_bytes
            return None
        try:  # what was refused must not be found here
            os.ftruncate(self._fd, self._written_bytes)
        except OSError as failure:
            _log.error("half a write stays in the journal: %s", failure)
            self._written_bytes += written_bytes
        return _unwritable("no space left")

    def _next_segment(self) -> int:
        self._segment += 1
        path = self._folder / f"journal-{self._segment}"
        segment = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        if self._disk:  # its name too survives a power loss
            folder = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        return segment


_FREE = _encode(Price())


def _unwritable(why: str) -> NotReady:
    return NotReady(
        f"the request cannot be recorded: {why}", hint="is the disk full? freehold doctor", retry_after_s=30
    )


def segments(folder: Path) -> list[Path]:
    return sorted((p for p in folder.glob("journal-*") if _number(p).isdecimal()), key=lambda p: int(_number(p)))


def _number(segment: Path) -> str:
    return segment.name.partition("-")[2]


def left_behind(folder: Path) -> tuple[list[UsageRecord], list[UsageRecord]]:
    """What a daemon left in the journal: the settled records, and those it never settled, closed as `cut`."""
    opened: dict[str, tuple[UsageRecord, Price]] = {}
    noted: dict[str, Tokens] = {}
    settled: list[UsageRecord] = []
    for path in segments(folder):
        try:
            lines = path.read_bytes().split(b"\n")
        except FileNotFoundError:  # a daemon that runs has just put all of it into the book
            continue
        for raw in lines:
            try:
                line = _decode(raw)
            except (msgspec.DecodeError, UnicodeDecodeError):
                continue  # empty, or what a power loss left of a write
            if line.record is None:
                noted[line.noted] = line.tokens
            elif line.settled:
                opened.pop(line.record.request, None)
                settled.append(line.record)
            else:
                opened[line.record.request] = line.record, line.price
    return settled, [_cut(record, price, noted.get(request, Tokens())) for request, (record, price) in opened.items()]


def _cut(record: UsageRecord, price: Price, counted: Tokens) -> UsageRecord:
    """With what was counted of it; the rest of its reservation stays held, for the engine may have gone further."""
    charge_pico = price.charge_pico(counted)
    return msgspec.structs.replace(
        record,
        outcome="cut",
        lower_bound=True,
        prompt_tokens=counted.prompt,
        completion_tokens=counted.completion,
        cached_tokens=counted.cached,
        reasoning_tokens=counted.reasoning,
        charge_pico=charge_pico,
        held_tokens=max(0, record.held_tokens - counted.prompt - counted.completion),
        held_pico=max(0, record.held_pico - charge_pico),
    )
