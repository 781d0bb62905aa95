"""`freehold models`: the open-weight models that are known, with what they may be used for."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from collections.abc import Iterable

    from freehold.catalogue import Catalogue
    from freehold.facts import Model

_SORTS = {
    "name": lambda model: model.id,
    "size": lambda model: -(total(model) or 0),
    "active": lambda model: -(active(model) or 0),
    "context": lambda model: -model.context.native,
    "date": lambda model: -int(model.released.replace("-", "") or 0),
    "publisher": lambda model: (model.publisher, model.id),
}


@click.command
@click.option("--family", metavar="TEXT", help="Families whose name holds this.")
@click.option("--publisher", metavar="TEXT", help="Publishers whose name holds this.")
@click.option("--country", "countries", metavar="CODE", multiple=True, help="Home of the publisher, for example FR.")
@click.option("--licence", metavar="TEXT", help="Licences whose id holds this.")
@click.option("--commercial", type=click.Choice(["yes", "conditional", "no", "unknown"]), help="Commercial use.")
@click.option("--min-size", type=click.FloatRange(0), metavar="B", help="Parameters in all, in billions, at least.")
@click.option("--max-size", type=click.FloatRange(0), metavar="B", help="Parameters in all, in billions, at most.")
@click.option("--max-active", type=click.FloatRange(0), metavar="B", help="Parameters a token touches, at most.")
@click.option("--context", type=click.IntRange(1), metavar="TOKENS", help="Native context, at least.")
@click.option("--since", type=click.DateTime(["%Y-%m-%d"]), help="Released on this day or later.")
@click.option("--sort", type=click.Choice(list(_SORTS)), default="name", show_default=True)
@click.option("--known", is_flag=True, help="Also those of which only the dimensions are known.")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
@click.pass_obj
def command(  # noqa: PLR0917  click passes them by name
    config: Path, family: str | None, publisher: str | None, countries: tuple[str, ...], licence: str | None,
    commercial: str | None, min_size: float | None, max_size: float | None, max_active: float | None,
    context: int | None, since: datetime | None, sort: str, known: bool, as_json: bool,
) -> None:  # fmt: skip
    """List the models of the catalogue.

    Every option narrows the list; sizes are counted from the dimensions, embeddings included.
    """
    from freehold.cli.known import known as what_is_known

    catalogue, _ = what_is_known(config)
    everything = (*catalogue.models, *(catalogue.known if known else ()))
    uses = commercial_uses(everything, catalogue)

    def wanted(model: Model) -> bool:
        size, used = total(model), active(model)
        return all(
            (
                not family or family.casefold() in model.family.casefold(),
                not publisher or publisher.casefold() in model.publisher.casefold(),
                not countries or {each.upper() for each in countries} & {*model.publisher_country.split("/")},
                not licence or licence.casefold() in model.licence.id,
                not commercial or uses[model.id] == commercial,
                min_size is None or (size is not None and size >= min_size * 1e9),
                max_size is None or (size is not None and size <= max_size * 1e9),
                max_active is None or (used is not None and used <= max_active * 1e9),
                context is None or model.context.native >= context,
                since is None or model.released >= since.date().isoformat(),
            )
        )

    _show(sorted(filter(wanted, everything), key=_SORTS[sort]), uses, as_json)


def total(model: Model) -> int | None:
    """All parameters: counted, else as in the checkpoint, else as published."""
    return model.parameters.total or model.parameters.checkpoint or model.parameters.published


def active(model: Model) -> int | None:
    """Parameters one token touches: counted, else published; all, without experts."""
    stated = model.parameters.active or model.parameters.published_active
    return stated or (None if model.moe else total(model))


def commercial_uses(models: Iterable[Model], catalogue: Catalogue) -> dict[str, str]:
    """By id, as their licences say; unknown where only a tag at the hub names the licence: nobody read it."""
    allowed = {each.id: each.commercial_use for each in catalogue.licences}
    return {each.id: allowed[each.licence.id] if each.licence.read else "unknown" for each in models}


def billions(count: int | None) -> str:
    return f"{count / 1e9:,.1f}B" if count else "-"


def _show(models: list[Model], uses: dict[str, str], as_json: bool) -> None:
    import json

    from freehold.cli.tables import table

    fields = ("id", "repo", "family", "publisher", "publisher_country", "released", "architecture", "ready")
    if as_json:
        rows = [
            {field: getattr(model, field) for field in fields}
            | {"total": total(model), "active": active(model), "context": model.context.native}
            | {"licence": model.licence.id, "commercial_use": uses[model.id]}
            for model in models
        ]
        click.echo(json.dumps(rows, indent=2))
        return
    heads = ("MODEL", "TOTAL", "ACTIVE", "CONTEXT", "LICENCE", "COMMERCIAL", "FROM", "RELEASED")
    body = [
        (
            model.id, billions(total(model)), billions(active(model)), f"{model.context.native:,}", model.licence.id,
            uses[model.id], model.publisher_country, model.released or "unknown",
        )
        for model in models
    ]  # fmt: skip
    click.echo(table(heads, body))
    click.echo(f"\n{len(models)} models; freehold show MODEL says more of one, with its sources")
