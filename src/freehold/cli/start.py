"""`freehold start`: bring one endpoint up in a daemon that runs."""

from __future__ import annotations

from pathlib import Path

import click


@click.command
@click.argument("endpoint")
@click.pass_obj
def command(config_path: Path, endpoint: str) -> None:
    """Open ENDPOINT again after stop, and start its engine now."""
    from freehold.cli.daemon import project
    from freehold.cli.stages import bring_up

    _, daemon = project(config_path)
    bring_up(daemon, [endpoint])
