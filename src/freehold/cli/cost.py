"""`freehold cost`: what machines cost, rented or bought, at a stated load, and against a closed API."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from freehold.cli.costing import Bill

_KINDS = ("on-demand", "spot", "reserved", "dedicated", "owned")
_REACHED = {True: "yes", False: "no", None: "unknown"}


@click.command
@click.option("--cards", required=True, metavar="2xH100", help="Cards of one replica; H100 is every form of it.")
@click.option("--kind", multiple=True, type=click.Choice(_KINDS), help="Of the offers; again for more.")
@click.option("--provider", metavar="NAME", help="Of the offers.")
@click.option("--requests", type=click.FloatRange(0, min_open=True), help="A day; of office hours, a working day.")
@click.option("--prompt", type=float, default=1500, show_default=True, help="Tokens a request.")
@click.option("--completion", type=float, default=500, show_default=True, help="Tokens a request.")
@click.option("--rate", type=float, help="Completion tokens a second that one replica sustains in all.")
@click.option("--prompt-rate", type=float, help="Prompt tokens a second; without it --rate counts for both.")
@click.option("--rate-source", metavar="TEXT", help="Who measured it.")
@click.option(
    "--hours", metavar="PROFILE", help="flat (default), office (weekdays, 8 to 18 h), or 24 weights: 0,0,1,..."
)
@click.option("--to-zero", is_flag=True, help="Stop replicas that nobody asks, where billing allows.")
@click.option("--idle", type=float, metavar="SECONDS", help="Until one stops.  [default: 300]")
@click.option("--start", type=float, metavar="SECONDS", help="Until one answers again.  [default: 120]")
@click.option("--own", type=float, metavar="CAPEX", help="Price of a machine with these cards, set beside the offers.")
@click.option("--years", type=float, help="It is written off over.  [default: 4]")
@click.option("--power-w", type=float, help="Its draw at full load.")
@click.option("--price-kwh", type=float, help="What a kWh costs.")
@click.option("--pue", type=float, help="What the building draws for each watt of it.  [default: 1.4]")
@click.option("--hosting", type=float, help="Space, network and staff, a month.")
@click.option("--interest", type=float, metavar="PERCENT", help="A year, on the capital still bound.")
@click.option("--reserve", metavar="PERCENT:MONTHS", help="Add the on-demand offers at this discount for a commitment.")
@click.option(
    "--interruptions", metavar="A_DAY:MINUTES:SHARE", help="Of spot: minutes lost each; hours on demand, 0 to 1."
)
@click.option("--egress-gb", type=float, help="GB (powers of ten) a month that leave the provider.")
@click.option("--egress-price", type=float, help="What one of them costs.")
@click.option("--against", metavar="API", help="A closed API's name, or PROMPT:COMPLETION:CURRENCY a million tokens.")
@click.option(
    "--currency", type=click.Choice(["EUR", "USD"]), default="EUR", help="Of the answer and of what you state."
)
@click.option("--usd-rate", type=float, help="USD for one EUR, in place of the catalogue's.")
@click.option("--explain", is_flag=True, help="Every figure's arithmetic, with sources.")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
@click.option("--md", "as_md", is_flag=True, help="For a paper: Markdown.")
@click.pass_obj
def command(config: Path, /, *, explain: bool, as_json: bool, as_md: bool, **given: Any) -> None:  # fmt: skip
    """What machines cost: an hour, a month, a million tokens.

    Offers come from the catalogue. Dated prices come first, the cheapest month first.
    """
    from freehold.cli.costing import bill
    from freehold.cli.known import known

    answer = bill(given, known(config)[0])
    if as_json:
        import msgspec

        click.echo(msgspec.json.format(msgspec.json.encode(_data(answer, explain=explain)), indent=2).decode())
        return
    from freehold.cli.tables import markdown, printable, table

    click.echo((markdown if as_md else table)(*_table(answer)))
    bullet = "- " if as_md else ""
    click.echo(printable("\n" + "\n".join(bullet + each for each in (*_against(answer), *_notes(answer)))))
    for row in answer.rows if explain else ():
        steps = (*row.cost.steps, *(row.even.steps if row.even else ()), *row.cost.remarks)
        name = f"**{row.offer.id}**\n" if as_md else row.offer.id
        click.echo(printable("\n" + "\n".join([name, *((bullet or "  ") + step for step in steps)])))


def _table(answer: Bill) -> tuple[list[str], list[list[str]]]:
    wanted, unit = answer.wanted, answer.wanted.currency
    heads = ["OFFER", "KIND", "CARDS", "PRICE OF", "COUNTRY", f"{unit} AN HOUR", f"{unit} A MONTH"]
    heads += ["REPLICAS", "USED", "IDLE", f"{unit} A MILLION TOKENS"] + ["BREAK-EVEN", "REACHED"] * bool(answer.api)
    missing = " and ".join(f"no --{k}" for k, v in (("requests", wanted.load), ("rate", wanted.speed)) if v is None)
    rows = []
    for offer, cost, current, even in answer.rows:
        bought = -(-wanted.cards // offer.cards) * offer.cards
        cards = f"{bought} x {offer.card}" + (f", {wanted.cards} used" if bought > wanted.cards else "")
        dated = (offer.date or "undated *") if current or not offer.date else f"{offer.date} *"
        row = [offer.id, cost.kind + (", to zero" if cost.scaling == "to zero" else ""), cards, dated]
        row += ["/".join(offer.countries) or "unknown" if cost.kind != "owned" else "yours"]
        row += [f"{cost.hour:,.2f}", amount(cost.month), "-" if missing else str(cost.replicas)]
        row += [_percent(cost.utilisation), _percent(cost.idle_share)]
        row += [f"unknown: {missing}" if cost.per_million is None else amount(cost.per_million)]
        rows.append([*row, tokens(even.tokens), _REACHED[even.deliverable]] if even else row)
    return heads, rows


def amount(value: float) -> str:
    """Money: as many digits as a reader needs."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:,.2f}" if value >= 0.1 else f"{value:.4g}"


