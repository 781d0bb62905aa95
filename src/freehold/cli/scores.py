"""`freehold scores`: what was measured, by whom, and who ranks where; nothing is averaged across measurers."""

from __future__ import annotations

import re
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from freehold.fleet.config import Config
    from freehold.ledger.report import Imported
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
    import msgspec

    from freehold.cli.known import known
    from freehold.cli.scoreboard import Board
    from freehold.cli.tables import printable

    views = {name: value for name, value in asked.items() if value is not None}
    if len(views) > 1:
        raise click.UsageError(f"--{' and --'.join(views)} are different views: give one of them")
    catalogue, config = known(config_path)
    view, value = next(iter(views.items()), ("overview", ""))
    content, text = Board(everything(config), catalogue, publisher=publisher, sources=sources).page(view, value)
    click.echo(msgspec.json.format(msgspec.json.encode(content)) if as_json else printable(text))


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

    name = file.stem
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._ -]{0,60}", file.name):
        raise BadRequest("an import is called as its file, and that is no name", hint="letters, digits, - _ . in it")
    with file.open("rb") as opened:
        content = opened.read(MOST_BYTES + 1)  # a device has no size
    if len(content) > MOST_BYTES:
        raise BadRequest(f"{file} is larger than {MOST_BYTES >> 20} MiB", hint="split the table")
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        raise BadRequest(f"{file} is not UTF-8: {error}", hint="save the table as CSV in UTF-8") from None
    config, _ = project(config_path)
    there = imports(config)
    if not replacing and name in {each.name for each in there}:
        raise BadRequest(f"there is an import called {name!r}", hint="--replace takes its place; or name the file anew")
    catalogue, beside = load(), with_imports(scores(), [each for each in there if each.name != name])
    models = {each.id for each in (*catalogue.models, *catalogue.known)} | set(config.models)
    table, faults = rows(text)
    found, more = read(table, beside.benchmarks, models, own=True, beside=beside)
    faults += more
    if faults or not found:
        for fault in sorted(faults, key=lambda each: each.line)[:100]:
            click.echo(printable(f"{file.name} {fault}"), err=True)
        said = f"{len(faults):,} bad line{'s' * (len(faults) > 1)}" if faults else "no line with a score"
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


def imports(config: Config | None) -> list[Imported]:
    """Those of the book; none where there is no book."""
    from freehold.errors import Unknown
    from freehold.ledger import report

    with suppress(Unknown):  # nothing was written yet
        if config:
            with report.reading(Path(config.state_dir)) as db:
                return report.imported_scores(db)
    return []


def with_imports(known: Scores, imports: Iterable[Imported]) -> Scores:
    """What ships, and these. A row that this edition cannot read any more is left out."""
    from freehold.plan.cohorts import read, rows

    for each in imports:
        known = known.with_more(read(rows(each.content)[0], known.benchmarks, None, own=True, beside=known)[0])
    return known


def everything(config: Config | None) -> Scores:
    """What ships, and what the book has."""
    from freehold.catalogue import scores

    return with_imports(scores(), imports(config))
