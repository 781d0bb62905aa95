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
QUERIES = _blocks((_HERE / "queries.sql").read_text().replace("{columns}", ", ".join(f'"{c}"' for c in _COLUMNS)))
_ROW = f"(?, ?, {', '.join('?' * len(_COLUMNS))})"
INSERT_USAGE = {  # so many rows at once; the most is a whole batch of the writer
    rows: QUERIES["insert_usage"].format(rows=", ".join([_ROW] * rows)) for rows in (200, 128, 64, 32, 16, 8, 4, 2, 1)
}
EDITION = max(int(path.name.partition("_")[0]) for path in (_HERE / "migrations").glob("*.sql"))


def migrate(db: sqlite3.Connection) -> None:
    """Bring the book up to this program's edition, one numbered file after the other."""
    have = db.execute("pragma user_version").fetchone()[0]
    for path in sorted((_HERE / "migrations").glob("*.sql")):
        number = int(path.name.partition("_")[0])
        if number > have:
            db.executescript(f"begin; {path.read_text()} ; pragma user_version = {number}; commit;")
