"""`freehold stop`: end one endpoint's engine and keep callers out."""

from __future__ import annotations

from pathlib import Path

import click


@click.command
@click.argument("endpoint")
@click.pass_obj
def command(config_path: Path, endpoint: str) -> None:
    """End an engine and answer 503 until start.

    Requests in flight may finish first.
    """
    from urllib.parse import quote

    from freehold.cli.daemon import project

    _, daemon = project(config_path)
    daemon.ask("POST", f"/endpoints/{quote(endpoint, safe='')}/stop")
    click.echo(f"{endpoint} is stopping; freehold start {endpoint} opens it again")
