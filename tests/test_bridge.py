"""The bridge for real: a TCP server behind it as its own process, and what a Unix socket owes to whoever connects."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from freehold.engines import bridge

BRIDGE = Path(bridge.__file__)
PATIENCE_S = 20
# Answers each connection by its first word. Standard library; prints nothing; ends with 3 on SIGTERM.
SERVER = """
import asyncio, signal, sys
async def answer(reader, writer):
    word = (await reader.readline()).split()
    if word[:1] == [b"GET"]:
        writer.write(b"HTTP/1.1 %d OK\\r\\n\\r\\n" % (200 if word[1] == b"/yes" else 503))
    elif word == [b"echo"]:
        while piece := await reader.read(65536):
            writer.write(piece)
            await writer.drain()
        writer.write(b"that was all")
    elif word == [b"count"]:
        size = 0
        while piece := await reader.read(65536):
            size += len(piece)
        writer.write(b"%d" % size)
    elif word == [b"forever"]:
        try:
            while True:
                writer.write(b"x" * 1000)
                await writer.drain()
                await asyncio.sleep(0.001)
        except OSError:
            open(sys.argv[2], "w").close()
    elif word == [b"wait"]:
        await reader.read()
        open(sys.argv[2], "w").close()
    elif word == [b"break"]:
        writer.write(b"half of it")
        await writer.drain()
        writer.transport.abort()
    writer.close()
async def main():
    server = await asyncio.start_server(answer, "127.0.0.1", int(sys.argv[1]))
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, sys.exit, 3)
    await server.serve_forever()
asyncio.run(main())
"""


class Bridge:
    """One in front of the server above; `noticed` is there once the server saw its caller go."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.socket, self.noticed = folder, folder / "engine.sock", folder / "noticed"
        self.port = 20_000 + os.getpid() % 10_000
        self.process: subprocess.Popen | None = None

    def start(self, *more: str, path: str = "", words: tuple[str, ...] = ()) -> None:
        server = (sys.executable, "-c", SERVER, str(self.port), str(self.noticed))
        argv = [sys.executable, "-I", str(BRIDGE), *words, str(self.socket), f"{self.port}{path}", *server, *more]
        self.process = subprocess.Popen(argv, stderr=subprocess.PIPE, text=True)

    def up(self, *more: str, path: str = "", words: tuple[str, ...] = ()) -> None:
        self.start(*more, path=path, words=words)
        self.until(self.socket.exists)

    def until(self, what) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not what():
            assert time.monotonic() < deadline, "it did not come to pass"
            time.sleep(0.01)

    @property
    def programs(self) -> list[psutil.Process]:
        assert self.process
        return psutil.Process(self.process.pid).children()

    @contextlib.asynccontextmanager
    async def connect(self, word: bytes):
        reader, writer = await asyncio.open_unix_connection(self.socket)
        writer.write(word + b"\n")
        try:
            yield reader, writer
        finally:
            writer.transport.abort()
            with contextlib.suppress(OSError):
                await writer.wait_closed()


@pytest.fixture
def behind(tmp_path: Path) -> Iterator[Bridge]:
    made = Bridge(tmp_path)
    yield made
    if made.process:
        made.process.terminate()
        made.process.communicate(timeout=PATIENCE_S)


async def test_half_closed_both_ways(behind: Bridge) -> None:
    behind.up()
    async with behind.connect(b"echo") as (reader, writer):
        writer.write(b"first,")
        assert await reader.readexactly(6) == b"first,"
        writer.write_eof()
        assert await reader.read() == b"that was all"


async def test_fifty_megabytes_each_way(behind: Bridge) -> None:
    behind.up()
    megabyte = os.urandom(1 << 20)
    async with behind.connect(b"echo") as (reader, writer):

        async def send() -> None:
            for _ in range(50):
                writer.write(megabyte)
                await writer.drain()
            writer.write_eof()

        sending = asyncio.create_task(send())
        for _ in range(50):
            assert await reader.readexactly(1 << 20) == megabyte
        assert await reader.read() == b"that was all"
        await sending


async def test_it_holds_back_who_sends_faster_than_is_read(behind: Bridge) -> None:
    """A caller who does not read stops the stream at its source, not in the bridge's memory."""
    behind.up()
    async with behind.connect(b"echo") as (reader, writer):
        sent, piece = 0, b"x" * 65536
        reader._transport.pause_reading()  # type: ignore[attr-defined]
        try:
            async with asyncio.timeout(1):
                while True:
                    writer.write(piece)
                    await writer.drain()
                    sent += len(piece)
        except TimeoutError:
            pass
        assert 0 < sent < 32 << 20
        assert psutil.Process(behind.process.pid).memory_info().rss < 100 << 20  # type: ignore[union-attr]


