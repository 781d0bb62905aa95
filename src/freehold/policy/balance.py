"""Which replica answers, and whether one is asked at all: pure."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

# A replica may have so much more than its share before its prefix goes elsewhere (consistent hashing with bounded
# loads, Mirrokni, Thorup and Zadimoghaddam 2018).
LOAD_FACTOR = 1.25


def choose(loads: Sequence[int], names: Sequence[str], affinity: bytes) -> int:
    """The index of the replica for a request. `loads`: how many each is answering.

    Requests that begin alike (`affinity`) go to the same replica, whose cache has that beginning, unless it has more
    than its share; without affinity the one with the least to do.
    """
    if not affinity:
        return min(range(len(loads)), key=loads.__getitem__)
    bound = math.ceil(LOAD_FACTOR * (sum(loads) + 1) / len(loads))
    order = sorted(range(len(loads)), key=lambda i: _rank(affinity, names[i]))
    return next((i for i in order if loads[i] < bound), order[0])


def _rank(affinity: bytes, name: str) -> bytes:
    return hashlib.blake2b(affinity + name.encode(), digest_size=8).digest()


class Circuit:
    """Open after FAILURES in a row: then nobody is sent there until a probe is answered."""

    FAILURES = 3

    def __init__(self) -> None:
        self.failures, self.open = 0, False

    def failed(self) -> bool:
        """Whether this opened it."""
        self.failures += 1
        self.open = self.failures >= self.FAILURES
        return self.failures == self.FAILURES

    def answered(self) -> bool:
        """Whether this closed it."""
        was_open, self.failures, self.open = self.open, 0, False
        return was_open
