"""One SHA-256 pass over every file, and the digest of the list."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

from freehold.types import Artifact, Finding
from freehold.weights.cachefiles import is_book
from freehold.weights.files import File


def hash_files(files: Sequence[File]) -> tuple[list[Artifact], list[Finding]]:
    """Artifacts in the order of `files`, and a finding for each that could not be read to its end unchanged.

    A hub cache's own books are left out: they are no part of the model and change with every download.
    """
    files = [file for file in files if not is_book(file.name)]
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:  # hashlib lets go of the interpreter's lock
        largest_first = sorted(files, key=lambda file: -file.size_bytes)  # so that no core is left alone with one
        hashed = dict(zip((file.name for file in largest_first), pool.map(_hash_file, largest_first), strict=True))
    results = [hashed[file.name] for file in files]
    return (
        [each for each in results if isinstance(each, Artifact)],
        [each for each in results if isinstance(each, Finding)],
    )


def manifest_digest(artifacts: Iterable[Artifact]) -> str:
    """SHA-256 over the sorted lines `sha256, size, path`, two spaces between; empty when there is no artifact."""
    lines = sorted(f"{each.sha256}  {each.size_bytes}  {each.path}\n" for each in artifacts)
    return hashlib.sha256("".join(lines).encode()).hexdigest() if lines else ""


def _hash_file(file: File) -> Artifact | Finding:
    try:
        with file.open() as stream:
            sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
        file.open().close()  # still the same bytes behind the name, after the pass
    except OSError as error:
        why = error.strerror or str(error)
        return Finding(path=file.name, rule="unreadable", why=why, fix="leave the folder alone and verify again")
    return Artifact(path=file.name, size_bytes=file.size_bytes, sha256=sha256)
