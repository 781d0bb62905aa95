"""CPU time of the command line: `freehold --help` and `freehold ps` with a daemon running.

python bench/cli.py [--runs 20]
"""

import argparse
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from figures import keep, machine

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from conftest import team_in

COMMANDS = (["--help"], ["ps"])


def measure(arguments: list[str], folder: Path) -> tuple[float, float]:
    """Milliseconds of CPU (user and system, its children too), and of waiting, for one run."""
    before, began_s = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run([sys.executable, "-m", "freehold", *arguments], cwd=folder, check=True, stdout=subprocess.DEVNULL)
    waited_s, after = time.perf_counter() - began_s, resource.getrusage(resource.RUSAGE_CHILDREN)
    return (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime) * 1e3, waited_s * 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=20)
    runs = parser.parse_args().runs
    about, found = machine(), {}
    with tempfile.TemporaryDirectory() as name, team_in(Path(name)) as team:
        team.write(demo=team.demo(), other=team.demo())
        team.serve()
        print(f"{about['cpu']}, {about['cores']} cores; medians of {runs} runs\n")
        for arguments in COMMANDS:
            measure(arguments, team.folder)  # the first one reads files that are not in memory yet
            taken = [measure(arguments, team.folder) for _ in range(runs)]
            cpu_ms, waited_ms = (statistics.median(row) for row in zip(*taken, strict=True))
            what = " ".join(("freehold", *arguments))
            found[what] = {"runs": runs, "cpu_ms": round(cpu_ms, 1), "waited_ms": round(waited_ms, 1)}
            print(f"{what:20}{cpu_ms:7.1f} ms of CPU{waited_ms:9.1f} ms waited")
    keep("cli", found)


if __name__ == "__main__":
    main()
