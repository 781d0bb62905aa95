"""Whether the records say what the engines counted: by run, which is one process of one replica."""

from __future__ import annotations

import sqlite3
from bisect import bisect_right
from collections import Counter
from collections.abc import Container
from pathlib import Path
from typing import Any, NamedTuple

from msgspec import Struct

from freehold.ledger.journal import left_behind
from freehold.ledger.sql import QUERIES


class _Id(NamedTuple):
    """The daemon that a run belongs to, by when it began, and the run."""

    boot_ns: int
    endpoint: str
    replica: str
    run: int


class Run(Struct, kw_only=True):
    """What the engine counted until its last reading, what the records say of the same time, and what to think of it.

    Tokens are prompt and completion together where they are not named.
    """

    endpoint: str
    replica: str
    run: int
    daemon_began_ns: int
    read_ns: int | None = None  # None: never
    final: bool = False  # read after it was drained
    counted_prompt: int = 0
    counted_completion: int = 0
    recorded_prompt: int = 0
    recorded_completion: int = 0
    difference: int = 0
    requests: int = 0  # smoke probes included
    probes: int = 0
    in_flight: int = 0  # at the reading
    cut: int = 0
    unknown: int = 0  # of those cut or under way: nobody can say how much was still produced for them
    at_most: int = 0  # what the others can explain
    verdict: str = ""
    wrong: bool = False


def reconcile(db: sqlite3.Connection, folder: Path, alive: Container[tuple[str, str, int]] | None) -> list[Run]:
    """Every run in the book, the oldest first.

    `alive`: endpoint, replica and run of each process that runs now; None: no daemon does.
    """
    counted = {_Id(*row[:4]): dict(row) for row in db.execute(QUERIES["counted"])}
    recorded = {_Id(*row[:4]): dict(row) for row in db.execute(QUERIES["recorded"])}
    boots = [row[0] for row in db.execute(QUERIES["boots"])]
    lost = _lost(recorded, boots, folder)
    last = {of[:3]: of.run for of in sorted(counted.keys() | recorded.keys())}
    runs = []
    for of in sorted(counted.keys() | recorded.keys()):
        if not of.run:
            continue
        run = _run(of, counted.get(of, {}), recorded.get(of, {}))
        if not run.final:
            run.cut += lost[*of[:2], "cut"]
            run.unknown += lost[*of[:2], "unknown"]
            run.at_most += lost[*of[:2], "tokens"]
        now = alive is not None and of.boot_ns == boots[-1]
        _judge(run, lives=now and of[1:] in (alive or ()), daemon_lived=now or last[of[:3]] != of.run)
        runs.append(run)
    return runs


def _lost(recorded: dict[_Id, dict[str, Any]], boots: list[int], folder: Path) -> Counter[tuple[int, str, str]]:
    """Of each daemon and endpoint: requests of which nobody knows the run. A daemon's death cut them, or they are open.

    How many they are, how many of them without a bound, and their tokens.
    """
    lost = Counter[tuple[int, str, str]]()
    for of, row in recorded.items():
        if not of.run:
            lost[*of[:2], "cut"] += row["cut"]
            lost[*of[:2], "unknown"] += row["unknown"]
            lost[*of[:2], "tokens"] += row["prompt_tokens"] + row["completion_tokens"] + row["held_tokens"]
    for record in left_behind(folder)[1]:
        if at := bisect_right(boots, record.started_ns):
            of = (boots[at - 1], record.endpoint.partition(":")[0])
            lost[*of, "cut"] += 1
            lost[*of, "unknown"] += not record.held_tokens
            lost[*of, "tokens"] += record.prompt_tokens + record.completion_tokens + record.held_tokens
    return lost


def _run(of: _Id, counted: dict[str, Any], recorded: dict[str, Any]) -> Run:
    run = Run(endpoint=of.endpoint, replica=of.replica, run=of.run, daemon_began_ns=of.boot_ns)
    if counted:
        run.read_ns, run.final, run.in_flight = counted["at_ns"], bool(counted["final"]), counted["in_flight"]
        run.counted_prompt, run.counted_completion = counted["prompt_tokens"], counted["completion_tokens"]
    if recorded:
        run.recorded_prompt, run.recorded_completion = recorded["prompt_tokens"], recorded["completion_tokens"]
        run.requests, run.probes = recorded["requests"], recorded["probes"]
        run.cut, run.unknown = recorded["cut"], recorded["unknown"]
        run.at_most = recorded["held_tokens"] + recorded["under_way_tokens"]
    if counted:
        off = run.counted_prompt - run.recorded_prompt, run.counted_completion - run.recorded_completion
        run.difference = sum(map(abs, off))  # or one too few would hide one too many
    return run


def _judge(run: Run, *, lives: bool, daemon_lived: bool) -> None:
    """The verdict in words. Wrong is a drained run whose difference no cut request can explain."""
    off = run.difference
    bound = f"at most {run.at_most:,}"
    if run.unknown:
        bound += f", and what was still produced for {run.unknown:,} that nobody saw the end of"
    if run.read_ns is None:
        run.verdict = "its counters were never read"
    elif not run.final and not lives:
        who = "the engine ended by itself" if daemon_lived else "the daemon was killed"
        run.verdict = f"no final reading: {who}"
        if off:
            run.verdict += f"; at the last one, {off:,} tokens unattributed, {bound}"
    elif not off:
        run.verdict = "exact"
    elif run.unknown or off <= run.at_most:
        run.verdict = f"unattributed {off:,} tokens, {bound}"
    else:
        run.verdict = f"differs by {off:,} tokens, of which its requests explain {bound}"
        run.wrong = run.final