def tokens(count: float) -> str:
    return f"{count / 1e6:,.0f}M" if count >= 1e7 else f"{count / 1e6:,.3f}M"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"


def _against(answer: Bill) -> list[str]:
    """The API, where the best row breaks even with it, and what both cost at the stated load."""
    api, best, unit = answer.api, answer.rows[0], answer.wanted.currency
    if api is None or best.even is None:
        return []
    even, mix, replicas = best.even, answer.mix, best.cost.replicas
    asked = f"{api.prompt:g} {api.currency} a million prompt tokens, {api.completion:g} completion"
    mixed = f"{amount(even.api_per_million)} {unit} a million of {mix.prompt_tokens:g} + {mix.completion_tokens:g}"
    machines = (
        f"{replicas} x {answer.wanted.cards} card{'s' if replicas * answer.wanted.cards > 1 else ''} on all month"
    )
    capacity = "whether they can deliver it is unknown: no --rate"
    if even.capacity is not None:
        capacity = f"they can{'' if even.deliverable else 'not'} deliver it: {even.capacity:,.0f} at most"
    lines = [
        f"{api.id}: {asked} ({api.date or 'undated'}; {api.source}); {mixed}",
        f"break-even of {best.offer.id}: {even.tokens:,.0f} tokens a month with {machines}; {capacity}",
    ]
    if answer.wanted.load:
        asked = mix.tokens_a_month
        lines.append(
            f"at your {asked:,.0f} tokens a month {api.id} costs {amount(even.api_per_million * asked / 1e6)} {unit},"
            f" {best.offer.id} {amount(best.cost.month)} {unit}"
        )
    return lines


def _notes(answer: Bill) -> list[str]:
    """Rates of exchange with their day, prices not to be believed as they are, and what was assumed."""
    from freehold.cli.known import exchanged
    from freehold.plan.cost import SETUP_MONTHS
    from freehold.plan.traffic import FILL

    rows, wanted, speed, cut = answer.rows, answer.wanted, answer.wanted.speed, answer.wanted.interruptions
    kinds, currencies = {row.cost.kind for row in rows}, {wanted.currency, *(row.offer.currency for row in rows)}
    currencies |= {answer.api.currency} if answer.api else set()
    old = sum(not row.current for row in rows)
    load, sleep, known = wanted.load, wanted.sleep, wanted.load is not None and speed is not None
    notes = {
        f"* {old} of {len(rows)} prices are undated, or a newer one is known: ask before you rely on them": old,
        "a month is 730 hours; no taxes are included; --explain shows arithmetic, sources and what offers say": True,
        "a month is of one replica, always on: how many a load needs, --requests and --rate tell": not known,
        f"replicas suffice for the peak hour at {FILL:.0%} of --rate ({speed.source if speed else ''})": known,
        "--rate is taken as measured with prompts like yours, --prompt-rate was not given": speed and not speed.prompt,
        f"days that work: {load.days_a_month:.4g} a month" if load else "": load,
        (
            f"to zero: a replica stops after {sleep.idle_s:g} s without a request; starting takes {sleep.start_s:g} s, "
            "which are paid and waited for; break-even is with it on all month"
        )
        if sleep
        else "": sleep,
        (
            f"spot is a useful hour: {cut.a_day:g} interruptions a day lose {cut.lost_minutes:g} minutes each, "
            f"{cut.fallback:.0%} of the hours are on demand"
        ): "spot" in kinds,
        f"what is paid once is spread over {SETUP_MONTHS:g} months": any(row.offer.setup for row in rows),
        "owned: stated by you; idle it draws 30 % of its power; what it sends is part of --hosting": "owned" in kinds,
    }
    return exchanged(wanted.rates, currencies) + [note for note, true in notes.items() if true]


def _data(answer: Bill, *, explain: bool) -> dict[str, Any]:
    from msgspec.structs import asdict

    rows = []
    for offer, cost, current, even in answer.rows:
        row = asdict(cost) | {"provider": offer.provider, "card": offer.card, "cards": offer.cards, "current": current}
        row |= {"date": offer.date or None, "countries": offer.countries, "source": offer.source}
        row["break_even"] = asdict(even) if even else None
        for each in () if explain else filter(None, (row, row["break_even"])):
            each.pop("steps")
        rows.append(row)
    wanted = answer.wanted
    return {
        "wanted": {"cards": wanted.cards, "currency": wanted.currency, "load": wanted.load, "speed": wanted.speed},
        "rows": rows,
        "against": answer.api,
        "rates": wanted.rates,
        "notes": [*_against(answer), *_notes(answer)],
    }
