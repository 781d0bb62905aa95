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


def tables() -> str:
    """The figures that were kept, as README shows them."""
    names = ("cold_start", "faults", "cli", "plan", "accuracy", "gate")
    cold, faults, cli, plan, accuracy, gate = (json.loads((RESULTS / f"{name}.json").read_text()) for name in names)
    decided = (_plan(plan, **plan["found"]), _accuracy(accuracy))
    parts = (_cold(cold, **cold["found"]), _faults(faults), _cli(cli), *decided, _gate(gate, **gate["found"]))
    return "\n\n".join("\n".join(part) for part in parts)


def _about(result: dict) -> str:
    return f"`{result['command']}`, {result['measured'][:10]}, load {result['load_average_1_min']}"


def _cold(result: dict, **found) -> list[str]:
    return [
        f"From zero, {found['pairs']} pairs ({_about(result)}):\n",
        "| | median |\n|---|---|",
        f"| bare engine, start to first byte | {found['bare_median_ms']} ms |",
        f"| Freehold, request to first byte | {found['freehold_median_ms']} ms |",
        f"| ratio of the medians | {found['ratio_of_medians']} |",
        f"| median of the pairs' own ratios | {found['median_ratio']} |",
    ]


def _faults(result: dict) -> list[str]:
    rows = [
        f"kill -9 amid streams ({_about(result)}):\n",
        "| killed | callers saw | ledger holds | left | next answer |",
    ]
    rows.append("|---|---|---|---|---|")
    for killed, found in result["found"].items():
        saw, holds = (
            ", ".join(f"{n} x {what}" for what, n in found[of].items()) for of in ("callers_saw", "ledger_holds")
        )
        records = "one record each" if not found["not_exactly_one_record"] else "NOT ONE RECORD EACH"
        after = f"{found['next_answer_s']['median']:.2f} s ({found['next_answer_s']['max']:.2f} s at most)"
        rows.append(f"| {killed} | {saw} | {holds}, {records} | {found['processes_left']} | {after} |")
    return rows


def _cli(result: dict) -> list[str]:
    rows = [f"Command line ({_about(result)}):\n", "| command | CPU, median | waited, median |\n|---|---|---|"]
    return rows + [f"| `{of}` | {ms['cpu_ms']} ms | {ms['waited_ms']} ms |" for of, ms in result["found"].items()]


def _plan(result: dict, **found) -> list[str]:
    among = f"{found['models']} models, {found['offers']} offers, {found['combinations']:,} combinations"
    return [
        f"Decision: {among} ({_about(result)}):\n",
        "| | median |\n|---|---|",
        f"| reading the catalogue | {found['load_ms']} ms |",
        f"| choosing among everything | {found['choose_ms']} ms |",
        f"| `freehold plan` from a cold start, CPU | {found['plan_cpu_ms']} ms |",
    ]


def _accuracy(result: dict) -> list[str]:
    found = result["found"]
    said = f"{found['rows'] - found['unanswered']} of {found['rows']} rows say enough to be answered"
    rows = [
        f"Memory, error in % ({_about(result)}); {said}:\n",
        "| | cases | median | mean | 90 % below | within 1 % | largest |\n|---|---|---|---|---|---|---|",
    ]
    return rows + [f"| {of} | {' | '.join(map(str, row.values()))} |" for of, row in found["errors_pct"].items()]


def _gate(result: dict, corpus: dict, gate: dict, hashing: dict) -> list[str]:
    heads = ("hostile", "caught", "clean", "false_alarms", "s")
    rows = [
        f"The gate ({_about(result)}); its rules were made with this corpus, so that all are caught is no forecast:\n",
        "| family | hostile | caught | clean | false alarms | s for all |\n|---|---|---|---|---|---|",
        *(f"| {family} | {' | '.join(str(of[head]) for head in heads)} |" for family, of in corpus.items()),
        "\n| the gate on | s | MB beyond the program |\n|---|---|---|",
        *(f"| {what} | {cost['s']} | {cost['extra_mb']} |" for what, cost in gate.items()),
        "\n| SHA-256, threads as cores | files | GB | hashlib alone, GB/s | Freehold, GB/s | of that |",
        "|---|---|---|---|---|---|",
    ]
    fields = ("files", "gb", "raw_gb_s", "ours_gb_s")
    return rows + [
        f"| {what} | {' | '.join(str(of[field]) for field in fields)} | {of['of_raw_pct']} % |"
        for what, of in hashing.items()
    ]


if __name__ == "__main__":
    readme = Path(__file__).with_name("README.md")
    before, begin, rest = readme.read_text().partition("<!-- figures -->\n")
    _, end, after = rest.partition("<!-- end of figures -->\n")
    readme.write_text(f"{before}{begin}{tables()}\n{end}{after}")
