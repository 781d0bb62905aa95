"""`freehold pull`: a model's files from the hub, once policy allows it, and usable once the gate does."""

from __future__ import annotations

import os
import re
import sys
import time
from contextlib import closing
from os.path import normpath
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from freehold.catalogue import Catalogue
    from freehold.facts import Model
    from freehold.fleet.config import Config
    from freehold.sources.hub import Listing
    from freehold.types import Detail
    from freehold.weights.fetch import Fetched

_REPO = r"(?!.*(?:--|\.\.))[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}"  # as the hub has it


@click.command
@click.argument("model")
@click.option("--revision", metavar="NAME", default="main", show_default=True, help="A branch, a tag or a commit.")
@click.option("--include", multiple=True, metavar="GLOB", help="Only weights whose names match; again for more.")
@click.option("--to", type=click.Path(path_type=Path), help="Instead of [weights] folder.")
@click.option("--offline", is_flag=True, envvar="HF_HUB_OFFLINE", help="Only check what was pulled before.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@click.pass_context
def command(context: click.Context, model: str, to: Path | None, *, offline: bool, as_json: bool, **said: Any) -> None:
    """Bring a model's weights from the hub, checked and pinned.

    MODEL is an id of the catalogue or OWNER/NAME at the hub. Policy is asked before the first byte; the files are in
    place only when their digests are the hub's and the gate accepts them. Interrupted, the next pull goes on. Exit
    status 3: refused, 4: the disk is too small, 5: the hub failed, 130: interrupted.
    """
    from freehold.cli.known import known
    from freehold.errors import BadConfig

    catalogue, config = known(context.obj)
    if config is None:
        raise BadConfig(f"no {context.obj}", hint="copy docs/freehold.toml: pins and events belong to a team's book")
    pull = _Pull(config, catalogue, model, Path(normpath(Path.cwd() / (to or config.weights.folder))))
    try:
        done = pull.check(said["revision"]) if offline else pull.bring(**said)
    except KeyboardInterrupt:
        click.echo("\ninterrupted: what came is kept\n hint: the same command goes on where it stopped", err=True)
        os._exit(130)  # a thread may wait for a hub that is silent; what is on the disk outlives worse
    click.echo(pull.as_json(done) if as_json else pull.render(done, context.obj.resolve().parent))


class _Pull:
    """One run of the command."""

    def __init__(self, config: Config, catalogue: Catalogue, name: str, root: Path) -> None:
        self._config, self._root, self._model = config, root, _model(catalogue, name)
        self._id = "" if "/" in self._model.id else self._model.id  # in the catalogue
        self._licences = {each.id: each for each in catalogue.licences}
        self._left_out: list[str] = []
        self._detail: Detail = {"repo": self._model.repo, "model": self._id or None}

    def bring(self, revision: str, include: tuple[str, ...]) -> Fetched:
        """The whole road. Raises FreeholdError; a refusal is in the book when this returns."""
        from freehold.cli.daemon import report
        from freehold.errors import Refused
        from freehold.sources.hub import Hub
        from freehold.weights.choice import FORMATS, choose
        from freehold.weights.fetch import Fetch

        config, where = self._config, self._config.hub
        try:
            self._ask()
            hub = Hub(where.url, token_file=where.token_file, ca_file=where.ca_file, proxy=where.proxy)
            self._detail |= {"hub": hub.url, "asked": revision}
            with closing(hub), closing(_Progress()) as progress:
                listing = hub.listing(self._model.repo, revision)
                self._detail |= {"revision": listing.commit, "scan": listing.scan or None}
                files = choose(listing, config.policy.formats or FORMATS, include)
                self._detail |= {"files": len(files), "bytes": sum(each.size_bytes for each in files)}
                self._left_out = sorted(each.name for each in {*listing.files} - {*files})
                fetch = Fetch(hub, listing, files, self._root, progress)
                with fetch.alone():
                    done = fetch.run(self._model.digests)
                    self._record(done, listing)
        except Refused as error:
            report(config, "weights.pull_refused", self._model.repo, {**self._detail, "reason": str(error)})
            raise
        return done

    def check(self, revision: str) -> Fetched:
        """What was pulled before, held to its pin. Raises FreeholdError."""
        from freehold.errors import Refused, Unknown
        from freehold.weights import verify
        from freehold.weights.fetch import Fetched

        self._ask()
        home, commit = self._root / self._model.repo, r"[0-9a-f]{40}"
        wanted = revision if re.fullmatch(commit, revision) else commit
        found = [each for each in home.glob("*") if re.fullmatch(wanted, each.name)]
        if len(found) != 1:
            hint = "--revision COMMIT, if there are several; else pull it where there is a network: docs/pull.md"
            raise Unknown(f"offline, and {home} has {len(found)} commits that may be meant", hint=hint)
        verdict = verify(found[0], self._pin(found[0]), require_pin=True)
        if not verdict.accepted:
            hint = f"freehold verify --require-pin {found[0]} lists why"
            raise Refused(f"{found[0]} is not what was pulled and pinned", hint=hint)
        return Fetched(folder=found[0], verdict=verdict, downloaded_bytes=0, already=True)

    def _ask(self) -> None:
        """May we? As at `up`: what nobody has accepted is refused. Raises Refused with the clauses."""
        from datetime import UTC, datetime

        from msgspec.structs import replace

        from freehold.errors import Refused
        from freehold.policy import law

        model, rules = self._model, replace(self._config.policy, unreviewed="refuse")
        today = datetime.now(UTC).date().isoformat()
        ruling = law.judge_model(model, law.licence_of(model, self._licences), rules, today)
        if not ruling.allowed:
            hint = "; ".join(dict.fromkeys(each.hint for each in ruling.objections if each.hint))
            if not self._id:
                hint += f'; or, if it is a build of a known model: [models.NAME] with like, and repo = "{model.repo}"'
            said = "; ".join(map(law.in_words, ruling.objections))
            raise Refused(f"policy refuses {model.repo}: {said}", hint=hint)
        self._detail |= {"accepted": ruling.accepted or None}

    def _record(self, done: Fetched, listing: Listing) -> None:
        """The signed list of files, the event and the pin; nothing where all of that is there already."""
        from freehold.cli.daemon import report
        from freehold.gateway.rundir import own_folder, user
        from freehold.ledger.signing import signer
        from freehold.types import Manifest
        from freehold.weights.manifest import save

        verdict = done.verdict
        if done.already and self._pin(done.folder) == verdict.digest:
            return
        state = own_folder(Path(self._config.state_dir))
        manifest = Manifest(
            digest=verdict.digest, artifacts=verdict.artifacts, made_ns=time.time_ns(), made_by=user(os.getuid()),
            repo=listing.repo, revision=listing.commit, source=self._config.hub.url, model=self._id,
            evidence={"hub_scan": listing.scan} if listing.scan else {},
        )  # fmt: skip
        save(state, manifest, signer(state))
        detail = {**self._detail, "digest": verdict.digest, "downloaded_bytes": done.downloaded_bytes}
        report(self._config, "weights.pulled", str(done.folder), detail, pin=verdict.digest)

    def _pin(self, folder: Path) -> str | None:
        from freehold.errors import Unknown
        from freehold.ledger import report

        try:
            with report.reading(Path(self._config.state_dir)) as book:
                return report.pin(book, str(folder))
        except Unknown:  # no book yet
            return None

    def as_json(self, done: Fetched) -> str:
        import msgspec

        said = {**self._detail, "folder": str(done.folder), "digest": done.verdict.digest, "already": done.already}
        said |= {"downloaded_bytes": done.downloaded_bytes, "files": done.verdict.artifacts, "left_out": self._left_out}
        return msgspec.json.format(msgspec.json.encode(said)).decode()

    def render(self, done: Fetched, home: Path) -> str:
        """`home`: the folder of freehold.toml, from which its paths are seen."""
        from freehold.cli.tables import printable

        folder, digest = done.folder, done.verdict.digest
        how = "was there already" if done.already else f"{done.downloaded_bytes:,} bytes downloaded"
        left = f"left out  {len(self._left_out)} files: {', '.join(self._left_out[:8])}"
        lines = [
            f"folder    {folder}",
            f"digest    {digest}   {how}, gated, pinned",
            *([left] if self._left_out else []),
            *(f"LOOK AT   {each.path}: {each.why}" for each in done.verdict.findings if each.review),
            "for freehold.toml:",
            f'weights = "{folder.relative_to(home) if folder.is_relative_to(home) else folder}"',
            f'model = "{self._id}"' if self._id else "# model: the catalogue does not know it; see [models]",
            f'pin = "{digest}"',
        ]
        return printable("\n".join(lines))


class _Progress:
    """A Watcher of freehold.weights.fetch, on standard error: a bar on a terminal, one line elsewhere."""

    def __init__(self) -> None:
        self._bar: Any = None

    def say(self, text: str) -> None:
        self.close()
        click.echo(text, err=True)

    def show(self, have_bytes: int, total_bytes: int) -> None:
        if self._bar is None:
            label = f"{total_bytes / 1e6:,.1f} MB"
            self._bar = click.progressbar(length=max(1, total_bytes), label=label, file=sys.stderr)
        self._bar.update(have_bytes - self._bar.pos)

    def close(self) -> None:
        if self._bar:
            self._bar.render_finish()  # gives the terminal its cursor back
            self._bar = None


def _model(catalogue: Catalogue, name: str) -> Model:
    """By its own name only: a copy may have another licence. Any other OWNER/NAME is one that nobody has read."""
    from freehold.errors import Unknown

    for each in (*catalogue.models, *catalogue.known):
        if name.casefold() in (each.id.casefold(), each.repo.casefold()) and re.fullmatch(_REPO, each.repo):
            return each
    if re.fullmatch(_REPO, name):
        return _unread(catalogue, name)
    hint = "freehold models lists them; of an own one, [models.NAME] repo says where it is; or say OWNER/NAME"
    raise Unknown(f"the catalogue has no {name!r} that is at the hub", hint=hint)


def _unread(catalogue: Catalogue, repo: str) -> Model:
    """A repository of which only its name is known; and its publisher, where the catalogue has another of theirs."""
    from freehold.facts import Context, LicenceOf, Model, Parameters

    owner = repo.partition("/")[0]
    kin = next((each for each in catalogue.models if each.repo.partition("/")[0].casefold() == owner.casefold()), None)
    return Model(
        id=repo, name=repo, repo=repo, family="", architecture="", context=Context(native=0),
        publisher=kin.publisher if kin else owner, publisher_country=kin.publisher_country if kin else "",
        parameters=Parameters(method="none"), licence=LicenceOf(id="unknown", read=False),
    )  # fmt: skip
