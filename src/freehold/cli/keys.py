"""`freehold keys`: who may call."""

from __future__ import annotations

import json
import re
from decimal import Decimal
from pathlib import Path
from typing import Any

import click


@click.group
def command() -> None:
    """Create, list, rotate and revoke API keys."""


@command.command
@click.argument("name")
@click.option("-e", "--endpoint", "endpoints", multiple=True, help="Only for this endpoint (a glob, again for more).")
@click.option("--expires", help="From now: 90d, 12h, 30m.")
@click.option("--keep-content", "kept", help="Keep its questions and answers in the book so long, in days: 30d.")
@click.option("-g", "--group", default="", help="Of [groups] in freehold.toml: what it may, all its keys share.")
@click.option("--rpm", "requests_per_minute", type=int, help="Requests a minute.")
@click.option("--tpm", "tokens_per_minute", type=int, help="Tokens a minute.")
@click.option("--parallel", type=int, help="Requests at the same time.")
@click.option("--tokens-day", "tokens_per_day", type=int, help="Tokens a day, by UTC.")
@click.option("--tokens-month", "tokens_per_month", type=int, help="Tokens a month, by UTC.")
@click.option("--budget-day", "budget_per_day", type=float, help="Money a day, by the price list.")
@click.option("--budget-month", "budget_per_month", type=float, help="Money a month.")
@click.option(
    "--priority", type=int, default=0, help="Higher goes first when all is full, -100 to 100; 0: as its group."
)
@click.option("--residency", multiple=True, help="Only replicas in this country, or EU (again for more).")
@click.option("--jurisdiction-not", multiple=True, help="No replica whose operator is under this law (again for more).")
@click.option("--network", "networks", multiple=True, help="Only callers from there, as 10.0.0.0/8 (again for more).")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
@click.pass_obj
def create(  # noqa: PLR0917  click passes them by name
    config_path: Path,
    name: str,
    endpoints: tuple[str, ...],
    expires: str | None,
    kept: str | None,
    group: str,
    as_json: bool,
    **limits: Any,
) -> None:
    """Make a key for NAME; its secret is shown once and kept nowhere."""
    from freehold.cli.daemon import project

    _, daemon = project(config_path)
    ask = {"name": name, "endpoints": endpoints, "group": group, "limits": limits, "content_days": _days(kept)}
    made = daemon.ask("POST", "/keys", {**ask, "expires_s": _span_s(expires, "--expires")})
    click.echo(json.dumps(made) if as_json else _secret(made))


@command.command
@click.argument("name")
@click.option("--overlap", default="24h", show_default=True, help="The old secret works so long: 24h, 30m, 0s.")
@click.option("--expires", help="From now: 90d, 12h, 30m. By default when the old one would have.")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
@click.pass_obj
def rotate(config_path: Path, name: str, overlap: str, expires: str | None, as_json: bool) -> None:
    """Make a new secret for NAME, which may what the old one may and shares its limits."""
    from urllib.parse import quote

    from freehold.cli.daemon import project
    from freehold.cli.tables import moment

    _, daemon = project(config_path)
    ask = {"overlap_s": _span_s(overlap, "--overlap"), "expires_s": _span_s(expires, "--expires")}
    made = daemon.ask("POST", f"/keys/{quote(name, safe='')}/rotate", ask)
    until = f"the old one works until {moment(made['old_until_ns'])} UTC"
    click.echo(json.dumps(made) if as_json else f"{_secret(made)}\n{until}")


