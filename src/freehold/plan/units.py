"""How sizes are said: GiB and MiB are powers of two, as memory is counted; GB are powers of ten, as it is sold."""

from __future__ import annotations

GIB = 1 << 30


def size(count_bytes: float) -> str:
    """In GiB or MiB: powers of two."""
    unit, power = ("GiB", 30) if abs(count_bytes) >= GIB else ("MiB", 20)
    return f"{count_bytes / (1 << power):,.2f} {unit}"
