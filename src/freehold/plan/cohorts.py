"""A table of scores, row by row, into cohorts: what may be compared with what. Says of every bad line what to do."""

from __future__ import annotations

import csv
import re
from collections.abc import Container, Iterable, Iterator, Mapping
from hashlib import sha256
from itertools import chain
from math import isfinite

from msgspec import Struct
from msgspec.structs import replace

from freehold.facts import Benchmark, Cohort, Score

COLUMNS = (
    *("model_id", "benchmark", "variant", "value", "setting", "measured_by"),
    *("kind", "source", "date", "note", "unit", "trust"),
)
MOST_BYTES = 4 << 20  # of a table that is imported
MOST_ROWS = 20_000
_LONGEST = {"note": 500, "source": 500}  # characters of a cell
_MOST_CHARACTERS = 200
_NEEDED = ("model_id", "benchmark", "value", "measured_by", "source", "unit")
_SLUG = 32  # characters of one part of an id
_TOKENS = "tokens (text)"  # a length as printed, such as >128K
_LOWER = ("rank score", "perplexity", "kl-divergence")  # units of which less is better
_WITHOUT = ("no-thinking", "non-thinking", "no thinking", "non-think", "no think", "no extended thinking")
_UNSTATED = ("mode not stated", "thinking mode not stated", "effort not stated", "setting not shown", "effort none")
MODES = {  # as sources write them, in small letters
    **dict.fromkeys(("thinking", "thinking (default mode)", "thinking as set in recipe", "effort enabled"), "thinking"),
    **dict.fromkeys(("without thinking", *_WITHOUT), "without thinking"),
    **dict.fromkeys((*_UNSTATED, "mode not stated"), ""),
    "as it answers by itself": "as it answers by itself",
    "think high": "thinking high",
    "think max": "thinking max",
    **{f"{word}{level}": f"effort {level}" for word in ("", "effort ", "reasoning_effort ")
       for level in ("low", "mid", "medium", "high", "xhigh", "max", "default")},
}  # fmt: skip
_SERVED = re.compile(r"(?:served |post-trained )?(bf16|fp8|fp4|nvfp4|mxfp4|int8|int4)(?: baseline)?", re.IGNORECASE)
_VERSION = re.compile(r"(?:harness|board) (\S+)")
_CALLS = re.compile(r"mode (fc|prompt)( thinking)?", re.IGNORECASE)  # how BFCL asks for tools
_PAIR = "pair baseline"
_CELL = re.compile(r"(-?\d+\.?\d*) ± (\d+\.?\d*)")
_SIDES = re.compile(r"CI -(\d+\.?\d*) / \+(\d+\.?\d*)")
LANGUAGES = {
    "albanian": "sq", "bosnian": "bs", "bulgarian": "bg", "catalan": "ca", "croatian": "hr", "czech": "cs",
    "danish": "da", "dutch": "nl", "english": "en", "estonian": "et", "faroese": "fo", "finnish": "fi",
    "french": "fr", "german": "de", "greek": "el", "hungarian": "hu", "icelandic": "is", "italian": "it",
    "latvian": "lv", "lithuanian": "lt", "norwegian": "no", "polish": "pl", "portuguese": "pt", "romanian": "ro",
    "serbian": "sr", "slovak": "sk", "slovene": "sl", "spanish": "es", "swedish": "sv", "ukrainian": "uk",
}  # fmt: skip


class Fault(Struct, frozen=True, kw_only=True):
    """A line that cannot be taken."""

    line: int
    what: str
    hint: str

    def __str__(self) -> str:
        return f"line {self.line}: {self.what}; {self.hint}"


Row = tuple[int, dict[str, str]]  # with the number of its line


