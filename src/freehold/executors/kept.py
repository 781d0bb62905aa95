"""Folders that engines write to and that outlive them. What lies there is the engine's: it is never opened here.

What an engine compiled is run by its next start, so a folder belongs to one endpoint with one engine, weights, card and
options: whoever breaks into that engine gets no further than it.
"""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

from freehold.errors import NotReady

LIMIT_BYTES = 20 << 30  # of one; what is larger is emptied before a start
UNUSED_S = 30 * 86_400  # by no start: then it goes


def keep(parent: Path, name: str) -> Path:
    """Make `parent`/`name` ready for a start, and clear away what none has used for long. Raises NotReady."""
    folder = parent / name
    parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if folder.is_dir() and _size_bytes(folder) > LIMIT_BYTES:
        shutil.rmtree(folder, ignore_errors=True)
        if folder.exists():
            raise NotReady(f"{folder} is too large, and cannot be emptied", hint="delete it")
    folder.mkdir(mode=0o700, exist_ok=True)
    os.utime(folder)
    for each in parent.iterdir():
        if time.time() - each.lstat().st_mtime > UNUSED_S:
            shutil.rmtree(each, ignore_errors=True)
    return folder


def _size_bytes(folder: Path) -> float:
    """On the disk. Of links only themselves; what cannot be looked into counts as too much."""
    total = 0
    try:
        for at, folders, files in os.walk(folder, onerror=_fail):
            for name in (*folders, *files):
                total += Path(at, name).lstat().st_blocks * 512
    except PermissionError:
        return LIMIT_BYTES + 1
    except FileNotFoundError:  # another replica writes there
        return total
    return total


def _fail(error: OSError) -> None:
    raise error
