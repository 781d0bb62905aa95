"""Which weights may be started: gate and hash at the first use, whenever a file looks touched, and on a schedule."""

from __future__ import annotations

import asyncio
import hashlib
import sys
from collections.abc import Iterable
from pathlib import Path

import msgspec
from msgspec import Struct

from freehold import __version__
from freehold.errors import Refused
from freehold.fleet.config import Endpoint
from freehold.fleet.ground import Ground
from freehold.fleet.permission import Permission
from freehold.ledger.signing import signer
from freehold.policy.law import Rules, in_words, judge_build
from freehold.types import Finding, Manifest, Verdict
from freehold.weights import Checkpoint, describe, verify
from freehold.weights.files import File, list_files
from freehold.weights.manifest import FOLDER, known, save


class _Reading(Struct, frozen=True):
    """When files were read in full and accepted, what they were, and how they looked."""

    at_ns: int
    digest: str
    looks: list[File]


class Trust:
    """One for each endpoint: remembers what was verified, when, and how the files looked then."""

    def __init__(
        self,
        name: str,
        endpoint: Endpoint,
        ground: Ground,
        permission: Permission | None,
        *,
        rules: Rules,
        lasts_ns: int,
    ) -> None:
        """`permission`: of a model that answers callers. `lasts_ns`: so long need untouched files not be read again."""
        self._name, self._endpoint, self._ground = name, endpoint, ground
        self._permission, self._rules, self._lasts_ns = permission, rules, lasts_ns
        self._weights = Path(endpoint.weights or "")
        self._since_ns = 0  # a reading from before does not count
        self._reading: _Reading | None = None  # of what the last start was given; None: nothing, or it was refused
        self._build: Checkpoint | None = None
        self._lock = asyncio.Lock()  # a start, the schedule and an operator may want the same files read

    @property
    def due(self) -> bool:
        """Whether the files must be read again, even if they look untouched."""
        return self._reading is None or not self._counts(self._reading.at_ns)

    @property
    def stamps(self) -> set[tuple[int, int, int, int, int]]:
        """How the files looked when they were verified: see weights.files.File.stamp."""
        return {each.stamp for each in self._reading.looks} if self._reading else set()

    @property
    def digest(self) -> str:
        """Of what was verified; "" when nothing is."""
        return self._reading.digest if self._reading else ""

    @property
    def path(self) -> Path:
        return self._weights

    @property
    def files(self) -> tuple[str, ...]:
        """Every file that was verified, of a folder."""
        return tuple(str(self._weights / each.name) for each in self._reading.looks) if self._reading else ()

    def expire(self) -> None:
        """From here on they are due, whatever was verified so far."""
        self._since_ns = self._ground.clock_ns()

    async def ensure(self) -> Checkpoint:
        """What the weights are, once they may be started. Raises Refused with the clause, or with the findings."""
        if self._permission:
            self._permission.require()
        async with self._lock:
            looks = await self._look()
            if self._build is None or self.due or looks != (self._reading and self._reading.looks):
                self._reading = self._build = None  # what fails below leaves nothing behind to start from
                reading = await self._recall(looks) or await self._verify(looks)
                self._build = await self._describe()
                self._reading = reading
            return self._build

    async def recheck(self) -> None:
        """That an engine opened what was verified. Raises Refused when a file was touched or replaced since."""
        if self._reading is None or await self._look() != self._reading.looks:
            raise Refused(
                f"the weights of `{self._name}` changed after they were verified",
                hint=f"find out who writes to {self._weights}, then start it again",
            )

    async def reread(self) -> None:
        """Of weights that are served: gate and hash them again if they are due. Raises Refused: then nobody may be."""
        async with self._lock:
            if not self.due:
                return  # somebody else has just seen to it
            given, self._reading = self._reading, None
            reading = await self._verify(await self._look(), gently=True)
            if given is None or reading.digest != given.digest:
                raise Refused(
                    f"the weights of `{self._name}` are not those that its engine was started with",
                    hint=f"if they are meant to be others: freehold up {self._name}",
                )
            self._reading = msgspec.structs.replace(given, at_ns=reading.at_ns)

    def _counts(self, read_ns: int) -> bool:
        """A moment that is still to come is that of a clock set wrong."""
        now_ns = self._ground.clock_ns()
        return max(self._since_ns, now_ns - self._lasts_ns + 1) <= read_ns <= now_ns

    async def _look(self) -> list[File]:
        return (await asyncio.to_thread(list_files, self._weights))[0]

    async def _describe(self) -> Checkpoint:
        build = await asyncio.to_thread(describe, self._weights)
        for objection in judge_build(build.format, self._rules).objections:
            raise Refused(f"policy refuses `{self._name}`: {in_words(objection)}", hint=objection.hint)
        return build

    async def _recall(self, looks: list[File]) -> _Reading | None:
        """These very files, verified not long ago by this daemon or one before, and still what they must be."""
        subject = str(self._weights)
        seen = await self._ground.book.verified(subject)
        if seen is None or seen.looks != _fingerprint(looks) or not self._counts(seen.at_ns):
            return None
        if seen.digest != await self._expected() or not self._permits(seen.digest):
            return None
        self._ground.tell("weights.unchanged", self._name, path=subject, digest=seen.digest, read_ns=seen.at_ns)
        return _Reading(seen.at_ns, seen.digest, looks)

    def _permits(self, digest: str) -> bool:
        """Whether the catalogue, if it has digests of this model, has this one."""
        return self._permission is None or digest in (self._permission.digests or (digest,))

    async def _read_gently(self, pin: str | None, manifest: Manifest | None) -> Verdict:
        """Verify them in a process of the lowest priority: an engine and its callers need the cores.

        A thread of that priority would make the gateway wait whenever it held the interpreter's lock.
        """
        argv = ["nice", "-n", "19", sys.executable, "-P", "-m", "freehold", "verify", str(self._weights), "--json"]
        argv += ["--pin", pin] if pin else []
        if manifest:
            argv += ["--manifest", str(self._ground.state / FOLDER / f"{pin}.json")]
            argv += ["--key", signer(self._ground.state).public]
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(
            *argv, stdin=asyncio.subprocess.DEVNULL, stdout=pipe, stderr=pipe, start_new_session=True
        )
        try:
            said, complaint = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
        if process.returncode not in (0, Refused.exit_code):
            raise Refused(
                f"the weights of `{self._name}` could not be read: {complaint.decode(errors='replace').strip()[-300:]}",
                hint=f"freehold verify {self._weights}",
            )
        return msgspec.json.decode(said, type=Verdict)

    async def _expected(self) -> str | None:
        return self._endpoint.pin or await self._ground.book.pin(str(self._weights))

    async def _verify(self, looks: list[File], *, gently: bool = False) -> _Reading:
        subject, ground = str(self._weights), self._ground
        await ground.book.forget_verified(subject)  # until this has come to a good end
        pin = await self._expected()
        if pin is None and self._rules.require_pin:
            raise Refused(
                f"{subject} is not pinned, and policy.require_pin is set",
                hint=f"compare the digests with the publisher's, then: freehold pin {subject}",
            )
        ground.tell("weights.checking", self._name, path=subject)
        now_ns = ground.clock_ns()
        manifest = known(ground.state, pin, signer(ground.state).public) if pin else None
        if gently:
            verdict = await self._read_gently(pin, manifest)
        else:
            verdict = await asyncio.to_thread(verify, self._weights, pin, manifest)
        refusing = [each for each in verdict.findings if not each.review]
        accepted = verdict.accepted and self._permits(verdict.digest)
        said = _in_words(refusing) or (None if accepted else f"none of the digests of {self._endpoint.model}")
        ground.tell(
            "weights.accepted" if accepted else "weights.refused",
            self._name,
            path=subject, digest=verdict.digest, pinned=verdict.pinned, files=len(verdict.artifacts),
            size_bytes=sum(a.size_bytes for a in verdict.artifacts), findings=said,
            for_review=_in_words(each for each in verdict.findings if each.review) or None,
        )  # fmt: skip
        if not verdict.accepted:
            fixes = "; ".join(dict.fromkeys(each.fix for each in refusing))
            raise Refused(f"the weights of `{self._name}` were refused: {_in_words(refusing)}", hint=fixes)
        if not accepted:
            raise Refused(
                f"the weights of `{self._name}` are none of {self._endpoint.model}: their digest is {verdict.digest}",
                hint="[models] digests in freehold.toml names those there are",
            )
        await self._keep(verdict)
        await ground.book.set_verified(subject, verdict.digest, _fingerprint(looks), now_ns)
        return _Reading(now_ns, verdict.digest, looks)

    async def _keep(self, verdict: Verdict) -> None:
        """The pin in the book follows freehold.toml; without one there the first use makes it."""
        subject, book = str(self._weights), self._ground.book
        before = await book.pin(subject)
        mine, state = signer(self._ground.state), self._ground.state
        if known(state, verdict.digest, mine.public) is None:  # so that a later change can be named, file by file
            now_ns, who = self._ground.clock_ns(), "freehold"
            said = Manifest(
                digest=verdict.digest, artifacts=verdict.artifacts, made_ns=now_ns, made_by=who, source=subject
            )
            await asyncio.to_thread(save, state, said, mine)
        if before != verdict.digest:
            reason = "freehold.toml" if self._endpoint.pin else "first use"
            await book.set_pin(subject, verdict.digest, reason, replace=True)
            detail = {"path": subject, "pin": verdict.digest, "before": before, "reason": reason}
            self._ground.tell("weights.pinned", self._name, **detail)


def _fingerprint(looks: list[File]) -> str:
    """How files look, in 64 hex digits; of another version of Freehold, whose gate may know more, another."""
    seen = [__version__, [(each.name, each.stamp) for each in looks]]
    return hashlib.sha256(msgspec.json.encode(seen)).hexdigest()


def _in_words(findings: Iterable[Finding]) -> str:
    return "; ".join(f"{each.path}: {each.why} [{each.rule}]" for each in findings)
