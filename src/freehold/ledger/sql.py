"""The book's SQL: named blocks of queries.sql, and numbered migrations."""

from __future__ import annotations

import re
import sqlite3
from pathlib import Path

from freehold.types import UsageRecord

_HERE = Path(__file__).parent
_NAME = re.compile(r"^-- name: (\w+)\n", re.MULTILINE)


def _blocks(text: str) -> dict[str, str]:
    parts = _NAME.split(text)[1:]
    return {name: block.strip() for name, block in zip(parts[::2], parts[1::2], strict=True)}


_COLUMNS = UsageRecord.__struct_fields__
QUERIES = _blocks(
    (_HERE / "queries.sql")
    .read_text()
    .replace("{columns}", ", ".join(_COLUMNS))
    .replace("{marks}", ", ".join("?" * len(_COLUMNS)))
)
EDITION = max(int(path.name.partition("_")[0]) for path in (_HERE / "migrations").glob("*.sql"))


def migrate(db: sqlite3.Connection) -> None:
    """Bring the book up to this program's edition, one numbered file after the other."""
    have = db.execute("pragma user_version").fetchone()[0]
    for path in sorted((_HERE / "migrations").glob("*.sql")):
        number = int(path.name.partition("_")[0])
        if number > have:
            db.executescript(f"begin; {path.read_text()} ; pragma user_version = {number}; commit;")
