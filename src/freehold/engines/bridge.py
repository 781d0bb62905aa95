"""A Unix socket in front of programs that listen on TCP only: run as a script in the sandbox, by the engine's Python.

    python -I bridge.py [-w FILE TEXT] SOCKET PORT[/PATH] PROGRAM ARGUMENT... [--and PROGRAM ARGUMENT...]

Writes the file, starts the programs, and relays every connection of SOCKET to 127.0.0.1:PORT, byte by byte. The socket
is there only once the port accepts, with PATH once that is answered with 200: "no socket" means "not up yet", as it
does of engines that make their own. It ends with the first program that ends and has its exit code (128 + the signal,
as in a shell), and the others are ended with it. SIGTERM and SIGINT are passed on; what is open is relayed on until the
end. Standard library only, from Python 3.10 on: nothing of Freehold is in the engine's environment.

Killed itself, it takes the programs with it, though not what they started in turn: the sandbox does that.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import sys
from asyncio import StreamReader, StreamWriter
from asyncio.subprocess import Process
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

HOST = "127.0.0.1"
READ_BYTES = 256 << 10
LOOK_AGAIN_S = 0.05  # nobody tells when another process begins to listen
FAREWELL_S = 10.0  # for the other programs, once one has ended
CONNECTIONS_WAITING = 1024
PR_SET_PDEATHSIG = 1
PRCTL = getattr(ctypes.CDLL(None), "prctl", None)  # looked up before there is a fork


class Wanted(NamedTuple):
    socket: str
    port: int
    path: str  # "": it is enough that the port accepts
    programs: list[list[str]]
    file: tuple[str, str] | None


async def relay(reader: StreamReader, writer: StreamWriter) -> None:
    """Pass on until the end, no faster than the other side takes it; the end is passed on too, half-closed."""
    while piece := await reader.read(READ_BYTES):
        writer.write(piece)
        await writer.drain()
    writer.write_eof()


async def join(reader: StreamReader, writer: StreamWriter, port: int) -> None:
    """One connection to the socket. Where one side breaks, so does the other: no clean end is made up."""
    ends, tasks = [writer], []
    try:
        back, there = await asyncio.open_connection(HOST, port)
        ends.append(there)
        tasks = [asyncio.ensure_future(relay(reader, there)), asyncio.ensure_future(relay(back, writer))]
        await asyncio.gather(*tasks)
    except OSError:
        for each in ends:
            each.transport.abort()
    finally:
        for task in tasks:
            task.cancel()
        for each in ends:
            each.close()


async def up(port: int, path: str) -> bool:
    try:
        reader, writer = await asyncio.open_connection(HOST, port)
    except OSError:
        return False
    try:
        if not path:
            return True
        writer.write(f"GET {path} HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n".encode())
        return (await reader.readline()).split()[1:2] == [b"200"]
    except (OSError, ValueError):  # it broke off, or its line has no end
        return False
    finally:
        writer.close()


async def serve(wanted: Wanted) -> None:
    """The socket has another name until it listens: who sees it can connect."""
    while not await up(wanted.port, wanted.path):  # noqa: ASYNC110  it happens in another process
        await asyncio.sleep(LOOK_AGAIN_S)
    unready = Path(wanted.socket).with_name("_")
    server = await asyncio.start_unix_server(
        lambda reader, writer: join(reader, writer, wanted.port),
        unready,
        limit=READ_BYTES,
        backlog=CONNECTIONS_WAITING,
    )
    unready.rename(wanted.socket)
    await server.serve_forever()


def die_with(parent: int) -> None:
    """In a new program: it is killed when the bridge dies, by kill -9 too."""
    if PRCTL:
        PRCTL(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def pass_on(programs: list[Process], number: int) -> None:
    for each in programs:
        with suppress(ProcessLookupError):
            each.send_signal(number)


def kill(programs: list[Process]) -> None:
    """With all that they started."""
    for each in programs:
        with suppress(ProcessLookupError):
            os.killpg(each.pid, signal.SIGKILL)


async def run(wanted: Wanted) -> int:
    """Return the exit code of the first program that ended."""
    loop, parent = asyncio.get_running_loop(), os.getpid()
    programs: list[Process] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, pass_on, programs, number)
    try:
        for command in wanted.programs:
            programs.append(  # noqa: PERF401  those that did start are ended if one does not
                await asyncio.create_subprocess_exec(
                    *command, start_new_session=True, preexec_fn=lambda: die_with(parent)
                )
            )
        ends = [asyncio.ensure_future(each.wait()) for each in programs]
        door = asyncio.ensure_future(serve(wanted))
        done, _ = await asyncio.wait([*ends, door], return_when=asyncio.FIRST_COMPLETED)
        if door in done:
            door.result()  # it ends only by failing
        door.cancel()
        code = next(each.result() for each in ends if each in done)
        return code if code >= 0 else 128 - code
    finally:
        Path(wanted.socket).unlink(missing_ok=True)  # noqa: ASYNC240  no waiting
        pass_on(programs, signal.SIGTERM)
        if programs:
            await asyncio.wait([asyncio.ensure_future(each.wait()) for each in programs], timeout=FAREWELL_S)
        kill(programs)
        await asyncio.gather(*(each.wait() for each in programs))


def parsed(words: list[str]) -> Wanted:
    """Read the command line. Raises ValueError."""
    file = None
    if words[:1] == ["-w"]:
        _, name, text, *words = words
        file = (name, text)
    socket, address, *rest = words
    port, slash, path = address.partition("/")
    programs: list[list[str]] = [[]]
    for word in rest:
        if word == "--and":
            programs.append([])
        else:
            programs[-1].append(word)
    if not all(programs):
        raise ValueError(words)
    return Wanted(socket, int(port), slash + path, programs, file)


def main() -> int:
    try:
        wanted = parsed(sys.argv[1:])
    except ValueError:
        sys.stderr.write("usage: bridge.py [-w FILE TEXT] SOCKET PORT[/PATH] PROGRAM ARGUMENT... [--and PROGRAM ...]\n")
        return 2
    try:
        if wanted.file:
            Path(wanted.file[0]).write_text(wanted.file[1], encoding="utf-8")
        return asyncio.run(run(wanted))
    except OSError as error:
        sys.stderr.write(f"bridge: {error}\n")
        return 1


if __name__ == "__main__":
    sys.exit(main())
