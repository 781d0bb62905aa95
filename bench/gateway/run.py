"""Freehold's gateway beside others, in one run: the same upstream, the same load, one core each.

    bench/gateway/setup.sh                 # once: the others, into SCRATCH, by default ~/.cache/freehold-bench
    python bench/gateway/run.py [--quick] [--only NAME...] [--rounds 3] [--before COMMIT] [--keep]

What counts most (requests/s, added latency, first bytes) is measured in rounds, every gateway taking its turn in each
while the others sleep; the rest with one gateway alone. A full run is kept in bench/results/gateway.json.
"""

import argparse
import fcntl
import json
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import ours
import peers
import wire
from figures import gateway_tables, keep, machine
from load import LOADS, Bench
from processes import GATEWAY_CORE, LOAD_CORE, memory_mib, pause, resume, weigh
from summary import aims, summarise

IN_TURNS, ALONE = ("whole", "rate", "streams"), ("long", "many", "flood")
HEAVY = -19  # of a session, while it is measured: see processes.weigh
Start = Callable[[wire.Gateway], AbstractContextManager[wire.Gateway]]  # of the engine


def starts(scratch: Path, before: str | None) -> dict[str, Start]:
    """How to start each gateway that is there."""
    found: dict[str, Start] = {}
    for peer in peers.PEERS:
        if peers.program(peer, scratch):
            found[peer.name] = partial(peers.started, peer, scratch)
        else:
            print(f"{peer.name} is not installed: bench/gateway/setup.sh {peer.name}")
    served = partial(ours.served, scratch=scratch)
    found["freehold"] = partial(served, "freehold")
    found["freehold-asgi"] = partial(served, "freehold-asgi", fast_path=False)
    if before:
        found["freehold-before"] = partial(served, "freehold-before", commit=before)
    return found


class Run:
    """What is known so far."""

    def __init__(self, bench: Bench, log: Path) -> None:
        self.bench, self._log = bench, log
        self.rows: list[dict] = []
        self.gateways: dict[str, dict] = {bench.upstream.name: {"version": ""}}
        self._slow: set[str] = set()

    def measure(self, gateway: wire.Gateway, load: str, number: int) -> None:
        try:
            row = self.bench.measure(gateway, load, slow=load == "rate" and gateway.name in self._slow)
        except wire.TROUBLE as error:
            print(f"{gateway.name:16}{load:9}{error!r}", flush=True)
            return
        if load == "whole" and row["rps"] < 1300:
            self._slow.add(gateway.name)
        row["round"] = number
        self.rows.append(row)
        with self._log.open("a") as log:
            log.write(json.dumps(row) + "\n")
        shown = (
            f"{row['rps']:9,.0f} requests/s  p50 {row['lat_p50_us']:8,.0f} µs  p99 {row['lat_p99_us']:8,.0f} µs  "
            f"{row['cpu_us_per_request'] or 0:8.1f} µs CPU each  failed {row['bad'] + row['err']}  "
            f"others {row['others_cpu_pct']:.0f} %"
        )
        if "chunks_s" in row:
            shown += (
                f"  {row['chunks_s']:9,.0f} chunks/s at {row['cpu_us_per_chunk'] or 0:.1f} µs  "
                f"first byte {row['ttfb_p50_us']:,.0f} / {row['ttfb_p99_us']:,.0f}  "
                f"lag {row['lag_p50_us']:,.0f} / {row['lag_p99_us']:,.0f}"
            )
        print(f"{gateway.name:16}{load:9}{shown}", flush=True)

    def in_turns(self, start: dict[str, Start], rounds: int) -> None:
        """All of them up; each asleep until its turn."""
        with ExitStack() as stack:
            up = [self.bench.upstream]
            for name, begin in start.items():
                try:
                    gateway = stack.enter_context(begin(self.bench.upstream))
                    about = {"version": gateway.version, **wire.check(gateway, self.bench.upstream)}
                except wire.TROUBLE as error:
                    print(f"{name} is left out: {error!r}")
                    continue
                self.gateways[name] = about
                print(f"{name:16}{about}", flush=True)
                weigh(gateway.pid, HEAVY)
                pause(gateway.pid)
                stack.callback(resume, gateway.pid)  # or it could not end
                up.append(gateway)
            for number in range(rounds):
                order = up[number % len(up) :] + up[: number % len(up)]
                for load in IN_TURNS:
                    for gateway in order:
                        with _awake(gateway, self.bench.upstream):
                            self.measure(gateway, load, number)

    def alone(self, start: dict[str, Start]) -> None:
        """One after the other, so that its memory is its own."""
        for load in ALONE:
            self.measure(self.bench.upstream, load, 0)
        for name in [each for each in start if each in self.gateways]:
            try:
                with start[name](self.bench.upstream) as gateway:
                    self._alone(gateway)
            except wire.TROUBLE as error:
                print(f"{name:16}{error!r}", flush=True)

    def _alone(self, gateway: wire.Gateway) -> None:
        about, before = self.gateways[gateway.name], wire.stats(self.bench.upstream.port)["requests"]
        weigh(gateway.pid, HEAVY)
        about["idle_mib"] = memory_mib(gateway.pid)["pss_mib"]
        for load in ALONE:
            self.measure(gateway, load, 0)
        if gateway.state:
            about["requests_at_engine"] = wire.stats(self.bench.upstream.port)["requests"] - before
            about["records"] = ours.records(gateway)
            shown = f"{about['requests_at_engine']:,} requests reached the engine, the book holds {about['records']}"
            print(f"{gateway.name:16}{shown}", flush=True)


