"""Published speeds of real engines, read as cases that the planner can answer; or why it cannot.

Two kinds of tables, by their columns: TensorRT-LLM's own throughput tables (offline: as many requests as fit, all there
from the start), and benchmarks of servers with a fixed number of requests at the same time.
"""

from __future__ import annotations

import csv
import re
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

from freehold import catalogue
from freehold.catalogue.places import by_words
from freehold.errors import Unknown
from freehold.facts import Card, Model
from freehold.plan import vllm
from freehold.plan.kv import bytes_per_token
from freehold.plan.params import count
from freehold.plan.roofline import Work, work
from freehold.plan.serving import Traffic
from freehold.plan.units import GIB
from freehold.plan.weights import Split, held_bytes

Row = dict[str, str]
OFFLINE = "trtllm-bench"
_CARDS = {"RTX6000ProBSE": "RTX-PRO-6000-Blackwell"}
_ENGINES = {"tensorrt-llm": "trtllm", "trt-llm": "trtllm"}
_SCHEMES = {  # by what the tables call them
    **dict.fromkeys(("bf16", "fp16", "bfloat16", "float16", "mixed"), "bf16"),
    **dict.fromkeys(("fp4", "nvfp4"), "nvfp4"),
    **dict.fromkeys(("int8", "w8a8"), "int8"),
    **dict.fromkeys(("int4", "uint4", "w4a16", "awq"), "int4-awq"),
    "gptq": "int4-gptq",
    "fp8": "fp8",
    "fp8_block": "fp8-block",
    "mxfp4": "mxfp4",
}
_MODELS = {  # the tables run Mistral's window of 4,096 tokens as if it had none
    "Mistral 7B": "mistral-7b-v0.3",
    "LLaMA 70B": "llama-2-70b",
}
_MOST_RUNNING = 2048  # trtllm-bench's own limit
_RESERVED_BYTES = 2.5 * GIB  # of a card, beside weights and cache; and 95 % of the rest is taken


class Case(NamedTuple):
    """One row: what was asked, and what was measured. Times are in seconds; None: the row does not say."""

    row: Row
    engine: str
    version: str
    scheme: str
    card: Card
    work: Work
    traffic: Traffic
    slots: float
    ttft_s: float | None
    tpot_s: float | None
    tokens_per_s: float | None  # of one replica, written

    @property
    def model(self) -> str:
        return self.work.model.id

    @property
    def ranks(self) -> int:
        return self.work.split.cards


def read(path: Path) -> tuple[list[Case], dict[str, list[Row]]]:
    """The cases of a file, and the rows that cannot be answered, by the reason."""
    known = catalogue.load()
    with path.open(newline="") as file:  # a column that is missing says nothing, like one that is empty
        rows = [defaultdict(str, {k: v or "" for k, v in row.items() if k}) for row in csv.DictReader(file)]
    cases, unanswered = [], dict[str, list[Row]]()
    for row in rows:
        try:
            cases.append(_offline(row, known) if "trtllm_version" in row else _serving(row, known))
        except Unknown as error:
            unanswered.setdefault(str(error), []).append(row)
    return cases, unanswered


def _offline(row: Row, known: catalogue.Catalogue) -> Case:
    model, card = _model(row, known), _card(row, known)
    prompt, completion, value = (_number(row, name) for name in ("isl", "osl", "value"))
    first, per_card = row["metric"].startswith("1st Token"), "per GPU" in row["metric"]
    if value is None or not (first or "throughput" in row["metric"]):
        raise Unknown("gives no figure that is ours to predict")
    if prompt is None or (completion is None and not first):
        raise Unknown("says not how long prompts and completions are")
    ranks, pp = _cards(row, "tp"), _cards(row, "pp") or 1
    if not ranks:
        raise Unknown("says not over how many cards it was split")
    split = Split(1, pp, ranks) if "DEP" in row["parallelism"] else Split(ranks, pp)
    scheme = _scheme(model, _known_scheme(row["precision"] or "bf16"))
    kv_dtype = "fp8" if row["precision"] in ("FP8", "FP4") else "bf16"
    tokens = prompt + (completion or 1)
    slots = _held(model, scheme, card, split, kv_dtype=kv_dtype, tokens=tokens)
    return Case(
        row,
        OFFLINE,
        row["trtllm_version"].partition(" ")[0],
        scheme,
        card,
        _work(model, scheme, split, kv_dtype),
        Traffic(
            concurrency=_number(row, "batch_size") or slots, prompt_tokens=prompt, completion_tokens=completion or 1
        ),
        slots,
        value / 1e3 if first else None,
        None,
        None if first else value * (split.cards if per_card else 1),
    )


def _held(model: Model, scheme: str, card: Card, split: Split, *, kv_dtype: str, tokens: float) -> float:
    """Requests of so many tokens that the cards hold, each with its whole cache reserved."""
    counts = count(model)
    if counts is None:
        raise Unknown("its layers are outside the formulas")
    room = 0.95 * (card.memory_bytes - held_bytes(counts, scheme, model, split) - _RESERVED_BYTES)
    each = sum(
        group.layers * bytes_per_token(group, kv_dtype, split.tp) * min(tokens, group.window or tokens)
        for group in model.attention
    )
    if room < each:
        raise Unknown("its weights do not fit on so many cards")
    return min(_MOST_RUNNING, room / (each / split.pp)) * split.ep


