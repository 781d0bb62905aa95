"""How long a decision takes: reading the catalogue, choosing among everything, and `freehold plan` from a cold start.

python bench/plan.py [--runs 20]
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

from figures import keep, machine

from freehold.catalogue import load
from freehold.catalogue.places import places
from freehold.plan.choose import choose
from freehold.plan.need import Need
from freehold.policy.law import Rules

ASKED = ["plan", "--users", "40", "--context", "32K"]


def milliseconds(work: Callable[[], object], runs: int) -> float:
    """The median of the runs, in this process."""
    taken = []
    for _ in range(runs):
        began = time.perf_counter()
        work()
        taken.append((time.perf_counter() - began) * 1e3)
    return round(statistics.median(taken), 1)


def cold_start(runs: int) -> tuple[float, float]:
    """Median milliseconds of CPU, and of waiting, of one `freehold plan` in a new process."""
    cpu, waited = [], []
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(runs):
            before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
            subprocess.run(
                [sys.executable, "-m", "freehold", *ASKED], cwd=folder, check=True, stdout=subprocess.DEVNULL
            )
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            waited.append((time.perf_counter() - began) * 1e3)
            cpu.append((after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime) * 1e3)
    return round(statistics.median(cpu), 1), round(statistics.median(waited), 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=20)
    runs = parser.parse_args().runs
    about, catalogue = machine(), load()
    need = Need(users=40, context=32768, kinds=("on-demand", "spot", "dedicated", "reserved", "owned"))
    allowed, _ = places(catalogue, need, Rules(), {})
    choice = choose(need, catalogue.models, {}, allowed)
    cpu_ms, waited_ms = cold_start(runs)
    found = {
        "models": len(catalogue.models),
        "offers": len(allowed),
        "combinations": choice.considered,
        "load_ms": milliseconds(load, runs),
        "choose_ms": milliseconds(lambda: choose(need, catalogue.models, {}, allowed), runs),
        "plan_cpu_ms": cpu_ms,
        "plan_waited_ms": waited_ms,
    }
    print(f"{about['cpu']}, {about['cores']} cores; medians of {runs} runs\n")
    for name, value in found.items():
        print(f"{name:20}{value:>12,}")
    keep("plan", found)


if __name__ == "__main__":
    main()
