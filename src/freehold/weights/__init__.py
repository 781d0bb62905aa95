"""From a folder to a verdict: strict gate, one SHA-256 pass, comparison with the pin."""

from __future__ import annotations

import re
from pathlib import Path

from freehold.errors import BadRequest
from freehold.types import Finding, Pinned, Verdict
from freehold.weights.describe import Checkpoint, describe
from freehold.weights.dimensions import dimensions
from freehold.weights.files import list_files
from freehold.weights.gate import examine
from freehold.weights.hashing import hash_files, manifest_digest

__all__ = ["Checkpoint", "describe", "dimensions", "verify"]


def verify(path: Path, pin: str | None = None) -> Verdict:
    """What may be said of the weights at `path`, offline. `pin` is the digest that an earlier verdict gave.

    Raises Unknown when there is nothing at `path`, BadRequest when the pin is no digest.
    """
    if pin is not None and not re.fullmatch(r"[0-9a-fA-F]{64}", pin):
        raise BadRequest("a pin is a SHA-256 digest: 64 hexadecimal digits", hint="take it from `freehold verify`")
    files, findings = list_files(path)
    findings += examine(files)
    artifacts, unread = hash_files(files)
    findings += [each for each in unread if each.path not in {finding.path for finding in findings}]
    digest = manifest_digest(artifacts)
    pinned: Pinned = "unpinned" if pin is None else "pinned" if digest == pin.lower() else "changed"
    if pinned == "changed":
        why = f"the files' digest is {digest or 'missing'}, the pin is {pin}"
        fix = f"fetch the pinned files again; if the change is wanted: freehold verify {path} --accept"
        findings.append(Finding(path=path.name, rule="digest-changed", why=why, fix=fix))
    return Verdict(
        subject=str(path),
        accepted=all(each.review for each in findings),
        pinned=pinned,
        digest=digest,
        artifacts=tuple(artifacts),
        findings=tuple(findings),
    )
