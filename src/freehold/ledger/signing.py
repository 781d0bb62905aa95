"""The team's own signature: ed25519, with a key that lies in the state folder, where no engine can read.

A message says what it is before what it says, so that a signature of one kind is none of another.
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from typing import Literal

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from freehold.errors import FreeholdError

Kind = Literal["checkpoint", "manifest"]


class Signer:
    """Signs for this state folder."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key
        self.public = key.public_key().public_bytes_raw().hex()  # 64 hex digits

    def sign(self, kind: Kind, message: bytes) -> str:
        """128 hex digits."""
        return self._key.sign(_named(kind, message)).hex()


def signer(state: Path) -> Signer:
    """The signer of a state folder; its key is made at the first use. Raises FreeholdError when that is damaged."""
    path = state / "signing.key"
    try:
        secret = path.read_bytes()
    except FileNotFoundError:
        secret = _make(path)
    try:
        return Signer(Ed25519PrivateKey.from_private_bytes(bytes.fromhex(secret.decode("ascii").strip())))
    except ValueError:
        raise FreeholdError(
            f"{path} is no signing key", hint="restore it, or move it away: then a new one is made"
        ) from None


def holds(public: str, signature: str, kind: Kind, message: bytes) -> bool:
    """Whether this public key (64 hex digits) made this signature."""
    try:
        key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(public))
        key.verify(bytes.fromhex(signature), _named(kind, message))
    except (ValueError, InvalidSignature):
        return False
    return True


def _make(path: Path) -> bytes:
    """Whole or not at all, and never over another's: who comes second takes what the first made."""
    secret = Ed25519PrivateKey.generate().private_bytes_raw().hex().encode() + b"\n"
    draft = path.with_name(f"signing-{secrets.token_hex(8)}.new")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with open(descriptor, "wb") as file:  # noqa: PTH123  a descriptor
            file.write(secret)
            file.flush()
            os.fsync(descriptor)
        os.link(draft, path)
    except FileExistsError:
        return path.read_bytes()
    finally:
        draft.unlink()
    return secret


def _named(kind: Kind, message: bytes) -> bytes:
    return f"freehold {kind} 1\n".encode() + message
