"""freehold verify: whether a model's files may be served, and what is known of them."""

from __future__ import annotations

from os.path import normpath
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from freehold.types import Verdict


@click.command("verify")
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--pin", metavar="DIGEST", help="The digest these files must have; default: the one the book holds.")
@click.option("--accept", is_flag=True, help="Pin what is there now, in place of the pin that the book holds.")
@click.option("--json", "as_json", is_flag=True, help="Print the verdict as JSON.")
@click.pass_context
def command(context: click.Context, path: Path, pin: str | None, accept: bool, as_json: bool) -> None:
    """Check weights and compare them with a pin.

    PATH is a file or a folder. Offline; nothing in the files is run. Exit status 0: accepted, 3: refused.
    """
    import msgspec

    from freehold.weights import verify

    verdict = verify(path, pin if accept else pin or _book_pin(context.obj, path))
    click.echo(msgspec.json.format(msgspec.json.encode(verdict)).decode() if as_json else _render(verdict))
    if not verdict.accepted:
        context.exit(3)
    if accept:
        _accept(context.obj, path, verdict.digest)


def _book_pin(config_path: Path, path: Path) -> str | None:
    """What this team's book says of these weights, if there is a team and it says anything."""
    from freehold.errors import BadConfig, Unknown
    from freehold.fleet.config import load
    from freehold.ledger import report

    try:
        with report.reading(Path(load(config_path).state_dir)) as book:
            return report.pin(book, _subject(path))
    except (BadConfig, Unknown):
        return None


def _accept(config_path: Path, path: Path, digest: str) -> None:
    from freehold.cli.daemon import project

    _, daemon = project(config_path)
    daemon.ask("POST", "/pins", {"subject": _subject(path), "digest": digest})
    click.echo(f"pinned: {digest}")


def _subject(path: Path) -> str:
    """The name the book knows these weights by: links are not followed."""
    return normpath(Path.cwd() / path)


def _render(verdict: Verdict) -> str:
    lines = [verdict.subject]
    lines += [f"  sha256 {each.sha256}  {each.size_bytes:>15,} bytes  {each.path}" for each in verdict.artifacts]
    lines += [f"digest of this list {verdict.digest}"] if verdict.digest else []
    for finding in verdict.findings:
        lines += [f"  {finding.path}: {finding.why} [{finding.rule}]", f"    -> {finding.fix}"]
    if not verdict.accepted:
        return "\n".join([*lines, f"REFUSED: {len(verdict.findings)} finding(s)"])
    if verdict.pinned == "pinned":
        lines.append("ACCEPTED, PINNED: well-formed, and exactly the files that were pinned.")
    else:
        lines.append("ACCEPTED, UNPINNED: well-formed, but nothing says that these are the files you meant.")
        lines.append(f"  Compare each file's sha256 with its publisher's, then hold them to it: --pin {verdict.digest}")
    lines.append("No check finds poisoned weights or a subtle backdoor: that takes a publisher you trust, and a pin.")
    return "\n".join(lines)
