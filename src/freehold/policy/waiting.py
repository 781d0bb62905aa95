"""How long to wait before trying again: pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median

LONGEST_BACKOFF_S = 60.0
UNMEASURED_START_S = 10.0


def backoff_s(failures: int) -> float:
    """Seconds before the next start: none after the first failure, then 1, 2, 4 ... 60."""
    return 0.0 if failures <= 1 else min(LONGEST_BACKOFF_S, 2.0 ** (failures - 2))


def retry_after_s(starts_s: Sequence[float], started_since_s: float = 0.0, backoff_left_s: float = 0.0) -> int:
    """Whole seconds a caller should wait: what a start usually takes here, less what has passed of this one."""
    usual = median(starts_s) if starts_s else UNMEASURED_START_S
    return max(1, math.ceil(backoff_left_s + max(0.0, usual - started_since_s)))
