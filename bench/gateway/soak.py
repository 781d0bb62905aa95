"""Freehold's gateway under mixed load for long: does it grow, and has every request its one record?

    python bench/gateway/soak.py [--minutes 60] [--rate 400]

Whole answers, streams, streams whose callers hang up, models that do not exist and keys that do not: each so many
times a second. Its memory is sampled every few seconds, and the growth is the slope of a straight line through the
samples after the warm-up (a quarter of the time, 10 minutes at most). Ends with 1 when the book is not exact, or when
memory grows by more than GROWTH_MIB after it: so a minute, as CI runs it, finds what keeps 350 bytes a request.
"""

import argparse
import json
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from statistics import linear_regression

sys.path.insert(0, str(Path(__file__).parents[1]))

import ours
import peers
import wire
from figures import keep, machine
from processes import LOAD_CORE, cpu_s, memory_mib

SLICE_S = 60  # each load ends and begins anew so often: its connections too
SAMPLE_S = 2.0
KEPT_MINUTES = 10  # what is shorter says nothing about growth
GROWTH_MIB = 8.0  # 24,000 requests of a minute x 350 bytes
GRACE_S = 20  # what is in flight may come to its end
# What share of the rate, and how: a stream has 50 chunks, 5 ms apart; who hangs up does so after 20 of them.
MIX = {
    "whole": (0.7, "-m json -c 32"),
    "streamed": (0.15, "-m sse -c 64 -n 50 -u 5000"),
    "left": (0.05, "-m sse -c 32 -n 50 -u 5000 -x 20"),
    "no such model": (0.05, "-m json -c 8 -M nothing"),
    "no such key": (0.05, "-m json -c 8 -k fh-nobody"),
}
LATE = 0.01  # of those who left, at most
EXPECTED = {"no such model": "404", "no such key": "401"}


def loads(scratch: Path, gateway: wire.Gateway, rate: float, seconds: float) -> dict[str, subprocess.Popen]:
    """One load generator of each kind, all at once."""
    begun = {}
    for kind, (share, arguments) in MIX.items():
        to = ["-p", str(gateway.port), "-k", gateway.key, "-M", gateway.model]  # arguments that follow say it better
        command = ["taskset", "-c", str(LOAD_CORE), str(scratch / "gwload"), *to, *arguments.split()]
        command += ["-r", f"{rate * share:g}", "-w", "0", "-d", f"{seconds:g}", "-g", str(GRACE_S)]
        begun[kind] = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    return begun


def sample(gateway: wire.Gateway, began_s: float) -> dict:
    journal = sum(path.stat().st_size for path in gateway.state.rglob("journal-*"))
    return {
        "at_s": round(time.monotonic() - began_s, 1),
        **memory_mib(gateway.pid),
        "descriptors": len(list(Path(f"/proc/{gateway.pid}/fd").iterdir())),
        "journal_mib": round(journal / 2**20, 2),
        "book_mib": round(sum(path.stat().st_size for path in gateway.state.glob("book.db*")) / 2**20, 1),
        "cpu_s": round(cpu_s(gateway.pid), 1),
    }


def soak(scratch: Path, gateway: wire.Gateway, rate: float, minutes: float) -> tuple[dict[str, Counter], list[dict]]:
    """What the callers counted, and the samples."""
    counted: dict[str, Counter] = {kind: Counter() for kind in MIX}
    began_s = time.monotonic()
    samples = [sample(gateway, began_s)]
    while (left_s := began_s + minutes * 60 - time.monotonic()) > 0:
        running = loads(scratch, gateway, rate, min(SLICE_S, max(1.0, left_s)))
        while any(load.poll() is None for load in running.values()):
            time.sleep(SAMPLE_S)
            samples.append(sample(gateway, began_s))
        for kind, load in running.items():
            told = json.loads(load.communicate()[0])
            counted[kind] += Counter({what: told[what] for what in ("ok", "bad", "cut", "err", "open_at_end")})
            counted[kind] += Counter({f"status {status}": n for status, n in told["status"].items()})
        print(f"{samples[-1]}", flush=True)
    return counted, samples


