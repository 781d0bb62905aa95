"""`freehold serve`: the daemon in the foreground."""

from __future__ import annotations

from pathlib import Path

import click


@click.command
@click.pass_obj
def command(config_path: Path) -> None:
    """Run the daemon in the foreground."""
    from freehold.fleet.config import digest, load
    from freehold.gateway.serve import main

    main(load(config_path), digest(config_path), config_path)
