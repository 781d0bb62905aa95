"""From a hub to a folder: disk, download, digest, gate, and only then the name under which anybody looks for it.

Until all of that has come to a good end the files lie in `.COMMIT.partial`; whatever ends a pull in between, the next
one goes on there. The core prints nothing: a Watcher is told.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from msgspec import Struct

from freehold.errors import BadRequest, DoesNotFit, FreeholdError, Refused
from freehold.sources.hub import Hub, Listed, Listing
from freehold.types import Verdict
from freehold.weights import verify

_AT_ONCE = 3  # files: one connection seldom gets all that a network can do
_LOOK_S = 0.2  # how often it is looked how far they are
_BLOCK_BYTES = 1 << 20
_SPARE_BYTES = 1 << 30  # what a pull leaves free


class Watcher(Protocol):
    """Who is told how it goes."""

    def say(self, text: str) -> None: ...

    def show(self, have_bytes: int, total_bytes: int) -> None: ...


class Fetched(Struct, frozen=True, kw_only=True):
    """Weights that were gated and hashed, in their place."""

    folder: Path
    verdict: Verdict
    downloaded_bytes: int
    already: bool  # there was nothing to do


class Fetch:
    """Some files of one repository, on their way to ROOT/OWNER/NAME/COMMIT."""

    def __init__(self, hub: Hub, listing: Listing, files: Sequence[Listed], root: Path, watcher: Watcher) -> None:
        self._hub, self._listing, self._files, self._watcher = hub, listing, files, watcher
        self._home = root / listing.repo
        self._folder, self._partial = self._home / listing.commit, self._home / f".{listing.commit}.partial"

    @contextmanager
    def alone(self) -> Iterator[None]:
        """One pull a repository: the second waits for the first, and then finds what it brought."""
        with self._failing():
            self._home.mkdir(parents=True, exist_ok=True)
            held = os.open(self._home / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self._watcher.say(f"another pull into {self._home} is under way: waiting for it")
                fcntl.flock(held, fcntl.LOCK_EX)
            yield
        finally:
            os.close(held)

    def run(self, expected: Sequence[str] = ()) -> Fetched:
        """Bring what is missing, and publish it; only while `alone`.

        `expected`: digests of which the whole must have one; (): any. Raises Refused for files that are not what the
        hub listed, that the gate refuses, or of another digest; DoesNotFit when the disk is too small; BadRequest when
        other files of this commit are there; HubFailed.
        """
        with self._failing():
            if self._folder.exists():
                self._watcher.say(f"{self._folder} is there: checking it")
                verdict = self._judge(self._folder, expected)
                return Fetched(folder=self._folder, verdict=verdict, downloaded_bytes=0, already=True)
            self._partial.mkdir(exist_ok=True)
            self._clear()
            downloaded_bytes = self._download()
            self._watcher.say("gate and hash")
            verdict = self._judge(self._partial, expected)
            self._publish()
        return Fetched(folder=self._folder, verdict=verdict, downloaded_bytes=downloaded_bytes, already=False)

    def _clear(self) -> None:
        """What an earlier pull of other files left behind is no part of this one, and nothing leads elsewhere."""
        wanted = {self._partial / each.name for each in self._files}
        for path in tuple(self._partial.rglob("*")):
            if path.is_symlink() or (path not in wanted and not path.is_dir()):
                path.unlink()

    def _download(self) -> int:
        """How many bytes were missing."""
        have, total = self._have_bytes(), sum(each.size_bytes for each in self._files)
        missing, free = total - have, shutil.disk_usage(self._home).free
        if missing and free < missing + _SPARE_BYTES:
            raise DoesNotFit(
                f"{missing / 1e9:.2f} GB are missing and {_SPARE_BYTES / 1e9:.2f} GB must stay free, "
                f"but {self._home} has {free / 1e9:.2f} GB",
                hint="make room, or --to a folder on another disk",
            )
        pool = ThreadPoolExecutor(_AT_ONCE)
        try:
            in_order = sorted(self._files, key=lambda each: each.size_bytes)  # what is wrong early shows early
            jobs = {pool.submit(self._bring, each) for each in in_order}
            while jobs:
                self._watcher.show(self._have_bytes(), total)
                done, jobs = wait(jobs, _LOOK_S, return_when=FIRST_COMPLETED)
                for job in done:
                    job.result()
            self._watcher.show(total, total)
        finally:
            self._hub.hang_up()
            pool.shutdown(wait=False, cancel_futures=True)  # a hub that is silent is not waited for
        return missing

    def _have_bytes(self) -> int:
        return sum(min(_size(self._partial / each.name), each.size_bytes) for each in self._files)

    def _bring(self, file: Listed) -> None:
        """One file with the digest that was listed. What differs is removed, and fetched once more as a whole."""
        path = self._partial / file.name
        path.parent.mkdir(parents=True, exist_ok=True)
        found = ""
        for _ in range(2):
            found = self._append(file, path)
            if found == file.digest:
                return
            path.unlink()
        raise Refused(
            f"{file.name} came twice with the digest {found}, and the hub listed {file.digest}: nothing of it is kept",
            hint="a proxy, mirror or CDN on the way changes files, or the hub's own copy is damaged: try another way "
            "there, and tell the hub and the publisher if it stays so",
        )

    def _append(self, file: Listed, path: Path) -> str:
        """Fetch what is missing of it; the digest of all of it, in the hub's way."""
        if path.exists():
            path.chmod(0o644)
        flags, digest = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, _hasher(file)
        with open(os.open(path, flags, 0o644), "a+b") as out:  # noqa: PTH123  a descriptor
            out.seek(0)
            while block := out.read(_BLOCK_BYTES):
                digest.update(block)
            for block in self._hub.read(self._listing, file, out.tell()):
                out.write(block)
                digest.update(block)
            out.flush()
            os.fsync(out.fileno())
        return digest.hexdigest()

    def _judge(self, folder: Path, expected: Sequence[str]) -> Verdict:
        """The gate and the hash over what lies on the disk, and once more the hub's digests."""
        found, repo = verify(folder), self._listing.repo
        there = {each.path: each.sha256 for each in found.artifacts}
        if folder == self._folder and there.keys() != {each.name for each in self._files}:
            weights = ", ".join(name for name in there if name.endswith((".gguf", ".safetensors")))
            hint = "--to another folder, or remove that one if nothing is served from it"
            raise BadRequest(f"{folder} holds other files of this commit: {weights}", hint=hint)
        if refusing := [each for each in found.findings if not each.review]:
            said = "; ".join(f"{each.path}: {each.why} [{each.rule}]" for each in refusing[:5])
            hint = f"freehold verify {folder} lists all; nothing serves it; remove it when you have seen enough"
            raise Refused(f"the gate refuses {repo}: {said}", hint=hint)
        for each in self._files:
            if each.digest != (there.get(each.name) if each.in_lfs else _digest(folder / each.name, each)):
                hint = f"find out who writes there, remove {folder}, and pull again"
                raise Refused(f"not what the hub listed: {each.name} in {folder}", hint=hint)
        if expected and found.digest not in expected:
            hint = "[models] digests in freehold.toml names those there are"
            raise Refused(f"the digest of {repo} is {found.digest}, which is none expected", hint=hint)
        return found

    def _publish(self) -> None:
        """Read-only, and in one step under its name."""
        for path in self._partial.rglob("*"):
            if not path.is_dir():
                path.chmod(0o444)
        self._partial.rename(self._folder)

    @contextmanager
    def _failing(self) -> Iterator[None]:
        """What the disk has to say."""
        try:
            yield
        except OSError as error:
            kind = DoesNotFit if error.errno in (errno.ENOSPC, errno.EDQUOT) else FreeholdError
            hint = "make room, or --to another folder; the same command goes on where it stopped"
            raise kind(f"cannot write to {self._home}: {error}; what came is kept", hint=hint) from None


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _hasher(file: Listed) -> Any:
    if file.in_lfs:
        return hashlib.sha256()
    return hashlib.sha1(b"blob %d\0" % file.size_bytes, usedforsecurity=False)


def _digest(path: Path, file: Listed) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: _hasher(file)).hexdigest()
