"""From a folder to a verdict: strict gate, one SHA-256 pass, comparison with what is expected."""

from __future__ import annotations

import re
from pathlib import Path

from freehold.errors import BadRequest
from freehold.types import Finding, Manifest, Pinned, Verdict
from freehold.weights.describe import Checkpoint, describe
from freehold.weights.dimensions import dimensions
from freehold.weights.files import list_files, misnamed_blobs
from freehold.weights.fitting import digest_of, fitting
from freehold.weights.gate import examine
from freehold.weights.hashing import hash_files, manifest_digest
from freehold.weights.manifest import differences

__all__ = ["Checkpoint", "describe", "dimensions", "verify"]


def verify(
    path: Path,
    pin: str | None = None,
    manifest: Manifest | None = None,
    *,
    base: Path | None = None,
    require_pin: bool = False,
) -> Verdict:
    """What may be said of the weights at `path`, offline.

    `pin` is the digest that an earlier verdict gave; `manifest` has one too, and names the files that differ. `base`:
    of an adapter, the weights it must fit.
    Raises Unknown when there is nothing at `path`, BadRequest when the pin is no digest.
    """
    if pin is not None and not re.fullmatch(r"[0-9a-fA-F]{64}", pin):
        raise BadRequest("a pin is a SHA-256 digest: 64 hexadecimal digits", hint="take it from `freehold verify`")
    files, findings = list_files(path)
    findings += examine(files)
    artifacts, unread = hash_files(files)
    findings += [each for each in unread if each.path not in {finding.path for finding in findings}]
    findings += misnamed_blobs(files, {each.path: each.sha256 for each in artifacts})
    digest = manifest_digest(artifacts)
    meant = {each.lower() for each in (pin, manifest and manifest.digest) if each}
    pinned: Pinned = "unpinned" if not meant else "pinned" if meant == {digest} else "changed"
    if pinned == "changed":
        if manifest:
            findings += differences(manifest, artifacts)
        why = f"the files' digest is {digest or 'missing'}, the pin is {' and '.join(sorted(meant))}"
        fix = f"fetch the pinned files again; if the change is wanted: freehold pin {path}"
        findings.append(Finding(path=path.name, rule="digest-changed", why=why, fix=fix))
    if require_pin and not meant:
        why = "nothing says which files these must be, and a pin is required"
        fix = f"compare each sha256 with its publisher's, then: freehold pin {path}"
        findings.append(Finding(path=path.name, rule="no-pin", why=why, fix=fix))
    base_digest = ""
    if base is not None:
        findings += fitting(path, base)
        base_digest = digest_of(base)
    return Verdict(
        subject=str(path),
        accepted=all(each.review for each in findings),
        pinned=pinned,
        digest=digest,
        artifacts=tuple(artifacts),
        findings=tuple(findings),
        base=base_digest,
    )
