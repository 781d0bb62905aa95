"""`freehold ps`: what runs."""

from __future__ import annotations

import json
from pathlib import Path

import click


@click.command
@click.option("--json", "as_json", is_flag=True, help="For programs.")
@click.pass_obj
def command(config_path: Path, as_json: bool) -> None:
    """Show what runs, and whether it is isolated."""
    from freehold.cli.daemon import project
    from freehold.cli.tables import table

    _, daemon = project(config_path)
    status = daemon.ask("GET", "/status")
    if as_json:
        click.echo(json.dumps(status, indent=2))
        return
    slots = [f"{e['in_flight']}/{e['slots']}" if e["slots"] else str(e["in_flight"]) for e in status["endpoints"]]
    isolation = {True: "bubblewrap", False: "NOT ISOLATED", None: "-"}
    rows = [
        (
            e["replica"], e["engine"], e["state"] if e["answers"] else "silent", isolation[e["isolated"]],
            str(e["pid"] or "-"), busy, str(e["waiting"]), f"{e['last_start_s']:.2f} s" if e["last_start_s"] else "-",
            e["reason"] or "",
        )
        for e, busy in zip(status["endpoints"], slots, strict=True)
    ]  # fmt: skip
    heads = ("REPLICA", "ENGINE", "STATE", "ISOLATION", "PID", "IN FLIGHT", "WAITING", "LAST START", "REASON")
    click.echo(table(heads, rows))
    click.echo(f"\n{status['url']}")
