"""Which weights may be started: gate and hash at the first use, whenever a file looks touched, and on a schedule."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterable
from pathlib import Path

import msgspec

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
from freehold.weights.manifest import known, save


class Trust:
    """One for each endpoint: remembers what was verified, when, and how the files looked then."""

    def __init__(
        self, name: str, endpoint: Endpoint, ground: Ground, permission: Permission, *, rules: Rules, lasts_ns: int
    ) -> None:
        """`lasts_ns`: for how long files that look untouched need not be read again."""
        self._name, self._endpoint, self._ground = name, endpoint, ground
        self._permission, self._rules, self._lasts_ns = permission, rules, lasts_ns
        self._weights = Path(endpoint.weights or "")
        self._looks: list[File] = []
        self._read_ns = 0
        self._build: Checkpoint | None = None

    @property
    def due_ns(self) -> int:
        """When the files must be read again, even if they look untouched."""
        return self._read_ns + self._lasts_ns

    async def ensure(self) -> Checkpoint:
        """What the weights are, once they may be started. Raises Refused with the clause, or with the findings."""
        self._permission.require()
        looks = await self._look()
        if self._build is None or looks != self._looks or self.due_ns <= self._ground.clock_ns():
            if not await self._recall(looks):
                await self._verify(looks)
            self._build = await self._describe()
        return self._build

    @property
    def stamps(self) -> set[tuple[int, int, int, int, int]]:
        """How the files looked when they were verified: see weights.files.File.stamp."""
        return {each.stamp for each in self._looks}

    async def recheck(self) -> None:
        """That an engine opened what was verified. Raises Refused when a file was touched or replaced since."""
        if await self._look() != self._looks:
            raise Refused(
                f"the weights of `{self._name}` changed after they were verified",
                hint=f"find out who writes to {self._weights}, then start it again",
            )

    async def reread(self) -> None:
        """Gate and hash everything again, however it looks. Raises Refused: then nothing of it may be served."""
        await self._verify(await self._look())

    async def _look(self) -> list[File]:
        return (await asyncio.to_thread(list_files, self._weights))[0]

    async def _describe(self) -> Checkpoint:
        build = await asyncio.to_thread(describe, self._weights)
        for objection in judge_build(build.format, self._rules).objections:
            raise Refused(f"policy refuses `{self._name}`: {in_words(objection)}", hint=objection.hint)
        return build

    async def _recall(self, looks: list[File]) -> bool:
        """Whether these very files were verified not long ago, by this daemon or one before, and held to this pin."""
        subject, book = str(self._weights), self._ground.book
        seen = await book.verified(subject)
        if seen is None or seen.looks != _fingerprint(looks):
            return False
        if seen.at_ns + self._lasts_ns <= self._ground.clock_ns() or seen.digest != await self._expected():
            return False
        self._looks, self._read_ns = looks, seen.at_ns
        self._ground.tell("weights.unchanged", self._name, path=subject, digest=seen.digest, read_ns=seen.at_ns)
        return True

    async def _expected(self) -> str | None:
        return self._endpoint.pin or await self._ground.book.pin(str(self._weights))

    async def _verify(self, looks: list[File]) -> None:
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
        manifest = pin and known(ground.state, pin, signer(ground.state).public)
        verdict = await asyncio.to_thread(verify, self._weights, pin, manifest or None)
        refusing = [each for each in verdict.findings if not each.review]
        accepted = verdict.accepted and verdict.digest in (self._permission.digests or (verdict.digest,))
        ground.tell(
            "weights.accepted" if accepted else "weights.refused",
            self._name,
            path=subject, digest=verdict.digest, pinned=verdict.pinned, files=len(verdict.artifacts),
            size_bytes=sum(a.size_bytes for a in verdict.artifacts), findings=_in_words(refusing) or None,
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
        self._looks, self._read_ns = looks, now_ns
        await ground.book.set_verified(subject, verdict.digest, _fingerprint(looks), now_ns)

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
