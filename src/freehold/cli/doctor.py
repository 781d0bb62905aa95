"""freehold doctor: whether this machine has what serving needs, and how fast its memory is."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from freehold.fleet.config import Config
    from freehold.fleet.doctor import Check


@click.command("doctor")
@click.option("--measure", is_flag=True, help="Measure the memory's speed again.")
@click.option("--json", "as_json", is_flag=True, help="Print the checks as JSON.")
@click.pass_context
def command(context: click.Context, measure: bool, as_json: bool) -> None:
    """Check what this machine has and lacks.

    Python, CPU, memory, libraries, isolation, cards, disk and port. The speed of the memory is measured the first time,
    which takes a second, and kept in the book of the team whose freehold.toml this is: plans for this machine use it.

    Exit status 0: it can serve (warnings included), 1: a check failed.
    """
    import msgspec

    from freehold.fleet.config import Config, load
    from freehold.fleet.doctor import checks

    config = load(context.obj) if context.obj.exists() else None
    own = config or Config()
    found = checks(listen=own.server.listen, state=Path(own.state_dir))
    found = [*found[:2], _memory_speed(config, context.obj, again=measure), *found[2:]]
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(found)).decode())
    else:
        for check in found:
            click.echo(f"{check.state.upper():4}  {check.name:14}  {check.found}")
            if check.fix:
                click.echo(f"{'':20}  -> {check.fix}")
    if any(check.state == "fail" for check in found):
        context.exit(1)


def _memory_speed(config: Config | None, path: Path, *, again: bool) -> Check:
    """As the book has it; else measured now, and kept there."""
    from msgspec.structs import asdict

    from freehold.cli.daemon import report
    from freehold.cli.tables import moment
    from freehold.errors import FreeholdError, Unknown
    from freehold.fleet.bandwidth import measure
    from freehold.fleet.doctor import check_memory_speed
    from freehold.fleet.host import probe
    from freehold.ledger.measured import memory
    from freehold.ledger.report import reading

    host, known = probe(), None
    unkept = "" if config else f"there is no {path} here: run it in the folder of a team, where plans are made"
    if config:
        try:
            with reading(Path(config.state_dir)) as db:
                known = memory(db, host)
        except Unknown:
            pass  # there is no book yet
        except FreeholdError as error:
            unkept = f"{error}; {error.hint}"
    if known is None or again:
        known = measure(host, time.time_ns())
        if config and not unkept:
            try:
                report(config, "machine.measured", host.name, asdict(known))
            except (FreeholdError, OSError) as error:  # no reason not to show the rest
                unkept = str(error)
    return check_memory_speed(known, moment(known.at_ns), unkept)
