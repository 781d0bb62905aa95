"""The note beside the book that one was made here: so that an empty file in its place is not taken for a new one.

The signing key and the lists of pinned files are no such sign: they can be there before the first book.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from pathlib import Path

from freehold.errors import FreeholdError
from freehold.ledger.sql import QUERIES


def once(book: Path) -> bool:
    """Whether there was a book already at this path."""
    return _note(book).exists()


def check(book: Path) -> None:
    """Raises FreeholdError when there was a book, and there is none any more."""
    if not once(book):
        return
    if book.exists() and book.stat().st_size:
        try:
            with contextlib.closing(sqlite3.connect(f"{book.absolute().as_uri()}?mode=ro", uri=True)) as db:
                if db.execute("pragma user_version").fetchone()[0]:
                    return
        except sqlite3.DatabaseError:  # whoever opens it to write says what is wrong
            return
    raise lost(book)


def note(book: Path, db: sqlite3.Connection) -> None:
    """The book is made, and on the disk."""
    if once(book):
        return
    number = db.execute(QUERIES["about"], ("book",)).fetchone()
    descriptor = os.open(_note(book), os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    with open(descriptor, "w") as file:  # noqa: PTH123  a descriptor
        file.write(f"{number[0] if number else ''}\n")


def lost(book: Path) -> FreeholdError:
    error = FreeholdError(
        f"the book at {book} is gone, empty or tampered with",
        hint=f"restore it from a backup; to begin anew, without its keys and pins, remove {_note(book)}",
    )
    error.exit_code = 3
    return error


def _note(book: Path) -> Path:
    return book.with_name("book.id")
