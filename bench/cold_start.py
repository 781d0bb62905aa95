"""From zero: how long a caller of a cold endpoint waits for the first byte, against the bare engine's own start.

    python bench/cold_start.py [--pairs 20]

The bare engine is the very same command line in the very same sandbox, started directly: until /health says 200, and
then until the first streamed byte of the same request. Both take turns in one run, the first of each is left out.
Freehold's start also tries the sandbox from inside, which is the start of one more Python.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path

from figures import keep, machine

from freehold.engines.llamacpp import LlamaCpp
from freehold.errors import EngineFailed
from freehold.executors.bubblewrap import wrap
from freehold.fleet.host import probe
from freehold.plan.llamacpp import fit
from freehold.weights import describe

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import unixhttp
from conftest import DEMO, team_in

CONTEXT, PARALLEL = 2048, 4
BODY = {
    "model": "demo",
    "messages": [{"role": "user", "content": "What is the licence of Qwen3-8B?"}],
    "stream": True,
    "temperature": 0,
}
STAGES = ("replica.starting", "plan.made", "engine.launching", "engine.started", "isolation.tested", "probe.passed",
          "replica.ready")  # fmt: skip


def command(socket: Path) -> tuple[str, ...]:
    host = probe()
    plan = fit(describe(DEMO), host, context=CONTEXT, parallel=PARALLEL, threads=max(1, host.cores - 1))
    return wrap(LlamaCpp().launch(plan, str(DEMO), "demo", str(socket)))


def bare(folder: Path, number: int) -> tuple[float, float]:
    """Seconds until it is ready, and until the first byte after that."""
    socket = folder / "bare" / f"{number}.sock"
    socket.parent.mkdir(exist_ok=True)
    argv = command(socket)
    with (folder / "bare.log").open("ab") as log:
        began_s = time.perf_counter()
        engine = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env={}, cwd="/")
    try:
        while not healthy(socket):
            assert engine.poll() is None, (folder / "bare.log").read_text()
            time.sleep(0.002)
        ready_s = time.perf_counter()
        next(unixhttp.events(str(socket), "/v1/chat/completions", **BODY))
        return ready_s - began_s, time.perf_counter() - ready_s
    finally:
        engine.kill()
        engine.wait()


def healthy(socket: Path) -> bool:
    try:
        return unixhttp.request(str(socket), "GET", "/health")[0] == 200
    except (OSError, EngineFailed):
        return False


def from_zero(team) -> float:
    """Seconds from the request to the first byte of its answer."""
    team.until(lambda: team.status("demo")["state"] == "cold")
    began_s = time.perf_counter()
    connection = team.connect()
    connection.request("POST", "/v1/chat/completions", json.dumps(BODY), {"Authorization": f"Bearer {team.key}"})
    answer = connection.getresponse()
    assert answer.status == 200, answer.read()
    assert answer.read1(6) == b"data: "
    waited_s = time.perf_counter() - began_s
    answer.read()
    connection.close()
    return waited_s


def stages(team, starts: int) -> dict[str, float]:
    """Median milliseconds between one stage and the next, over the last so many starts."""
    events = [event for kind in STAGES for event in team.events(kind)]
    runs: dict[int, dict[str, int]] = {}
    run = 0
    for event in sorted(events, key=lambda event: event["at_ns"]):
        run += event["kind"] == STAGES[0]
        runs.setdefault(run, {})[event["kind"]] = event["at_ns"]
    spans: dict[str, list[float]] = {}
    for at_ns in list(runs.values())[-starts:]:
        for (before, before_ns), (after, after_ns) in pairwise(at_ns.items()):
            spans.setdefault(f"{before} -> {after}", []).append((after_ns - before_ns) / 1e6)
    return {span: round(statistics.median(times_ms), 2) for span, times_ms in spans.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=20)
    pairs = parser.parse_args().pairs
    with tempfile.TemporaryDirectory() as name, team_in(Path(name)) as team:
        folder = Path(name)
        demo = team.demo(f"parallel = {PARALLEL}\nidle_seconds = 0.05")
        team.write(demo=demo.replace("context = 512", f"context = {CONTEXT}"))
        team.serve()
        taken = [(bare(folder, number), from_zero(team)) for number in range(pairs + 1)][1:]
        team.until(lambda: team.status("demo")["state"] == "cold")
        spans = stages(team, pairs)
    ready_s, first_s, bare_s = (
        statistics.median(row) for row in zip(*((r, f, r + f) for (r, f), _ in taken), strict=True)
    )
    freehold_s = statistics.median(each for _, each in taken)
    ratio = freehold_s / bare_s
    by_pair = statistics.median(each / sum(own) for own, each in taken)
    print(f"{machine()['cpu']}, {machine()['cores']} cores; medians of {pairs} pairs\n")
    print(f"bare engine   {bare_s * 1e3:7.1f} ms   ready {ready_s * 1e3:.1f} + first byte {first_s * 1e3:.1f}")
    print(f"freehold      {freehold_s * 1e3:7.1f} ms   request to first byte")
    print(f"added         {(freehold_s - bare_s) * 1e3:7.1f} ms")
    print(f"ratio         {ratio:7.3f}      median of the pairs' own ratios {by_pair:.3f}\n")
    for span, median_ms in spans.items():
        print(f"  {span:40}{median_ms:8.2f} ms")
    keep(
        "cold_start",
        {
            "pairs": pairs,
            "bare_ms": [[round(part * 1e3, 2) for part in own] for own, _ in taken],
            "freehold_ms": [round(each * 1e3, 2) for _, each in taken],
            "bare_median_ms": round(bare_s * 1e3, 2),
            "freehold_median_ms": round(freehold_s * 1e3, 2),
            "added_ms": round((freehold_s - bare_s) * 1e3, 2),
            "ratio_of_medians": round(ratio, 3),
            "median_ratio": round(by_pair, 3),
            "stages_median_ms": spans,
        },
    )


if __name__ == "__main__":
    main()