@command.command("list")
@click.option("--all", "dead_too", is_flag=True, help="The expired and revoked ones too.")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
@click.pass_obj
def list_(config_path: Path, dead_too: bool, as_json: bool) -> None:
    """Show the keys that open something."""
    from freehold.cli.daemon import project
    from freehold.cli.tables import moment, table

    config, daemon = project(config_path)
    keys = [key for key in daemon.ask("GET", "/keys") if dead_too or key["state"] == "alive"]
    if as_json:
        click.echo(json.dumps(keys, indent=2))
        return
    rows = [
        (
            *(key["id"], key["name"], " ".join(key["endpoints"]), key["group"] or "-"),
            _brief(key["grant"], config.machine.currency) or "-",
            *(moment(at_ns) if at_ns else "-" for at_ns in (key["created_ns"], key["expires_ns"])),
            f"{key['content_days']}d" if key["content_days"] else "-",
            key["state"],
        )
        for key in keys
    ]
    heads = ("ID", "NAME", "ENDPOINTS", "GROUP", "LIMITS", "CREATED", "EXPIRES", "KEEPS", "STATE")
    click.echo(table(heads, rows))


@command.command
@click.argument("key")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
@click.pass_obj
def show(config_path: Path, key: str, as_json: bool) -> None:
    """Show KEY (its name or id), and how each of its limits, and of its group's, stands now."""
    from freehold.cli.daemon import project
    from freehold.cli.tables import moment, table
    from freehold.errors import Unknown

    config, daemon = project(config_path)
    found = [each for each in daemon.ask("GET", "/keys") if key in (each["id"], each["name"])]
    found = [each for each in found if each["state"] == "alive"] or found[-1:]
    if not found:
        raise Unknown(f"there was never a key called `{key}`", hint="freehold keys list --all shows them")
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    for each in found:
        ends = f", until {moment(each['expires_ns'])} UTC" if each["expires_ns"] else ""
        group = f", group {each['group']}" if each["group"] else ""
        limits = _brief(each["grant"], config.machine.currency) or "no limits of its own"
        click.echo(
            f"{each['name']} ({each['id']}): {each['state']}{ends}{group}, {' '.join(each['endpoints'])}; {limits}"
        )
    rows = []
    for level in found[-1]["limits"]:
        amounts = (_amount(level[part], level["unit"], config.machine.currency) for part in _AMOUNTS)
        rows.append((level["of"], level["limit"], *amounts, f"{level['whole_in_s']} s" if level["whole_in_s"] else "-"))
    if rows:
        click.echo(table(("OF", "LIMIT", *(part.upper() for part in _AMOUNTS), "WHOLE IN"), rows))


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


_AMOUNTS = ("most", "used", "reserved", "left")
_BRIEF = {  # of each part of a grant; money is put in its unit first
    "requests_per_minute": "{} requests/min",
    "tokens_per_minute": "{} tokens/min",
    "parallel": "{} at once",
    "tokens_per_day": "{} tokens/day",
    "tokens_per_month": "{} tokens/month",
    "pico_per_day": "{}/day",
    "pico_per_month": "{}/month",
    "priority": "priority {}",
    "residency": "in {}",
    "jurisdiction_not": "not under {}",
    "networks": "from {}",
}


def _brief(grant: dict[str, Any], currency: str) -> str:
    return ", ".join(
        text.format(" ".join(had) if isinstance(had, list) else _amount(had, part.partition("_")[0], currency))
        for part, text in _BRIEF.items()
        if (had := grant.get(part)) is not None
    )


def _amount(amount: int, unit: str, currency: str) -> str:
    from freehold.types import PICO_PER_UNIT

    return f"{currency} {(Decimal(amount) / PICO_PER_UNIT).normalize():f}" if unit == "pico" else f"{amount:,}"


def _secret(made: dict[str, Any]) -> str:
    return f"{made['secret']}\n\nshown once: keep it where secrets are kept (id {made['key']['id']})"


def _span_s(text: str | None, option: str) -> int | None:
    from freehold.cli.tables import span_ns

    if text is None:
        return None
    if (span := span_ns(text)) is None:
        raise click.BadParameter(f"{text!r} is no span of time: write 90d, 12h or 30m", param_hint=option)
    return span // 10**9  # the daemon adds its own clock, which is not always this machine's


def _days(text: str | None) -> int | None:
    if text is None:
        return None
    if not (span := re.fullmatch(r"([1-9]\d{0,4})d", text)):
        raise click.BadParameter(f"{text!r} is no number of days: write 30d", param_hint="--keep-content")
    return int(span[1])
