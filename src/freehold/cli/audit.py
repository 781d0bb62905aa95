"""`freehold audit`: what happened, and whether the record of it is as it was written."""

from __future__ import annotations

import contextlib
import json
import re
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    import sqlite3

WITHOUT = (
    "Without a checkpoint that was kept elsewhere nobody can see that the end was cut off, or that all of it was "
    "written anew: freehold audit verify --checkpoint FILE"
)
LONGEST_DETAIL = 300  # characters in a line of the log
SHOWN = 200  # findings; then it stops: where nothing fits, each of them takes long


@click.group
def command() -> None:
    """Show what happened, and check the record of it."""


@command.command
@click.option("--since", help="From this day (UTC) on, or so long ago: 2026-11-01, 2h, 7d.")
@click.option("--kind", default="*", help="Events of this kind, a glob: 'weights.*'.")
@click.option("--subject", default="*", help="About this, a glob.")
@click.option("-n", "--last", type=click.IntRange(min=1), default=50, show_default=True, help="How many.")
@click.option("--json", "as_json", is_flag=True, help="For programs: a JSON object a line.")
@click.pass_obj
def log(config_path: Path, since: str | None, kind: str, subject: str, last: int, as_json: bool) -> None:  # noqa: PLR0917
    """Show what happened, when and by whom.

    Details are cut at 300 characters; --json has all of them.
    """
    from freehold.cli.tables import moment, printable
    from freehold.ledger import report

    since_ns = _moment_ns(since, "--since") if since else 0
    with _book(config_path) as (_, book):
        events = report.events(book, last, since_ns=since_ns, kind=kind, subject=subject)
    for event in events:
        detail = _cut(json.dumps(event["detail"], ensure_ascii=False))
        line = f"{moment(event['at_ns'])}  {event['kind']:<18} {event['subject']}  by {event['actor']}  {detail}"
        click.echo(json.dumps(event) if as_json else printable(line))


@command.command
@click.option(
    "--checkpoint", type=click.Path(path_type=Path), help="Checkpoints that were kept elsewhere, a line each."
)
@click.option("--key", metavar="PUBLIC", help="Who must have signed them: 64 hexadecimal digits.")
@click.pass_context
def verify(context: click.Context, checkpoint: Path | None, key: str | None) -> None:
    """Check that everything in the book is as it was written.

    Needs no daemon. Exit status 3: something is not, or the book cannot be read.
    """
    from freehold.cli.tables import printable
    from freehold.ledger.audit import Audit

    if key and (not checkpoint or not re.fullmatch("[0-9a-f]{64}", key)):
        raise click.UsageError("--key is 64 hexadecimal digits, and says who must have signed --checkpoint")
    with _book(context.obj) as (state, book):
        audit = Audit(book, state)
        count = 0
        for found in islice(audit.breaks(), SHOWN):
            count += 1
            click.echo(printable(f"{found.kind.upper():<11} {found.where}: {found.why}"))
        if count == SHOWN:
            click.echo("so many that it stops here; of what it has seen so far")
        click.echo(f"{audit.events:,} events and {audit.rows:,} usage rows are as they were written")
        if checkpoint:
            count += _compare(book, state, checkpoint, key)
    if not checkpoint:
        click.echo(WITHOUT)
    if count:
        click.echo(f"BROKEN: {count:,} finding(s)", err=True)
        context.exit(3)
    click.echo("the trail holds")


@command.command
@click.pass_obj
def checkpoint(config_path: Path) -> None:
    """Print a signed checkpoint of the book as it is now."""
    from freehold.cli.daemon import project
    from freehold.errors import NoDaemon
    from freehold.ledger import report
    from freehold.ledger.checkpoint import sign, state_of
    from freehold.ledger.signing import signer

    config, daemon = project(config_path)
    state = Path(config.state_dir)
    try:
        line = json.dumps(daemon.ask("POST", "/checkpoints"), separators=(",", ":"))
    except NoDaemon:
        with report.reading(state, exact=True) as book:
            line = sign(state_of(book), signer(state)).line.decode().strip()
    click.echo(line)


