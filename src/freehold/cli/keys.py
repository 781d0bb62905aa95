"""`freehold keys`: who may call."""

from __future__ import annotations

import json
import re
from pathlib import Path

import click


@click.group
def command() -> None:
    """Create, list and revoke API keys."""


@command.command
@click.argument("name")
@click.option("-e", "--endpoint", "endpoints", multiple=True, help="Only for this endpoint (a glob, again for more).")
@click.option("--expires", help="From now: 90d, 12h, 30m.")
@click.option("--keep-content", "kept", help="Keep its questions and answers in the book so long, in days: 30d.")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
@click.pass_obj
def create(  # noqa: PLR0917  click passes them by name
    config_path: Path, name: str, endpoints: tuple[str, ...], expires: str | None, kept: str | None, as_json: bool
) -> None:
    """Make a key for NAME; its secret is shown once and kept nowhere."""
    from freehold.cli.daemon import project

    _, daemon = project(config_path)
    ask = {"name": name, "endpoints": endpoints, "expires_s": _expires_s(expires), "content_days": _days(kept)}
    made = daemon.ask("POST", "/keys", ask)
    if as_json:
        click.echo(json.dumps(made))
    else:
        click.echo(f"{made['secret']}\n\nshown once: keep it where secrets are kept (id {made['key']['id']})")


@command.command("list")
@click.option("--all", "dead_too", is_flag=True, help="The expired and revoked ones too.")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
@click.pass_obj
def list_(config_path: Path, dead_too: bool, as_json: bool) -> None:
    """Show the keys that open something."""
    from freehold.cli.daemon import project
    from freehold.cli.tables import moment, table

    _, daemon = project(config_path)
    keys = [key for key in daemon.ask("GET", "/keys") if dead_too or key["state"] == "alive"]
    if as_json:
        click.echo(json.dumps(keys, indent=2))
        return
    rows = [
        (
            *(key["id"], key["name"], " ".join(key["endpoints"])),
            *(moment(at_ns) if at_ns else "-" for at_ns in (key["created_ns"], key["expires_ns"])),
            f"{key['content_days']}d" if key["content_days"] else "-",
            key["state"],
        )
        for key in keys
    ]
    click.echo(table(("ID", "NAME", "ENDPOINTS", "CREATED", "EXPIRES", "KEEPS", "STATE"), rows))


@command.command
@click.argument("key")
@click.pass_obj
def revoke(config_path: Path, key: str) -> None:
    """Kill KEY (its name or id): it opens nothing any more when this returns."""
    from urllib.parse import quote

    from freehold.cli.daemon import project

    _, daemon = project(config_path)
    for dead in daemon.ask("DELETE", f"/keys/{quote(key, safe='')}"):
        click.echo(f"revoked {dead['name']} ({dead['id']})")


def _expires_s(text: str | None) -> int | None:
    from freehold.cli.tables import span_ns

    if text is None:
        return None
    if (span := span_ns(text)) is None:
        raise click.BadParameter(f"{text!r} is no span of time: write 90d, 12h or 30m", param_hint="--expires")
    return span // 10**9  # the daemon adds its own clock, which is not always this machine's


def _days(text: str | None) -> int | None:
    if text is None:
        return None
    if not (span := re.fullmatch(r"([1-9]\d{0,4})d", text)):
        raise click.BadParameter(f"{text!r} is no number of days: write 30d", param_hint="--keep-content")
    return int(span[1])
