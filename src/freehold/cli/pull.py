"""`freehold pull`: a model's files from the hub, once policy allows it, and usable once the gate does."""

from __future__ import annotations

import os
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
    from freehold.sources.hub import Hub, Listing
    from freehold.types import Detail
    from freehold.weights.fetch import Fetched


@click.command
@click.argument("model")
@click.option("--revision", metavar="NAME", default="main", show_default=True, help="A branch, a tag or a commit.")
@click.option("--format", "file_format", type=click.Choice(["gguf", "safetensors"]), help="Of the weights.")
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
    root = Path(normpath(Path.cwd() / (to or config.weights.folder)))
    pull = _Pull(context.obj, config, catalogue, model, root)
    try:
        done = pull.check(said["revision"]) if offline else pull.bring(**said)
    except KeyboardInterrupt:
        click.echo(
            "\ninterrupted: what came so far is kept\n hint: the same command goes on where it stopped", err=True
        )
        context.exit(130)
    click.echo(pull.as_json(done) if as_json else pull.render(done))


class _Pull:
    """One run of the command."""

    def __init__(self, config_path: Path, config: Config, catalogue: Catalogue, name: str, root: Path) -> None:
        self._config_path, self._config, self._root = config_path, config, root
        self._model = _model(catalogue, name)
        self._known = any(each is self._model for each in (*catalogue.models, *catalogue.known))
        self._licences = {each.id: each for each in catalogue.licences}
        self._left_out: tuple[str, ...] = ()
        self._detail: Detail = {"repo": self._model.repo, "model": self._model.id if self._known else None}

    def bring(self, revision: str, file_format: str | None, include: tuple[str, ...]) -> Fetched:
        """The whole road. Raises FreeholdError; a refusal is in the book when this returns."""
        from freehold.cli.daemon import report
        from freehold.cli.progress import Progress
        from freehold.errors import Refused
        from freehold.sources.hub import Hub
        from freehold.weights.choice import FORMATS, choose
        from freehold.weights.fetch import Fetch

        config = self._config
        try:
            self._ask(file_format)
            where = config.hub
            hub = Hub(where.url, token_file=where.token_file, ca_file=where.ca_file, proxy=where.proxy)
            with closing(hub), Progress() as progress:
                listing = self._listing(hub, revision)
                formats = (file_format,) if file_format else config.policy.formats or FORMATS
                choice = choose(listing, formats, include)
                self._detail |= {"files": len(choice.files), "bytes": choice.size_bytes}
                self._left_out = choice.left_out
                done = Fetch(hub, listing, choice, self._root, progress).run(self._model.digests)
        except Refused as error:
            report(config, "weights.pull_refused", self._model.repo, {**self._detail, "reason": str(error)})
            raise
        self._record(done, listing, hub)
        return done

    def check(self, revision: str) -> Fetched:
        """What was pulled before, held to its pin. Raises FreeholdError."""
        from freehold.errors import Refused
        from freehold.weights import verify
        from freehold.weights.fetch import Fetched, at_hand

        self._ask(None)
        folder = at_hand(self._root, self._model.repo, revision)
        verdict = verify(folder, self._pin(folder))
        if not verdict.accepted:
            raise Refused(f"{folder} is not to be used", hint=f"freehold verify {folder} lists why")
        if verdict.pinned != "pinned":
            hint = f"freehold pin {folder} --manifest FILE, with the manifest of where it was pulled; docs/pull.md"
            raise Refused(
                f"{folder} is not pinned: nothing says that these are the files of {self._model.repo}", hint=hint
            )
        self._detail |= {"revision": folder.name}
        return Fetched(folder=folder, verdict=verdict, downloaded_bytes=0, already=True)

    def _ask(self, file_format: str | None) -> None:
        """May we? As at `up`: what nobody has accepted is refused. Raises Refused with the clauses."""
        from datetime import UTC, datetime

        from msgspec.structs import replace

        from freehold.errors import Refused
        from freehold.policy import law

        model, rules = self._model, replace(self._config.policy, unreviewed="refuse")
        today = datetime.now(UTC).date().isoformat()
        ruling = law.judge_model(model, law.licence_of(model, self._licences), rules, today)
        if file_format:
            ruling = law.join(ruling, law.judge_build(file_format, rules))
        if not ruling.allowed:
            hint = "; ".join(dict.fromkeys(each.hint for each in ruling.objections if each.hint))
            if not self._known:
                hint += f'; or, if it is a build of a known model: [models.NAME] with like, and repo = "{model.repo}"'
            said = "; ".join(map(law.in_words, ruling.objections))
            raise Refused(f"policy refuses {model.repo}: {said}", hint=hint)
        self._detail |= {"accepted": ruling.accepted or None}

    def _listing(self, hub: Hub, revision: str) -> Listing:
        """What the hub has, of the repository that policy was asked about, at the commit that was asked for."""
        import re

        from freehold.errors import Refused

        self._detail |= {"hub": hub.url, "asked": revision, "transport": "plain http" if hub.plain else None}
        listing = hub.listing(self._model.repo, revision)
        if listing.repo.casefold() != self._model.repo.casefold():
            hint = f"freehold pull {listing.repo} asks policy about that one"
            raise Refused(
                f"the hub answers for {listing.repo}, not for {self._model.repo}: renamed, perhaps", hint=hint
            )
        if re.fullmatch(r"[0-9a-f]{40}", revision) and listing.commit != revision:
            raise Refused(
                f"commit {revision} was asked for, and the hub answers with {listing.commit}", hint="[hub] url"
            )
        self._detail |= {"revision": listing.commit, "scan": listing.scan or None}
        return listing

    def _record(self, done: Fetched, listing: Listing, hub: Hub) -> None:
        """The signed list of files, the event and the pin; nothing where all of that is there already."""
        from freehold.cli.daemon import report
        from freehold.gateway.rundir import own_folder, user
        from freehold.ledger.signing import signer
        from freehold.types import Manifest
        from freehold.weights.manifest import save

        verdict, subject = done.verdict, str(done.folder)
        if done.already and self._pin(done.folder) == verdict.digest:
            return
        state = own_folder(Path(self._config.state_dir))
        evidence = {"hub_scan": listing.scan} if listing.scan else {}
        if hub.plain:
            evidence["transport"] = "plain http: files and their digests came the same unprotected way"
        manifest = Manifest(
            digest=verdict.digest, artifacts=verdict.artifacts, made_ns=time.time_ns(), made_by=user(os.getuid()),
            repo=listing.repo, revision=listing.commit, source=hub.url, model=self._model.id if self._known else "",
            evidence=evidence,
        )  # fmt: skip
        save(state, manifest, signer(state))
        detail = {**self._detail, "digest": verdict.digest, "downloaded_bytes": done.downloaded_bytes}
        report(self._config, "weights.pulled", subject, detail, pin=verdict.digest)

    def _pin(self, folder: Path) -> str | None:
        from freehold.errors import Unknown
        from freehold.ledger import report

        try:
            with report.reading(Path(self._config.state_dir)) as book:
                return report.pin(book, str(folder))
        except Unknown:  # no book yet
            return None

    def as_json(self, done: Fetched) -> str:
        import json

        verdict = done.verdict
        files = {each.path: {"size_bytes": each.size_bytes, "sha256": each.sha256} for each in verdict.artifacts}
        said = {"folder": str(done.folder), "digest": verdict.digest, "already": done.already, **self._detail}
        said |= {"downloaded_bytes": done.downloaded_bytes, "files": files, "left_out": self._left_out}
        return json.dumps(said, indent=2)

    def render(self, done: Fetched) -> str:
        from freehold.cli.tables import printable

        folder, home = done.folder, self._config_path.resolve().parent
        weights = folder.relative_to(home) if folder.is_relative_to(home) else folder
        how = "was there already" if done.already else f"{done.downloaded_bytes:,} bytes downloaded"
        left = f"left out  {len(self._left_out)} files: {', '.join(self._left_out[:8])}" if self._left_out else ""
        review = [f"LOOK AT   {each.path}: {each.why}" for each in done.verdict.findings if each.review]
        model = (
            f'model = "{self._model.id}"' if self._known else "# model: the catalogue does not know it; see [models]"
        )
        lines = [
            f"folder    {folder}",
            f"digest    {done.verdict.digest}   {how}, gated, pinned",
            *filter(None, [left, *review]),
            "for freehold.toml:",
            *(f'weights = "{weights}"', model, f'pin = "{done.verdict.digest}"'),
        ]
        return printable("\n".join(lines))


def _model(catalogue: Catalogue, name: str) -> Model:
    """By its own name only: a copy may have another licence. Any other OWNER/NAME is one that nobody has read."""
    import re

    from freehold.catalogue import match
    from freehold.errors import BadRequest, Unknown

    repo = r"(?!.*(?:--|\.\.))[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}"  # as the hub has it
    try:
        found = match(catalogue, name)
    except Unknown:
        if not re.fullmatch(repo, name):
            raise
        return _unread(catalogue, name)
    if not found.exact:
        if re.fullmatch(repo, name):
            return _unread(catalogue, name)
        raise Unknown(f"the catalogue has no {name!r}", hint=f"if that is what it is: {found.model.id}")
    if not re.fullmatch(repo, found.model.repo):
        hint = f'[models."{found.model.id}"] repo = "OWNER/NAME"'
        raise BadRequest(f"nobody said where at the hub {found.model.id} is", hint=hint)
    return found.model


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
