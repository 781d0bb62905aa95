"""kill -9 of the engine, of its sandbox and of the daemon in the middle of streams; what callers see and what is left.
Then kill -9 at random moments under load: of the daemon, of an engine it starts, and of one it does not.

python bench/faults.py [--rounds 20] [--streams 8] [--storm 200] [--seed 1]
"""

import argparse
import statistics
import sys
import tempfile
from collections import Counter
from functools import partial
from pathlib import Path

from figures import keep, machine

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import crash
from conftest import team_in
from storm import Storm
from wild_caller import PATHS


def measure(kill, rounds: int, streams: int) -> dict:
    """One team, killed so many times; its first answer does not count."""
    with tempfile.TemporaryDirectory() as folder, team_in(Path(folder)) as team:
        demo = team.demo(f"parallel = {streams}").replace("context = 512", "context = 2048")
        team.write(demo=demo)
        team.serve()
        crash.next_answer(team)
        seen = [kill(team, streams) for _ in range(rounds)]
    seconds = sorted(each.next_answer_s for each in seen)
    return {
        "rounds": rounds,
        "streams_cut": sum(len(each.saw) for each in seen),
        "callers_saw": Counter(saw for each in seen for saw in each.saw),
        "ledger_holds": Counter(outcome for each in seen for outcome in each.outcomes),
        "not_exactly_one_record": sum(not each.one_record_each for each in seen),
        "processes_left": sum(each.processes_left for each in seen),
        "next_answer_s": {"median": statistics.median(seconds), "max": seconds[-1], "min": seconds[0]},
    }


def show(name: str, row: dict) -> dict:
    each = "all" if not row["not_exactly_one_record"] else f"not in {row['not_exactly_one_record']}"
    next_s = f"{row['next_answer_s']['median']:.2f} s, {row['next_answer_s']['max']:.2f} s"
    told = ", ".join(f"{count} x {what}" for what, count in row["callers_saw"].items())
    held = ", ".join(f"{count} x {what}" for what, count in row["ledger_holds"].items())
    counts = f"{row['rounds']:<8}{row['streams_cut']:<9}{each:17}{row['processes_left']:<6}"
    print(f"{name:9}{counts}{next_s:27}{told} -> {held}")
    return row


def storm(path: str, rounds: int, seed: int) -> dict:
    """One team, hit so many times."""
    with tempfile.TemporaryDirectory() as folder, team_in(Path(folder)) as team:
        storm = Storm(team, seed, path)
        storm.run(rounds)
        return {
            "rounds": rounds,
            "hits": storm.hits,
            "requests": len(storm.rows),
            "seen_by_the_engine_we_do_not_start": len(storm.seen),
            "ledger_holds": Counter(row["outcome"] for row in storm.rows),
            "callers_lost": storm.lost,
            "faults": storm.faults(),
        }


def show_storm(path: str, found: dict) -> dict:
    hits, held = (", ".join(f"{n} x {what}" for what, n in found[of].items()) for of in ("hits", "ledger_holds"))
    print(f"\n{path}: {found['rounds']} at random ({hits}) among {found['requests']} requests -> {held};")
    print(f"  {found['callers_lost']} callers were told nothing; not as it must be: {found['faults'] or 'nothing'}")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--streams", type=int, default=8)
    parser.add_argument("--storm", type=int, default=200, help="rounds at random moments, on each path")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    kills = {
        "engine": crash.kill_engine,
        "sandbox": partial(crash.kill_engine, sandbox=True),
        "daemon": crash.kill_daemon,
    }
    about = machine()
    print(f"{about['cpu']}, {about['cores']} cores; {args.streams} streams at each kill\n")
    if args.rounds:
        print("KILLED   ROUNDS  STREAMS  ONE RECORD EACH  LEFT  NEXT ANSWER (MEDIAN, MAX)  CALLERS SAW -> LEDGER HOLDS")
        keep("faults", {name: show(name, measure(kill, args.rounds, args.streams)) for name, kill in kills.items()})
    if args.storm:
        keep("storm", {path: show_storm(path, storm(path, args.storm, args.seed)) for path in PATHS})


if __name__ == "__main__":
    main()
