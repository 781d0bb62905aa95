"""Signed lists of files: which files a model is made of, by digest, and who said so."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec
from msgspec import Struct

from freehold.errors import BadRequest, Refused
from freehold.ledger.signing import Signer, holds
from freehold.types import Artifact, Finding, Manifest

FOLDER = "manifests"  # of the state folder
_MAX_BYTES = 16 << 20
_FETCH = "fetch the file again from where the manifest says it came from"


class Signed(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A manifest on its way: ed25519 over its deterministic JSON."""

    manifest: Manifest
    key: str
    signature: str


def save(state: Path, manifest: Manifest, signer: Signer) -> Path:
    """Sign it and keep it under its digest; whole or not at all."""
    folder = state / FOLDER
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    signed = Signed(manifest=manifest, key=signer.public, signature=signer.sign("manifest", _message(manifest)))
    path = folder / f"{manifest.digest}.json"
    draft = path.with_suffix(f".{secrets.token_hex(8)}.new")  # endpoints that share weights may start together
    draft.write_bytes(msgspec.json.format(msgspec.json.encode(signed)) + b"\n")
    draft.replace(path)
    return path


def load(path: Path, key: str | None) -> Manifest:
    """A manifest that was signed with `key`, 64 hex digits; None: there is none that is trusted.

    Raises BadRequest when it is no manifest, Refused when its signature does not hold or is another's.
    """
    try:
        with path.open("rb") as file:
            signed = msgspec.json.decode(file.read(_MAX_BYTES), type=Signed)
    except (OSError, msgspec.DecodeError) as error:
        raise BadRequest(f"{path} is no manifest: {error}", hint="freehold pin makes one, and freehold pull") from None
    if key is None or signed.key != key.lower():
        hint = f"--key {signed.key}, once whose it is has told you so; whoever changes files can sign a list of them"
        raise Refused(f"{path} is signed with the key {signed.key}, which nobody vouched for", hint=hint)
    if not holds(signed.key, signed.signature, "manifest", _message(signed.manifest)):
        raise Refused(f"the signature of {path} does not hold", hint="it was changed since: get it again")
    return signed.manifest


def known(state: Path, digest: str, key: str) -> Manifest | None:
    """What this team signed of these files, if it did."""
    path = state / FOLDER / f"{digest}.json"
    return load(path, key) if path.exists() else None


def differences(manifest: Manifest, artifacts: Iterable[Artifact]) -> Iterator[Finding]:
    """Every file that is not as the manifest has it."""
    there = {each.path: each for each in artifacts}
    for meant in manifest.artifacts:
        found = there.pop(meant.path, None)
        if found is None:
            yield Finding(path=meant.path, rule="missing-file", why="the manifest names it", fix=_FETCH)
        elif found != meant:
            why = f"has the sha256 {found.sha256}, the manifest says {meant.sha256}"
            yield Finding(path=meant.path, rule="file-changed", why=why, fix=_FETCH)
    for path in there:
        yield Finding(path=path, rule="stray-file", why="the manifest does not name it", fix="remove it")


def _message(manifest: Manifest) -> bytes:
    return msgspec.json.encode(manifest, order="deterministic")
