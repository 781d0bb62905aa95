"""From a hub to a folder: disk, download, digest, gate, and only then the name under which anybody looks for it.

Until all of that has come to a good end the files lie in `.COMMIT.partial`; whatever ends a pull in between, the next
one goes on there. The core prints nothing: a Watcher is told.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import re
import shutil
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from msgspec import Struct

from freehold.errors import BadRequest, DoesNotFit, FreeholdError, Refused, Unknown
from freehold.sources.hub import Hub, Listed, Listing
from freehold.types import Verdict
from freehold.weights import verify
from freehold.weights.choice import Choice

_AT_ONCE = 3  # files
_BLOCK_BYTES = 1 << 20
_SPARE_BYTES, _SPARE_SHARE = 1 << 30, 0.02  # what a pull leaves free: the larger of the two
_SHOWN = 5  # findings


class Watcher(Protocol):
    """Who is told how it goes: one call at a time. What was fetched and thrown away is taken back."""

    def say(self, text: str) -> None: ...

    def begin(self, done_bytes: int, total_bytes: int) -> None: ...

    def advance(self, by_bytes: int) -> None: ...


class Fetched(Struct, frozen=True, kw_only=True):
    """Weights that were gated and hashed, in their place."""

    folder: Path
    verdict: Verdict
    downloaded_bytes: int
    already: bool = False  # there was nothing to do


class Fetch:
    """One choice of files of one repository, on its way to ROOT/OWNER/NAME/COMMIT."""

    def __init__(self, hub: Hub, listing: Listing, choice: Choice, root: Path, watcher: Watcher) -> None:
        self._hub, self._listing, self._files, self._watcher = hub, listing, choice.files, watcher
        self._home = home_of(root, listing.repo)
        self._folder, self._partial = self._home / listing.commit, self._home / f".{listing.commit}.partial"
        self._downloaded_bytes = 0
        self._counting = threading.Lock()

    def run(self, expected: Sequence[str] = ()) -> Fetched:
        """Bring what is missing, and publish it. `expected`: digests of which the whole must have one; (): any.

        Raises Refused for files that are not what the hub listed, that the gate refuses, or of another digest;
        DoesNotFit when the disk is too small; BadRequest when other files of this commit are there; HubFailed.
        """
        with self._failing():
            self._home.mkdir(parents=True, exist_ok=True)
            with _alone(self._home, self._watcher):
                already = self._folder.exists()
                if already:
                    self._watcher.say(f"{self._folder} is there: checking it")
                    verdict = self._judge(self._folder, expected)
                else:
                    self._partial.mkdir(exist_ok=True)
                    self._clear()
                    self._download()
                    self._watcher.say("gate and hash")
                    verdict = self._judge(self._partial, expected)
                    self._publish()
        return Fetched(folder=self._folder, verdict=verdict, downloaded_bytes=self._downloaded_bytes, already=already)

    def _clear(self) -> None:
        """What an earlier pull of other files left behind is no part of this one."""
        wanted = {self._partial / each.name for each in self._files}
        for folder, _, names in os.walk(self._partial):
            for path in (Path(folder, name) for name in names):
                if path not in wanted or path.is_symlink():
                    path.unlink()

    def _download(self) -> None:
        have = {each.name: min(_size(self._partial / each.name), each.size_bytes or 0) for each in self._files}
        total = sum(each.size_bytes or 0 for each in self._files)
        self._require_room(total - sum(have.values()))
        self._watcher.begin(sum(have.values()), total)
        pool = ThreadPoolExecutor(_AT_ONCE)
        try:
            in_order = sorted(self._files, key=lambda each: each.size_bytes or 0)  # what is wrong early shows early
            for job in as_completed([pool.submit(self._bring, each) for each in in_order]):
                job.result()
        finally:
            self._hub.hang_up()
            pool.shutdown(cancel_futures=True)

    def _bring(self, file: Listed) -> None:
        """One file with the digest that was listed. What differs is removed, and fetched once more as a whole."""
        path = self._partial / file.name
        path.parent.mkdir(parents=True, exist_ok=True)
        found, meant = "", file.sha256 or file.blob
        for _ in range(2):
            found = self._append(file, path)
            if found == meant:
                return
            path.unlink()
            self._count(0, -(file.size_bytes or 0))
        raise Refused(
            f"{file.name} came twice with the digest {found}, and the hub listed {meant}: nothing of it is kept",
            hint="a proxy, mirror or CDN on the way changes files, or the hub's own copy is damaged: try another way "
            "there, and tell the hub and the publisher if it stays so",
        )

    def _append(self, file: Listed, path: Path) -> str:
        """Fetch what is missing of it; the digest of all of it, in the hub's way."""
        size = file.size_bytes or 0
        digest = hashlib.sha256() if file.sha256 else hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
        if path.exists():
            path.chmod(0o644)
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
        with open(os.open(path, flags, 0o644), "a+b") as out:  # noqa: PTH123  a descriptor
            if os.fstat(out.fileno()).st_size > size:
                out.truncate(0)
            out.seek(0)
            while block := out.read(_BLOCK_BYTES):
                digest.update(block)
            for block in self._hub.read(self._listing, file, out.tell()):
                out.write(block)
                digest.update(block)
                self._count(len(block), len(block))
            out.flush()
            os.fsync(out.fileno())
        return digest.hexdigest()

    def _count(self, downloaded_bytes: int, advanced_bytes: int) -> None:
        with self._counting:
            self._downloaded_bytes += downloaded_bytes
            self._watcher.advance(advanced_bytes)

    def _judge(self, folder: Path, expected: Sequence[str]) -> Verdict:
        """The gate and the hash over what lies on the disk, and once more the hub's digests."""
        found = verify(folder)
        names = {each.path for each in found.artifacts}
        if folder == self._folder and names != {each.name for each in self._files}:
            there = ", ".join(sorted(name for name in names if name.endswith((".gguf", ".safetensors"))))
            hint = "--to another folder, or remove that one if nothing is served from it"
            raise BadRequest(f"{folder} holds other files of this commit: {there}", hint=hint)
        if refusing := [each for each in found.findings if not each.review]:
            said = "; ".join(f"{each.path}: {each.why} [{each.rule}]" for each in refusing[:_SHOWN])
            more = f"; and {len(refusing) - _SHOWN} more" if len(refusing) > _SHOWN else ""
            hint = f"freehold verify {folder} lists all; nothing serves it; remove it when you have seen enough"
            raise Refused(f"the gate refuses {self._listing.repo}: {said}{more}", hint=hint)
        listed = {each.name: each.sha256 for each in self._files if each.sha256}
        if changed := [each.path for each in found.artifacts if listed.get(each.path, each.sha256) != each.sha256]:
            hint = f"find out who writes there, remove {folder}, and pull again"
            raise Refused(f"not what the hub listed: {', '.join(changed)} in {folder}", hint=hint)
        if expected and found.digest not in expected:
            hint = "[models] digests in freehold.toml names those there are"
            raise Refused(f"the digest of {self._listing.repo} is {found.digest}, which is none expected", hint=hint)
        return found

    def _publish(self) -> None:
        """Read-only, on the disk, and in one step under its name."""
        for folder, _, names in os.walk(self._partial, topdown=False):
            for name in names:
                Path(folder, name).chmod(0o444)
            _sync(Path(folder))
        self._partial.rename(self._folder)
        _sync(self._home)

    def _require_room(self, missing_bytes: int) -> None:
        free = shutil.disk_usage(self._home).free
        spare = max(_SPARE_BYTES, int(missing_bytes * _SPARE_SHARE))
        if missing_bytes and free < missing_bytes + spare:
            raise DoesNotFit(
                f"{missing_bytes / 1e9:.2f} GB are missing and {spare / 1e9:.2f} GB must stay free, "
                f"but {self._home} has {free / 1e9:.2f} GB",
                hint="make room, or --to a folder on another disk",
            )

    @contextmanager
    def _failing(self) -> Iterator[None]:
        """What the disk has to say."""
        try:
            yield
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                hint = "make room, and pull again: it goes on where it stopped"
                raise DoesNotFit(f"the disk of {self._home} is full; what came so far is kept", hint=hint) from None
            raise FreeholdError(f"cannot write to {self._home}: {error}", hint="--to another folder") from None


