"""`freehold start`: bring one endpoint up in a daemon that runs."""

from __future__ import annotations

from pathlib import Path

import click


@click.command
@click.argument("endpoint")
@click.pass_obj
def command(config_path: Path, endpoint: str) -> None:
    """Open an endpoint and start its engine.

    After stop, nothing else lets callers in again.
    """
    from freehold.cli.daemon import project
    from freehold.cli.stages import bring_up

    _, daemon = project(config_path)
    _, failure = bring_up(daemon, [endpoint])
    if failure:
        raise failure
