"""What the bench says to a gateway by itself, beside the load: is it there, and how does it behave?"""

import http.client
import json
import socket
import subprocess
import time
from pathlib import Path

import msgspec

KEY = "sk-bench"
PATIENCE_S = 10
TROUBLE = (RuntimeError, OSError, http.client.HTTPException)  # with one gateway: the others go on
LEAVING_S = 1.2  # the longest a gateway may take to pass a hang-up on


class Gateway(msgspec.Struct, kw_only=True):
    """One that runs."""

    name: str
    version: str
    port: int
    pid: int
    key: str = KEY
    model: str = "bench"
    path: str = "/v1/chat/completions"
    state: Path | None = None  # of ours: where its book is

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


def _ask(gateway: Gateway, *, chunks=2, pause_us=0, delay_us=0, key: str | None = None, **more) -> tuple[bytes, dict]:
    shape = f"@@n={chunks},us={pause_us},d={delay_us}@@"  # fakeup.c reads it out of the prompt
    body = {"model": gateway.model, "messages": [{"role": "user", "content": shape}], **more}
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {key or gateway.key}"}
    return json.dumps(body).encode(), headers


def post(gateway: Gateway, **asked) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=PATIENCE_S)
    try:
        connection.request("POST", gateway.path, *_ask(gateway, **asked))
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def stats(port: int) -> dict:
    """The upstream's own counters: requests, streams, done, cancelled, open."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_S)
    try:
        connection.request("GET", "/stats")
        return json.load(connection.getresponse())
    finally:
        connection.close()


def wait_for(gateway: Gateway, process: subprocess.Popen, limit_s: float) -> None:
    """Until it passes a request on. Raises RuntimeError."""
    deadline, last = time.monotonic() + limit_s, ""
    while time.monotonic() < deadline and process.poll() is None:
        try:
            status, body = post(gateway)
        except (OSError, http.client.HTTPException) as error:
            last = repr(error)
        else:
            if status == 200 and process.poll() is None:
                return
            last = f"{status} {body[:200]}"
        time.sleep(0.1)
    raise RuntimeError(f"{gateway.name} did not start: {last}; see its log")


def check(gateway: Gateway, upstream: Gateway) -> dict:
    """How it behaves where that is no question of speed: another key, tokens of a stream, callers that leave."""
    status, body = post(gateway, chunks=5, pause_us=1000, stream=True, stream_options={"include_usage": True})
    if status != 200 or b"[DONE]" not in body:
        raise RuntimeError(f"{gateway.name} does not stream: {status} {body[:200]}")
    return {
        "other_key": post(gateway, key="nobody")[0],
        "usage_in_streams": b'"completion_tokens":5' in body.replace(b" ", b""),
        "stops_stream": _leave(gateway, upstream, chunks=500, pause_us=10_000, stream=True),
        "stops_whole": _leave(gateway, upstream, chunks=1, delay_us=2_000_000),
    }


def _leave(gateway: Gateway, upstream: Gateway, **asked) -> bool:
    """Whether the engine is let go when the caller hangs up."""
    before = stats(upstream.port)["cancelled"]
    body, headers = _ask(gateway, **asked)
    lines = [f"POST {gateway.path} HTTP/1.1", "Host: bench", f"Content-Length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    with socket.create_connection(("127.0.0.1", gateway.port)) as caller:
        caller.sendall("\r\n".join([*lines, "", ""]).encode() + body)
        if asked.get("stream"):
            caller.recv(4000)
        time.sleep(0.2)  # it is the engine's now
    deadline = time.monotonic() + LEAVING_S
    while time.monotonic() < deadline:
        if stats(upstream.port)["cancelled"] > before:
            return True
        time.sleep(0.02)
    return False
