"""A hub of our own: the API and the routes of the Hugging Face hub, its CDN, and all that goes wrong with them."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import socket
import ssl
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

COMMIT = "c0ffee" + "0" * 34


class Server(ThreadingHTTPServer):
    """Serves in a thread of its own until it is closed."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def __init__(self, handler: type[BaseHTTPRequestHandler], tls: ssl.SSLContext | None = None):
        super().__init__(("127.0.0.1", 0), handler)
        self.scheme = "https" if tls else "http"
        if tls:
            self.socket = tls.wrap_socket(self.socket, server_side=True, do_handshake_on_connect=False)
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"{self.scheme}://{'localhost' if self.scheme == 'https' else '127.0.0.1'}:{self.server_port}"

    def handle_error(self, request, client_address):
        pass  # clients that are killed hang up

    def close(self):
        self.shutdown()
        self.server_close()


class Hub:
    """One repository at one commit, and how it misbehaves. `log` has every request, `sent` the bytes of files."""

    def __init__(self, repo: str, files: dict[str, bytes], *, lfs=(".gguf", ".safetensors"), tls=None, cdn_tls=None):
        self.repo, self.files, self.commit = repo, dict(files), COMMIT
        self.lfs = {name for name in files if name.endswith(lfs)}
        self.token = ""  # "": anybody
        self.error = (0, "")  # a status and its X-Error-Code, for every request
        self.busy: list[tuple[int, str]] = []  # (status, Retry-After), each once, for files
        self.lied: dict = {}  # over the fields of the listing
        self.listed: list[dict] | None = None  # instead of the true siblings
        self.headers: dict[str, str] = {}  # of the listing
        self.redirect = ""  # where LFS files are; "": the CDN
        self.cuts: dict[str, list[int]] = {}  # the next answers for a file end after so many bytes
        self.served: dict[str, bytes] = {}  # instead of what is listed
        self.ranges = True
        self.rate_bytes_s = 0  # 0: as fast as it goes
        self.stalls = threading.Event()
        self.stall_once: set[str] = set()  # files whose first answer never comes
        self.log: list[tuple[str, str, dict]] = []
        self.sent: list[list] = []  # name and bytes of each answer with a file
        self._lock = threading.Lock()
        self.cdn = Server(self._handler("cdn"), cdn_tls or tls)
        self.door = Server(self._handler("hub"), tls)

    @property
    def url(self) -> str:
        return self.door.url

    @property
    def sent_bytes(self) -> int:
        return sum(count for _, count in self.sent)

    def close(self):
        self.stalls.set()
        self.door.close()
        self.cdn.close()

    def asked(self, where: str) -> list[str]:
        return [path for place, path, _ in self.log if place == where]

    def listing(self) -> dict:
        siblings = []
        for name, data in self.files.items():
            blob = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
            lfs = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 134}
            extra = {"lfs": lfs} if name in self.lfs else {}
            siblings.append({"rfilename": name, "size": len(data), "blobId": blob, **extra})
        scan = {"scansDone": True, "filesWithIssues": []}
        answer = {"id": self.repo, "sha": self.commit, "siblings": self.listed or siblings, "securityRepoStatus": scan}
        return answer | self.lied

    def _handler(self, where: str) -> type[BaseHTTPRequestHandler]:
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            timeout = 60

            def log_message(self, *_):
                pass

            def do_GET(self):
                hub.log.append((where, unquote(self.path), dict(self.headers)))
                (hub.answer if where == "hub" else hub.send_file)(self)

        return Handler

    def answer(self, to: BaseHTTPRequestHandler):
        path = unquote(urlsplit(to.path).path)
        wrong, said = self.error, {"error": "no"}
        if self.busy and "/resolve/" in path:
            wrong = self.busy.pop(0)
        elif self.token and to.headers.get("Authorization") != f"Bearer {self.token}":
            wrong, said = (401, ""), {"error": "Invalid username or password."}
        if status := wrong[0]:
            return _say(to, status, said, {"Retry-After" if status in (429, 503) else "X-Error-Code": wrong[1]})
        api, resolve = f"/api/models/{self.repo}/revision/", f"/{self.repo}/resolve/{self.commit}/"
        if path.startswith(api):
            if path.removeprefix(api) not in ("main", "v1.0", self.commit, "0" * 40):
                return _say(to, 404, {"error": "Invalid rev id"}, {"X-Error-Code": "RevisionNotFound"})
            return _say(to, 200, self.listing(), self.headers)
        name = path.removeprefix(resolve)
        if name == path or name not in self.files:
            return _say(to, 404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
        if name in self.lfs:
            sha256 = hashlib.sha256(self.files[name]).hexdigest()
            headers = {"X-Repo-Commit": COMMIT, "Location": self.redirect or f"{self.cdn.url}/blob/{name}"}
            headers |= {"X-Linked-Etag": f'"{sha256}"', "X-Linked-Size": str(len(self.files[name]))}
            return _say(to, 302, {}, headers)
        return self.send_file(to, name)

    def send_file(self, to: BaseHTTPRequestHandler, name: str = ""):
        name = name or unquote(urlsplit(to.path).path).removeprefix("/blob/")
        data = self.served.get(name, self.files.get(name, b""))
        with self._lock:
            cut = self.cuts.get(name) and self.cuts[name].pop(0)
            stall = name in self.stall_once
            self.stall_once.discard(name)
            self.sent.append(counter := [name, 0])
        if stall:
            self.stalls.wait(30)
            to.close_connection = True
            return
        start = 0
        if self.ranges and (asked := to.headers.get("Range")):
            start = int(asked.removeprefix("bytes=").rstrip("-"))
        to.send_response(206 if start else 200)
        to.send_header("Content-Length", str(len(data) - start))
        if start:
            to.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        to.send_header("X-Repo-Commit", COMMIT)
        to.end_headers()
        end = start + cut if cut else len(data)
        step = max(1, self.rate_bytes_s // 50) if self.rate_bytes_s else 1 << 16
        for at in range(start, min(end, len(data)), step):
            part = data[at : min(at + step, end)]
            to.wfile.write(part)
            counter[1] += len(part)
            if self.rate_bytes_s:
                time.sleep(0.02)
        to.close_connection = to.close_connection or bool(cut)


def _say(to: BaseHTTPRequestHandler, status: int, body: object, headers: dict[str, str] | None = None):
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    to.send_response(status)
    for name, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
        to.send_header(name, value)
    to.end_headers()
    to.wfile.write(data)


class _Proxy(BaseHTTPRequestHandler):
    """A forward proxy: whole URLs in, answers out; or a tunnel. It looks after no redirect."""

    seen: list[str]

    def log_message(self, *_):
        pass

    def do_GET(self):
        self.seen.append(self.path)
        parts = urlsplit(self.path)
        connection = http.client.HTTPConnection(parts.netloc, timeout=10)
        headers = {name: value for name, value in self.headers.items() if name.lower() != "connection"}
        connection.request("GET", parts.path + (f"?{parts.query}" if parts.query else ""), headers=headers)
        answer = connection.getresponse()
        _say(self, answer.status, answer.read(), dict(answer.headers.items()))
        connection.close()

    def do_CONNECT(self):
        self.seen.append(self.path)
        host, _, port = self.path.partition(":")
        with socket.create_connection((host, int(port)), timeout=10) as there:
            self.send_response(200)
            self.end_headers()
            back = threading.Thread(target=_pour, args=(there, self.connection), daemon=True)
            back.start()
            _pour(self.connection, there)
            back.join(10)
        self.close_connection = True


def _pour(source: socket.socket, into: socket.socket):
    with contextlib.suppress(OSError):
        while data := source.recv(1 << 16):
            into.sendall(data)
        into.shutdown(socket.SHUT_WR)


def proxy() -> tuple[Server, list[str]]:
    """It, and what it was asked for."""
    seen: list[str] = []
    return Server(type("Proxy", (_Proxy,), {"seen": seen})), seen
