"""A team with a project folder and a running daemon: real processes, a real book, a real socket."""

import asyncio
import contextlib
import http.client
import json
import os
import pwd
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import urlsplit

import hypothesis
import pytest

from freehold.cli.daemon import Daemon

# The same examples each time, and no clock: a machine that is busy for 200 ms is not a fault of the code.
hypothesis.settings.register_profile(
    "freehold", deadline=None, derandomize=True, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("freehold")

HERE = Path(__file__).parent
DEMO = HERE.parent / "demo" / "demo.gguf"
ME = f"{pwd.getpwuid(os.getuid()).pw_name} ({os.getuid()})"  # as the daemon names who asks


class Team:
    """What a team has: a folder with freehold.toml, the `freehold` command, perhaps a daemon."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.state = folder / ".freehold"
        self.process: subprocess.Popen | None = None
        self.url = self.key = ""
        self._connections: list[http.client.HTTPConnection] = []
        self._fakes = 0

    def write(
        self, *, listen="127.0.0.1:0", server="", machine="hourly_price = 0.05", policy="", **endpoints: str
    ) -> None:
        """`endpoints`: each one's lines of TOML. `fake` among them is served by tests/fake_engine.py."""
        tables = [
            f'[server]\nlisten = "{listen}"\ndrain_seconds = 2\n{server}',
            f"[machine]\n{machine}",
            f"[policy]\n{policy}",
        ]
        for name, lines in endpoints.items():
            tables.append(f"[endpoints.{name}]\n{lines}")
        (self.folder / "freehold.toml").write_text("\n".join(tables))

    def fake(self, more="", **behaviour) -> str:
        """An endpoint served by a fake engine of its own, in the sandbox."""
        self._fakes += 1
        home = self.folder / f"fake-{self._fakes}"
        home.mkdir()
        script = home / "fake_engine.py"
        text = (HERE / "fake_engine.py").read_text()
        script.write_text(text.replace("BEHAVIOUR = {}", f"BEHAVIOUR = {behaviour!r}"))
        script.chmod(0o755)
        return f'binary = "{home.name}/fake_engine.py"\n{self.demo(more)}'

    def demo(self, more="") -> str:
        """An endpoint with the demonstration model on the real llama.cpp."""
        return f'weights = "{DEMO}"\ncontext = 512\nprompt_price = 1\ncompletion_price = 2\n{more}'

    def run(self, *args: str, code: int | None = 0) -> str:
        """The command line, as a person runs it. `code`: the exit code it must have."""
        done = subprocess.run(
            [sys.executable, "-m", "freehold", *args],
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert code is None or done.returncode == code, f"{args}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout + done.stderr

    @property
    def daemon(self) -> Daemon:
        return Daemon(self.state)

    def serve(self, *program: str) -> None:
        """Start the daemon and make a key. `program`: what Python runs, if not Freehold as it is."""
        with (self.folder / "daemon.log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, *(program or ("-m", "freehold")), "serve"], cwd=self.folder, stdout=log, stderr=log
            )
        while not self.daemon.running():
            assert self.process.poll() is None, (self.folder / "daemon.log").read_text()
            time.sleep(0.01)
        self.url = self.daemon.ask("GET", "/status")["url"]
        self.key = self.daemon.ask("POST", "/keys", {"name": f"key-{time.time_ns()}"})["secret"]

    def kill(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def end(self) -> None:
        for connection in self._connections:
            connection.close()
        if self.process and self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.kill()
                raise

    def connect(self) -> http.client.HTTPConnection:
        connection = http.client.HTTPConnection(urlsplit(self.url).netloc, timeout=60)
        self._connections.append(connection)
        return connection

    def post(
        self, model: str, content="hi", *, path="/v1/chat/completions", key: str | None = None, **more
    ) -> http.client.HTTPResponse:
        """One request; the answer's body is still to be read."""
        connection = self.connect()
        body = {"model": model, "messages": [{"role": "user", "content": content}], **more}
        headers = {"Authorization": f"Bearer {self.key if key is None else key}"}
        connection.request("POST", path, json.dumps(body), headers)
        answer = connection.getresponse()
        answer.connection = connection
        return answer

    def ask(self, model: str, content="hi", **more) -> dict:
        """One whole answer."""
        answer = self.post(model, content, **more)
        body = json.loads(answer.read())
        assert answer.status == 200, body
        return body

    def up(self, name: str) -> dict:
        """Open it and wait; the last line says whether it is up."""
        return list(self.daemon.lines("POST", f"/up?endpoint={name}"))[-1]

    def status(self, name: str) -> dict:
        return next(e for e in self.daemon.ask("GET", "/status")["endpoints"] if e["endpoint"] == name)

    def until(self, what, timeout_s=20.0):
        """Poll until `what()` is true; returns it."""
        deadline = time.monotonic() + timeout_s
        while not (found := what()):
            assert time.monotonic() < deadline, "it did not come to pass"
            time.sleep(0.02)
        return found

    def records(self, *, probes=False) -> list[dict]:
        """Every record in the book, in order."""
        with contextlib.suppress(Exception):
            self.daemon.ask("POST", "/flush")
        with contextlib.closing(sqlite3.connect(self.state / "book.db")) as db:
            db.row_factory = sqlite3.Row
            rows = [dict(row) for row in db.execute("select * from usage order by started_ns")]
        return [row for row in rows if probes or row["kind"] != "probe"]

    def events(self, kind: str) -> list[dict]:
        with contextlib.suppress(Exception):
            self.daemon.ask("POST", "/flush")
        with contextlib.closing(sqlite3.connect(self.state / "book.db")) as db:
            rows = [json.loads(row[0]) for row in db.execute("select content from event order by seq")]
        return [row for row in rows if row["kind"] == kind]

    def socket(self, name: str) -> Path:
        """Where the engine itself listens."""
        from freehold.gateway.rundir import run_dir

        run = run_dir(self.state)
        return max(run.glob(f"{name[:12]}-????????/*.sock"), key=lambda path: path.stat().st_mtime_ns)

    def engine(self, name: str, path: str) -> bytes:
        """Ask the engine itself, past the gateway."""
        from freehold.fleet.upstream import Upstream

        async def fetch() -> bytes:
            upstream = Upstream(f"unix:{self.socket(name)}")
            answer = await upstream.fetch("GET", path)
            upstream.close()
            return answer.body

        return asyncio.run(fetch())


@contextlib.contextmanager
def team_in(folder: Path):
    """A team without a daemon yet, whose daemon is gone afterwards."""
    from freehold.gateway.rundir import run_dir

    team = Team(folder)
    try:
        yield team
    finally:
        team.end()
        shutil.rmtree(run_dir(team.state), ignore_errors=True)


@pytest.fixture
def team(tmp_path):
    """A team without a daemon yet: write(), then serve()."""
    with team_in(tmp_path) as team:
        yield team


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """One daemon for all of a file, on the real llama.cpp. `tiny` is the fake engine: it starts slowly and calls itself
    something else."""
    from asking import CONTEXT

    with team_in(tmp_path_factory.mktemp("openai")) as team:
        demo = team.demo().replace("context = 512", f"context = {CONTEXT}")
        tiny = team.fake("max_waiting = 1", delay_s=0.9)
        team.write(server="max_body_mib = 1", demo=demo, other=team.demo(), tiny=tiny)
        team.serve()
        yield team


@pytest.fixture
def client(served):
    from asking import connect

    with connect(served) as client:
        yield client


@pytest.fixture
def ledger(served):
    """The records that a test adds: call it."""
    known = {row["request"] for row in served.records()}
    return lambda: [row for row in served.records() if row["request"] not in known]


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
