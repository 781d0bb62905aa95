"""Events of a start, as lines a person can follow."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import click

from freehold.cli.daemon import Daemon
from freehold.cli.tables import size
from freehold.errors import FreeholdError


def bring_up(daemon: Daemon, endpoints: list[str]) -> list[str]:
    """Start these (none: all), showing each stage; returns those that are up. Raises the last failure."""
    query = "&".join(f"endpoint={quote(name)}" for name in endpoints)
    up, failure = [], None
    for line in daemon.lines("POST", f"/up?{query}"):
        if "up" in line:
            up.append(line["up"])
        elif "failed" in line:
            failure = FreeholdError(line["error"], hint=line["hint"])
            failure.exit_code = line["exit_code"]
        elif text := _TEXTS.get(line["kind"]):
            show(line["subject"], line["kind"].partition(".")[0], text(line["detail"]))
    if failure:
        raise failure
    return up


def show(subject: str, what: str, text: str) -> None:
    """One line; more lines of text stand under the first."""
    first, *more = text.splitlines()
    click.echo(f"{subject:<12} {what:<9} {first}")
    for line in more:
        click.echo(f"{'':<22} {line}")


def _isolation(detail: dict[str, Any]) -> str:
    return "isolated: no network, no files but its own" if detail["isolated"] else f"NOT ISOLATED: {detail['why_not']}"


def _accepted(detail: dict[str, Any]) -> str:
    pinned = {"unpinned": "UNPINNED, so it is pinned now", "pinned": "as pinned"}[detail["pinned"]]
    return f"accepted: {detail['files']} file(s), {size(detail['size_bytes'])}, {detail['digest'][:16]}..., {pinned}"


_TEXTS: dict[str, Callable[[dict[str, Any]], str]] = {
    "weights.checking": lambda d: f"checking and hashing {d['path']}",
    "weights.accepted": _accepted,
    "weights.refused": lambda _: "REFUSED",
    "plan.made": lambda d: d["steps"],
    "engine.launching": lambda d: f"launching {d['engine']}",
    "engine.started": lambda d: f"process {d['pid']}, {_isolation(d)}",
    "engine.loading": lambda _: "loading the weights",
    "engine.failed": lambda d: f"FAILED: {d['reason']}",
    "probe.passed": lambda d: (
        f"a real completion: {d['prompt_tokens']} + {d['completion_tokens']} tokens, as it counts"
    ),
    "probe.counts_differ": lambda d: f"ITS COUNTERS DIFFER FROM ITS USAGE: {d}",
    "replica.ready": lambda d: f"ready after {d['seconds']} s",
}