def judge(counted: dict[str, Counter], records: dict[str, int], at_engine: int) -> list[str]:
    """What is not as it must be. A record for each request that an engine saw, and none for those refused."""
    wrong = []
    left = counted["left"]
    asked = {"ok": counted["whole"]["ok"] + counted["streamed"]["ok"] + left["ok"], "cut": left["cut"]}
    # On a machine that stands still for a moment a stream may have been sent to its end before its caller leaves.
    late = records.get("ok", 0) - asked["ok"]
    if sum(records.values()) != sum(asked.values()) or not 0 <= late <= LATE * asked["cut"]:
        wrong.append(f"callers counted {asked}, the book holds {records}")
    if at_engine != sum(records.values()):
        wrong.append(f"{at_engine} requests reached the engine, the book holds {sum(records.values())}")
    for kind, counts in counted.items():
        status = EXPECTED.get(kind)
        as_expected = counts[f"status {status}"] if status else counts["ok"] + counts["cut"] * (kind == "left")
        if as_expected != counts["ok"] + counts["bad"] + counts["cut"] + counts["err"] or counts["open_at_end"]:
            wrong.append(f"{kind}: {dict(counts)}")
    return wrong


def after_warm_up(samples: list[dict], figure: str) -> list[tuple[float, float]]:
    """Hours since the beginning, and the figure then."""
    warm_s = min(600.0, samples[-1]["at_s"] / 4)
    return [(each["at_s"] / 3600, each[figure]) for each in samples if each["at_s"] >= warm_s]


def growth(samples: list[dict], figure: str) -> float:
    """By the hour, after the warm-up."""
    return linear_regression(*zip(*after_warm_up(samples, figure), strict=True)).slope


def measure(scratch: Path, rate: float, minutes: float, **served) -> dict:
    """`served`: what ours.served takes."""
    peers.compile_tools(scratch)
    with peers.upstream(scratch) as upstream, ours.served("freehold", upstream, scratch, **served) as gateway:
        known, known_at_engine = Counter(ours.records(gateway)), wire.stats(upstream.port)["requests"]
        counted, samples = soak(scratch, gateway, rate, minutes)
        records = dict(Counter(ours.records(gateway)) - known)
        at_engine = wire.stats(upstream.port)["requests"] - known_at_engine
    growth_mib = growth(samples, "anonymous_mib")
    wrong, held = judge(counted, records, at_engine), [mib for _, mib in after_warm_up(samples, "anonymous_mib")]
    if minutes < KEPT_MINUTES and max(held) - held[0] > GROWTH_MIB:
        wrong.append(f"memory grew from {held[0]} to {max(held)} MiB")
    return {
        "minutes": minutes,
        "requests": sum(counts[what] for counts in counted.values() for what in ("ok", "bad", "cut", "err")),
        "callers": {kind: dict(counts) for kind, counts in counted.items()},
        "records": records,
        "requests_at_engine": at_engine,
        "wrong": wrong,
        "first": samples[0],
        "last": samples[-1],
        "largest": {of: max(each[of] for each in samples) for of in ("pss_mib", "descriptors", "journal_mib")},
        "growth_mib_per_hour": round(growth_mib, 2),
        "growth_bytes_per_request": round(growth_mib * 2**20 / (rate * 3600), 2),
        "growth_descriptors_per_hour": round(growth(samples, "descriptors"), 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--rate", type=float, default=400, help="requests a second, of all kinds together")
    parser.add_argument("--asgi", action="store_true", help="without the fast path")
    parser.add_argument("--before", metavar="COMMIT", help="another version, without limits")
    args = parser.parse_args()
    served = {"commit": args.before} if args.before else {"fast_path": not args.asgi}
    found = measure(peers.SCRATCH, args.rate, args.minutes, **served)
    wrong = found["wrong"]
    print(f"\n{machine()['cpu']}, {machine()['cores']} cores; {found['requests']:,} requests in {args.minutes:g} min\n")
    for name in ("callers", "records", "requests_at_engine", "first", "last", "largest"):
        print(f"{name:20} {found[name]}")
    if args.minutes >= KEPT_MINUTES:
        print(f"memory grows by      {found['growth_mib_per_hour']:+} MiB an hour")
        print(f"descriptors grow by  {found['growth_descriptors_per_hour']:+} an hour")
    print(f"memory               {found['first']['anonymous_mib']} MiB, {found['last']['anonymous_mib']} at the end")
    print(f"every record         {'as counted' if not wrong else 'WRONG: ' + '; '.join(wrong)}")
    if args.minutes >= KEPT_MINUTES and not args.before:
        keep("soak", found)
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