@command.command
@click.argument("request")
@click.pass_obj
def content(config_path: Path, request: str) -> None:
    """Show the question and the answer of REQUEST, where its key asked to keep them.

    REQUEST is what the answer's header x-request-id said. An event says who read it.
    """
    from freehold.cli.daemon import project, report
    from freehold.cli.tables import moment, printable
    from freehold.errors import Unknown
    from freehold.ledger.report import content

    with _book(config_path) as (_, book):
        kept = content(book, request)
    if kept is None:
        hint = "only keys made with --keep-content keep it, for that time; REQUEST is the answer's header x-request-id"
        raise Unknown(f"nothing is kept of {request}", hint=hint)
    report(project(config_path)[0], "content.read", request, {})  # before it is seen, so that no sight goes unrecorded
    for part in (kept.question, kept.answer):
        click.echo(printable(part.decode(errors="replace")) + "\n")
    click.echo(f"(deleted after {moment(kept.until_ns)})")


@command.command
@click.option("--before", required=True, help="What is older than this day (UTC), or so long ago: 2026-11-01, 90d.")
@click.option("--usage", is_flag=True, help="Records of requests, and what was kept of them.")
@click.option("--events", is_flag=True, help="What events say; not the seals and deletions that the check rests on.")
@click.option("--content", is_flag=True, help="Questions and answers that were kept.")
@click.option("--key", metavar="NAME", help="Only those of this key, by name or id.")
@click.pass_obj
def delete(config_path: Path, before: str, key: str | None, **what: bool) -> None:
    """Delete from the book for good; hashes stay, and an event says what, when and by whom."""
    from freehold.cli.daemon import project

    if not any(what.values()):
        raise click.UsageError("say what: --usage, --events, --content")
    _, daemon = project(config_path)
    before_ns = _moment_ns(before, "--before")
    names = [name for name, asked in what.items() if asked]
    ask = {"what": names, "before_ns": before_ns, "key": key}
    answer = daemon.ask("POST", "/deletions", ask, timeout_s=None)  # a large book is written anew
    for name, count in zip(names, answer["deleted"], strict=True):
        click.echo(f"deleted {count:,} of {name}")


def _compare(book: sqlite3.Connection, state: Path, path: Path, key: str | None) -> int:
    """Hold the book against checkpoints; returns how much is wrong."""
    from freehold.cli.tables import moment, printable
    from freehold.errors import Unknown
    from freehold.ledger.audit import against
    from freehold.ledger.follow import Break

    public = key or _own_key(state)
    whose = {
        "": "WHO SIGNED IS NOT KNOWN: no --key, and no signing key beside the book",
        key: "signed by the key that you gave",
    }.get(public, f"signed by the key beside this book ({public}): whoever can write the book may have it; see --key")
    bad, last = 0, None
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise Unknown(
            f"no checkpoints in {path}: {error.strerror}", hint="freehold audit checkpoint makes one"
        ) from None
    for found in against(book, lines, public or None):
        if isinstance(found, Break):
            bad += 1
            click.echo(printable(f"{found.kind.upper():<11} {found.where}: {found.why}"))
        else:
            last = found
    if last:
        click.echo(f"up to event {last.event} it is what it was at {moment(last.at_ns)}, by a checkpoint {whose}")
        click.echo("what came after that, no checkpoint here can show")
    elif not bad:
        raise Unknown(f"no checkpoint in {path}", hint="freehold audit checkpoint makes one")
    return bad


def _own_key(state: Path) -> str:
    from freehold.ledger.signing import signer

    return signer(state).public if (state / "signing.key").exists() else ""


@contextlib.contextmanager
def _book(config_path: Path) -> Iterator[tuple[Path, Any]]:
    """The state folder and the book, with everything that has happened in it if a daemon runs."""
    from freehold.cli.daemon import project
    from freehold.errors import NoDaemon
    from freehold.ledger import report

    config, daemon = project(config_path)
    with contextlib.suppress(NoDaemon):  # then the book has it all
        daemon.ask("POST", "/flush")
    state = Path(config.state_dir)
    with report.reading(state, exact=True, making=lambda: _held(state)) as book:
        yield state, book


def _held(state: Path) -> bool:
    """Whether somebody writes the book, or is about to make it."""
    from freehold.errors import Refused
    from freehold.gateway.rundir import lock

    try:
        with lock(state):
            return False
    except Refused:
        return True


def _cut(detail: str) -> str:
    return detail if len(detail) <= LONGEST_DETAIL else f"{detail[:LONGEST_DETAIL]}... (--json has all)"


def _moment_ns(text: str, option: str) -> int:
    from freehold.cli.tables import span_ns

    if (ago_ns := span_ns(text)) is not None:
        return max(0, time.time_ns() - ago_ns)
    try:
        return int(datetime.strptime(text, "%Y-%m-%d").replace(tzinfo=UTC).timestamp()) * 10**9
    except ValueError:
        raise click.BadParameter(f"{text!r}: write 2026-11-01, 7d, 2h", param_hint=option) from None
