"""The kernel's keyrings: a sandbox does not hide them, and Kerberos or disk keys may lie there."""

from __future__ import annotations

import ctypes
import platform

_KEYCTL = {"x86_64": 250, "aarch64": 219}  # the number of the system call
_JOIN_SESSION_KEYRING = 1


def leave_session_keyring() -> None:
    """From here on this process and its children have a new, empty session keyring."""
    if number := _KEYCTL.get(platform.machine()):
        ctypes.CDLL(None, use_errno=True).syscall(number, _JOIN_SESSION_KEYRING, None)
