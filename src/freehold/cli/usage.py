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

from freehold.errors import NoDaemon, Unknown


@click.command
@click.option("--by", type=click.Choice(["key", "group", "endpoint", "day"]), default="endpoint", show_default=True)
@click.option("--since", type=click.DateTime(["%Y-%m-%d"]), help="First day (UTC).")
@click.option("--until", type=click.DateTime(["%Y-%m-%d"]), help="First day that is left out (UTC).")
@click.option("--cost", is_flag=True, help="Both accounts of money: the price list, and the machine's time.")
@click.option("--request", metavar="ID", help="The record of one request, by our id or the caller's own.")
@click.option("--reconcile", is_flag=True, help="Compare the records with what the engines counted, run by run.")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
@click.option("--csv", "as_csv", is_flag=True, help="For spreadsheets.")
@click.pass_context
def command(context: click.Context, by: str, as_json: bool, as_csv: bool, **asked: Any) -> None:
    """Show requests, tokens and money.

    By endpoint, key, group or day; with --cost both accounts of money over the whole book. With --reconcile exit status
    3 means that a run differs from its engine's counters by more than its cut requests can explain.
    """
    from freehold.cli.daemon import project

    since, until = asked["since"], asked["until"]
    whole = [name for name in ("cost", "request", "reconcile") if asked[name]]
    if as_json and as_csv:
        raise click.UsageError("--json or --csv, not both")
    if len(whole) > 1 or (whole and (since or until or by != "endpoint")):
        raise click.UsageError(f"--{whole[0]} is about the whole book: without any other but --json and --csv")
    config, daemon = project(context.obj)
    alive = None
    with contextlib.suppress(NoDaemon):  # then the book has it all
        if asked["reconcile"]:
            daemon.ask("POST", "/counts")
            replicas = daemon.ask("GET", "/status")["endpoints"]
            alive = {(each["endpoint"], each["replica"], each["run"]) for each in replicas if each["pid"]}
        daemon.ask("POST", "/flush")
    found = _read(Path(config.state_dir), by, alive, asked)
    if as_json:
        click.echo(json.dumps(found, indent=2))
    elif as_csv:
        _write_csv(found["occupancy"] if asked["cost"] else found)
    elif asked["cost"]:
        _show_cost(found)
    elif asked["request"]:
        _show_records(found)
    elif asked["reconcile"]:
        _show_runs(found)
    else:
        _show_usage(found, by, config.machine.currency)
    if asked["reconcile"] and any(run["wrong"] for run in found):
        context.exit(3)


def _read(state: Path, by: str, alive: set[tuple[str, str, int]] | None, asked: dict[str, Any]) -> Any:
    from msgspec.structs import asdict

    from freehold.ledger import report
    from freehold.ledger.reconcile import reconcile

    with report.reading(state) as book:
        if asked["cost"]:
            return report.cost(book)
        if asked["reconcile"]:
            return [asdict(run) for run in reconcile(book, state, alive)]
        if asked["request"]:
            if found := report.requests(book, asked["request"]):
                return found
            hint = "it is what the answer's header x-request-id said; a request that was refused has no record"
            raise Unknown(f"no record of a request `{asked['request']}`", hint=hint)
        return report.usage(book, by, _ns(asked["since"]), _ns(asked["until"]))  # type: ignore[arg-type]


def _ns(day: datetime | None) -> int | None:
    return None if day is None else int(day.replace(tzinfo=UTC).timestamp()) * 10**9


def _write_csv(rows: list[dict[str, Any]]) -> None:
    if rows:
        writer = csv.DictWriter(sys.stdout, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def _show_usage(rows: list[dict[str, Any]], by: str, currency: str) -> None:
    from freehold.cli.tables import money, table

    counts = ["requests", "ok", "cut", "error", "prompt_tokens", "cached_tokens", "completion_tokens"]
    if any(r["reasoning_tokens"] for r in rows):
        counts.append("reasoning_tokens")
    heads = (by.upper(), *(count.removesuffix("_tokens").upper() for count in counts), "CHARGED")
    body = [(r["name"], *(f"{r[c]:,}" for c in counts), money(r["charge_pico"], currency)) for r in rows]
    click.echo(table(heads, body))
    if bounded := sum(r["lower_bound"] for r in rows):
        click.echo(f"\n{bounded} requests did not come to their end: their tokens are a lower bound")


def _show_records(records: list[dict[str, Any]]) -> None:
    """Every column that says something."""
    from freehold.cli.tables import moment, printable

    for record in records:
        for name, value in record.items():
            if name == "started_ns":
                click.echo(f"{'started':<18} {moment(value)}")
            elif value or name == "status":
                click.echo(printable(f"{name:<18} {value}"))
        click.echo()


def _show_runs(runs: list[dict[str, Any]]) -> None:
    from freehold.cli.tables import moment, table

    heads = ("REPLICA", "RUN", "COUNTED UNTIL", "COUNTED", "RECORDED", "DIFFERENCE", "IN FLIGHT", "CUT", "VERDICT")
    body = [
        (
            run["replica"],
            str(run["run"]),
            moment(run["read_ns"]) if run["read_ns"] else "-",
            f"{run['counted_prompt']:,} + {run['counted_completion']:,}",
            f"{run['recorded_prompt']:,} + {run['recorded_completion']:,}",
            f"{run['difference']:,}",
            f"{run['in_flight']:,}",
            f"{run['cut']:,}",
            run["verdict"],
        )
        for run in runs
    ]
    click.echo(table(heads, body))
    click.echo("\nTokens are prompt + completion; smoke probes are among the records.")


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
