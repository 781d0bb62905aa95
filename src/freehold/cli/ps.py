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
    isolation = {True: "bubblewrap", False: "NOT ISOLATED", None: "-"}
    rows = [
        (
            e["endpoint"], e["engine"], e["state"], isolation[e["isolated"]], str(e["pid"] or "-"), str(e["in_flight"]),
            str(e["waiting"]), f"{e['last_start_s']:.2f} s" if e["last_start_s"] else "-", e["reason"] or "",
        )
        for e in status["endpoints"]
    ]  # fmt: skip
    heads = ("ENDPOINT", "ENGINE", "STATE", "ISOLATION", "PID", "IN FLIGHT", "WAITING", "LAST START", "REASON")
    click.echo(table(heads, rows))
    click.echo(f"\n{status['url']}")
