"""kill -9 of the daemon and of its engines at random moments, under load without a pause: for test_faults_storm.py and
bench/faults.py.

Three may be hit: the daemon, an engine that it starts, and one that it does not, which writes down what it saw.
"""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import threading
from collections import Counter
from dataclasses import dataclass, field
from http.client import HTTPException
from pathlib import Path

from conftest import HERE, Team
from wild_caller import PATHS, Heard, Line, external, question

CALLERS = 6
MOMENT_S = 0.15
PATIENCE_S = 15.0
# What they ask, and the tokens of a whole answer.
QUESTIONS = {
    "far": (("@@well", True), ("@@well", False), ("@@paced=2", True), ("@@paced=2", False)),
    "own": (("@@n=4", True), ("@@n=4,us=2000", True), ("@@n=4,us=2000", False)),
}
TOKENS = (7, 4)
VICTIMS = ("daemon", "own", "far")


@dataclass
class Storm:
    """`rows` and `heard` are there once it is over."""

    team: Team
    seed: int
    path: str = "fast"
    hits: Counter[str] = field(default_factory=Counter)
    heard: list[Heard] = field(default_factory=list)
    lost: int = 0  # callers who were told nothing
    stuck: int = 0  # callers who were still waiting after PATIENCE_S
    rows: list[dict] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)
        self._over = threading.Event()
        self._serving = threading.Event()
        self._answered = {model: threading.Event() for model in QUESTIONS}
        self._socket, self._seen = self.team.folder / "far.sock", self.team.folder / "far.seen"
        self._key = ""

    def run(self, rounds: int) -> None:
        """Begin, hit so often, end."""
        with socket.create_server(("127.0.0.1", 0)) as free:
            listen = f"127.0.0.1:{free.getsockname()[1]}"
        fast = f"fast_path = {str(PATHS[self.path]).lower()}"
        self.team.write(
            listen=listen,
            server=fast,
            far=external("", f"unix:{self._socket}"),
            own=self.team.fake("start_seconds = 20"),
        )
        engine = self._start_far()
        self._serve()
        threads = [threading.Thread(target=self._call, args=(self._random.random(),)) for _ in range(CALLERS)]
        for thread in threads:
            thread.start()
        try:
            for _ in range(rounds):
                self._recover()
                self._over.wait(self._random.uniform(0, MOMENT_S))
                engine = self._hit(self._random.choice(VICTIMS), engine)
            self._recover()
        finally:
            self._over.set()
            self._serving.set()
            for thread in threads:
                thread.join()
            engine.kill()
            engine.wait()
        self.rows = self.team.records()

    @property
    def seen(self) -> Counter[str]:
        """The requests that the engine saw which we do not start, and how often."""
        return Counter(self._seen.read_text().split())

    def faults(self) -> list[str]:
        """What is not as it must be."""
        rows = {row["request"]: row for row in self.rows}
        found = [] if len(rows) == len(self.rows) else ["a request has two records"]
        found += [f"{self.stuck} callers waited for {PATIENCE_S:g} s"] if self.stuck else []
        found += [f"{request} was seen, and has no record" for request in self.seen.keys() - rows.keys()]
        for each in self.heard:
            row = rows.get(each.request)
            if row is None:
                found.append(f"{each.request} was answered with {each.status}, and has no record")
            elif each.seems_whole and (row["outcome"], row["prompt_tokens"], row["completion_tokens"]) != (
                "ok",
                *TOKENS,
            ):
                found.append(f"{each.request} was answered whole: {row}")
            elif not each.seems_whole and not each.lost and row["outcome"] != "error":
                found.append(f"{each.request} was told of an error: {row}")
        for row in self.rows:
            if row["outcome"] == "cut" and not row["lower_bound"]:
                found.append(f"{row['request']} was cut, and is not marked")
            if row["outcome"] == "ok" and (row["prompt_tokens"], row["completion_tokens"]) != TOKENS:
                found.append(f"{row['request']} is counted wrongly: {row}")
            if row["completion_tokens"] > TOKENS[1]:
                found.append(f"{row['request']} has more tokens than were made")
        busy = [e for e in self.team.daemon.ask("GET", "/status")["endpoints"] if e["in_flight"] or e["waiting"]]
        return found + [f"still in flight: {each}" for each in busy]

    def _recover(self) -> None:
        """Somebody is answered by each engine again."""
        for model, answered in self._answered.items():
            answered.clear()
            assert answered.wait(30), f"`{model}` answers nobody any more"

    # what is hit

    def _hit(self, victim: str, engine: subprocess.Popen) -> subprocess.Popen:
        self.hits[victim] += 1
        if victim == "daemon":
            self._serving.clear()
            self.team.kill()
            self._serve()
        elif victim == "far":
            engine.kill()
            engine.wait()
            return self._start_far()
        elif pid := self.team.status("own").get("pid"):
            os.kill(pid, signal.SIGKILL)
        return engine

    def _serve(self) -> None:
        self.team.serve()
        self._key = self._key or self.team.key
        self._serving.set()

    def _start_far(self) -> subprocess.Popen:
        command = [sys.executable, str(Path(HERE, "wild_engine.py")), str(self._socket), str(self._seen)]
        return subprocess.Popen(command)

    # who calls

    def _call(self, seed: float) -> None:
        ways = random.Random(seed)
        while not self._over.is_set():
            self._serving.wait()
            model = ways.choice(list(QUESTIONS))
            content, stream = ways.choice(QUESTIONS[model])
            try:
                with Line(self.team) as line:
                    line.socket.settimeout(PATIENCE_S)
                    line.send(question(self.team, model, content, stream=stream, key=self._key))
                    heard = line.answer()
            except TimeoutError:
                self.stuck += 1
                continue
            except (OSError, HTTPException):
                self.lost += 1
                continue
            self.heard.append(heard)
            if heard.seems_whole:
                self._answered[model].set()
            else:
                self._over.wait(0.02)  # who was refused does not come back at once
