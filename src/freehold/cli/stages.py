"""Events of a start, as lines a person can follow."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import click

from freehold.cli.daemon import Daemon
from freehold.cli.tables import printable
from freehold.errors import FreeholdError, NoDaemon
from freehold.plan.units import size


def bring_up(daemon: Daemon, endpoints: list[str], *, full: bool = False) -> tuple[list[str], FreeholdError | None]:
    """Start these (none: all), showing each stage; those that are up, and what kept the first of the others."""
    query = "&".join([*(f"endpoint={quote(name)}" for name in endpoints), *(["full"] if full else [])])
    up, failure, started = [], None, set()
    for line in daemon.lines("POST", f"/up?{query}"):
        if "up" in line:
            up.append(line["up"])
        elif "failed" in line:
            show(line["failed"], "endpoint", f"FAILED: {line['error']}")
            error = FreeholdError(f"`{line['failed']}`: {line['error']}", hint=line["hint"])
            error.exit_code = line["exit_code"]
            failure = failure or error
        elif (text := _TEXTS.get(line["kind"])) and line["detail"].get("stage") not in _SAID_OTHERWISE:
            started.add(line["subject"])
            show(line["subject"], line["kind"].partition(".")[0], text(line["detail"]))
    if not up and failure is None:
        raise NoDaemon("the daemon went away", hint="freehold logs shows what it said last")
    for status in daemon.ask("GET", "/status")["endpoints"]:
        if status["endpoint"] in up and status["endpoint"] not in started:
            isolation = "" if status["isolated"] is None else ", isolated" if status["isolated"] else ", NOT ISOLATED"
            show(status["endpoint"], "replica", f"{status['state']} already, process {status['pid']}{isolation}")
    return up, failure


def show(subject: str, what: str, text: str) -> None:
    """One line; more lines of text stand under the first."""
    first, *more = printable(text).splitlines() or [""]
    click.echo(f"{subject:<12} {what:<9} {first}")
    for line in more:
        click.echo(f"{'':<22} {line}")


def _isolation(detail: dict[str, Any]) -> str:
    words = ("tcp", "dns", "weights", "capabilities")
    return f"{detail['tests']} tests from inside: {', '.join(f'{each} {detail[each]}' for each in words)}"


def _accepted(detail: dict[str, Any]) -> str:
    pinned = {"unpinned": "UNPINNED, so it is pinned now", "pinned": "as pinned"}[detail["pinned"]]
    pinned += f"\nfor a person to look at: {detail['for_review']}" if detail["for_review"] else ""
    return f"accepted: {detail['files']} file(s), {size(detail['size_bytes'])}, {detail['digest'][:16]}..., {pinned}"


def _tokens(detail: dict[str, Any]) -> str:
    return f"{detail['prompt_tokens']} prompt + {detail['completion_tokens']} completion tokens"


def _measured(detail: dict[str, Any]) -> str:
    named = ("weight", "kv", "compute", "graph", "process", "card")
    said = [f"{name} {size(detail[f'{name}_bytes'])}" for name in named if detail.get(f"{name}_bytes") is not None]
    return f"measured: {', '.join(said)}"


def _allowed(detail: dict[str, Any]) -> str:
    accepted = f", accepted by {detail['accepted']}" if detail["accepted"] else ""
    until = f", until {detail['until']}" if detail["until"] else ""
    duties = f"\n{detail['duties']}" if detail["duties"] else ""
    return f"{detail['model']} is allowed{accepted}{until}{duties}"


_SAID_OTHERWISE = ("verifying the weights", "launching the engine", "probing")  # stages with events of their own

_TEXTS: dict[str, Callable[[dict[str, Any]], str]] = {
    "policy.allowed": _allowed,
    "weights.checking": lambda d: f"checking and hashing {d['path']}",
    "weights.accepted": _accepted,
    "weights.unchanged": lambda d: f"untouched since they were hashed, {d['digest'][:16]}..., as pinned",
    "weights.refused": lambda _: "REFUSED",
    "plan.made": lambda d: d["steps"],
    "engine.launching": lambda d: f"launching {d['engine']}",
    "engine.started": lambda d: f"process {d['pid']}",
    "isolation.tested": _isolation,
    "isolation.failed": lambda _: "FAILED: there is no engine in it",
    "isolation.absent": lambda d: f"NOT ISOLATED: {d['why_not']}",
    "engine.stage": lambda d: d["stage"],
    "engine.warming_failed": lambda d: f"could not be warmed: {d['why']}",
    "engine.measured": _measured,
    "plan.shortened": lambda d: f"the engine says that {d['context']:,} tokens of context fit: once more with those",
    "probe.passed": lambda d: f"a real completion: {_tokens(d)}; the engine's own counters agree",
    "probe.answered": lambda d: f"a real completion: {_tokens(d)}",
    "probe.counts_differ": lambda d: f"ITS COUNTERS DIFFER FROM ITS USAGE: {d}",
    "replica.ready": lambda d: f"ready after {d['seconds']} s",
}
