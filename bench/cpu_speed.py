"""How exact the speed of llama.cpp on a CPU is predicted: real engines beside plan/cpu_speed.py.

python bench/cpu_speed.py [--only NAME ...] [--threads N ...] [--folder DIR]    measure, and compare
python bench/cpu_speed.py --fit                 fit the constants to the rows kept, write them, and compare

Models are Llamas of random weights (random_gguf.py), and the demonstration model. Rows of FITTED give the constants;
the others give the band (which constants there are was decided with them in sight). An engine is started with the
command line that Freehold gives it. Each request names its slot and repeats the prompt that the slot has, so that all
write at the same time; the mean gap between tokens in the best of several short runs counts. Others who compute on the
same machine slow it down by up to two: each row waits for a quiet moment, and says how much of a core they took all
the same; rows with more than QUIET are left out, and counted. The memory is measured right before and after. Rows stay
from one time to the next, the quieter and the faster one of each.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from importlib.metadata import version
from math import exp, log
from pathlib import Path

import psutil
import random_gguf
from figures import RESULTS, keep, machine
from random_gguf import Shape

from freehold.engines.llamacpp import LlamaCpp
from freehold.fleet.bandwidth import measure
from freehold.fleet.host import probe
from freehold.plan import cpu_fitted, cpu_speed, llamacpp
from freehold.plan.params import count
from freehold.types import Service
from freehold.weights import describe

import unixhttp  # isort: skip  found by random_gguf's path

DEMO = Path(__file__).parents[1] / "demo" / "demo.gguf"
KEPT = RESULTS / "cpu_speed.json"
CONTEXT, PARALLEL, RUNS, RUN_S, PATIENCE_S = 4096, 4, 7, 0.6, 120
QUIET = 0.2  # of a core that others take
TRIES, WAIT_S = 3, 60
SHAPES = {
    "mini": Shape(6, 256, 768, 4, 2, 2048),
    "tiny": Shape(6, 384, 1536, 6, 2, 4096),
    "small": Shape(12, 768, 3072, 12, 4, 32000),
    "half": Shape(20, 1280, 5120, 20, 4, 64000),
    "wide": Shape(8, 1536, 4096, 24, 8, 32000),
    "one": Shape(16, 2048, 8192, 32, 8, 128256),
    "moe": Shape(12, 1024, 1024, 16, 4, 32000, experts=16, used=2),
}
FITTED = {
    "mini": ("f16", "q8_0", "q4_k_m"),
    "tiny": ("f16", "q8_0"),
    "small": ("f16", "bf16", "q8_0", "q6_k", "q5_k_m", "q4_k_m", "q4_0", "q3_k_m", "q2_k", "iq4_xs"),
    "half": ("f16", "q8_0", "q4_k_m"),
    "wide": ("f16", "q8_0", "q4_k_m"),
    "moe": ("q8_0",),
}
TESTED = {"one": ("f16", "q8_0", "q4_k_m"), "moe": ("q4_k_m",), "demo": ("f16",)}
BOTH = ("mini-f16", "small-f16", "small-q8_0", "small-q4_k_m", "half-q8_0", "one-q8_0", "one-q4_k_m", "demo-f16")
POINTS = ((1, 32), (1, 1024), (2, 32), (4, 32), (4, 512))  # requests at once, tokens before the answer
OTHERS = {
    "wide": ((1, 32), (1, 1024), (1, 2048), (2, 32), (4, 32)),
    "one": ((1, 32), (1, 2048), (2, 512), (4, 32)),
    "demo": ((1, 32), (1, 1900), (2, 1024), (4, 32), (4, 512)),
}

Row = dict


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="where the models are kept for the next time")
    parser.add_argument("--only", nargs="*", default=[], metavar="NAME", help="small-q8_0, demo-f16 ...")
    parser.add_argument("--threads", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--fit", action="store_true", help="measure nothing; write plan/cpu_fitted.py")
    options = parser.parse_args()
    rows = {_key(row): row for row in json.loads(KEPT.read_text())["found"]["rows"]} if KEPT.exists() else {}
    if not options.fit:
        with tempfile.TemporaryDirectory() as name:
            for model, threads in jobs():
                if (options.only and model not in options.only) or threads not in options.threads:
                    continue
                for row in measured(options.folder or Path(name), model, threads):
                    print(row, flush=True)
                    before = rows.get(_key(row))
                    if before is None or better(row, before):
                        rows[_key(row)] = row
                        KEPT.write_text(json.dumps({"found": {"rows": list(rows.values())}}))
    good = [row for row in rows.values() if _undisturbed(row)]
    with tempfile.TemporaryDirectory() as name:
        models = Models(Path(name))
        if options.fit:
            fit([row for row in good if _is(row, FITTED)], models)
        errors = compare(good, models)
        if options.fit:
            write(errors)
    print(f"\n{len(rows)} rows, {len(rows) - len(good)} of them disturbed by others and left out")
    keep("cpu_speed", {"rows": list(rows.values()), "errors": errors})


def jobs() -> Iterator[tuple[str, int]]:
    """Models and threads, those that are fitted first."""
    names = [f"{name}-{mixture}" for group in (FITTED, TESTED) for name, of in group.items() for mixture in of]
    return ((name, threads) for threads in (1, 2) for name in names if threads == 1 or name in BOTH)


def better(row: Row, than: Row) -> bool:
    return (_undisturbed(row), -row["tpot_ms"]) > (_undisturbed(than), -than["tpot_ms"])


def _key(row: Row) -> tuple:
    return row["model"], row["threads"], row["requests"], row["tokens"]


def _is(row: Row, group: dict) -> bool:
    name, _, mixture = row["model"].partition("-")
    return mixture in group.get(name, ())


def _undisturbed(row: Row) -> bool:
    return (row["others"] or 0.0) <= QUIET  # null: of a quiet hour, before this was recorded


# -- measuring -------------------------------------------------------------------------------------------------------


def measured(folder: Path, model: str, threads: int) -> Iterator[Row]:
    name, _, mixture = model.partition("-")
    path = DEMO if name == "demo" else folder / f"{model}.gguf"
    if not path.exists():
        random_gguf.write(path, SHAPES[name], mixture)
    with engine(path, 2048 if name == "demo" else CONTEXT, threads) as (socket, process):
        for requests, tokens in OTHERS.get(name, POINTS):
            for _ in range(TRIES):
                wait_for_quiet(process)
                before = measure(probe(), time.time_ns())
                ttft_s, runs_s, others = asked(socket, process, requests, tokens)
                after = measure(probe(), time.time_ns())
                if others <= QUIET:
                    break
            yield {
                "model": model, "threads": threads, "requests": requests, "tokens": tokens,
                "ttft_ms": round(ttft_s * 1e3, 3), "tpot_ms": round(runs_s[0] * 1e3, 4),
                "tpot_median_ms": round(statistics.median(runs_s) * 1e3, 4), "others": others,
                "gb_s": [[each.one_gb_s, each.all_gb_s, each.cache_gb_s] for each in (before, after)],
            }  # fmt: skip


@contextlib.contextmanager
def engine(path: Path, context: int, threads: int) -> Iterator[tuple[str, psutil.Process]]:
    build = describe(path)
    plan = llamacpp.fit(build, probe(), context=context, parallel=PARALLEL, threads=threads, model=build.model)
    with tempfile.TemporaryDirectory() as folder, (Path(folder) / "log").open("wb") as log:
        socket = Path(folder) / "engine.sock"
        launch = LlamaCpp().launch(Service(name="m", weights=str(path), socket=str(socket), plan=plan))
        process = psutil.Popen(launch.argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=launch.env, cwd="/")
        try:
            unixhttp.wait_ready(str(socket), "/health", Path(log.name), PATIENCE_S)
            yield str(socket), process
        finally:
            process.kill()
            process.wait()


def others_s(process: psutil.Process) -> float:
    """Seconds that the machine has computed, for nobody of us."""
    machine = psutil.cpu_times()
    ours = (sum(each.cpu_times()[:2]) for each in (process, psutil.Process()))
    return sum(machine) - machine.idle - machine.iowait - sum(ours)


def wait_for_quiet(process: psutil.Process) -> None:
    """Until others have computed little for a second; or for WAIT_S."""
    for _ in range(WAIT_S):
        before = others_s(process)
        time.sleep(1)
        if others_s(process) - before <= QUIET:
            return


def asked(socket: str, process: psutil.Process, requests: int, tokens: int) -> tuple[float, list[float], float]:
    """Seconds to the first token of one prompt alone, and between tokens in each run; cores that others took."""
    prompts = [[random.randrange(6, 2000) for _ in range(tokens)] for _ in range(requests)]
    waits = []
    for slot, prompt in enumerate(prompts):
        began_s = time.perf_counter()
        waits.append(next(stream(socket, slot, prompt, 1)) - began_s)
    length = min(400, max(8, round(RUN_S / gap(socket, prompts, 8))))
    used_s, began_s = others_s(process), time.perf_counter()
    runs = sorted(gap(socket, prompts, length) for _ in range(RUNS))
    return min(waits), runs, round((others_s(process) - used_s) / (time.perf_counter() - began_s), 2)


def gap(socket: str, prompts: list[list[int]], length: int) -> float:
    """Mean seconds between tokens while all of them write, of the median request."""
    with ThreadPoolExecutor(len(prompts)) as pool:
        times = list(pool.map(lambda at: list(stream(socket, at, prompts[at], length)), range(len(prompts))))
    first, last = max(each[0] for each in times), min(each[-1] for each in times)
    inside = [[at for at in each if first <= at <= last] for each in times]
    if not any(len(each) > 1 for each in inside):  # a small model may be through with one before the next
        inside = times
    return statistics.median((each[-1] - each[0]) / (len(each) - 1) for each in inside if len(each) > 1)


def stream(socket: str, slot: int, prompt: list[int], length: int) -> Iterator[float]:
    """When each token came."""
    body = {"prompt": prompt, "n_predict": length, "ignore_eos": True, "id_slot": slot, "cache_prompt": True}
    for event in unixhttp.events(socket, "/completion", **body):
        if isinstance(event, str) or event["stop"]:  # that has no token
            return
        yield time.perf_counter()


# -- comparing -------------------------------------------------------------------------------------------------------


class Models:
    """Dimensions of the models, read from files that have a header and a size only."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._known = folder, {}

    def predicted(self, row: Row) -> tuple[float, float]:
        """Milliseconds to the first token, and between tokens."""
        known = self._known.get(row["model"]) or self._known.setdefault(row["model"], self._read(row["model"]))
        one, whole, cache = (max(each) for each in zip(*row["gb_s"], strict=True))
        memory = cpu_speed.Memory(
            one_gb_s=one, all_gb_s=whole, cache_gb_s=cache, cache_bytes=32 << 20, cores=2, cpu="", at_ns=0
        )
        engine = cpu_speed.Engine(*known, memory)
        work = cpu_speed.Work(
            requests=row["requests"], prompt_tokens=row["tokens"], context_tokens=row["tokens"], threads=row["threads"]
        )
        return engine.prompt_s(work) * 1e3, engine.step(work).seconds * 1e3

    def _read(self, model: str) -> tuple:
        name, _, mixture = model.partition("-")
        path = DEMO if name == "demo" else self._folder / f"{model}.gguf"
        if name != "demo":
            random_gguf.write(path, SHAPES[name], mixture, hollow=True)
        read = describe(path).model
        scheme = mixture if mixture == "bf16" else f"gguf-{mixture}"
        return read, count(read), scheme


