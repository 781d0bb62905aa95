"""Callers without manners, over bare sockets; and what must hold of a daemon whatever they, or its engines, did."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from http.client import HTTPResponse
from io import BufferedReader
from pathlib import Path
from typing import Self
from urllib.parse import urlsplit

import psutil
from conftest import Team, team_in
from wild_engine import Wild
from wild_ways import Talk

PATHS = {"fast": True, "asgi": False}
HOST = b"Host: x\r\n"
PATIENCE_S = 5.0


@dataclass
class Heard:
    """One answer as its caller heard it. `lost`: the connection broke before it was whole."""

    status: int
    request: str
    body: bytes
    lost: bool = False

    @property
    def frames(self) -> list[bytes]:
        return [each.removeprefix(b"data: ") for each in self.body.split(b"\n\n") if each.startswith(b"data: ")]

    @property
    def text(self) -> str:
        """What of it is an answer to the question."""
        if not self.frames:
            return json.loads(self.body)["choices"][0]["message"]["content"]
        said = [json.loads(each) for each in self.frames if each.endswith(b"}")]
        choices = [choice for each in said for choice in each.get("choices", ())]
        return "".join(choice.get("delta", {}).get("content") or "" for choice in choices)

    @property
    def error(self) -> str | None:
        """The code of the error that it is, or that its last frame is."""
        with contextlib.suppress(ValueError, IndexError, AttributeError, TypeError):
            said = json.loads(self.frames[-1] if self.frames else self.body).get("error")
            return said and (said.get("code") or said.get("message"))
        return None

    @property
    def done(self) -> bool:
        return self.body.rstrip().endswith(b"data: [DONE]")

    @property
    def seems_whole(self) -> bool:
        """A client would take it for a good answer."""
        return self.status == 200 and not self.lost and self.error is None


class Line:
    """A bare connection. `answer()` reads one answer after the other from it."""

    def __init__(self, team: Team, *, receive_bytes: int | None = None) -> None:
        self.team = team
        self.socket = socket.socket()
        if receive_bytes:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        self.socket.settimeout(PATIENCE_S)
        parts = urlsplit(team.url)
        try:
            self.socket.connect((parts.hostname, parts.port))
        except OSError:
            self.socket.close()
            raise
        self._file = self.socket.makefile("rb")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_) -> None:
        self._file.close()
        self.socket.close()

    def send(self, *parts: bytes) -> None:
        self.socket.sendall(b"".join(parts))

    def answer(self) -> Heard:
        heard = HTTPResponse(_Kept(self._file))
        heard.begin()
        return hear(heard)

    @property
    def ended(self) -> bool:
        """The daemon has closed it, and said nothing more."""
        try:
            return self._file.read(1) == b""
        except ConnectionError:
            return True


class _Kept:
    """A socket as HTTPResponse wants one: what it reads ahead is not lost for the next."""

    def __init__(self, file: BufferedReader) -> None:
        self._file = file

    def makefile(self, _mode: str) -> _Kept:
        return self

    def close(self) -> None: ...
    def flush(self) -> None: ...

    def __getattr__(self, name: str):
        return getattr(self._file, name)


def hear(answer: HTTPResponse) -> Heard:
    request = answer.getheader("x-freehold-request-id") or answer.getheader("x-request-id") or ""
    try:
        return Heard(answer.status, request, answer.read())
    except http.client.IncompleteRead as cut:
        return Heard(answer.status, request, cut.partial, lost=True)
    except ConnectionError:
        return Heard(answer.status, request, b"", lost=True)


def question(team: Team, model: str, content="hi", *, path="/v1/chat/completions", version="1.1", **more) -> bytes:
    """One request as it goes over the wire. `headers`: more of them, each with its end."""
    headers, key = more.pop("headers", b""), more.pop("key", team.key)
    body = json.dumps({"model": model, "messages": [{"role": "user", "content": content}], **more}).encode()
    first = f"POST {path} HTTP/{version}\r\nAuthorization: Bearer {key}\r\nContent-Length: {len(body)}\r\n".encode()
    return b"%b%b%b\r\n%b" % (first, HOST, headers, body)


class House:
    """A daemon with a wild engine behind it, and how both were at rest."""

    def __init__(self, team: Team, wild: Wild) -> None:
        self.team, self.wild = team, wild
        self.process = psutil.Process(team.process.pid)
        self._known: set[str] = set()
        self._descriptors = 0

    def rest(self) -> None:
        """Nothing is in flight, and no more is open than before the first test: what leaks adds up."""
        self.team.until(lambda: self.busy() == 0, 5)
        self.team.until(lambda: self.descriptors() <= self._descriptors + SLACK, 5)

    def busy(self) -> int:
        return sum(e["in_flight"] + e["waiting"] for e in self.team.daemon.ask("GET", "/status")["endpoints"])

    def callers(self) -> int:
        """How many are connected to it."""
        return sum(each.status != psutil.CONN_LISTEN for each in self.process.net_connections("tcp"))

    def descriptors(self) -> int:
        """Of the daemon, but for those that wait in a pool for the next request to the engine."""
        return self.process.num_fds() - self.wild.connections

    def begin(self) -> None:
        self._known = {row["request"] for row in self.team.records()}
        self.team.until(lambda: self.busy() == 0, 5)
        self._descriptors = self._descriptors or self.descriptors()
        self.wild.seen.clear()

    def new(self) -> list[dict]:
        """The records since the test began."""
        return [row for row in self.team.records() if row["request"] not in self._known]

    def record(self) -> dict:
        """The only one, which every request has that the engine saw."""
        (row,) = self.team.until(self.new, 5)
        assert {talk.request for talk in self.wild.seen} <= {row["request"]}
        return row

    def ask(self, model: str, content: str, **more) -> Heard:
        with Line(self.team) as line:
            line.send(question(self.team, model, content, **more))
            return line.answer()

    def talk(self) -> Talk:
        """The only request that the engine saw, as soon as it has."""
        self.team.until(lambda: self.wild.seen)
        (talk,) = self.wild.seen
        return talk


SLACK = 2  # the socket by which we ask, and one that is just being closed


@contextlib.contextmanager
def house_in(folder: Path, path: str, *, server="", backlog=4096, **endpoints: str) -> Iterator[House]:
    """`path`: one of PATHS. `endpoints`: each one's further lines of TOML; all but those with a url of their own, or a
    binary, lead to one wild engine."""
    with team_in(folder) as team, Wild(folder / "wild.sock", backlog).running() as wild:
        tables = {name: lines if "binary" in lines else external(lines, wild.url) for name, lines in endpoints.items()}
        team.write(server=f"fast_path = {str(PATHS[path]).lower()}\n{server}", **tables)
        team.serve()
        yield House(team, wild)


def external(lines: str, url: str) -> str:
    if "_price" not in lines:
        lines += "\nprompt_price = 1\ncompletion_price = 2"
    if "url" not in lines:
        lines += f'\nurl = "{url}"'
    return f'engine = "external"\n{lines}'
