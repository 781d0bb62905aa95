"""`freehold adapters`: LoRA adapters of an endpoint that serves, added, tried, taken back and removed meanwhile."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

_BASE = click.option("--base", required=True, metavar="ENDPOINT", help="Whose adapter it is.")


@click.group
def command() -> None:
    """Add, try, take back and remove LoRA adapters while an endpoint serves."""


@command.command
@click.argument("name")
@click.argument("path", type=click.Path(path_type=Path))
@_BASE
@click.option("--percent", type=click.IntRange(1, 100), default=100, metavar="N", help="Of its requests, for a trial.")
@click.pass_obj
def add(config_path: Path, name: str, path: Path, base: str, percent: int) -> None:
    """Load the adapter at PATH on every replica; then callers use it as ENDPOINT:NAME.

    PATH is a folder as PEFT saves it, or a GGUF adapter for llama.cpp. Where there is one of that name this is its next
    version, and with --percent a trial beside it. Exit status 3: the gate refuses it, 4: it does not fit, 5: the engine
    cannot load it; then the version before goes on.
    """
    ask = {"name": name, "path": str(path.resolve()), "percent": percent}
    _say(base, name, alias := _change(config_path, "POST", base, "", ask))
    if percent < 100 and not alias["trial"]:
        click.echo("it is the first of that name, so all requests go to it")


@command.command
@click.argument("name")
@_BASE
@click.option(
    "--percent", type=click.IntRange(0, 100), required=True, metavar="N", help="100: it is current; 0: it ends."
)
@click.pass_obj
def share(config_path: Path, name: str, base: str, percent: int) -> None:
    """Give the version on trial another share of the requests."""
    _say(base, name, _change(config_path, "POST", base, f"/{name}/share", {"percent": percent}))


@command.command
@click.argument("name")
@_BASE
@click.pass_obj
def rollback(config_path: Path, name: str, base: str) -> None:
    """End a trial, or go back to the version before."""
    _say(base, name, _change(config_path, "POST", base, f"/{name}/rollback"))


@command.command
@click.argument("name")
@_BASE
@click.pass_obj
def remove(config_path: Path, name: str, base: str) -> None:
    """Keep callers out of it; who is being answered is answered."""
    _change(config_path, "DELETE", base, f"/{name}")
    click.echo(f"{base}:{name} is removed")


@command.command("list")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
@click.pass_obj
def show(config_path: Path, *, as_json: bool) -> None:
    """Show the adapters there are, and their versions."""
    from freehold.cli.daemon import project
    from freehold.cli.tables import table

    found = project(config_path)[1].ask("GET", "/adapters")
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    heads = ("NAME", "VERSION", "REPLICAS", "BEFORE", "ON TRIAL", "SHA-256", "FROM")
    click.echo(table(heads, [_row(each) for each in found]))


def _row(found: dict[str, Any]) -> tuple[str, ...]:
    alias = found["alias"]
    current, previous, trial = (alias[key] for key in ("current", "previous", "trial"))
    share = f"{trial['number']}, {alias['percent']} %" if trial else "-"
    before = str(previous["number"]) if previous else "-"
    return (
        f"{found['endpoint']}:{found['name']}", str(current["number"]), str(found["replicas"]), before, share,
        current["source_digest"][:16], current["source"],
    )  # fmt: skip


def _change(config_path: Path, method: str, base: str, path: str, ask: object = None) -> Any:
    from urllib.parse import quote

    from freehold.cli.daemon import project

    daemon = project(config_path)[1]
    return daemon.ask(method, f"/endpoints/{quote(base, safe='')}/adapters{quote(path)}", ask, timeout_s=None)


def _say(base: str, name: str, alias: dict[str, Any]) -> None:
    current, trial = alias["current"], alias["trial"]
    click.echo(
        f"{base}:{name} is version {current['number']}, {current['source_digest'][:16]}..., from {current['source']}"
    )
    if trial:
        click.echo(f"{alias['percent']} % of its requests go to version {trial['number']}, from {trial['source']}")
