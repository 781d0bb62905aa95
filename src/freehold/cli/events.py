"""`freehold events`: what changed, by whom, and whether the record of it is whole."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import click


@click.command
@click.option("-n", "--last", type=click.IntRange(min=1), default=50, show_default=True, help="How many.")
@click.option("--json", "as_json", is_flag=True, help="For programs: a JSON object a line.")
@click.pass_context
def command(context: click.Context, last: int, as_json: bool) -> None:
    """Show what changed and check the hash chain.

    Exit status 3: the chain does not hold.
    """
    from freehold.cli.daemon import project
    from freehold.cli.tables import moment, printable
    from freehold.errors import NoDaemon
    from freehold.ledger import report

    config, daemon = project(context.obj)
    with contextlib.suppress(NoDaemon):  # then the book has it all
        daemon.ask("POST", "/flush")
    with report.reading(Path(config.state_dir)) as book:
        events, broken = report.events(book, last), report.chain_break(book)
    for event in events:
        detail = json.dumps(event["detail"])
        line = f"{moment(event['at_ns'])}  {event['kind']:<18} {event['subject']}  by {event['actor']}  {detail}"
        click.echo(json.dumps(event) if as_json else printable(line))
    if broken:
        click.echo(f"BROKEN: event {broken} does not follow from those before it", err=True)
        context.exit(3)
    if not as_json:
        click.echo("the chain of all events holds (that its end was not cut off only a copy kept elsewhere can show)")
