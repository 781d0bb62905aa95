"""freehold verify: whether a model's files may be served, and what is known of them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from freehold.types import Verdict


@click.command("verify")
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--pin", metavar="DIGEST", help="The digest these files must have, as an earlier verify printed it.")
@click.option("--json", "as_json", is_flag=True, help="Print the verdict as JSON.")
@click.pass_context
def command(context: click.Context, path: Path, pin: str | None, as_json: bool) -> None:
    """Check the weights at PATH, a file or a folder, and compare them with a pin.

    Offline; nothing in the files is run. Exit status 0: accepted, 3: refused.
    """
    import msgspec

    from freehold.weights import verify

    verdict = verify(path, pin)
    click.echo(msgspec.json.format(msgspec.json.encode(verdict)).decode() if as_json else _render(verdict))
    if not verdict.accepted:
        context.exit(3)


def _render(verdict: Verdict) -> str:
    lines = [verdict.subject]
    lines += [f"  {each.sha256[:12]}  {each.size_bytes:>17,} bytes  {each.path}" for each in verdict.artifacts]
    lines += [f"digest {verdict.digest}"] if verdict.digest else []
    for finding in verdict.findings:
        lines += [f"  {finding.path}: {finding.why} [{finding.rule}]", f"    -> {finding.fix}"]
    if not verdict.accepted:
        return "\n".join([*lines, f"REFUSED: {len(verdict.findings)} finding(s)"])
    if verdict.pinned == "pinned":
        lines.append("ACCEPTED, PINNED: well-formed, and exactly the files that were pinned.")
    else:
        lines.append("ACCEPTED, UNPINNED: well-formed, but nothing says that these are the files you meant.")
        lines.append(f"  Pin them with --pin {verdict.digest}")
    lines.append("No check finds poisoned weights or a subtle backdoor: that takes a publisher you trust, and a pin.")
    return "\n".join(lines)