def home_of(root: Path, repo: str) -> Path:
    """Where the commits of a repository lie."""
    return root.joinpath(*repo.split("/"))


def at_hand(root: Path, repo: str, revision: str) -> Path:
    """The folder that was pulled before, of this commit or of the only one. Raises Unknown, BadRequest."""
    home = home_of(root, repo)
    commits = sorted(each.name for each in home.glob("*") if re.fullmatch(r"[0-9a-f]{40}", each.name))
    if re.fullmatch(r"[0-9a-f]{40}", revision):
        commits = [each for each in commits if each == revision]
    if not commits:
        raise Unknown(f"offline, and {repo} is not in {home}", hint="pull it where there is a network; docs/pull.md")
    if len(commits) > 1:
        raise BadRequest(f"offline, and {home} has {len(commits)} commits", hint=f"--revision {commits[0]}, or another")
    return home / commits[0]


@contextmanager
def _alone(home: Path, watcher: Watcher) -> Iterator[None]:
    """One pull a repository: the second waits for the first, and then finds what it brought."""
    held = os.open(home / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            watcher.say(f"another pull into {home} is under way: waiting for it")
            fcntl.flock(held, fcntl.LOCK_EX)
        yield
    finally:
        os.close(held)


def _size(path: Path) -> int:
    try:
        return path.lstat().st_size
    except FileNotFoundError:
        return 0


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
