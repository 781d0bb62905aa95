"""Where a daemon is found, and the lock that says it is there. Apart, because the command line needs no more."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from freehold.errors import Refused


def run_dir(state_dir: Path) -> Path:
    """The folder of one daemon's sockets, made if need be: short, because a socket's path has 107 bytes at most.

    Raises Refused when somebody else has it.
    """
    name = f"freehold-{os.getuid()}-{hashlib.sha256(os.fsencode(state_dir)).hexdigest()[:8]}"
    path = Path(tempfile.gettempdir()) / name
    with contextlib.suppress(FileExistsError):
        path.mkdir(mode=0o700)
    found = path.lstat()
    if path.is_symlink() or not path.is_dir() or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise Refused(f"{path} is not this user's own folder", hint="remove it, or set TMPDIR to another folder")
    return path


def admin_socket(state_dir: Path) -> Path:
    return run_dir(state_dir) / "admin.sock"


@contextlib.contextmanager
def lock(state_dir: Path, *, wait: bool = False) -> Iterator[None]:
    """One daemon a state folder: two would write one book. Raises Refused, or waits until the other one is gone."""
    with (state_dir / "lock").open("w") as held:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            hint = "freehold ps shows it, freehold down ends it"
            raise Refused(f"a daemon already runs on {state_dir}", hint=hint) from None
        yield
