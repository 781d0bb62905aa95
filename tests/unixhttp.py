"""HTTP over an engine's Unix socket, by the way the gateway takes: the socket is opened first, then connected to."""

from __future__ import annotations

import http.client
import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from freehold.errors import EngineFailed
from freehold.executors.sockets import open_socket

JSON = {"Content-Type": "application/json"}


class Connection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=60)
        self.path = path

    def connect(self) -> None:
        descriptor = open_socket(self.path)
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        try:
            self.sock.connect(f"/proc/self/fd/{descriptor}")
        finally:
            os.close(descriptor)


def request(path: str, method: str, url: str, body: object = None) -> tuple[int, bytes]:
    """Answer's status and body."""
    connection = Connection(path)
    try:
        connection.request(method, url, None if body is None else json.dumps(body), JSON)
        with connection.getresponse() as answer:
            return answer.status, answer.read()
    finally:
        connection.close()


def post(path: str, url: str, **body: object) -> dict:
    status, answer = request(path, "POST", url, body)
    assert status == 200, answer
    return json.loads(answer)


def events(path: str, url: str, **body: object) -> Iterator[dict | str]:
    """Yield each server-sent event, the last one being "[DONE]"; the connection is cut when the iterator is closed."""
    connection = Connection(path)
    try:
        connection.request("POST", url, json.dumps({**body, "stream": True}), JSON)
        with connection.getresponse() as answer:
            assert answer.status == 200, answer.read()
            for line in answer:
                if line.startswith(b"data: "):
                    data = line.removeprefix(b"data: ").strip()
                    yield "[DONE]" if data == b"[DONE]" else json.loads(data)
    finally:
        connection.close()


def wait_ready(path: str, url: str, log: Path, patience_s: float = 60) -> set[int]:
    """Poll until 200; returns what it answered on the way, 0 standing for no answer."""
    seen, deadline = set(), time.monotonic() + patience_s
    while 200 not in seen:
        assert time.monotonic() < deadline, log.read_text()
        try:
            seen.add(request(path, "GET", url)[0])
        except (OSError, EngineFailed):
            seen.add(0)
            time.sleep(0.01)  # there is no event for a socket to appear
    return seen
