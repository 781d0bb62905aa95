"""The command line's way to the daemon: HTTP over its Unix socket, with the standard library (it loads in 10 ms)."""

from __future__ import annotations

import contextlib
import http.client
import json
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from freehold.errors import FreeholdError, NoDaemon
from freehold.fleet.config import Config, load
from freehold.gateway.rundir import admin_socket
from freehold.types import Detail

ANSWER_S = 30
FULL_BYTES = 1 << 20


class _Connection(http.client.HTTPConnection):
    def __init__(self, path: Path, timeout_s: float | None) -> None:
        super().__init__("freehold", timeout=timeout_s)
        self.path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)  # closed with this, also when it fails
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self.path))


class Daemon:
    """The daemon of one state folder."""

    def __init__(self, state_dir: Path) -> None:
        self._path = admin_socket(state_dir)

    def running(self) -> bool:
        try:
            self.ask("GET", "/status")
        except NoDaemon:
            return False
        return True

    def ask(self, method: str, path: str, body: object = None, *, timeout_s: float | None = ANSWER_S) -> Any:
        """One answer. Raises NoDaemon, or the daemon's own error."""
        with contextlib.closing(_Connection(self._path, timeout_s)) as connection:
            return json.loads(_answer(connection, method, path, body).read())

    def lines(self, method: str, path: str) -> Iterator[dict[str, Any]]:
        """One answer after the other, as they come. Raises NoDaemon when it goes away in between."""
        try:
            with contextlib.closing(_Connection(self._path, None)) as connection:
                for line in _answer(connection, method, path, None):
                    yield json.loads(line)
        except (OSError, http.client.HTTPException) as error:
            raise NoDaemon(f"the daemon went away: {error}", hint="freehold logs shows what it said last") from None


def _answer(connection: _Connection, method: str, path: str, body: object) -> http.client.HTTPResponse:
    try:
        connection.request(method, path, None if body is None else json.dumps(body))
        answer = connection.getresponse()
    except TimeoutError:
        raise NoDaemon("the daemon does not answer", hint="freehold logs; end it by its process number") from None
    except (OSError, http.client.HTTPException):
        hint = "freehold up starts one"
        if shutil.disk_usage(connection.path.parent).free < FULL_BYTES:
            hint = f"the disk of {connection.path.parent} is full, and a daemon that cannot record ends: make room"
        raise NoDaemon("no daemon is running here", hint=hint) from None
    if answer.status != 200:
        raise _said(answer.status, answer.read())
    return answer


def _said(status: int, body: bytes) -> FreeholdError:
    try:
        said = json.loads(body)["error"]
    except (ValueError, KeyError):
        return FreeholdError(f"the daemon answered {status}: {body[:200].decode(errors='replace')}")
    error = FreeholdError(said["message"], hint=said["hint"])
    error.exit_code = said["exit_code"]
    return error


def report(
    config: Config, kind: str, subject: str, detail: Detail, *, pin: str | None = None, scores: str | None = None
) -> None:
    """Put what a person did into the book; with `pin` what `subject` must be from now on, with `scores` their table.

    Through the daemon, which knows who asks; where none runs, alone, with the lock that a daemon would hold.
    """
    from freehold.errors import Refused
    from freehold.gateway.alone import Report, write

    state = Path(config.state_dir)
    ask = {"kind": kind, "subject": subject, "detail": detail, "pin": pin, "scores": scores}
    try:
        Daemon(state).ask("POST", "/events", ask)
    except NoDaemon:
        try:
            write(state, Report(kind=kind, subject=subject, detail=detail, pin=pin, scores=scores))
        except Refused:  # a daemon started in between
            Daemon(state).ask("POST", "/events", ask)


def project(config_path: Path) -> tuple[Config, Daemon]:
    """This team's configuration and its daemon, which need not be running."""
    config = load(config_path)
    return config, Daemon(Path(config.state_dir))
