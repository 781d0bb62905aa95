"""freehold pin: from now on, these files and no others."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from freehold.types import Manifest, Verdict


@click.command("pin")
@click.argument("model")
@click.option("--digest", metavar="DIGEST", help="What they must be: pin nothing else.")
@click.option("--manifest", type=click.Path(path_type=Path), help="A signed list of the files they must be.")
@click.option(
    "--key", metavar="PUBLIC", help="Who must have signed that, as 64 hexadecimal digits; default: this team."
)
@click.option("--base", type=click.Path(path_type=Path), help="Of an adapter: the weights it was made for.")
@click.pass_context
def command(
    context: click.Context, model: str, digest: str | None, manifest: Path | None, *, key: str | None, base: Path | None
) -> None:
    """Hold a model to the files that are there now.

    MODEL is an endpoint of freehold.toml, a file or a folder. It is checked as by `freehold verify`, its list of files
    is signed, and the book keeps the digest in place of the one before. Exit status 3: refused, and nothing is pinned.
    """
    from freehold.cli.daemon import project, report
    from freehold.cli.verify import render, signed, subject
    from freehold.errors import Refused
    from freehold.gateway.rundir import own_folder
    from freehold.ledger.signing import signer
    from freehold.weights import verify
    from freehold.weights.manifest import save

    config, _ = project(context.obj)
    endpoint = config.endpoints.get(model)
    path = Path((endpoint and endpoint.weights) or model)
    meant = signed(context.obj, manifest, key)
    verdict = verify(path, digest, meant, base=base)
    click.echo(render(verdict))
    if not verdict.accepted:
        context.exit(3)
    for name, each in config.endpoints.items():
        if each.weights == subject(path) and each.pin not in (None, verdict.digest):
            hint = f'pin = "{verdict.digest}" there, if that is what you want; or fetch the files it means'
            raise Refused(f"{context.obj} holds `{name}` to {each.pin}, and that goes first", hint=hint)
    state = own_folder(Path(config.state_dir))
    saved = save(state, _manifest(verdict, meant), signer(state))
    detail = {"files": len(verdict.artifacts), "base": verdict.base or None, "reason": "freehold pin"}
    report(config, "weights.pinned", subject(path), detail, pin=verdict.digest)
    click.echo(f'pinned: {verdict.digest}\nsigned: {saved}\nfor freehold.toml: pin = "{verdict.digest}"')


def _manifest(verdict: Verdict, given: Manifest | None) -> Manifest:
    """Where they came from is taken over from the manifest they were held to."""
    from msgspec.structs import replace

    from freehold.gateway.rundir import user
    from freehold.types import Manifest

    mine = Manifest(
        digest=verdict.digest, artifacts=verdict.artifacts, made_ns=time.time_ns(), made_by=user(os.getuid())
    )
    before = given or replace(mine, source=verdict.subject)
    return replace(before, made_ns=mine.made_ns, made_by=mine.made_by, base=verdict.base or before.base)
