"""How long a decision takes: reading the catalogue, choosing among everything, and `freehold plan` in a new process.

The last twice: with the speed of what is proposed, and with a speed, a load and a floor that every way is held to.

python bench/plan.py [--runs 20]
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from subprocess import DEVNULL

from figures import keep, machine

from freehold.catalogue import load
from freehold.catalogue.places import places
from freehold.plan.choose import choose
from freehold.plan.need import Need
from freehold.policy.law import Rules

ASKED = ("plan", "--users", "40", "--context", "32K")
FLOOR = "euroeval-knowledge.german.2026-04-20.without-thinking>=60"
IN_FULL = (*ASKED, "--requests", "20000", "--speed", "20", "--floor", FLOOR)  # each way timed, each model's score read


def milliseconds(work: Callable[[], object], runs: int) -> float:
    """The median of the runs, in this process."""
    taken = []
    for _ in range(runs):
        began = time.perf_counter()
        work()
        taken.append((time.perf_counter() - began) * 1e3)
    return round(statistics.median(taken), 1)


def cold_start(asked: tuple[str, ...], runs: int) -> tuple[float, float]:
    """Median milliseconds of CPU, and of waiting, of a command in a new process, after a first one.

    Its modules are compiled by then, as they are for everybody whose Python may keep what it compiled.
    """
    cpu, waited = [], []
    env = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    with tempfile.TemporaryDirectory() as folder:
        ask = partial(
            subprocess.run, [sys.executable, "-m", "freehold", *asked], cwd=folder, env=env, check=True, stdout=DEVNULL
        )
        ask()
        for _ in range(runs):
            before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
            ask()
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
    (cpu_ms, waited_ms), (full_cpu_ms, full_waited_ms) = cold_start(ASKED, runs), cold_start(IN_FULL, runs)
    found = {
        "models": len(catalogue.models),
        "offers": len(allowed),
        "combinations": choice.considered,
        "load_ms": milliseconds(load, runs),
        "choose_ms": milliseconds(lambda: choose(need, catalogue.models, {}, allowed), runs),
        "plan_cpu_ms": cpu_ms,
        "plan_waited_ms": waited_ms,
        "full_plan_cpu_ms": full_cpu_ms,
        "full_plan_waited_ms": full_waited_ms,
    }
    print(f"{about['cpu']}, {about['cores']} cores; medians of {runs} runs\n")
    for name, value in found.items():
        print(f"{name:20}{value:>12,}")
    keep("plan", found)


if __name__ == "__main__":
    main()
