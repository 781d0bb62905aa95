"""The way to an engine: its socket, opened once, so that an engine cannot put something else in its place."""

from __future__ import annotations

import os
import stat

from freehold.errors import EngineFailed


def open_socket(path: str) -> int:
    """Open the Unix socket at `path` and return a descriptor that the caller closes.

    It names the socket itself and not the path: connect to `/proc/self/fd/N` and it does not matter what the engine
    does with the path later, nor how long it is. Raises errors.EngineFailed unless it is a socket of this user.
    """
    try:
        descriptor = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise EngineFailed(f"The engine has no socket at {path}: {error.strerror}.") from error
    found = os.fstat(descriptor)
    if stat.S_ISSOCK(found.st_mode) and found.st_uid == os.geteuid():
        return descriptor
    os.close(descriptor)
    what = "a symbolic link" if stat.S_ISLNK(found.st_mode) else "not a socket of this user"
    raise EngineFailed(
        f"The engine's socket {path} is {what}.", hint="The engine may be hostile: stop it and verify its weights."
    )
