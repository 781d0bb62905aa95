"""What a machine's time costs, exactly: pure integer arithmetic in pico (1e-12 of the currency unit)."""

from __future__ import annotations

NS_PER_HOUR = 3_600 * 10**9


def machine_pico(pico_per_hour: int, elapsed_ns: int) -> int:
    """Cost of the first `elapsed_ns`. Cost of an interval is the difference of two of these, so intervals add up."""
    return pico_per_hour * elapsed_ns // NS_PER_HOUR


def split(amount: int, ways: int) -> list[int]:
    """`amount` in `ways` equal parts; the first ones take the remainder, so nothing is lost."""
    part, rest = divmod(amount, ways)
    return [part + (i < rest) for i in range(ways)]
