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
        "command": f"python {_script()} {' '.join(sys.argv[1:])}".strip(),
        "freehold": __version__,
        "python": sys.version.split()[0],
        "machine": machine(),
        "load_average_1_min": round(os.getloadavg()[0], 2),
    }
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps({**about, "found": found}, indent=2) + "\n")
    print(f"\nkept in {path.relative_to(Path(__file__).parents[1])}")


def _script() -> Path:
    return Path(sys.argv[0]).resolve().relative_to(RESULTS.resolve().parents[1])


def tables() -> str:
    """The figures that were kept, as README shows them."""
    names = ("gateway", "cold_start", "faults", "adapters", "cli", "plan", "accuracy", "speed", "gate")
    gateway, cold, faults, adapters, cli, plan, accuracy, speed, gate = (
        json.loads((RESULTS / f"{name}.json").read_text()) for name in names
    )
    decided = (_plan(plan, **plan["found"]), _accuracy(accuracy), _speed(speed))
    parts = (
        *(_gateway(gateway), _cold(cold, **cold["found"]), _faults(faults), _adapters(adapters), _cli(cli)),
        *(*decided, _gate(gate, **gate["found"])),
    )
    return "\n\n".join("\n".join(part) for part in parts)


def _about(result: dict) -> str:
    return f"`{result['command']}`, {result['measured'][:10]}, load {result['load_average_1_min']}"


def _gateway(result: dict) -> list[str]:
    found = result["found"]
    said = f"others took {found['others_cpu_pct']['median']:g} % of a core in the median of the loads"
    return [f"Gateways, one core each, {found['rounds']} rounds ({_about(result)}; {said}):\n", *gateway_tables(found)]


def gateway_tables(found: dict) -> list[str]:
    """Whole answers, streams, and what was aimed at; ratios are those of requests/s within the run."""
    against = [name for name in ("nginx", "vllm-router", "sglang-router", "litellm") if name in found["gateways"]]
    rows = [
        "| gateway | checks keys | requests/s | "
        + "".join(f"x {name} | " for name in against)
        + "CPU µs each | added p50 / p99, ms | 32 KB: requests/s (CPU µs) | MiB |",
        "|---|---|---|" + "---|" * len(against) + "---|---|---|---|",
    ]
    for name, of in found["gateways"].items():
        ratios = [_ratio(of["requests_s"], found["gateways"][other]["requests_s"]) for other in against]
        added = _pair(of["added_ms"]) + (f" at {of['rate']:g}/s" if of["rate"] not in (None, 1000) else "")
        long = f"{_figure(of['long_requests_s'])} ({_figure(of['long_cpu_us_per_request'])})"
        cells = (
            "-" if "other_key" not in of else ("no", "yes")[of["other_key"] >= 400],
            _figure(of["requests_s"]),
            *ratios,
            _figure(of["cpu_us_per_request"]),
            added,
            long,
            _figure(of["pss_mib"]),
        )
        rows.append(f"| {' '.join((name, of['version'])).strip()} | {' | '.join(cells)} |")
    heads = ("streams", "first byte added, 256: p50 / p99, ms", "lag", "first byte added, 1,000", "lag", "chunks/s")
    rows.append(f"\n| {' | '.join(heads)} | CPU µs a chunk | stops the engine: stream, whole |")
    rows.append("|---|---|---|---|---|---|---|---|")
    for name, of in found["gateways"].items():
        delays = ("added_first_byte_ms", "lag_ms", "many_added_first_byte_ms", "many_lag_ms")
        left = [("no", "yes")[of[way]] if way in of else "-" for way in ("stops_stream", "stops_whole")]
        cells = (*(_pair(of[delay]) for delay in delays), _figure(of["flood_chunks_s"]))
        rows.append(f"| {name} | {' | '.join(cells)} | {_figure(of['flood_cpu_us_per_chunk'])} | {', '.join(left)} |")
    if found["aims"]:
        rows.append("\n| Freehold | aim | found | |\n|---|---|---|---|")
        rows += [
            f"| {a['what']} | {a['aim']} | {a['found']:g} | {'met' if a['met'] else 'NOT met'} |" for a in found["aims"]
        ]
    return rows


def _figure(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:g}"


def _pair(values: list[float | None]) -> str:
    return " / ".join("-" if value is None else f"{value:,.2f}" for value in values)


def _ratio(value: float | None, of: float | None) -> str:
    return _figure(float(f"{value / of:.3g}")) if value and of else "-"


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


def _adapters(result: dict) -> list[str]:
    said = f"{result['found']['threads']} callers who never pause"
    return [f"LoRA adapters on llama.cpp, {said} ({_about(result)}):\n", *adapters_tables(result["found"])]


def adapters_tables(found: dict) -> list[str]:
    """Two adapters added while their base is asked; then all three asked in any order."""
    rows = [
        "| while two are added | requests | failed | wrong | open after | longest answer | and without a swap |",
        "|---|---|---|---|---|---|---|",
    ]
    for of in found["freehold"]:
        added, longest = of["added_s"], of["longest_s"]
        rows.append(
            f"| {_replicas(of)}, {of['runs']} runs | {_counts(of['swap'])} | {added['median']} s ({added['max']} s at "
            f"most) | {longest['swap']} s | {longest['quiet']} s |"
        )
    rows.append(
        "\n| greedy, the base and both adapters in any order | requests | failed | wrong | prompt from caches |"
    )
    rows.append("|---|---|---|---|---|")
    for of in found["freehold"]:
        cached = f"{min(of['cached_pct'])} to {max(of['cached_pct'])} %"
        rows.append(f"| Freehold, {_replicas(of)}, {of['runs']} runs | {_counts(of['mixed'])} | {cached} |")
    for of in found["llamacpp"]:
        callers = "one after the other" if of["threads"] == 1 else f"{of['threads']} callers"
        rows.append(f"| llama.cpp itself as it comes, {callers} | {_counts(of)} | - |")
    return rows


def _replicas(of: dict) -> str:
    return f"{of['replicas']} replica{'s' * (of['replicas'] > 1)}"


def _counts(of: dict) -> str:
    return " | ".join(f"{of[what]:,}" for what in ("requests", "failed", "wrong"))


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
        f"| `freehold plan` in a new process, CPU | {found['plan_cpu_ms']} ms |",
        f"| the same with a speed, a load and a floor of quality | {found['full_plan_cpu_ms']} ms |",
    ]


def _speed(result: dict) -> list[str]:
    found, about = result["found"], _about(result)
    heads = list(next(iter(found.values())))
    said = "what was left out of the fit is in `results/speed_fit.json` and docs/decide.md"
    return [
        f"Speeds beside published ones, rows that constants were fitted on ({about}); {said}:\n",
        f"| error in % | {' | '.join(heads).replace('_', ' ')} |",
        "|---|" + "---|" * len(heads),
        *(f"| {name} | {' | '.join(f'{value:g}' for value in row.values())} |" for name, row in found.items()),
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
