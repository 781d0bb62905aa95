"""`freehold logs`: what an engine or the daemon said."""

from __future__ import annotations

import time
from collections import deque
from pathlib import Path

import click


@click.command
@click.argument("endpoint", required=False)
@click.option("-f", "--follow", is_flag=True, help="Go on showing what comes.")
@click.option("-n", "--lines", default=50, show_default=True, help="How many lines back to begin.")
@click.pass_obj
def command(config_path: Path, endpoint: str | None, follow: bool, lines: int) -> None:
    """Show what ENDPOINT's engine said; without a name, what the daemon said."""
    from freehold.cli.tables import printable
    from freehold.errors import Unknown
    from freehold.fleet.config import load

    config = load(config_path)
    if endpoint is not None and endpoint not in config.endpoints:
        raise Unknown(f"no endpoint called `{endpoint}`", hint=f"there are: {', '.join(config.endpoints)}")
    path = Path(config.state_dir) / "logs" / f"{endpoint or 'daemon'}.log"
    if not path.exists():
        raise Unknown(f"{path} is not there yet", hint="it is made when the engine first starts")
    with path.open(errors="replace") as log:
        click.echo(printable("".join(deque(log, maxlen=lines))), nl=False)
        while follow:
            if text := log.read():
                click.echo(printable(text), nl=False)
            time.sleep(0.1)
