"""Where a daemon is found, and the lock that says it is there. Apart, because the command line needs no more."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import pwd
from collections.abc import Iterator
from pathlib import Path

from freehold.errors import Refused

# A socket's path has 107 bytes at most; an endpoint's folder and its socket need some of them.
LONGEST_RUN_DIR_BYTES = 80


def own_folder(path: Path) -> Path:
    """The folder, made if need be, that nobody but this user can look into. Raises Refused when it is not theirs."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = path.lstat()
    if path.is_symlink() or found.st_uid != os.getuid():
        raise Refused(f"{path} is not this user's own folder", hint="remove it, or choose another state_dir")
    if found.st_mode & 0o077:
        path.chmod(0o700)
    return path


def run_dir(state_dir: Path) -> Path:
    """The folder of one daemon's sockets: in its state if the path is short enough, else in /tmp."""
    own_folder(state_dir)
    inside = state_dir / "run"
    if len(os.fsencode(inside)) <= LONGEST_RUN_DIR_BYTES:
        return own_folder(inside)
    digest = hashlib.sha256(os.fsencode(state_dir)).hexdigest()[:12]
    return own_folder(Path(f"/tmp/freehold-{os.getuid()}-{digest}"))  # noqa: S108  checked to be ours alone


def admin_socket(state_dir: Path) -> Path:
    return run_dir(state_dir) / "admin.sock"


@contextlib.contextmanager
def lock(state_dir: Path, *, wait: bool = False, name: str = "lock") -> Iterator[None]:
    """One daemon a state folder: two would write one book. Raises Refused, or waits until the other one is gone."""
    held = os.open(state_dir / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            hint = "freehold ps shows it, freehold down ends it"
            raise Refused(f"a daemon already runs on {state_dir}", hint=hint) from None
        yield
    finally:
        os.close(held)


def user(uid: int) -> str:
    """The name and number that events know somebody by."""
    try:
        return f"{pwd.getpwuid(uid).pw_name} ({uid})"
    except KeyError:
        return f"uid {uid}"
