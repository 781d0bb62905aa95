"""From rows of single loads to one row for each gateway, and what was aimed at."""

from collections.abc import Callable, Iterable
from statistics import median

Row = dict
DIRECT = "upstream alone"


def summarise(gateways: dict[str, dict], rows: Iterable[Row]) -> dict[str, dict]:
    """By gateway: medians over the rounds, of requests a second the best. What was not measured is None."""
    by: dict[tuple[str, str], dict[int, Row]] = {}
    for row in rows:
        by.setdefault((row["gateway"], row["load"]), {})[row["round"]] = row
    return {name: about | _figures(name, by) for name, about in gateways.items()}


def _figures(name: str, by: dict[tuple[str, str], dict[int, Row]]) -> dict:
    def of(load: str, figure: str, *, pick: Callable = median, digits=1, scale=1.0) -> float | None:
        rows = by.get((name, load), {}).values()
        values = [row[figure] * scale for row in rows if row[figure] is not None and row[figure] >= 0]
        return round(pick(values), digits) if values else None

    def added_ms(load: str, figure: str) -> float | None:
        direct = by.get((DIRECT, load), {})
        pairs = [
            (row[figure] - direct[number][figure]) / 1e3
            for number, row in by.get((name, load), {}).items()
            if number in direct and row[figure] >= 0
        ]
        return round(median(pairs), 3) if pairs and name != DIRECT else None

    def delay_ms(load: str, figure: str) -> list[float | None]:
        return [of(load, f"{figure}_p{p}_us", digits=3, scale=1e-3) for p in (50, 99)]

    own = [row for (gateway, _), rounds in by.items() if gateway == name for row in rounds.values()]
    alone = [round(row["pss_mib"], 1) for row in own if row["load"] in ("flood", "many", "long")]
    rate = by.get((name, "rate"), {})
    return {
        "requests_s": of("whole", "rps", pick=max, digits=0),
        "requests_s_rounds": [round(row["rps"]) for row in by.get((name, "whole"), {}).values()],
        "cpu_us_per_request": of("whole", "cpu_us_per_request"),
        "rate": min((row["rate"] for row in rate.values()), default=None),
        "added_ms": [added_ms("rate", f"lat_p{p}_us") for p in (50, 99)],
        "added_p50_ms_rounds": [round(row["lat_p50_us"] / 1e3, 3) for row in rate.values()],
        "added_first_byte_ms": [added_ms("streams", f"ttfb_p{p}_us") for p in (50, 99)],
        "lag_ms": delay_ms("streams", "lag"),
        "paced_cpu_us_per_chunk": of("streams", "cpu_us_per_chunk"),
        "flood_chunks_s": of("flood", "chunks_s", digits=0),
        "flood_cpu_us_per_chunk": of("flood", "cpu_us_per_chunk"),
        "many_added_first_byte_ms": [added_ms("many", f"ttfb_p{p}_us") for p in (50, 99)],
        "many_lag_ms": delay_ms("many", "lag"),
        "long_requests_s": of("long", "rps", digits=0),
        "long_cpu_us_per_request": of("long", "cpu_us_per_request"),
        "pss_mib": max(alone, default=None),
        "failed": sum(row["bad"] + row["err"] for row in own),
    }


def aims(found: dict[str, dict], name: str) -> list[dict]:
    """What this gateway was to reach, and what it did. Ratios within the run; without the other one there is none."""
    ours = found[name]

    def against(other: str) -> float | None:
        theirs = found.get(other, {}).get("requests_s")
        return round(ours["requests_s"] / theirs, 2) if theirs and ours["requests_s"] else None

    asked = [
        ("requests/s, times nginx", against("nginx"), 0.6, True),
        ("requests/s, times vllm-router", against("vllm-router"), 1.5, True),
        ("requests/s, times sglang-router", against("sglang-router"), 2, True),
        ("requests/s, times LiteLLM", against("litellm"), 300, True),
        ("added p50 at 1,000/s, ms", ours["added_ms"][0], 0.12, False),
        ("added p99 at 1,000/s, ms", ours["added_ms"][1], 0.5, False),
        ("added p50 to the first byte, 256 streams, ms", ours["added_first_byte_ms"][0], 0.1, False),
        ("CPU of a chunk, flood, µs", ours["flood_cpu_us_per_chunk"], 8, False),
        ("memory, MiB", ours["pss_mib"], 60, False),
    ]
    return [
        {"what": what, "aim": f"{'>=' if least else '<='} {aim:g}", "found": value,
         "met": (value >= aim if least else value <= aim)}
        for what, value, aim, least in asked
        if value is not None
    ]  # fmt: skip
