"""A table of scores, row by row, into cohorts: what may be compared with what. Says of every bad line what to do."""

from __future__ import annotations

import csv
import re
from collections.abc import Container, Iterable, Iterator, Mapping
from datetime import date
from hashlib import sha256
from itertools import chain

from msgspec import Struct
from msgspec.structs import replace

from freehold.facts import Benchmark, Cohort, Score
from freehold.plan.scores import NOTHING, Scores

COLUMNS = (
    *("model_id", "benchmark", "variant", "value", "setting", "measured_by"),
    *("kind", "source", "date", "note", "unit", "trust"),
)
MOST_BYTES = 4 << 20  # of a table that is imported
MOST_ROWS = 20_000
_LONGEST = {"note": 500, "source": 500}  # characters of a cell
_MOST_CHARACTERS = 200
_NEEDED = ("model_id", "benchmark", "value", "measured_by", "source", "date", "unit")
_SLUG = 32  # characters of one part of an id
_TOKENS = "tokens (text)"  # a length as printed, such as >128K
_NUMBER = re.compile(r"-?[0-9]{1,9}(\.[0-9]{1,20})?")
_LOWER = ("rank score", "perplexity", "kl-divergence")  # units of which less is better
_SAID = {  # modes as sources write them, in small letters
    "": "mode not stated, thinking mode not stated, effort not stated, setting not shown, effort none",
    "thinking": "thinking, thinking (default mode), thinking as set in recipe, effort enabled",
    "without thinking": "without thinking, no-thinking, non-thinking, no thinking, non-think, no think, "
    "no extended thinking",
    "as it answers by itself": "as it answers by itself",
    "thinking high": "think high",
    "thinking max": "think max",
    **{f"effort {level}": f"{level}, effort {level}, reasoning_effort {level}"
       for level in ("low", "mid", "medium", "high", "xhigh", "max", "default")},
}  # fmt: skip
MODES = {word: mode for mode, words in _SAID.items() for word in words.split(", ")}
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
    reader = csv.reader(text.removeprefix("\ufeff").splitlines(keepends=True), strict=True)
    try:
        heads = [each.strip() for each in next(reader, [])]
        if len(heads) == 1 and heads[0].count(";") >= len(COLUMNS) - 1:
            what = "the cells are separated by semicolons"
            return [], [Fault(line=1, what=what, hint="save the table with commas between the cells")]
        wrong = [f"no column `{each}`" for each in COLUMNS if each not in heads]
        wrong += [f"nobody reads a column `{each:.60}`" for each in dict.fromkeys(heads) if each not in COLUMNS]
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
            if len(found) + len(faults) > MOST_ROWS:
                return [], [Fault(line=reader.line_num, what=f"more than {MOST_ROWS:,} rows", hint="split the table")]
    except csv.Error as error:
        return [], [Fault(line=reader.line_num, what=f"not CSV: {error}", hint="save the table as CSV in UTF-8")]
    return found, faults


def read(
    table: Iterable[Row],
    benchmarks: Mapping[str, Benchmark],
    models: Container[str] | None,
    *,
    own: bool = False,
    beside: Scores = NOTHING,
) -> tuple[list[tuple[Cohort, Score]], list[Fault]]:
    """Each row's cohort and score, or what is wrong with it. `models`: ids that there are; None: all are taken.

    `own`: of a company's import: kept apart from what ships, whatever they say of themselves. `beside`: what there is
    already; a cohort stays one in unit and measurer, and has one figure of a model.
    """
    found: list[tuple[Cohort, Score]] = []
    faults: list[Fault] = []
    cohorts = dict(beside.cohorts)
    seen = {(name, s.model, s.served): "one there is" for name, those in beside.by_cohort.items() for s in those}
    for line, row in table:
        if wrong := next(chain(_bad_cells(row), _bad_entry(row, models, own=own)), None):
            faults.append(Fault(line=line, what=wrong[0], hint=wrong[1]))
            continue
        cohort, score = _entry(row, benchmarks.get(row["benchmark"], Benchmark(name=row["benchmark"])), own=own)
        first = cohorts.setdefault(cohort.id, cohort)
        where = seen.get((cohort.id, score.model, score.served))
        if (cohort if own else replace(cohort, variant=first.variant)) != first:  # variants that ship vary in spelling
            named = " ".join(filter(None, (first.benchmark, first.variant, "in", first.unit, "by", first.measured_by)))
            what = f"{cohort.id} is already {named}"
            hint = "what cannot be compared with it needs another benchmark, variant or setting"
            faults.append(Fault(line=line, what=what, hint=hint))
        elif where:
            hint = "one figure of a model in one cohort: leave one out, or say in `setting` what differs"
            faults.append(Fault(line=line, what=f"the same as {where}", hint=hint))
        else:
            seen[cohort.id, score.model, score.served] = f"line {line}"
            found.append((cohort, score))
    return found, faults


def _bad_cells(row: dict[str, str]) -> Iterator[tuple[str, str]]:
    for name, cell in row.items():
        most = _LONGEST.get(name, _MOST_CHARACTERS)
        if not cell.isprintable():
            yield f"`{name}` has control characters", "take them out"
        elif len(cell) > most:
            yield f"`{name}` is {len(cell):,} characters long", f"{most} are read"
        elif re.match(r"[=+@-]", cell) and not _NUMBER.fullmatch(cell):
            yield f"`{name}` begins like a formula: {cell:.60}", "begin it with a letter or a number"
        elif not cell and name in _NEEDED:
            yield f"`{name}` is empty", "every figure needs it"


def _bad_entry(row: dict[str, str], models: Container[str] | None, *, own: bool) -> Iterator[tuple[str, str]]:
    value = _value(row)
    if own and not _is_day(row["date"]):
        yield f"date `{row['date']:.60}` is no day", "write it as 2026-11-22, 2026-11 or 2026"
    if models is not None and row["model_id"] not in models:
        yield f"no model `{row['model_id']:.60}`", "freehold models lists the ids"
    for name, words in (("kind", ("independent", "publisher", "own")), ("trust", ("high", "medium", "low"))):
        if row[name] not in words:
            yield f"{name} `{row[name]:.60}`", f"it is one of {', '.join(words)}"
    if value is None:
        yield f"value `{row['value']:.60}` is no number", "write it as 71.5"
    elif row["unit"].startswith("percent") and not 0 <= value <= 100:
        yield f"value {value:g} is no percentage", "from 0 to 100; or name another unit"


def _is_day(text: str) -> bool:
    """A day, a month or a year of the calendar."""
    try:
        date.fromisoformat(text + {4: "-01-01", 7: "-01"}.get(len(text), ""))
    except ValueError:
        return False
    return True


def _value(row: dict[str, str]) -> float | None:
    if row["unit"] == _TOKENS:
        found = re.fullmatch(r">?([0-9]{1,6})K", row["value"])
        return int(found[1]) * 1024.0 if found else None
    return float(row["value"]) if _NUMBER.fullmatch(row["value"]) else None


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
    """Short and stable: what is cut off, or has no letter here, stands in a few digits of a hash."""
    plain = text.lower().replace("+", "plus").replace("#", "sharp")
    slug = re.sub(r"[^a-z0-9.]+", "-", plain).strip("-.").replace(".", "_")
    if text and not slug:
        return sha256(text.encode()).hexdigest()[:8]
    if len(slug) <= _SLUG:
        return slug
    return f"{slug[:_SLUG].rpartition('-')[0] or slug[:_SLUG]}-{sha256(slug.encode()).hexdigest()[:4]}"