@contextmanager
def _awake(gateway: wire.Gateway, upstream: wire.Gateway) -> Iterator[None]:
    if gateway is upstream:
        yield
        return
    resume(gateway.pid)
    time.sleep(0.1)
    try:
        yield
    finally:
        pause(gateway.pid)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one short round: whether everything works")
    parser.add_argument("--only", nargs="+", metavar="NAME")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--before", metavar="COMMIT", help="of Freehold, for one more row")
    parser.add_argument("--keep", action="store_true", help="keep the results of a quick or partial run too")
    args = parser.parse_args()
    began_s, scratch = time.monotonic(), peers.SCRATCH
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 65536), hard))
    peers.compile_tools(scratch)
    start = starts(scratch, args.before)
    if args.only:
        start = {name: begin for name, begin in start.items() if name in args.only}
    with (scratch / "lock").open("w") as lock, peers.upstream(scratch) as upstream:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two at once would measure each other
        weigh(os.getpid(), HEAVY)
        weigh(upstream.pid, HEAVY)
        run = Run(Bench(scratch, upstream, args.quick), scratch / "rows.jsonl")
        run.in_turns(start, 1 if args.quick else args.rounds)
        run.alone(start)
        weigh(os.getpid(), 0)
    gateways = summarise(run.gateways, run.rows)
    others = sorted(row["others_cpu_pct"] for row in run.rows)
    found = {
        "gateways": dict(sorted(gateways.items(), key=lambda each: -(each[1]["requests_s"] or 0))),
        "aims": aims(gateways, "freehold") if "freehold" in gateways else [],
        "loads": {name: load.arguments for name, load in LOADS.items()},
        "rounds": 1 if args.quick else args.rounds,
        "cores": {"gateway": GATEWAY_CORE, "upstream and load": LOAD_CORE},
        "others_cpu_pct": {"median": others[len(others) // 2], "max": others[-1]},
        "minutes": round((time.monotonic() - began_s) / 60, 1),
    }
    print(f"\n{machine()['cpu']}, {machine()['cores']} cores, {found['minutes']} minutes\n")
    print("\n".join(gateway_tables(found)))
    if args.keep or not (args.quick or args.only):
        keep("gateway", found)


if __name__ == "__main__":
    main()
