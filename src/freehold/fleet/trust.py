"""Which weights may be started: gate and hash at the first use and whenever a file looks touched, pin on first use."""

from __future__ import annotations

import asyncio
from pathlib import Path

from freehold.errors import Refused
from freehold.fleet.ground import Ground
from freehold.fleet.permission import Permission
from freehold.policy.law import Rules, in_words, judge_build
from freehold.types import Verdict
from freehold.weights import Checkpoint, describe, verify
from freehold.weights.files import File, list_files


class Trust:
    """One for each endpoint: remembers what was verified and how the files looked then."""

    def __init__(self, endpoint: str, weights: Path, ground: Ground, permission: Permission, rules: Rules) -> None:
        self._endpoint, self._weights, self._ground = endpoint, weights, ground
        self._permission, self._rules = permission, rules
        self._looks: list[File] = []
        self._build: Checkpoint | None = None

    async def ensure(self) -> Checkpoint:
        """What the weights are, once they may be started. Raises Refused with the clause, or with the findings."""
        self._permission.require()
        looks, _ = await asyncio.to_thread(list_files, self._weights)
        if self._build is None or looks != self._looks:
            await self._verify()
            build = await asyncio.to_thread(describe, self._weights)
            for objection in judge_build(build.format, self._rules).objections:
                raise Refused(f"policy refuses `{self._endpoint}`: {in_words(objection)}", hint=objection.hint)
            self._build, self._looks = build, looks
        return self._build

    async def _verify(self) -> None:
        subject = str(self._weights)
        tell, book = self._ground.tell, self._ground.book
        pin = await book.pin(subject)
        if pin is None and self._rules.require_pin:
            raise Refused(
                f"{subject} is not pinned, and policy.require_pin is set",
                hint=f"compare the digests with the publisher's, then: freehold verify {subject} --accept",
            )
        tell("weights.checking", self._endpoint, path=subject)
        verdict = await asyncio.to_thread(verify, self._weights, pin)
        tell(
            "weights.accepted" if verdict.accepted else "weights.refused",
            self._endpoint,
            path=subject, digest=verdict.digest, pinned=verdict.pinned, files=len(verdict.artifacts),
            size_bytes=sum(a.size_bytes for a in verdict.artifacts),
            findings=_findings(verdict) or None,
        )  # fmt: skip
        if not verdict.accepted:
            raise Refused(f"the weights of `{self._endpoint}` were refused: {_findings(verdict)}", hint=_fixes(verdict))
        if verdict.pinned == "unpinned":
            await book.set_pin(subject, verdict.digest, "first use")
            tell("weights.pinned", self._endpoint, path=subject, digest=verdict.digest, reason="first use")


def _findings(verdict: Verdict) -> str:
    return "; ".join(f"{f.path}: {f.why} [{f.rule}]" for f in verdict.findings)


def _fixes(verdict: Verdict) -> str:
    return "; ".join(dict.fromkeys(f.fix for f in verdict.findings))
