"""How exact the planner is: sizes that real engines printed at their start, and speeds they reached, beside ours.

python bench/accuracy.py memory [FILE] [--list] [--keep]
python bench/accuracy.py throughput [FILE] [--list] [--keep]

FILE is a CSV with the columns of bench/data/memory_cases.csv or throughput_*.csv (the defaults). A row is answered when
its model is in the catalogue, or its dimensions are known there under another name; the others are counted, and listed
with their reason.
Errors are of our figure against the printed one; a printed range counts as its nearer end.
"""

from __future__ import annotations

import argparse
import csv
import re
import statistics
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import speed_accuracy
from figures import keep
from msgspec.structs import replace

from freehold import catalogue
from freehold.catalogue.places import by_words
from freehold.errors import Unknown
from freehold.facts import Card, Model
from freehold.plan import kv, llamacpp, vllm
from freehold.plan.params import count
from freehold.plan.units import GIB
from freehold.plan.weights import SCHEMES, Split, held_bytes, weigh

MIB = 1 << 20
HERE = Path(__file__).parent
RIVALS = """What rivals publish or do:
  the nearest one that publishes its error: KV pool 7.8 % mean, concurrency 16.7 % mean
  GPUStack: weights x 1.2 + 2 GiB, no KV cache at all"""
KV_DTYPES = {"": "bf16", "auto": "bf16", "bfloat16": "bf16", "float16": "fp16", "nvfp4": "nvfp4"}
QUANTIZATIONS = {  # the engine's word, or what the model's name says where that word is a container: our scheme
    "modelopt_fp4": "nvfp4",
    "nvfp4": "nvfp4",
    "modelopt": "fp8",
    "fp8": "fp8",
    "mxfp4": "mxfp4-experts",
    "awq": "int4-awq",
    "gptq": "int4-gptq",
    "auto_round": "int4-gptq",
    "inc": "int4-gptq",
}
NAMED = (  # of compressed-tensors, by the model's name
    *(("nvfp4", "nvfp4"), ("mxfp4", "mxfp4-experts"), ("fp8-block", "fp8-block"), ("fp8", "fp8"), ("w8a8", "int8")),
    *(("w8a16", "int8"), ("w4a16", "int4-gptq"), ("int4", "int4-gptq"), ("awq", "int4-awq"), ("4bit", "int4-awq")),
)
GGML_BYTES = {"f32": 4.0, "f16": 2.0, "bf16": 2.0, "q8_0": 34 / 32, "q5_1": 24 / 32, "q5_0": 22 / 32, "q4_0": 18 / 32}

