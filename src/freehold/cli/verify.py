"""freehold verify: whether a model's files may be served, and what is known of them."""

from __future__ import annotations

import contextlib
from os.path import normpath
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from freehold.types import Finding, Manifest, Verdict


@click.command("verify")
@click.argument("path", type=click.Path(path_type=Path))
@click.option(
    "--pin", metavar="DIGEST", help="The digest these files must have; default: that of freehold.toml or the book."
)
@click.option("--require-pin", is_flag=True, help="Refuse them when nothing says which files they must be.")
@click.option("--manifest", type=click.Path(path_type=Path), help="A signed list of the files they must be.")
@click.option(
    "--key", metavar="PUBLIC", help="Who must have signed that, as 64 hexadecimal digits; default: this team."
)
@click.option("--base", type=click.Path(path_type=Path), help="Of an adapter: the weights it must fit.")
@click.option("--json", "as_json", is_flag=True, help="Print the verdict as JSON.")
@click.pass_context
def command(
    context: click.Context,
    path: Path,
    pin: str | None,
    *,
    require_pin: bool,
    manifest: Path | None,
    key: str | None,
    base: Path | None,
    as_json: bool,
) -> None:
    """Check weights and compare them with a pin.

    PATH is a file or a folder. Offline; nothing in the files is run. Exit status 0: accepted, 3: refused.
    """
    import msgspec

    from freehold.weights import verify

    meant = signed(context.obj, manifest, key)
    pin = pin or expected(context.obj, path)
    verdict = verify(path, pin, meant, base=base, require_pin=require_pin)
    click.echo(msgspec.json.format(msgspec.json.encode(verdict)).decode() if as_json else render(verdict))
    if not verdict.accepted:
        context.exit(3)


def signed(config_path: Path, manifest: Path | None, key: str | None) -> Manifest | None:
    """The list of files that `key` signed; without a key, this team. Raises Refused for anybody else's."""
    from freehold.errors import BadConfig
    from freehold.fleet.config import load as load_config
    from freehold.ledger.signing import signer
    from freehold.weights.manifest import load

    if manifest is None:
        if key:
            raise click.UsageError("--key says who must have signed --manifest: give both")
        return None
    if key is None:
        with contextlib.suppress(BadConfig):
            state = Path(load_config(config_path).state_dir)
            key = signer(state).public if (state / "signing.key").exists() else None
    return load(manifest, key)


def expected(config_path: Path, path: Path) -> str | None:
    """What this team holds these weights to: `pin` of an endpoint that has them, else the book's.

    Without a team nothing is. That a team's word cannot be read is said, and they are judged without it.
    """
    from freehold.errors import FreeholdError, Unknown
    from freehold.fleet.config import load
    from freehold.ledger import report

    if not config_path.exists():
        return None
    try:
        config = load(config_path)
        if pins := [each.pin for each in config.endpoints.values() if each.pin and each.weights == subject(path)]:
            return pins[0]
        with report.reading(Path(config.state_dir)) as book:
            return report.pin(book, subject(path))
    except Unknown:
        return None
    except FreeholdError as error:
        click.echo(f"NOTE: judged without a pin, which could not be read: {error}", err=True)
        return None


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
