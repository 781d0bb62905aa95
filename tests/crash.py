"""kill -9 in the middle of streams, and what is left: for tests/test_crash.py and bench/faults.py."""

import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import openai
from conftest import Team

from freehold.gateway.rundir import run_dir

TOKENS = 1900
DYING_S = 2.0
LONG = {"max_tokens": TOKENS, "stream": True, "extra_body": {"ignore_eos": True}}  # a second of tokens or more
QUESTION = [{"role": "user", "content": "What is the licence of Qwen3-8B?"}]


@dataclass
class Caller:
    """One who reads a stream. `saw`: how it ended for them."""

    team: Team
    request: str = ""
    chunks: int = 0
    saw: str = ""
    first: threading.Event = field(default_factory=threading.Event)

    def read(self) -> None:
        with openai.OpenAI(base_url=self.team.url, api_key=self.team.key, max_retries=0) as client:
            try:
                with client.chat.completions.create(model="demo", messages=QUESTION, **LONG) as stream:
                    self.request = stream.response.headers["x-request-id"]
                    for _ in stream:
                        self.chunks += 1
                        if self.chunks == 3:
                            self.first.set()
                self.saw = "whole answer"
            except openai.APIStatusError as error:
                self.saw = f"{type(error).__name__} {error.status_code}"
            except openai.APIConnectionError:
                self.saw = "APIConnectionError: connection lost"
            except openai.APIError as error:
                self.saw = f"APIError from an error frame: {error.code}"


@dataclass(kw_only=True)
class Round:
    """One kill, and what came of it."""

    saw: list[str]
    records: list[list[dict]]  # of each request
    processes_left: int
    next_answer_s: float

    @property
    def outcomes(self) -> list[str]:
        return [" + ".join(row["outcome"] for row in rows) or "none" for rows in self.records]

    @property
    def one_record_each(self) -> bool:
        return all(len(rows) == 1 for rows in self.records)


def processes(team: Team) -> dict[int, str]:
    """Every process of this team's engines, sandboxes included: their command lines name its socket."""
    mark = os.fsencode(run_dir(team.state))
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                command = (entry / "cmdline").read_bytes()
            except OSError:  # it has just gone
                continue
            if mark in command:
                found[int(entry.name)] = command.replace(b"\0", b" ").decode(errors="replace")
    return found


def engine_process(team: Team) -> int:
    """llama.cpp itself, inside of its sandbox."""
    (inside,) = [pid for pid, command in processes(team).items() if "bwrap" not in command.split()[0]]
    return inside


def streaming(team: Team, count: int) -> tuple[list[Caller], list[threading.Thread]]:
    """So many callers, each in the middle of a stream."""
    callers = [Caller(team) for _ in range(count)]
    threads = [threading.Thread(target=caller.read) for caller in callers]
    for thread in threads:
        thread.start()
    for caller in callers:
        assert caller.first.wait(60), "no stream began"
    return callers, threads


def next_answer(team: Team) -> None:
    with openai.OpenAI(base_url=team.url, api_key=team.key, max_retries=0) as client:
        assert client.chat.completions.create(model="demo", messages=QUESTION).choices[0].message.content


def kill_engine(team: Team, count: int, *, sandbox: bool = False) -> Round:
    """kill -9 of the engine (or of the sandbox around it) while `count` streams run; the next caller asks at once."""
    running = streaming(team, count)
    pid = team.status("demo")["pid"] if sandbox else engine_process(team)
    return _kill(team, running, lambda: os.kill(pid, signal.SIGKILL))


def kill_daemon(team: Team, count: int) -> Round:
    """kill -9 of the daemon while `count` streams run; it is started again at once, and asked."""

    def strike() -> None:
        team.kill()
        team.serve()

    return _kill(team, streaming(team, count), strike)


def _left(team: Team, victims: set[int]) -> int:
    """How many of them are still there; one that is dying holds its command line until its memory is given back."""
    deadline_s = time.monotonic() + DYING_S
    while (left := len(victims & processes(team).keys())) and time.monotonic() < deadline_s:
        time.sleep(0.01)
    return left


def _kill(team: Team, running: tuple[list[Caller], list[threading.Thread]], strike: Callable[[], None]) -> Round:
    callers, threads = running
    victims = set(processes(team))
    assert len(victims) >= 2, "no engine in its sandbox to be seen"
    began_s = time.monotonic()
    strike()
    next_answer(team)
    next_answer_s = time.monotonic() - began_s
    for thread in threads:
        thread.join()
    left = _left(team, victims)
    rows = team.records()
    return Round(
        saw=[caller.saw for caller in callers],
        records=[[row for row in rows if row["request"] == caller.request] for caller in callers],
        processes_left=left,
        next_answer_s=next_answer_s,
    )
