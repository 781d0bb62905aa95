"""Just enough of Prometheus' text format to read counters."""

from __future__ import annotations

import re
from contextlib import suppress
from math import isfinite

_MOST = 1 << 53  # what counts more counts nonsense, which no book could take
_LABEL = re.compile(r'\b(\w+)="((?:[^"\\]|\\.)*)"')


def totals(metrics: bytes) -> dict[str, int]:
    """Sum every metric over its labels, as whole numbers; lines without a finite number are left out, nonsense too."""
    sums: dict[str, float] = {}
    for line in metrics.decode("utf-8", "replace").splitlines():
        if not line or line.startswith("#"):
            continue
        name_and_labels, _, rest = line.rpartition("} ") if "} " in line else line.partition(" ")
        name = name_and_labels.partition("{")[0].strip()
        with suppress(ValueError, IndexError):
            value = float(rest.split()[0])
            if isfinite(value):
                sums[name] = sums.get(name, 0.0) + value
    return {name: int(total) for name, total in sums.items() if abs(total) < _MOST}


def first(metrics: bytes, name: str) -> float | None:
    """The value of the first line of this metric."""
    for line in metrics.decode("utf-8", "replace").splitlines():
        if line.startswith(name) and line[len(name) : len(name) + 1] in "{ ":
            with suppress(ValueError):
                value = float(line.rpartition(" ")[2])
                return value if isfinite(value) else None
    return None


def labels(metrics: bytes, name: str) -> dict[str, str]:
    """The labels of the first line of this metric."""
    found = re.search(rf"^{re.escape(name)}\{{(.*)\}}", metrics.decode("utf-8", "replace"), re.MULTILINE)
    return dict(_LABEL.findall(found[1])) if found else {}
