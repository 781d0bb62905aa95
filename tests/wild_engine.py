"""An engine that misbehaves: an HTTP server on a Unix socket for an `external` endpoint, in a thread of its own.

What a request says after @@ names how it is answered: one of WAYS in wild_ways.py. As a program (`wild_engine.py
SOCKET FILE`) it writes the id of each request into FILE before it answers it, and can be killed.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from wild_ways import WAYS, Closing, Talk, Weary


class Wild:
    """The engine in a thread. `seen`: each completion that it was asked for, in order."""

    def __init__(self, socket: Path, backlog: int = 4096) -> None:
        self.url, self._socket, self._backlog = f"unix:{socket}", socket, backlog
        self.seen: list[Talk] = []
        self.connections = 0  # open now
        self.accepted = 0  # ever
        self.always = ""  # how it answers, whatever it is asked
        self.note: Callable[[str], object] = lambda request: None

    async def listen(self) -> asyncio.Server:
        return await asyncio.start_unix_server(self._connected, self._socket, backlog=self._backlog)

    @contextlib.contextmanager
    def running(self):
        loop = asyncio.new_event_loop()
        over = asyncio.Event()

        async def serve() -> None:  # what is left then is cancelled by the runner
            server = await self.listen()
            await over.wait()
            server.close()

        def run() -> None:
            with asyncio.Runner(loop_factory=lambda: loop) as runner:
                runner.run(serve())

        thread = threading.Thread(target=run)
        thread.start()
        try:
            yield self
        finally:
            loop.call_soon_threadsafe(over.set)
            thread.join()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.accepted += 1
        try:
            async for talk in self._read(reader, writer):
                try:
                    await WAYS[self.always or talk.way or "well"](talk)
                except ConnectionError:
                    talk.left = True
                    break
                except Weary:
                    await reader.readexactly(1)
                    break
                finally:
                    talk.over = True
        except (Closing, ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            self.connections -= 1
            writer.transport.abort() if writer.transport.get_write_buffer_size() else writer.close()

    async def _read(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> AsyncIterator[Talk]:
        while True:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            length = next(line for line in head.split("\r\n") if line.startswith("content-length: "))
            body = await reader.readexactly(int(length.partition(": ")[2]))
            if head.startswith("GET"):
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}")
                continue
            talk = Talk(reader, writer, head, json.loads(body))
            self.note(talk.request)
            self.seen.append(talk)
            yield talk


async def forever(wild: Wild) -> None:
    async with await wild.listen() as server:
        await server.serve_forever()


def main(socket: str, seen: str) -> None:
    wild = Wild(Path(socket))
    Path(socket).unlink(missing_ok=True)
    noted = os.open(seen, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    wild.note = lambda request: os.write(noted, f"{request}\n".encode())
    asyncio.run(forever(wild))


if __name__ == "__main__":
    main(*sys.argv[1:])