Row = dict[str, str]
Answer = tuple[str, float, float, float]  # quantity, ours, the printed range


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", choices=["memory", "throughput"], default="memory")
    parser.add_argument("file", nargs="?", type=Path)
    parser.add_argument("--list", action="store_true", help="every figure, not only the summary")
    parser.add_argument("--keep", action="store_true", help="write the summary to bench/results/accuracy.json")
    options = parser.parse_args()
    if options.what == "throughput":
        found = speed_accuracy.report(options.file, show=options.list)
        if options.keep:
            keep("speed", found)
        return 0
    with (options.file or HERE / "data" / "memory_cases.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    errors, unanswered = score(rows, show=options.list)
    print(f"{len(rows)} rows, {len(rows) - len(unanswered)} answered, {len(unanswered)} not:")
    for reason in sorted(set(unanswered.values())):
        cases = [case for case, why in unanswered.items() if why == reason]
        print(f"  {len(cases):3} {reason}: {', '.join(cases)}")
    table = summary(errors)
    print()
    print(render(table))
    print(RIVALS)
    if options.keep:
        keep("accuracy", {"rows": len(rows), "unanswered": len(unanswered), "errors_pct": table})
    return 0


def score(rows: list[Row], *, show: bool = False) -> tuple[dict[str, list[float]], dict[str, str]]:
    """Errors in per cent by quantity, and the rows that could not be answered with the reason."""
    known = catalogue.load()
    errors, unanswered = defaultdict(list), {}
    for row in rows:
        try:
            answers = list(_llamacpp(row, known) if row["engine"] == "llama.cpp" else _vllm(row, known))
        except Unknown as error:
            unanswered[row["case_id"]] = str(error)
            continue
        if not answers:
            unanswered[row["case_id"]] = "prints no figure that is ours to predict"
        for quantity, ours, least, most in answers:
            printed = min(max(ours, least), most)
            error = 100 * (ours - printed) / printed
            errors[quantity].append(error)
            if show:
                name = row["model"][-36:]
                print(f"{row['case_id']:5} {name:36} {quantity:52} {ours:14.3f} {printed:14.3f} {error:+8.3f} %")
    return errors, unanswered


def summary(errors: dict[str, list[float]]) -> dict[str, dict[str, float]]:
    """By quantity: cases, and median, mean, 90th percentile and largest of the absolute errors in per cent."""
    table = {}
    for quantity, signed in errors.items():
        sizes = sorted(map(abs, signed))
        table[quantity] = {
            "cases": len(sizes),
            "median": round(statistics.median(sizes), 3),
            "mean": round(statistics.fmean(sizes), 3),
            "p90": round(sizes[int(0.9 * (len(sizes) - 1))], 3),
            "within_1": round(100 * sum(e <= 1 for e in sizes) / len(sizes), 1),
            "largest": round(sizes[-1], 2),
        }
    return table


def render(table: dict[str, dict[str, float]]) -> str:
    heads = ("error in %", "cases", "median", "mean", "p90", "within 1 %", "largest")
    lines = ["{:46}{:>7}{:>9}{:>9}{:>9}{:>12}{:>10}".format(*heads)]
    lines += ["{:46}{:>7}{:>9}{:>9}{:>9}{:>12}{:>10}".format(name, *row.values()) for name, row in table.items()]
    return "\n".join(lines)


def _vllm(row: Row, known: catalogue.Catalogue) -> Iterator[Answer]:
    model, pp = _model(row, known), _count(row, "pp")
    if not model.attention:
        raise Unknown("its attention is outside the formulas")
    tp = _count(row, "tp", 0) or (1 if _number(row, "gpu_count") == 1 else _tp(row, model))
    settings, card, split = _settings(row), _card(row, known), Split(tp, pp)
    layout = vllm.layout(model.attention, settings, split)
    step = settings.step_tokens(card or _size_class(row))
    pools = _numbers(row, "available_kv_gib_min", "available_kv_gib_max")
    if pools:
        yield from _cache(row, layout, pools, step, settings.version)
    scheme = _scheme(row, model)
    held = _numbers(row, "model_loading_gib_min", "model_loading_gib_max")
    drafts = settings.draft_layers > 0
    if held and scheme and (counts := count(model)):
        ours = weigh(counts, SCHEMES[scheme], model, split, mtp=drafts).total / GIB
        yield "vLLM: weights from dimensions", ours, held[0], held[-1]
    told = row["dtype"] or row["max_model_len"] or row["gpu_memory_utilization"]  # how the engine was started
    if pools and card and scheme and told and (counts := count(model)):
        loaded = held_bytes(counts, scheme, model, split, mtp=drafts)
        place = vllm.rank(model, loaded, scheme, card, settings, split=split)
        same = row["engine_version"] == "0.19.0" and row["gpu_total_gib"] == "79.19"
        group = "same machine (H100, 0.19.0)" if same else "other machines"
        yield f"vLLM: pool from scratch, {group}", place.pool_bytes / GIB, pools[0], pools[-1]


def _cache(row: Row, layout: vllm.Layout, pools: list[float], step: int, version: tuple[int, ...]) -> Iterator[Answer]:
    """Tokens and requests, given the pool as it was printed: to two places, so up to half of the last is its due."""
    pool = pools[0] * GIB
    tokens = _numbers(row, "kv_tokens_min", "kv_tokens_max")
    length = _number(row, "max_concurrency_at_tokens") or _number(row, "max_model_len")
    requests = layout.requests(pool, int(length), step) if length else None
    if tokens:
        if version > (0, 20, 0) and requests and length:
            ours = requests * length
        else:
            ours = layout.blocks(pool) // sum(n for _, n, _ in layout.groups) * layout.block_tokens
        yield "vLLM: KV tokens, given the pool", ours, tokens[0], tokens[-1]
    if requests and (printed := _number(row, "max_concurrency_x")):
        yield "vLLM: requests at length L, given the pool", requests, printed - 0.005, printed + 0.005


def _tp(row: Row, model: Model) -> int:
    """Over how many cards the weights were split, where only the share of one is printed."""
    loaded, scheme, counts = _number(row, "model_loading_gib_max"), _scheme(row, model), count(model)
    if not loaded or not scheme or not counts:
        raise Unknown("does not say over how many cards it was split")
    whole = weigh(counts, SCHEMES[scheme], model).total / GIB
    return min((1, 2, 4, 8), key=lambda tp: abs(whole / tp - loaded))


def _llamacpp(row: Row, known: catalogue.Catalogue) -> Iterator[Answer]:
    model = _model(row, known)
    context, sequences = _number(row, "n_ctx"), _count(row, "n_seq_max")
    ubatch = _count(row, "n_ubatch", 512)
    held = [n for n in (_number(row, f"model_buffer_mib_{where}") for where in ("gpu", "host")) if n]
    if held and (size := _number(row, "file_size_gib")):
        yield "llama.cpp: weights from the file", size * 1024, sum(held), sum(held)
    if not context or not model.attention:
        return
    cells = _number(row, "kv_cells")
    unified = cells is None or sequences == 1 or cells == context
    per_value = GGML_BYTES.get(row["kv_type_k"] or "f16")
    if per_value is None:
        raise Unknown(f"a KV cache of {row['kv_type_k']} is not one we know")
    caches = llamacpp.kv_buffers(
        model.attention, int(context), sequences=sequences, ubatch=ubatch, unified=unified, bytes_per_value=per_value
    )
    printed = _numbers(row, "kv_buffer_mib_total", "kv2_buffer_mib", "rs_buffer_mib")
    if printed:
        yield "llama.cpp: KV and state buffers", caches / MIB, sum(printed), sum(printed)
    if (compute := _number(row, "compute_buffer_mib_gpu")) and row["flash_attn"] != "disabled":
        ours = (model.vocab_size + model.hidden_size) * ubatch * 4 / MIB
        yield "llama.cpp: compute buffer", ours, compute, compute


def _model(row: Row, known: catalogue.Catalogue) -> Model:
    if not row["model"] or row["model"] == "n/a":
        name = row["gguf_file"]
        if not name:
            raise Unknown("names no model")
        return catalogue.find((*known.models, *known.known), name).model
    try:
        return catalogue.find((*known.models, *known.known), row["model"]).model
    except Unknown:
        raise Unknown(f"no dimensions known for {row['model']}") from None


def _settings(row: Row) -> vllm.Settings:
    drafts = re.search(r"num_spec_tokens=(\d+)|mtp (\d+)", row["speculative"])
    dtype = row["kv_cache_dtype"]
    if row["dtype"] == "float32" and dtype in ("", "auto"):
        dtype = "fp32"
    dtype = KV_DTYPES.get(dtype, "fp8" if dtype.startswith("fp8") else dtype)
    if dtype not in kv.BYTES:
        raise Unknown(f"a KV cache of {dtype} is not one we know")
    return vllm.Settings(
        version=_version(row["engine_version"]),
        utilisation=_number(row, "gpu_memory_utilization"),
        sequences=_count(row, "max_num_seqs", 0) or None,
        batched_tokens=_count(row, "max_num_batched_tokens", 0) or None,
        kv_dtype=dtype,
        eager=row["enforce_eager"] == "True",
        speculative=int(drafts[1] or drafts[2]) if drafts else 0,
        draft_layers=1 if drafts else 0,
        prefix_caching=row["prefix_caching"] == "True",
        block_tokens=max(16, _count(row, "block_size", 16)),
    )


def _version(text: str) -> tuple[int, int, int]:
    """As a triple; a development build without a number is as new as what we know."""
    found = re.match(r"(\d+)\.(\d+)\.?(\d+)?", text)
    if not found or text.startswith("0.1.dev"):
        return vllm.VERSION
    return int(found[1]), int(found[2]), int(found[3] or 0)


def _scheme(row: Row, model: Model) -> str | None:
    """What the weights are kept in; None where nobody says."""
    said, name = row["quantization"].lower().removesuffix("_marlin"), row["model"].lower()
    if not said or said == "none":
        if any(part in name for part, _ in NAMED):
            return next(scheme for part, scheme in NAMED if part in name)
        return {"float32": "fp32"}.get(row["dtype"], model.checkpoint)
    if said == "quark":
        return "mxfp4" if "mxfp4" in name else "fp8"
    return QUANTIZATIONS.get(said) or next((scheme for part, scheme in NAMED if part in f"{name} {said}"), None)


def _card(row: Row, known: catalogue.Catalogue) -> Card | None:
    """The card by its name in the log, with the total the engine printed where it did."""
    card = next(iter(by_words(known.cards, row["gpu"])), None)
    hinted = re.search(r"~(\d+) GiB card", row["notes"])
    if total := _number(row, "gpu_total_gib"):
        return replace(card or _unnamed(row["gpu"], 0), memory_bytes=round(total * GIB))
    if card is None and hinted:
        return min(known.cards, key=lambda each: abs(each.memory_bytes / GIB - float(hinted[1])))
    return card


def _size_class(row: Row) -> Card:
    """A card nobody named, of the size that the printed figures add up to: it decides vLLM's defaults."""
    held = (_number(row, "model_loading_gib_max") or 0) + (_number(row, "available_kv_gib_max") or 80)
    total = held / (_number(row, "gpu_memory_utilization") or 0.9)
    return _unnamed("unnamed", total)


def _unnamed(name: str, memory_gib: float) -> Card:
    return Card(id=name, vendor="NVIDIA", memory_gb=0, memory_bytes=round(memory_gib * GIB), memory_source="the log")


def _number(row: Row, column: str) -> float | None:
    """A positive number; None where it says nothing or no number."""
    try:
        value = float(row[column])
    except (ValueError, KeyError, TypeError):
        return None
    return value if 0 < value < 1e15 else None


def _count(row: Row, column: str, default: int = 1) -> int:
    return int(_number(row, column) or default)


def _numbers(row: Row, *columns: str) -> list[float]:
    return [value for column in columns if (value := _number(row, column)) is not None]


if __name__ == "__main__":
    sys.exit(main())
