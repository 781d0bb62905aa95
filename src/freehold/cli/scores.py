"""`freehold scores`: what was measured, by whom, and who ranks where; nothing is averaged across measurers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from freehold.fleet.config import Config
    from freehold.plan.scores import Scores

_TASKS = ("reasoning", "coding", "agentic", "maths", "instruction", "long-context")


class _Views(click.Group):
    """The views are a command of their own, `show`, which need not be named."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        named = args and (args[0] in self.commands or args[0] in ctx.help_option_names)
        return super().parse_args(ctx, args if named else ["show", *args])


@click.group(cls=_Views)
def command() -> None:
    """Scores of models, each with who measured it and how; `freehold scores --task coding` is short for `show`."""


@command.command
@click.option("--task", type=click.Choice(_TASKS), help="What the models are compared for.")
@click.option("--lang", metavar="LANGUAGE", help="A European language: de or german.")
@click.option("--model", metavar="NAME", help="Everything that is known of one model.")
@click.option("--cohort", metavar="ID", help="One cohort in full.")
@click.option("--publisher", is_flag=True, help="Publishers' own figures, ranked among themselves.")
@click.option("--sources", is_flag=True, help="Where each figure is from.")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
@click.pass_obj
def show(config_path: Path, *, as_json: bool, sources: bool, publisher: bool, **asked: str | None) -> None:
    """Show scores: by task, by language, of one model, of one cohort; or an overview of what there is."""
    from freehold.cli import scoreboard
    from freehold.cli.known import known
    from freehold.cli.tables import printable

    views = {name: value for name, value in asked.items() if value is not None}
    if len(views) > 1:
        raise click.UsageError(f"--{' and --'.join(views)} are different views: give one of them")
    catalogue, config = known(config_path)
    view, value = next(iter(views.items()), ("overview", ""))
    scores = everything(config)
    page = scoreboard.views(scores, catalogue, view, value, publisher=publisher)
    click.echo(page.json() if as_json else printable(page.render(sources=sources)))


@command.command("import")
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--replace", "replacing", is_flag=True, help="In place of the import of that name.")
@click.pass_obj
def import_(config_path: Path, file: Path, *, replacing: bool) -> None:
    """Keep a table of scores in the book: your own, or what you have a licence for.

    FILE is CSV with the columns of catalogue/scores: model_id, benchmark, variant, value, setting, measured_by, kind,
    source, date, note, unit, trust. A bad line is named, and then nothing is imported.
    """
    from freehold.catalogue import load, scores
    from freehold.cli.daemon import project, report
    from freehold.cli.tables import printable
    from freehold.errors import BadRequest
    from freehold.plan.cohorts import MOST_BYTES, read, rows

    name = _name(file)
    if file.stat().st_size > MOST_BYTES:
        raise BadRequest(f"{file} is larger than {MOST_BYTES >> 20} MiB", hint="split the table")
    try:
        text = file.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadRequest(f"{file} is not UTF-8: {error}", hint="save the table as CSV in UTF-8") from None
    config, _ = project(config_path)
    if not replacing and name in {each.name for each in imports(config)}:
        raise BadRequest(f"there is an import called {name!r}", hint="--replace takes its place; or name the file anew")
    catalogue = load()
    models = {each.id for each in (*catalogue.models, *catalogue.known)} | set(config.models)
    table, faults = rows(text)
    found, more = read(table, scores().benchmarks, models, own=True)
    faults += more
    if faults or not found:
        for fault in sorted(faults, key=lambda each: each.line)[:100]:
            click.echo(printable(f"{file.name} {fault}"), err=True)
        said = f"{len(faults):,} bad lines" if faults else "no line with a score"
        raise BadRequest(f"{file} has {said}: nothing was imported", hint="mend them, and import it again")
    detail = {"count": len(found), "cohorts": len({cohort.id for cohort, _ in found}), "file": file.name}
    report(config, "scores.imported", name, detail, scores=text)
    click.echo(f"imported {len(found):,} scores in {detail['cohorts']:,} cohorts as {name!r}, marked `own`")


@command.command
@click.argument("name")
@click.pass_obj
def remove(config_path: Path, name: str) -> None:
    """Take the import NAME out of the book; the trail keeps that it was there."""
    from freehold.cli.daemon import project, report
    from freehold.errors import Unknown

    config, _ = project(config_path)
    there = [each.name for each in imports(config)]
    if name not in there:
        raise Unknown(f"no import is called {name!r}", hint=f"there are: {', '.join(there) or 'none'}")
    report(config, "scores.removed", name, {})
    click.echo(f"removed {name!r}")


def _name(file: Path) -> str:
    import re

    from freehold.errors import BadRequest

    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._ -]{0,60}", file.stem):
        raise BadRequest("an import is called as its file, and that is no name", hint="letters, digits, - _ . in it")
    return file.stem


def imports(config: Config | None) -> list[Any]:
    """The imports of the book; none where there is no book."""
    from freehold.errors import Unknown
    from freehold.ledger import report

    try:
        if config:
            with report.reading(Path(config.state_dir)) as db:
                return report.imported_scores(db)
    except Unknown:
        pass  # nothing was written yet
    return []


def everything(config: Config | None) -> Scores:
    """What ships, and what the book has. A row that this edition cannot read any more is left out."""
    from freehold.catalogue import scores
    from freehold.plan.cohorts import read, rows

    known = scores()
    own = [
        entry for each in imports(config) for entry in read(rows(each.content)[0], known.benchmarks, None, own=True)[0]
    ]
    return (
        known.with_more({(cohort.id, s.model, s.served): (cohort, s) for cohort, s in own}.values()) if own else known
    )