def compare(rows: list[Row], models: Models) -> dict:
    """Tables of every row, and of errors: fitted and not."""
    found: dict[str, dict[str, list[float]]] = {}
    print(f"\n{'model':14}{'threads':>8}{'at once':>8}{'tokens':>8}", end="")
    print(f"{'TPOT ms':>10}{'ours':>10}{'error':>7}{'TTFT ms':>11}{'ours':>11}{'error':>7}   GB/s beside")
    for row in rows:
        ttft_ms, tpot_ms = models.predicted(row)
        ratios = {"tpot": tpot_ms / row["tpot_ms"], "ttft": ttft_ms / row["ttft_ms"]}
        print(f"{row['model']:14}{row['threads']:8}{row['requests']:8}{row['tokens']:8}", end="")
        print(f"{row['tpot_ms']:10.3f}{tpot_ms:10.3f}{ratios['tpot'] - 1:+7.0%}", end="")
        beside = ", ".join(f"{one:g} {both:g}" for one, both, _ in row["gb_s"])
        print(f"{row['ttft_ms']:11.2f}{ttft_ms:11.2f}{ratios['ttft'] - 1:+7.0%}   {beside}")
        for group in _groups(row):
            for figure, ratio in ratios.items():
                found.setdefault(f"{group}, {figure}", []).append(ratio)
    print(f"\n{'':34}{'rows':>6}{'mean':>8}{'median':>8}{'largest':>9}{'within 20 %':>13}")
    table = {}
    for name, ratios in sorted(found.items()):
        sizes = sorted(abs(ratio - 1) for ratio in ratios)
        within = sum(size <= 0.2 for size in sizes) / len(sizes)
        table[name] = {
            "rows": len(sizes), "mean": statistics.fmean(sizes), "median": statistics.median(sizes),
            "largest": sizes[-1], "within_20": within, "band": _band(ratios),
        }  # fmt: skip
        print(f"{name:34}{len(sizes):6}{statistics.fmean(sizes):8.1%}{statistics.median(sizes):8.1%}", end="")
        print(f"{sizes[-1]:9.1%}{within:13.0%}")
    return json.loads(json.dumps(table), parse_float=lambda text: round(float(text), 3))


