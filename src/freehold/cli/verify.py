"""freehold verify: whether a model's files may be served, and what is known of them."""

from __future__ import annotations

from os.path import normpath
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from freehold.types import Finding, Verdict


@click.command("verify")
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--pin", metavar="DIGEST", help="The digest these files must have; default: the one the book holds.")
@click.option("--require-pin", is_flag=True, help="Refuse them when nothing says which files they must be.")
@click.option("--manifest", type=click.Path(path_type=Path), help="A signed list of the files they must be.")
@click.option("--key", metavar="PUBLIC", help="Who must have signed that: 64 hexadecimal digits.")
@click.option("--base", type=click.Path(path_type=Path), help="Of an adapter: the weights it must fit.")
@click.option("--json", "as_json", is_flag=True, help="Print the verdict as JSON.")
@click.pass_context
def command(
    context: click.Context, path: Path, pin: str | None, *, require_pin: bool, as_json: bool, **more: Any
) -> None:
    """Check weights and compare them with a pin.

    PATH is a file or a folder. Offline; nothing in the files is run. Exit status 0: accepted, 3: refused.
    """
    import msgspec

    verdict = judge(path, pin or _book_pin(context.obj, path), require_pin=require_pin, **more)
    click.echo(msgspec.json.format(msgspec.json.encode(verdict)).decode() if as_json else render(verdict))
    if not verdict.accepted:
        context.exit(3)


def judge(
    path: Path, pin: str | None, *, manifest: Path | None, key: str | None, base: Path | None, require_pin: bool = False
) -> Verdict:
    """Hold the files to all that was said of them."""
    from freehold.weights import verify
    from freehold.weights.manifest import load

    if key and not manifest:
        raise click.UsageError("--key says who must have signed --manifest: give both")
    meant = load(manifest, key) if manifest else None
    return verify(path, pin, meant, base=base, require_pin=require_pin)


def subject(path: Path) -> str:
    """The name the book knows these weights by: links are not followed."""
    return normpath(Path.cwd() / path)


def render(verdict: Verdict) -> str:
    lines = [verdict.subject]
    lines += [f"  sha256 {each.sha256}  {each.size_bytes:>15,} bytes  {each.path}" for each in verdict.artifacts]
    lines += [f"digest of this list {verdict.digest}"] if verdict.digest else []
    refusing = [each for each in verdict.findings if not each.review]
    lines += [line for each in refusing for line in _said(each)]
    if reviews := [each for each in verdict.findings if each.review]:
        lines += ["For a person to look at; it refuses nothing:", *(line for each in reviews for line in _said(each))]
    if not verdict.accepted:
        return "\n".join([*lines, f"REFUSED: {len(refusing)} finding(s)"])
    if verdict.pinned == "pinned":
        lines.append("ACCEPTED, PINNED: well-formed, and exactly the files that were pinned.")
    else:
        lines.append("ACCEPTED, UNPINNED: well-formed, but nothing says that these are the files you meant.")
        lines.append(f"  Compare each file's sha256 with its publisher's, then hold them to it: --pin {verdict.digest}")
    lines.append("No check finds poisoned weights or a subtle backdoor: that takes a publisher you trust, and a pin.")
    return "\n".join(lines)


def _said(finding: Finding) -> tuple[str, str]:
    return f"  {finding.path}: {finding.why} [{finding.rule}]", f"    -> {finding.fix}"


def _book_pin(config_path: Path, path: Path) -> str | None:
    """What this team's book says of these weights, if there is a team and it says anything."""
    from freehold.errors import BadConfig, Unknown
    from freehold.fleet.config import load
    from freehold.ledger import report

    try:
        with report.reading(Path(load(config_path).state_dir)) as book:
            return report.pin(book, subject(path))
    except (BadConfig, Unknown):
        return None
