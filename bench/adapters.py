"""Adapters put on a serving endpoint, and a thousand greedy questions to it and two of them in any order, each answer
held against what llama.cpp says with that adapter alone. Then the same questions to llama.cpp itself, as it comes.

python bench/adapters.py [--requests 1000] [--threads 8] [--rounds 3]
"""

import argparse
import shutil
import statistics
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

from figures import adapters_tables, keep, machine

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import lora_mix
from conftest import Team, team_in

NAMES = {"demo": None, "demo:german": 0, "demo:inverse": 1}


def through_freehold(args: argparse.Namespace, right: lora_mix.Right, folders: list[Path], replicas: int) -> dict:
    """Both are added while the base is asked without a pause; then all three are asked."""
    with tempfile.TemporaryDirectory() as folder, team_in(Path(folder)) as team:
        team.write(demo=team.demo(f"replicas = {replicas}"))
        team.serve()
        team.up("demo")
        load = partial(lora_mix.Load, team.url, team.key, threads=args.threads)
        with load(["demo"]) as swap:
            swap.reach(args.threads)
            added_s = [add(team, name, path) for name, path in zip(("german", "inverse"), folders, strict=True)]
        with load(["demo"], most=len(swap.answers)) as quiet:
            quiet.join()
        with load(NAMES, most=args.requests) as mixed:
            mixed.join()
        rows = {row["request"]: row for row in team.records()}
    cached, prompt = (
        sum(rows[each.request][of] for each in mixed.answers) for of in ("cached_tokens", "prompt_tokens")
    )
    return {
        "replicas": replicas,
        "added_s": added_s,
        "longest_s": {"swap": longest(swap), "quiet": longest(quiet), "mixed": longest(mixed)},
        "swap": counts(swap, right),
        "mixed": counts(mixed, right),
        "cached_pct": round(100 * cached / prompt, 1),
    }


def add(team: Team, name: str, path: Path) -> float:
    """How long it takes, as its operator waits."""
    began_s = time.monotonic()
    team.daemon.ask("POST", "/endpoints/demo/adapters", {"name": name, "path": str(path)}, timeout_s=None)
    return time.monotonic() - began_s


def directly(args: argparse.Namespace, right: lora_mix.Right, ggufs: list[Path], threads: int) -> dict:
    """llama.cpp with both adapters and all else as it comes; each request names its adapter."""
    server = lora_mix.llamacpp(*((path, 0.0) for path in ggufs), parallel=4)

    def body(model: str, question: str) -> dict:
        at = NAMES[model]
        return lora_mix.body("demo", question, lora=[] if at is None else [{"id": at, "scale": 1.0}])

    url = server.listening_address
    with lora_mix.Load(url, "", NAMES, threads=threads, most=args.requests, body=body) as mixed:
        mixed.join()
    return {"threads": threads, **counts(mixed, right)}


def counts(load: lora_mix.Load, right: lora_mix.Right) -> dict:
    return {
        "requests": len(load.answers) + len(load.failed),
        "failed": len(load.failed),
        "wrong": len(lora_mix.wrong(load.answers, right)),
    }


def longest(load: lora_mix.Load) -> float:
    return max(each.took_s for each in load.answers)


def sums(runs: list[dict]) -> dict:
    """Of several runs on as many replicas."""
    added = sorted(each for run in runs for each in run["added_s"])
    return {
        "replicas": runs[0]["replicas"],
        "runs": len(runs),
        "added_s": {"median": round(statistics.median(added), 2), "max": round(added[-1], 2)},
        "longest_s": {of: round(max(run["longest_s"][of] for run in runs), 2) for of in runs[0]["longest_s"]},
        "cached_pct": [run["cached_pct"] for run in runs],
        **{of: {n: sum(run[of][n] for run in runs) for n in runs[0][of]} for of in ("swap", "mixed")},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--threads", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3, help="on one replica, and on two")
    args = parser.parse_args()
    about = machine()
    print(f"{about['cpu']}, {about['cores']} cores; {args.threads} callers\n")
    with tempfile.TemporaryDirectory() as folder:
        folders = [
            shutil.copytree(lora_mix.GERMAN, Path(folder) / "german"),
            lora_mix.scaled(Path(folder) / "inverse", -1),
        ]
        ggufs = [lora_mix.gguf_of(each) for each in folders]
        right = {name: lora_mix.alone(None if at is None else ggufs[at]) for name, at in NAMES.items()}
        found = {
            "threads": args.threads,
            "freehold": [
                sums([through_freehold(args, right, folders, replicas) for _ in range(args.rounds)])
                for replicas in (1, 2)
            ],
            "llamacpp": [directly(args, right, ggufs, threads) for threads in (1, args.threads)],
        }
    print("\n".join(adapters_tables(found)))
    keep("adapters", found)


if __name__ == "__main__":
    main()