def _groups(row: Row) -> tuple[str, ...]:
    if _is(row, FITTED):
        return ("fitted",)
    return "tested", f"tested: {row['model']}"


def _band(ratios: list[float]) -> tuple[float, float]:
    """What the measured was of the predicted in eight of ten rows."""
    real = sorted(1 / ratio for ratio in ratios)
    tenth = len(real) // 10
    return real[tenth], real[-1 - tenth]


# -- fitting ---------------------------------------------------------------------------------------------------------

MEANINGS = {
    "SERIAL": "of the shorter of loading and computing, what is not hidden behind the other",
    "ATTENTION_PS": "of a core, for one query, key and dimension while tokens are written",
    "KEPT_NS": "more for each token before it and each layer, whose keys and values are in memory and in no cache",
    "TURN_NS": "more for each of them where several requests have such keys and values",
    "PROMPT_ATTENTION_PS": "and while a prompt is read",
    "LAYER_US": "of a step for each layer, whatever its size",
    "BARRIER_US": "more for each layer where threads wait for one another",
    "STEP_US": "of a step",
    "REQUEST_US": "of a step for each request",
    "FIRST_US": "of a request, before its first step",
    "CHOICE_NS": "to choose among the vocabulary, for each of its tokens",
    "THREAD": "of a core's work that each further thread does",
}


