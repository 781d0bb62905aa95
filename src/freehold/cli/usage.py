"""`freehold usage`: who used what, what it is charged, and what the machine really cost."""

from __future__ import annotations

import contextlib
import csv
import json
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from freehold.errors import NoDaemon


@click.command
@click.option("--by", type=click.Choice(["key", "endpoint", "day"]), default="endpoint", show_default=True)
@click.option("--since", type=click.DateTime(["%Y-%m-%d"]), help="First day (UTC).")
@click.option("--until", type=click.DateTime(["%Y-%m-%d"]), help="First day that is left out (UTC).")
@click.option("--cost", is_flag=True, help="Both accounts of money: the price list, and the machine's time.")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
@click.option("--csv", "as_csv", is_flag=True, help="For spreadsheets.")
@click.pass_obj
def command(  # noqa: PLR0917  click passes them by name
    config_path: Path, by: str, since: datetime | None, until: datetime | None, cost: bool, as_json: bool, as_csv: bool
) -> None:
    """Show requests, tokens and money.

    By endpoint, key or day; with --cost both accounts of money over the whole book.
    """
    from freehold.cli.daemon import project
    from freehold.ledger import report

    if as_json and as_csv:
        raise click.UsageError("--json or --csv, not both")
    if cost and (since or until or by != "endpoint"):
        raise click.UsageError("--cost is about the whole book: without --by, --since and --until")
    config, daemon = project(config_path)
    with contextlib.suppress(NoDaemon):  # then the book has it all
        daemon.ask("POST", "/flush")
    with report.reading(Path(config.state_dir)) as book:
        if cost:
            found: Any = report.cost(book)
        else:
            found = report.usage(book, by, _ns(since), _ns(until))  # type: ignore[arg-type]
    if as_json:
        click.echo(json.dumps(found, indent=2))
    elif as_csv:
        _write_csv(found["occupancy"] if cost else found)
    elif cost:
        _show_cost(found)
    else:
        _show_usage(found, by, config.machine.currency)


def _ns(day: datetime | None) -> int | None:
    return None if day is None else int(day.replace(tzinfo=UTC).timestamp()) * 10**9


def _write_csv(rows: list[dict[str, Any]]) -> None:
    if rows:
        writer = csv.DictWriter(sys.stdout, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def _show_usage(rows: list[dict[str, Any]], by: str, currency: str) -> None:
    from freehold.cli.tables import money, table

    heads = (by.upper(), "REQUESTS", "OK", "CUT", "ERROR", "PROMPT", "CACHED", "COMPLETION", "CHARGED")
    counts = ("requests", "ok", "cut", "error", "prompt_tokens", "cached_tokens", "completion_tokens")
    body = [(r["name"], *(f"{r[c]:,}" for c in counts), money(r["charge_pico"], currency)) for r in rows]
    click.echo(table(heads, body))
    if bounded := sum(r["lower_bound"] for r in rows):
        click.echo(f"\n{bounded} requests did not come to their end: their tokens are a lower bound")


def _show_cost(found: dict[str, Any]) -> None:
    from freehold.cli.tables import money, table

    currency = found["tenures"][-1]["currency"] if found["tenures"] else ""
    paid = found["machine_pico"]
    rows = [
        (
            r["endpoint"] or "(nobody)",
            r["phase"],
            f"{r['lasted_ns'] / 1e9:,.3f}",
            money(r["pico"], currency),
            _share(r["pico"], paid),
        )
        for r in found["occupancy"]
    ]
    click.echo(table(("ENDPOINT", "PHASE", "HOST-SECONDS", "COST", "SHARE"), rows))
    seconds = sum(t["lasted_ns"] for t in found["tenures"]) / 1e9
    prices = sorted({t["pico_per_hour"] for t in found["tenures"]})
    click.echo(f"\noccupancy        {money(found['occupied_pico'], currency)}   the rows above")
    at = " and ".join(money(p, currency) for p in prices)
    click.echo(f"host             {money(paid, currency)}   {seconds:,.3f} host-seconds at {at} an hour")
    click.echo(f"difference       {money(found['difference_pico'], currency)}")
    click.echo(f"charged          {money(found['charged_pico'], currency)}   by the price list")
    if found["tokens"]:
        serving = _share(sum(r["pico"] for r in found["occupancy"] if r["phase"] == "serving"), paid)
        click.echo(
            f"real cost        {money(found['pico_per_token'] * 10**6, currency)}   a million tokens: the host's cost "
            f"over {found['tokens']:,} tokens,\n{'':17}prompt and completion, smoke probes included; "
            f"{serving} of it was spent serving"
        )


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "-"
