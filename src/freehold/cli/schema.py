"""`freehold schema`: the configuration file as a JSON Schema."""

from __future__ import annotations

import json

import click


@click.command
def command() -> None:
    """Print the JSON Schema of freehold.toml."""
    from freehold.fleet.config import schema

    click.echo(json.dumps(schema(), indent=2))
