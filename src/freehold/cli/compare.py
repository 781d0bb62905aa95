"""`freehold compare`: two to six models side by side: what they are, may do, weigh, need and cost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from freehold.cli.plan import tokens


@click.command
@click.argument("models", nargs=-1, required=True, metavar="MODEL...")
@click.option("--users", type=int, default=1, show_default=True, help="Requests at the same moment.")
@click.option("--context", default="8K", show_default=True, callback=tokens, help="Tokens of each, prompt and answer.")
@click.option("--currency", type=click.Choice(["EUR", "USD"]), default="EUR", show_default=True, help="Of the month.")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
@click.option("--md", "as_md", is_flag=True, help="For a paper: Markdown.")
@click.pass_obj
def command(
    config: Path, /, *, models: tuple[str, ...], users: int, context: int, currency: str, as_json: bool, as_md: bool
) -> None:
    """Compare two to six models, by any name.

    What they may be used for is judged by the [policy] of freehold.toml if there is one.
    """
    from freehold.cli.known import exchanged, known
    from freehold.cli.profile import profiles
    from freehold.plan.need import Need, check

    catalogue, own = known(config)
    need = check(Need(context=context, users=users, currency=currency))
    found = profiles(models, need, catalogue, own)
    if as_json:
        import msgspec

        whole = {"need": {"users": users, "context": context, "currency": currency}, "models": found}
        click.echo(msgspec.json.format(msgspec.json.encode(whole), indent=2).decode())
        return
    from freehold.cli.tables import markdown, printable, table

    heads, rows = ["", *(each["name"] for each in found)], _rows(found, need.users, need.context, currency)
    bullet = "- " if as_md else "  "
    click.echo(markdown(heads, rows) if as_md else table(heads, _wrapped(rows, max(24, 120 // len(found)))))
    for each in found:
        said = [*(f"no: {why}" for why in each["objections"]), *(f"duty: {what}" for what in each["duties"])]
        said += [*(f"unknown: {what}" for what in each["unknown"]), *([each["matched"]] if each["matched"] else [])]
        if said:
            name = f"**{each['name']}**\n" if as_md else each["name"]
            click.echo(printable("\n".join(["", name, *(bullet + one for one in said)])))
    rates = exchanged(catalogue.rates, {currency, *(offer.currency for offer in catalogue.offers)})
    notes = [
        "GB are powers of ten, GiB powers of two; a month is 730 hours; prices without a date are left out",
        *rates,
    ]
    click.echo("\n" + "\n".join(("- " if as_md else "") + note for note in notes))


def _rows(found: list[dict[str, Any]], users: int, context: int, currency: str) -> list[list[str]]:
    from freehold.cli.models import billions
    from freehold.plan.units import GIB

    def gb(count: int | None) -> str:
        return "unknown" if count is None else f"{count / 1e9:,.1f} GB"

    asked = f"for {users:,} x {context:,}"
    lines = {
        "publisher": lambda m: f"{m['publisher']} ({m['publisher_country'] or 'country unknown'})",
        "released": lambda m: m["released"] or "unknown",
        "licence": lambda m: m["licence"],
        "commercial use": lambda m: m["commercial_use"],
        "allowed": _allowed,
        "parameters": lambda m: f"{billions(m['total'])}, {billions(m['active'])} a token",
        "context": lambda m: f"{m['context']:,}" + (f", {e:,} extended" if (e := m["context_extended"]) else ""),
        "architecture": lambda m: m["architecture"],
        "KV a token": _kv,
        "KV at 32K": lambda m: "unknown" if m["kv_bytes_at_32k"] is None else f"{m['kv_bytes_at_32k'] / GIB:,.2f} GiB",
        "weights as shipped": lambda m: f"{gb(m['weight_bytes']['shipped'])}, {m['precision']}",
        **{f"weights {name}": lambda m, name=name: gb(m["weight_bytes"][name]) for name in ("BF16", "FP8", "INT4")},
        **{f"{card} {asked}": lambda m, card=card: _cards(m["cards"][card]) for card in found[0]["cards"]},
        f"{currency} a month {asked}": lambda m: _month(m["cheapest"]),
    }
    return [[name, *(say(each) for each in found)] for name, say in lines.items()]


def _kv(profile: dict[str, Any]) -> str:
    if profile["kv_bytes_per_token"] is None:
        return "unknown"
    windowed = profile["kv_windowed_bytes_per_token"]
    return f"{profile['kv_bytes_per_token']:,} bytes" + (f", {windowed:,} more within windows" if windowed else "")


def _allowed(profile: dict[str, Any]) -> str:
    if why := len(profile["objections"]):
        return f"no: {why} reason{'s' if why > 1 else ''} below"
    accepted = f" (accepted: {profile['accepted']})" if profile["accepted"] else ""
    duties = len(profile["duties"])
    return f"yes{accepted}" + (f", {duties} {'duties' if duties > 1 else 'duty'} below" if duties else "")


def _cards(way: dict[str, Any]) -> str:
    if way.get("cards") is None:
        return f"no: {way['reason']}"
    return f"{way['cards']}, {way['precision']}" + (f", {way['replicas']} replicas" if way["replicas"] > 1 else "")


def _month(way: dict[str, Any]) -> str:
    if way.get("month") is None:
        return f"no: {way['reason']}"
    return f"{way['month']:,.0f}: {way['cards']} x {way['card']}, {way['precision']}, {way['offer']} of {way['date']}"


def _wrapped(rows: list[list[str]], width: int) -> list[list[str]]:
    """Long cells go on in the next line."""
    from itertools import zip_longest
    from textwrap import wrap

    lines = []
    for name, *cells in rows:
        folded = [wrap(name, 28), *(wrap(cell, width) or [""] for cell in cells)]
        lines += [list(line) for line in zip_longest(*folded, fillvalue="")]
    return lines