def rows(text: str) -> tuple[list[Row], list[Fault]]:
    """The lines of a CSV table that has the COLUMNS. Faults of the table itself are those of its first line."""
    reader = csv.reader(text.splitlines(keepends=True), strict=True)
    try:
        heads = [each.strip() for each in next(reader, [])]
        wrong = [f"no column `{each}`" for each in COLUMNS if each not in heads]
        wrong += [f"nobody reads a column `{_shown(each)}`" for each in dict.fromkeys(heads) if each not in COLUMNS]
        wrong += [f"two columns `{each}`" for each in COLUMNS if heads.count(each) > 1]
        if wrong:
            return [], [Fault(line=1, what=each, hint=f"the columns are {', '.join(COLUMNS)}") for each in wrong]
        found, faults = [], []
        for cells in reader:
            if len(cells) == len(heads):
                found.append((reader.line_num, dict(zip(heads, map(str.strip, cells), strict=True))))
            elif cells:
                what = f"{len(cells)} cells, but there are {len(heads)} columns"
                faults.append(Fault(line=reader.line_num, what=what, hint='a comma inside a cell needs "quotes"'))
            if len(found) > MOST_ROWS:
                return [], [Fault(line=reader.line_num, what=f"more than {MOST_ROWS:,} rows", hint="split the table")]
    except csv.Error as error:
        return [], [Fault(line=reader.line_num, what=f"not CSV: {error}", hint="save the table as CSV in UTF-8")]
    return found, faults


def read(
    table: Iterable[Row], benchmarks: Mapping[str, Benchmark], models: Container[str] | None, *, own: bool = False
) -> tuple[list[tuple[Cohort, Score]], list[Fault]]:
    """Each row's cohort and score, or what is wrong with it. `models`: ids that there are; None: all are taken.

    `own`: of a company's import: kept apart from what ships, whatever they say of themselves.
    """
    found: list[tuple[Cohort, Score]] = []
    faults: list[Fault] = []
    seen: dict[tuple[str, str, str], int] = {}
    for line, row in table:
        if wrong := _wrong(row, models):
            faults.append(Fault(line=line, what=wrong[0], hint=wrong[1]))
            continue
        cohort, score = _entry(row, benchmarks.get(row["benchmark"], Benchmark(name=row["benchmark"])), own=own)
        first = seen.setdefault((cohort.id, score.model, score.served), line)
        if first != line:
            hint = "one figure of a model in one cohort: leave one out, or say in `setting` what differs"
            faults.append(Fault(line=line, what=f"the same as line {first}", hint=hint))
            continue
        found.append((cohort, score))
    return found, faults


def _wrong(row: dict[str, str], models: Container[str] | None) -> tuple[str, str] | None:
    """What is wrong with a row first of all, and what to do."""
    return next(chain(_bad_cells(row), _bad_entry(row, models)), None)


def _bad_cells(row: dict[str, str]) -> Iterator[tuple[str, str]]:
    for name, cell in row.items():
        most = _LONGEST.get(name, _MOST_CHARACTERS)
        if not cell.isprintable():
            yield f"`{name}` has control characters", "take them out"
        elif len(cell) > most:
            yield f"`{name}` is {len(cell):,} characters long", f"{most} are read"
        elif re.match(r"[=+@]|-\D", cell):
            yield f"`{name}` begins like a formula: {_shown(cell)}", "begin it with a letter or a number"
        elif not cell and name in _NEEDED:
            yield f"`{name}` is empty", "every figure needs it"


def _bad_entry(row: dict[str, str], models: Container[str] | None) -> Iterator[tuple[str, str]]:
    value = _value(row)
    if models is not None and row["model_id"] not in models:
        yield f"no model `{_shown(row['model_id'])}`", "freehold models lists the ids"
    for name, words in (("kind", ("independent", "publisher", "own")), ("trust", ("high", "medium", "low"))):
        if row[name] not in words:
            yield f"{name} `{_shown(row[name])}`", f"it is one of {', '.join(words)}"
    if value is None or not isfinite(value) or abs(value) > 1e9:
        yield f"value `{_shown(row['value'])}` is no number", "write it as 71.5"
    elif row["unit"].startswith("percent") and not 0 <= value <= 100:
        yield f"value {value:g} is no percentage", "from 0 to 100; or name another unit"


def _value(row: dict[str, str]) -> float | None:
    if row["unit"] == _TOKENS:
        found = re.fullmatch(r">?(\d{1,6})K", row["value"])
        return int(found[1]) * 1024.0 if found else None
    return float(row["value"]) if re.fullmatch(r"-?\d{1,12}(\.\d{1,20})?", row["value"]) else None


