#!/usr/bin/python3 -I
"""A drop-in for llama-server that misbehaves on request: the standard library only, so that it runs in the sandbox.

BEHAVIOUR, written into a copy of it, says how it starts: {"delay_s": 0.3} or {"fail": "why"}; {"miscount": True} makes
its counters disagree with its answers, {"error": 500} refuses every request. What a request says after @@ is how it is
answered: n tokens, `us` microseconds apart, each `fat` characters long; `die` after so many; `error` instead of an
answer; `cut` the connection; `crlf` line ends; `nodone`. /launch says what it was started with.
"""

import json
import os
import socketserver
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler

BEHAVIOUR = {}
ARGS = dict(zip(sys.argv[1::2], sys.argv[2::2], strict=False))
COUNTS = {"requests": 0, "prompt": 0, "completion": 0, "cancelled": 0, "running": 0}
LOCK = threading.Lock()


def count(**more):
    with LOCK:
        for name, amount in more.items():
            COUNTS[name] += amount


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

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
            said = "llamacpp:prompt_tokens_total {prompt}\nllamacpp:tokens_predicted_total {completion}\n"
            counts = {**COUNTS, "completion": COUNTS["completion"] + BEHAVIOUR.get("miscount", False)}
            return self.reply(200, said.format(**counts).encode(), "text/plain")
        if self.path == "/launch":
            said = {"args": ARGS, "model_bytes": os.path.getsize(ARGS["--model"])}  # noqa: PTH202  as small as can be
            return self.reply(200, json.dumps(said).encode())
        if self.path == "/counts":
            return self.reply(200, json.dumps(COUNTS).encode())
        return self.reply(200, b'{"status":"ok"}')

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        content = asked["messages"][-1]["content"] if "messages" in asked else asked["prompt"]
        how = dict(part.partition("=")[::2] for part in content.partition("@@")[2].split(",") if part)
        if "error" in BEHAVIOUR:
            how["error"] = BEHAVIOUR["error"]
        count(requests=1, prompt=7, running=1)
        try:
            self.answer(asked, how)
        except (BrokenPipeError, ConnectionResetError):
            count(cancelled=1)
            self.close_connection = True
        finally:
            count(running=-1)

    def answer(self, asked, how):
        tokens, pause_s = int(how.get("n", 8)), int(how.get("us", 0)) / 1e6
        if "error" in how:
            return self.reply(int(how["error"]), b'{"error":{"code":1,"message":"it hurts","type":"server_error"}}')
        if not asked.get("stream"):
            return self.whole(asked, how, tokens, pause_s)
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        fat = int(how.get("fat", 0))
        end = b"\r\n\r\n" if "crlf" in how else b"\n\n"
        self.frame(
            asked, {"choices": [{"index": 0, "delta": {"role": "assistant", "content": None}}], "asked": asked}, end
        )
        for number in range(tokens):
            if how.get("die") == str(number):
                os._exit(9)
            if how.get("cut") == str(number):
                self.close_connection = True
                return None
            count(completion=1)
            self.frame(asked, {"choices": [{"index": 0, "delta": {"content": f" w{number}".ljust(fat)}}]}, end)
            time.sleep(pause_s)
        self.frame(asked, {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}, end)
        if asked.get("stream_options", {}).get("include_usage"):
            self.frame(asked, {"choices": [], "usage": usage(tokens)}, end)
        if "nodone" not in how:
            self.chunk(b"data: [DONE]" + end)
        self.wfile.write(b"0\r\n\r\n")
        return None

    def whole(self, asked, how, tokens, pause_s):
        for number in range(tokens):
            if how.get("die") == str(number):
                os._exit(9)
            if self.client_left():
                count(cancelled=1)
                self.close_connection = True
                return
            count(completion=1)
            time.sleep(pause_s)
        text = "".join(f" w{number}" for number in range(tokens))
        choice = {"index": 0, "message": {"role": "assistant", "content": text}, "text": text, "finish_reason": "stop"}
        answer = {
            "id": "x",
            "object": "chat.completion",
            "created": 1,
            "model": "the-engine's-own",
            "choices": [choice],
        }
        self.reply(200, json.dumps({**answer, "usage": usage(tokens), "asked": asked}).encode())

    def client_left(self):
        self.connection.setblocking(False)
        try:
            return self.connection.recv(1) == b""
        except BlockingIOError:
            return False
        finally:
            self.connection.setblocking(True)

    def frame(self, asked, more, end):
        said = {"id": "x", "object": "chat.completion.chunk", "created": 1, "model": "the-engine's-own", **more}
        self.chunk(b"data: " + json.dumps(said).encode() + end)

    def chunk(self, data):
        self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data))


def usage(tokens):
    return {"prompt_tokens": 7, "completion_tokens": tokens, "total_tokens": 7 + tokens}


class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True
    request_queue_size = 1024


if __name__ == "__main__":
    if "fail" in BEHAVIOUR:
        sys.exit(BEHAVIOUR["fail"])
    time.sleep(BEHAVIOUR.get("delay_s", 0))
    Server(ARGS["--host"], Handler).serve_forever()
