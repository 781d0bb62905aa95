"""freehold doctor: whether this machine has what serving needs."""

from __future__ import annotations

from pathlib import Path

import click


@click.command("doctor")
@click.option("--json", "as_json", is_flag=True, help="Print the checks as JSON.")
@click.pass_context
def command(context: click.Context, as_json: bool) -> None:
    """Check what this machine has and lacks.

    Python, CPU, memory, libraries, isolation, cards, disk and port.

    Exit status 0: it can serve (warnings included), 1: a check failed.
    """
    import msgspec

    from freehold.fleet.config import Config, load
    from freehold.fleet.doctor import checks

    config = load(context.obj) if context.obj.exists() else Config()
    found = checks(listen=config.server.listen, state=Path(config.state_dir))
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(found)).decode())
    else:
        for check in found:
            click.echo(f"{check.state.upper():4}  {check.name:14}  {check.found}")
            if check.fix:
                click.echo(f"{'':20}  -> {check.fix}")
    if any(check.state == "fail" for check in found):
        context.exit(1)
