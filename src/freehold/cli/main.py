"""The command line. Each command's file is small and imports its room when it runs, so help stays quick."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path

import click

from freehold import __version__
from freehold.errors import FreeholdError

COMMANDS = (
    *("plan", "models", "show", "compare", "cost", "quantization", "scores"),
    *("up", "down", "serve", "ps", "logs", "start", "stop"),
    *("engine", "adapters"),
    *("pull", "verify", "pin", "keys", "usage", "audit", "doctor", "harden", "schema", "completion"),
)


class _InOrder(click.Group):
    """Commands in the order a newcomer needs them."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        return import_module(f"freehold.cli.{cmd_name}").command if cmd_name in COMMANDS else None


@click.group(cls=_InOrder, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="freehold")
@click.option(
    "-c",
    "--config",
    type=click.Path(path_type=Path),
    default=Path("freehold.toml"),
    envvar="FREEHOLD_CONFIG",
    show_default=True,
    help="What this team wants to run.",
)
@click.pass_context
def cli(ctx: click.Context, config: Path) -> None:
    """From constraints to a verified, metered LLM endpoint on hardware you control.

    Exit codes: 0 done, 1 unforeseen, 2 wrong use or configuration, 3 refused, 4 does not fit, 5 engine not ready,
    6 no daemon.
    """
    ctx.obj = config


def main() -> None:
    """Run it; an error of ours becomes two lines and its exit code."""
    try:
        cli()
    except FreeholdError as error:
        from freehold.cli.tables import printable

        click.echo(printable(f"error: {error}"), err=True)
        if error.hint:
            click.echo(printable(f" hint: {error.hint}"), err=True)
        sys.exit(error.exit_code)
