"""Plain tables and money: what a person can read and `grep` can find."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime
from decimal import Decimal

from freehold.plan.units import size
from freehold.types import PICO_PER_UNIT


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    rows = [[" ".join(printable(cell).split("\n")) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(r, widths, strict=True)).rstrip() for r in (heads, *rows))


def markdown(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The same for a paper."""
    cells = [[" ".join(printable(cell).split()).replace("|", "\\|") for cell in row] for row in (heads, *rows)]
    return "\n".join(f"| {' | '.join(row)} |" for row in (cells[0], ["---"] * len(heads), *cells[1:]))


def money(pico: int, currency: str, digits: int = 6) -> str:
    """Rounded here, once: to the millionth of the unit, or finer for one request."""
    return f"{currency} {Decimal(pico) / PICO_PER_UNIT:.{digits}f}"


def beside(predicted_bytes: int | None, real_bytes: int | None) -> str:
    """What was planned / what was, and by how much that is more; `-` for what nobody says."""
    said = " / ".join("-" if each is None else size(each) for each in (predicted_bytes, real_bytes))
    more = f" ({real_bytes / predicted_bytes - 1:+.1%})" if predicted_bytes and real_bytes is not None else ""
    return "-" if said == "- / -" else said + more


def moment(at_ns: int) -> str:
    """A time as a person reads it, in UTC."""
    return datetime.fromtimestamp(at_ns / 1e9, UTC).strftime("%Y-%m-%d %H:%M:%S")


def span_ns(text: str) -> int | None:
    """A span of time as a person writes it: 90d, 12h, 30m, 5s; None when it is none."""
    span = re.fullmatch(r"(\d{1,9})([smhd])", text)
    return int(span[1]) * {"s": 1, "m": 60, "h": 3600, "d": 86400}[span[2]] * 10**9 if span else None


def printable(text: str) -> str:
    """What a model or an engine said, for a terminal that must not obey it: no control characters."""
    return "".join(c for c in text if c.isprintable() or c in "\n\t")