def fit(rows: list[Row], models: Models) -> None:
    """Least squares of the logarithms. Needs SciPy, which nothing else here does: pip install scipy."""
    from scipy.optimize import least_squares  # noqa: PLC0415  who only measures does without it

    table = cpu_fitted.VALUE_PS
    for kind, values in table.items():
        table[kind] = list(values)
    knobs = [(vars(cpu_fitted), name) for name in MEANINGS] + [(cpu_fitted.ROW_NS, kind) for kind in cpu_fitted.ROW_NS]
    knobs += [(values, at) for values in table.values() for at in range(len(values))]

    def missed(logs: Iterable[float]) -> list[float]:
        for (holder, key), value in zip(knobs, logs, strict=True):
            holder[key] = exp(value)
        return misses(rows, models)

    found = least_squares(missed, [log(holder[key]) for holder, key in knobs], max_nfev=100)
    print(f"mean square {square(missed(found.x)) / len(found.fun):.5f}, {found.message}")
    table.update({kind: tuple(values) for kind, values in table.items()})


def square(values: Iterable[float]) -> float:
    return sum(value * value for value in values)


def misses(rows: list[Row], models: Models) -> list[float]:
    """Logarithms of ours over measured. Times of first tokens weigh less: the wait before them has more parts."""
    found = []
    for row in rows:
        ttft_ms, tpot_ms = models.predicted(row)
        found += [log(tpot_ms / row["tpot_ms"]), log(ttft_ms / row["ttft_ms"]) / 2]
    return found


def write(errors: dict) -> None:
    """plan/cpu_fitted.py: constants, and the band of what was tested."""
    tpot, ttft = errors["tested, tpot"], errors["tested, ttft"]
    fitted = errors["fitted, tpot"]
    day, engine = datetime.now(UTC).date().isoformat(), f"llama.cpp in xllamacpp {version('xllamacpp')}"
    source = (
        f"{fitted['rows']} rows of {engine} on an {machine()['cpu']} with {machine()['cores']} cores, {day}; on "
        f"{tpot['rows']} rows of other models {tpot['mean']:.0%} off on average between tokens, {ttft['mean']:.0%} "
        "until the first"
    )
    rounded = {name: float(f"{getattr(cpu_fitted, name):.3g}") for name in MEANINGS}
    lines = [
        '"""Constants of plan/cpu_speed.py: written by `python bench/cpu_speed.py --fit`, not by hand."""\n',
        f'CPU = "{machine()["cpu"]}"',
        f'SOURCE = (\n    "{source[:90]}"\n    "{source[90:]}"\n)',
        *(f"{name} = {value}  # {MEANINGS[name]}" for name, value in rounded.items()),
        f"TPOT_BAND = {tuple(tpot['band'])}  # of eight of ten rows: measured over predicted",
        f"TTFT_BAND = {tuple(ttft['band'])}",
        "VALUE_PS = {  # of a core, for one weight and one of 1, 2, 4, 32 or 512 tokens that are computed together",
        *(f'    "{kind}": {_three(values)},' for kind, values in cpu_fitted.VALUE_PS.items()),
        "}",
        "ROW_NS = {  # to the beginning of a row of a matrix in memory, by kernels for two tokens, which go row by row",
        *(f'    "{kind}": {value:.3g},' for kind, value in cpu_fitted.ROW_NS.items()),
        "}",
    ]
    Path(cpu_fitted.__file__).write_text("\n".join(lines) + "\n")


def _three(values: tuple[float, ...]) -> tuple[float, ...]:
    return tuple(float(f"{value:.3g}") for value in values)


if __name__ == "__main__":
    main()
