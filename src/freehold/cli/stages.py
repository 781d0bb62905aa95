"""Events of a start, as lines a person can follow."""

from __future__ import annotations

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
        elif text := _text(line["kind"], line["detail"]):
            show(line["subject"], line["kind"].partition(".")[0], text)
    if failure:
        raise failure
    return up


def show(subject: str, what: str, text: str) -> None:
    """One line; more lines of text stand under the first."""
    first, *more = text.splitlines()
    click.echo(f"{subject:<12} {what:<9} {first}")
    for line in more:
        click.echo(f"{'':<22} {line}")


def _text(kind: str, detail: dict[str, Any]) -> str | None:
    match kind:
        case "weights.checking":
            return f"checking and hashing {detail['path']}"
        case "weights.accepted":
            pinned = {"unpinned": "UNPINNED, so it is pinned now", "pinned": "as pinned"}[detail["pinned"]]
            return f"accepted: {detail['files']} file(s), {size(detail['size_bytes'])}, {detail['digest'][:16]}..., {pinned}"
        case "weights.refused":
            return "REFUSED"
        case "plan.made":
            return detail["steps"]
        case "engine.launching":
            return f"launching {detail['engine']}"
        case "engine.started":
            isolation = "isolated: no network, no files but its own" if detail["isolated"] else f"NOT ISOLATED: {detail['why_not']}"
            return f"process {detail['pid']}, {isolation}"
        case "engine.loading":
            return "loading the weights"
        case "engine.failed":
            return f"FAILED: {detail['reason']}"
        case "probe.passed":
            return f"one real completion: {detail['prompt_tokens']} + {detail['completion_tokens']} tokens, as the engine counts"
        case "probe.counts_differ":
            return f"ITS COUNTS DIFFER FROM ITS USAGE: {detail}"
        case "replica.ready":
            return f"ready after {detail['seconds']} s"
    return None
