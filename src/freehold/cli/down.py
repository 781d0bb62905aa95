"""`freehold down`: end the daemon, and with it every engine."""

from __future__ import annotations

import time
from pathlib import Path

import click


@click.command
@click.pass_obj
def command(config_path: Path) -> None:
    """End the daemon and its engines; requests in flight may finish first."""
    from freehold.cli.daemon import project
    from freehold.errors import NoDaemon

    _, daemon = project(config_path)
    try:
        waiting = daemon.ask("POST", "/shutdown")["in_flight"]
    except NoDaemon:
        click.echo("no daemon is running here")
        return
    if waiting:
        click.echo(f"waiting for {waiting} requests in flight")
    while daemon.running():
        time.sleep(0.05)
    click.echo("down: no daemon, no engine")
