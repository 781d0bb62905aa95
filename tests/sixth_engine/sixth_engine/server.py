"""The engine: an HTTP server on a Unix socket that spells out the last word of the question, a token a letter.

python server.py SOCKET WEIGHTS NAME
"""

import json
import socketserver
import sys
import threading
from http.server import BaseHTTPRequestHandler
from pathlib import Path

SOCKET, WEIGHTS, NAME = sys.argv[1:4]
COUNTS = {"prompt": 0, "completion": 0, "running": 0}
SALTS = set()
LOCK = threading.Lock()


def count(**more):
    with LOCK:
        for name, amount in more.items():
            COUNTS[name] += amount


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        """Nothing: of requests, only their number is anybody's business."""

    def address_string(self):
        return "unix"

    def reply(self, status, body, kind="application/json"):
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        if self.path == "/metrics":
            return self.reply(200, "".join(f"sixth_{name} {n}\n" for name, n in COUNTS.items()).encode(), "text/plain")
        if self.path == "/salts":
            return self.reply(200, json.dumps(sorted(SALTS)).encode())
        return self.reply(200 if self.path == "/health" else 404, b"{}")

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if not asked.get("messages"):
            return self.reply(
                400, b'{"error":{"message":"no messages","type":"invalid_request_error","param":"messages"}}'
            )
        if "cache_salt" in asked:
            SALTS.add(asked["cache_salt"])
        letters = (asked["messages"][-1]["content"].split() or ["?"])[-1][: asked.get("max_tokens") or 100]
        prompt = sum(len(message["content"].split()) for message in asked["messages"])
        count(prompt=prompt, running=1)
        try:
            (self.stream if asked.get("stream") else self.whole)(letters, prompt)
        finally:
            count(running=-1)

    def whole(self, letters, prompt):
        count(completion=len(letters))
        choice = {"index": 0, "message": {"role": "assistant", "content": letters}, "finish_reason": "stop"}
        answer = {"id": "1", "object": "chat.completion", "created": 0, "model": NAME, "choices": [choice]}
        self.reply(200, json.dumps({**answer, "usage": usage(prompt, len(letters))}).encode())

    def stream(self, letters, prompt):
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        for letter in letters:
            count(completion=1)
            self.event([{"index": 0, "delta": {"content": letter}, "finish_reason": None}])
        self.event([{"index": 0, "delta": {}, "finish_reason": "stop"}])
        self.event([], usage=usage(prompt, len(letters)))
        self.chunk(b"data: [DONE]\n\n")
        self.chunk(b"")

    def event(self, choices, **more):
        said = {"id": "1", "object": "chat.completion.chunk", "created": 0, "model": NAME, "choices": choices, **more}
        self.chunk(b"data: " + json.dumps(said).encode() + b"\n\n")

    def chunk(self, data):
        self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data))


def usage(prompt, completion):
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True
    request_queue_size = 128


sys.stderr.write(f"sixth: measuring {WEIGHTS}\n")
sys.stderr.write(f"sixth: {Path(WEIGHTS).stat().st_size} bytes of weights\n")
Server(SOCKET, Handler).serve_forever()