async def test_a_hundred_connections_at_once(behind: Bridge) -> None:
    behind.up()

    async def count(number: int) -> None:
        async with behind.connect(b"count") as (reader, writer):
            writer.write(b"x" * number * 1000)
            writer.write_eof()
            assert int(await reader.read()) == number * 1000

    await asyncio.gather(*(count(number) for number in range(100)))


@pytest.mark.parametrize("word", [b"forever", b"wait"], ids=["while it streams", "while it computes"])
async def test_the_engine_learns_that_the_caller_left(behind: Bridge, word: bytes) -> None:
    behind.up()
    async with behind.connect(word) as (reader, writer):
        if word == b"forever":
            await reader.readexactly(5000)
        writer.transport.abort()
        await asyncio.to_thread(behind.until, behind.noticed.exists)


async def test_the_caller_learns_that_the_engine_broke_off(behind: Bridge) -> None:
    behind.up()
    async with behind.connect(b"break") as (reader, _):
        with contextlib.suppress(ConnectionResetError):
            assert b"half of it".startswith(await reader.read())  # a reset may overtake what was sent before it


async def test_it_ends_with_the_engine(behind: Bridge) -> None:
    behind.up()
    async with behind.connect(b"wait") as (reader, _):
        behind.programs[0].kill()
        assert await reader.read() == b""
        assert behind.process
        assert await asyncio.to_thread(behind.process.wait, PATIENCE_S) == 128 + signal.SIGKILL
        assert not behind.socket.exists()


def test_no_socket_before_the_engine_is_up(behind: Bridge) -> None:
    behind.start(path="/no")
    time.sleep(0.5)  # nothing is to happen: there is nothing to wait for
    assert behind.process
    assert behind.process.poll() is None
    assert not behind.socket.exists()


def test_a_socket_once_it_says_so(behind: Bridge) -> None:
    behind.up(path="/yes")


def test_it_passes_signals_on(behind: Bridge) -> None:
    behind.up()
    assert behind.process
    behind.process.terminate()
    assert behind.process.wait(PATIENCE_S) == 3


@pytest.mark.parametrize(("code", "seen"), [("7", 7), ("0", 0)])
def test_the_first_that_ends_takes_the_others_with_it(behind: Bridge, code: str, seen: int) -> None:
    held, go = behind.folder / "held", behind.folder / "go"
    holds = f"import subprocess, time; subprocess.Popen(['sleep', '600']); open({str(held)!r}, 'w'); time.sleep(600)"
    ends = f"import os, sys, time\nwhile not os.path.exists({str(go)!r}): time.sleep(.01)\nsys.exit({code})"
    python = sys.executable
    behind.start("--and", python, "-c", holds, "--and", python, "-c", ends)
    assert behind.process
    family = psutil.Process(behind.process.pid)
    behind.until(held.exists)
    started = family.children(recursive=True)
    assert len(started) == 4
    go.touch()
    assert behind.process.wait(PATIENCE_S) == seen
    _, alive = psutil.wait_procs(started, timeout=PATIENCE_S)
    assert not alive


def test_its_programs_die_with_it(behind: Bridge) -> None:
    behind.up()
    assert behind.process
    programs = behind.programs
    behind.process.kill()
    _, alive = psutil.wait_procs(programs, timeout=PATIENCE_S)
    assert not alive


def test_a_file_is_there_before_the_programs(behind: Bridge) -> None:
    file = behind.folder / "settings"
    read = f"import sys; sys.exit(open({str(file)!r}, encoding='utf-8').read() != 'größer: 1')"
    behind.start("--and", sys.executable, "-c", read, words=("-w", str(file), "größer: 1"))
    assert behind.process
    assert behind.process.wait(PATIENCE_S) == 0


@pytest.mark.parametrize("words", [[], ["s"], ["s", "1"], ["s", "x", "p"], ["s", "1", "p", "--and"], ["-w", "f"]])
def test_what_it_cannot_read(words: list[str]) -> None:
    done = subprocess.run([sys.executable, "-I", BRIDGE, *words], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.split()[0]) == (2, "usage:")


def test_a_program_that_is_not_there(behind: Bridge) -> None:
    behind.start("--and", "/nowhere/program")
    assert behind.process
    _, said = behind.process.communicate(timeout=PATIENCE_S)
    assert behind.process.returncode == 1
    assert "/nowhere/program" in said
