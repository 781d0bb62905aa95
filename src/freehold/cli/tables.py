"""Plain tables and money: what a person can read and `grep` can find."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal

from freehold.types import PICO_PER_UNIT


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(r, widths, strict=True)).rstrip() for r in (heads, *rows))


def money(pico: int, currency: str, digits: int = 6) -> str:
    """Rounded here, once: to the millionth of the unit, or finer for one request."""
    return f"{currency} {Decimal(pico) / PICO_PER_UNIT:.{digits}f}"


def printable(text: str) -> str:
    """What a model or an engine said, for a terminal that must not obey it: no control characters."""
    return "".join(c for c in text if c.isprintable() or c in "\n\t")


def size(size_bytes: float) -> str:
    """In GB, MB and kB of 1000: the units files are sold in."""
    for unit, factor in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if size_bytes >= factor:
            return f"{size_bytes / factor:.1f} {unit}"
    return f"{size_bytes:.0f} B"
