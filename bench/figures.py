"""Keeps figures with what they were measured on."""

import json
import os
import sys
from datetime import UTC, datetime
from pathlib import Path

from freehold import __version__
from freehold.fleet.host import probe

RESULTS = Path(__file__).with_name("results")


def machine() -> dict:
    host = probe()
    return {"cpu": host.cpu, "cores": host.cores, "memory_gib": round(host.memory_bytes / 2**30)}


def keep(name: str, found: dict) -> None:
    """Write `bench/results/NAME.json`, over the last one."""
    RESULTS.mkdir(exist_ok=True)
    about = {
        "measured": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": f"python bench/{Path(sys.argv[0]).name} {' '.join(sys.argv[1:])}".strip(),
        "freehold": __version__,
        "python": sys.version.split()[0],
        "machine": machine(),
        "load_average_1_min": round(os.getloadavg()[0], 2),
    }
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps({**about, "found": found}, indent=2) + "\n")
    print(f"\nkept in {path.relative_to(Path(__file__).parents[1])}")
