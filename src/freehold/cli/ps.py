"""`freehold ps`: what runs."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click

_ISOLATION = {True: "bubblewrap", False: "NOT ISOLATED", None: "-"}
_HEADS = ("REPLICA", "ENGINE", "STATE", "ISOLATION", "PID", "IN FLIGHT", "WAITING", "LAST START", "REASON")
_MEMORY = ("MEMORY", "CONTEXT", "WEIGHTS", "KV CACHE", "TOTAL", "KV TOKENS", "REQUESTS")
_WORK = ("WORK", "RUNNING", "WAITING", "KV USED", "PREFIX HITS", "ACCEPTED", "ADAPTERS")


@click.command
@click.option("--wide", is_flag=True, help="Also memory, predicted / real, and what engines say of their work.")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
@click.pass_obj
def command(config_path: Path, wide: bool, as_json: bool) -> None:
    """Show what runs, and whether it is isolated."""
    from freehold.cli.daemon import project
    from freehold.cli.tables import table

    _, daemon = project(config_path)
    status = daemon.ask("GET", "/status?wide" if wide else "/status")
    if as_json:
        click.echo(json.dumps(status, indent=2))
        return
    replicas = status["endpoints"]
    click.echo(table(_HEADS, [tuple(_row(each)) for each in replicas]))
    if wide:
        click.echo(f"\n{table(_MEMORY, [tuple(_memory(each)) for each in replicas])}")
        click.echo(f"\n{table(_WORK, [tuple(_work(each)) for each in replicas])}")
    click.echo(f"\n{status['url']}")


def _row(replica: Mapping[str, Any]) -> Iterator[str]:
    state = replica["stage"] if replica["state"] == "starting" and replica["stage"] else replica["state"]
    yield from (replica["replica"], replica["engine"], state if replica["answers"] else "silent")
    yield _ISOLATION[replica["isolated"]]
    yield str(replica["pid"] or "-")
    yield f"{replica['in_flight']}/{replica['slots']}" if replica["slots"] else str(replica["in_flight"])
    yield str(replica["waiting"])
    yield f"{replica['last_start_s']:.2f} s" if replica["last_start_s"] else "-"
    yield replica["reason"] or ""


def _memory(replica: Mapping[str, Any]) -> Iterator[str]:
    """Of the last start: what the plan said, and what was."""
    from msgspec import convert

    from freehold.cli.tables import beside
    from freehold.types import Stated

    predicted, real = (convert(replica[name] or {}, Stated) for name in ("predicted", "measured"))
    yield replica["replica"]
    yield f"{replica['context']:,}" if replica["context"] else "-"
    yield beside(predicted.weight_bytes, real.weight_bytes)
    yield beside(predicted.kv_bytes, real.kv_bytes)
    yield beside(predicted.total_bytes, real.total_bytes)
    yield "-" if real.kv_tokens is None else f"{real.kv_tokens:,}"
    yield "-" if real.concurrency is None else f"{real.concurrency:,.4g}"


def _work(replica: Mapping[str, Any]) -> Iterator[str]:
    """What the engine's metrics say, since it started."""
    said = replica["signals"] or {}
    yield replica["replica"]
    yield from ("-" if said.get(name) is None else str(said[name]) for name in ("running", "waiting"))
    yield "-" if said.get("kv_usage") is None else f"{said['kv_usage']:.0%}"
    for part, whole in (("prefix_hit", "prefix_asked"), ("accepted", "drafted")):
        yield f"{said[part] / said[whole]:.0%} of {said[whole]:,}" if said.get(whole) else "-"
    yield ", ".join(replica["adapters"]) or "-"