def _serving(row: Row, known: catalogue.Catalogue) -> Case:
    if row["scenario"] == "disagg":
        raise Unknown("prefill and decoding on different cards are not planned")
    prompt, completion, concurrency = (_number(row, name) for name in ("isl", "osl", "concurrency"))
    if not (prompt and completion and concurrency):
        raise Unknown("says not how long prompts and completions are, or how many at the same time")
    tpot = next(filter(None, (_number(row, f"tpot_ms_{name}") for name in ("unlabelled", "median", "mean"))), None)
    ttft = next(filter(None, (_number(row, f"ttft_ms_{name}") for name in ("unlabelled", "median", "mean"))), None)
    if tpot is None:
        raise Unknown("says not how long a token takes")
    model, card = _model(row, known), _card(row, known)
    split = _split(row, concurrency)
    scheme = _scheme(model, _said(row, model))
    engine = row["engine"].lower()
    engine = _ENGINES.get(engine, engine)
    kv_dtype = "fp8" if engine == "trtllm" and scheme in ("fp8", "fp8-block", "nvfp4") else "bf16"
    counts = count(model)
    if counts is None:
        raise Unknown("its layers are outside the formulas")
    settings = vllm.Settings(kv_dtype=kv_dtype)
    rank = vllm.rank(model, held_bytes(counts, scheme, model, split), scheme, card, settings, split=split)
    layout = vllm.layout(model.attention, settings, split)
    slots = layout.requests(rank.pool_bytes, round(prompt + completion / 2), settings.step_tokens(card))
    if slots < 1:
        raise Unknown("its weights do not fit on so many cards")
    return Case(
        row,
        engine,
        row["engine_version"],
        scheme,
        card,
        _work(model, scheme, split, kv_dtype),
        Traffic(concurrency=concurrency, prompt_tokens=prompt, completion_tokens=completion),
        slots * split.ep,
        ttft / 1e3 if ttft else None,
        tpot / 1e3,
        None,
    )


def _split(row: Row, concurrency: float) -> Split:
    """The tables name ranks in several ways: where ranks have requests of their own, "per-rank batch" tells."""
    if not _cards(row, "tp"):
        raise Unknown("says not over how many cards it was split")
    tp, pp, dp, ep = (_cards(row, name) or 1 for name in ("tp", "pp", "dp", "ep"))
    if dp > 1:  # tp and dp are then both the number of cards; ep is their product, or the number again
        return Split(1, pp, tp if tp > 1 else ep if ep * ep == dp else dp)
    if ep > 1 and tp == ep * ep:
        tp = ep
    batch = re.search(r"per-rank batch=([1-9]\d*)", row["notes"])
    own = round(concurrency / int(batch[1])) if batch else 1
    return Split(1, pp, own) if own > 1 else Split(tp, pp)


def _said(row: Row, model: Model) -> str:
    gemm = re.match(r"gemm=(\w*)", row["notes"])
    said = (gemm[1] if gemm else "") or row["precision"]
    if not said:
        return "bf16" if gemm else model.checkpoint
    scheme = _known_scheme(said)
    return model.checkpoint if scheme == "fp8" and model.checkpoint.startswith("fp8") else scheme


def _known_scheme(said: str) -> str:
    if said.lower() not in _SCHEMES:
        raise Unknown(f"a precision of {said} is not one we know")
    return _SCHEMES[said.lower()]


def _scheme(model: Model, said: str) -> str:
    """A checkpoint that is mixed stays so, whatever a table calls it."""
    return model.checkpoint if model.checkpoint.endswith("experts") else said


def _work(model: Model, scheme: str, split: Split, kv_dtype: str) -> Work:
    counts = count(model)
    assert counts is not None
    return work(model, counts, scheme, split, kv_dtype)


def _model(row: Row, known: catalogue.Catalogue) -> Model:
    if not row["model"]:
        raise Unknown("names no model")
    try:
        found = catalogue.match(known, _MODELS.get(row["model"], row["model"])).model
    except Unknown:
        raise Unknown(f"no dimensions known for {row['model']}") from None
    if not found.attention:
        raise Unknown("its attention is outside the formulas")
    return found


def _card(row: Row, known: catalogue.Catalogue) -> Card:
    found = by_words(known.cards, _CARDS.get(row["gpu"], row["gpu"]).replace("_", " "))
    if not found:
        raise Unknown(f"no card known as {row['gpu'] or 'what is not named'}")
    if len({card.id.partition("-")[0] for card in found}) > 1:
        raise Unknown("ran on cards of several kinds")
    return found[0]


def _cards(row: Row, column: str) -> int:
    """How many; 0: it does not say."""
    return int(_number(row, column) or 0)


def _number(row: Row, column: str) -> float | None:
    try:
        value = float(row[column])
    except (ValueError, KeyError, TypeError):
        return None
    return value if 1e-3 < value < 1e12 else None