def _entry(row: dict[str, str], benchmark: Benchmark, *, own: bool) -> tuple[Cohort, Score]:
    said = _said(row["setting"])
    value = _value(row)
    assert value is not None  # noqa: S101  it was looked at
    informs = next((why for like, why in benchmark.informs.items() if re.search(like, row["variant"])), "")
    language = row["variant"].partition(":")[0].lower() if benchmark.languages else ""
    lengths = row["unit"] == _TOKENS
    cohort = Cohort(
        id="", benchmark=row["benchmark"], variant=row["variant"], measured_by=row["measured_by"],
        kind="own" if own else row["kind"], version=said["version"] or row["date"], mode=said["mode"],  # type: ignore[arg-type]
        setting=said["setting"], unit="tokens" if lengths else row["unit"], lower_is_better=row["unit"] in _LOWER,
        language=LANGUAGES.get(language, ""), tasks=benchmark.tasks, items=benchmark.items,
        informs="pair baseline, not a capability score" if _PAIR in said["setting"] else informs,
    )  # fmt: skip
    cohort = _named(cohort, short=benchmark.languages)
    printed = f'printed "{row["value"]}"' if lengths else ""
    return cohort, Score(
        cohort=cohort.id, model=row["model_id"], value=value, error=_error(row["note"], value),
        served=said["served"], date=row["date"], source=row["source"], note=printed or _note(row["note"]),
        trust=row["trust"],  # type: ignore[arg-type]
    )  # fmt: skip


def _said(setting: str) -> dict[str, str]:
    """The words of a setting: mode, precision that was served, version, and what is left of them."""
    said = {"mode": "", "served": "", "version": "", "setting": ""}
    rest = []
    for word in filter(None, re.split(r"[;,] ", setting)):
        if word.lower() in MODES:
            said["mode"] = MODES[word.lower()]
        elif served := _SERVED.fullmatch(word):
            said["served"] = served[1].upper()
        elif version := _VERSION.fullmatch(word):
            said["version"] = version[1]
        elif calls := _CALLS.fullmatch(word):
            said["mode"] = "thinking" if calls[2] else ""
            rest.append("FC" if calls[1].lower() == "fc" else "Prompt")
        elif word not in ("unquantised baseline run by Red Hat", "user simulator None"):
            rest.append(word)
    return said | {"setting": "; ".join(rest)}


def _error(note: str, value: float) -> float | None:
    """Half of the 95 % interval that a source prints: EuroEval beside each metric, LMArena on both sides."""
    if sides := _SIDES.search(note):
        return max(float(sides[1]), float(sides[2]))
    if fraction := re.fullmatch(r"printed (0\.\d+) ± (0\.\d+)", note):  # lm-eval prints a standard error
        return round(1.96 * 100 * float(fraction[2]), 2)
    halves = [float(half) for middle, half in _CELL.findall(note) if abs(float(middle) - value) < 5e-3]
    return halves[0] if halves else None


def _note(note: str) -> str:
    """Without what stands in the score and its error."""
    return "; ".join(each for each in note.split("; ") if not each.startswith(("cell: ", "mean rank score")))


def _named(cohort: Cohort, *, short: bool) -> Cohort:
    """With an id that is made of what the cohort is, so that other cohorts cannot change it."""
    from_variant = cohort.variant.partition(":")[0] if short else cohort.variant
    name, by = _slug(cohort.benchmark), _slug(cohort.measured_by.partition("(")[0])
    variant = "-".join(each for each in _slug(from_variant).split("-") if each not in name.split("-"))
    parts = (
        "own" if cohort.kind == "own" else "",
        name, variant, "" if name.startswith(by) else by, _slug(cohort.version), _slug(cohort.mode),
        _slug(cohort.setting),
    )  # fmt: skip
    named = ".".join(filter(None, parts))
    return replace(cohort, id=named)


def _slug(text: str) -> str:
    """Short and stable: what is cut off stands in a few digits of its hash."""
    slug = re.sub(r"[^a-z0-9.]+", "-", text.lower().replace("+", "plus")).strip("-.").replace(".", "_")
    if len(slug) <= _SLUG:
        return slug
    return f"{slug[:_SLUG].rpartition('-')[0] or slug[:_SLUG]}-{sha256(slug.encode()).hexdigest()[:4]}"


def _shown(text: str) -> str:
    text = "".join(each for each in text if each.isprintable())
    return text if len(text) <= 60 else f"{text[:60]}…"
