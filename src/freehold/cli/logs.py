"""`freehold logs`: what an engine or the daemon said."""

from __future__ import annotations

import json
import time
from collections import deque
from pathlib import Path

import click

from freehold.cli.tables import printable


@click.command
@click.argument("endpoint", required=False)
@click.option("-f", "--follow", is_flag=True, help="Go on showing what comes.")
@click.option("-n", "--lines", type=click.IntRange(min=0), default=50, show_default=True, help="Lines back to begin.")
@click.option("--json", "as_json", is_flag=True, help="For programs: a JSON object a line.")
@click.pass_obj
def command(config_path: Path, endpoint: str | None, follow: bool, lines: int, as_json: bool) -> None:
    """Show what an engine or the daemon said.

    That of ENDPOINT; without a name, the daemon.
    """
    from freehold.errors import Unknown
    from freehold.fleet.config import load

    config = load(config_path)
    if endpoint is not None and endpoint not in config.endpoints:
        raise Unknown(f"no endpoint called `{endpoint}`", hint=f"there are: {', '.join(config.endpoints)}")
    path = Path(config.state_dir) / "logs" / f"{endpoint or 'daemon'}.log"
    if not path.exists():
        raise Unknown(f"{path} is not there yet", hint="it is made when the engine first starts")
    with path.open(errors="replace") as log:
        for line in deque(log, maxlen=lines):
            _show(line, endpoint, as_json=as_json)
        while follow:
            for line in log:
                _show(line, endpoint, as_json=as_json)
            time.sleep(0.1)


def _show(line: str, endpoint: str | None, *, as_json: bool) -> None:
    text = line.removesuffix("\n")
    if as_json:
        click.echo(json.dumps({"of": endpoint or "daemon", "line": text}))
    else:
        click.echo("\n".join(map(printable, readable(text) if endpoint is None else [text])))


def readable(text: str) -> list[str]:
    """A line of the daemon's, which is a JSON object, as people read it."""
    try:
        said = json.loads(text)
        first = f"{said.pop('time')} {said.pop('level').upper()} {said.pop('logger')}: {said.pop('message')}"
    except (ValueError, AttributeError, KeyError, TypeError):
        return [text]  # what it said before its log began
    trace = said.pop("exception", "").splitlines()
    return [" ".join([first, *(f"{key}={value}" for key, value in said.items() if value not in ("", None))]), *trace]
