"""`freehold down`: end the daemon, and with it every engine."""

from __future__ import annotations

from pathlib import Path

import click


@click.command
@click.pass_obj
def command(config_path: Path) -> None:
    """End the daemon and its engines.

    Requests in flight may finish first.
    """
    from freehold.cli.daemon import project
    from freehold.errors import NoDaemon
    from freehold.gateway.rundir import lock

    config, daemon = project(config_path)
    try:
        waiting = daemon.ask("POST", "/shutdown")["in_flight"]
    except NoDaemon:
        click.echo("no daemon is running here")
        return
    if waiting:
        click.echo(f"waiting for {waiting} requests in flight")
    with lock(Path(config.state_dir), wait=True):  # held by the daemon to its very end
        pass
    click.echo("down: no daemon, no engine")
