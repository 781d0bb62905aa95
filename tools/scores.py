"""Builds the package's scores.json from the tables in catalogue/scores/ that people edit; --check only compares.

Every bad line is an error that names its file and number.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import msgspec
import yaml

from freehold.catalogue import load
from freehold.catalogue.scored import Board, Line
from freehold.facts import Benchmark
from freehold.plan.cohorts import Row, read, rows
from freehold.plan.scores import Scores

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "catalogue" / "scores"
TARGET = ROOT / "src" / "freehold" / "catalogue" / "data" / "scores.json"


def main() -> int:
    """Write the JSON, or with --check say whether it is what the tables give."""
    built = build(SOURCE)
    if "--check" in sys.argv[1:]:
        same = TARGET.exists() and TARGET.read_bytes() == built
        print("scores.json is what the tables give" if same else "scores.json is stale: run tools/scores.py")
        return int(not same)
    TARGET.write_bytes(built)
    print(f"{TARGET.relative_to(ROOT)}: {len(built):,} bytes")
    return 0


def build(folder: Path) -> bytes:
    """The tables as JSON, one line a cohort. Raises ValueError with every bad line."""
    catalogue = load()
    ids = {each.id for each in (*catalogue.models, *catalogue.known)}
    benchmarks = msgspec.convert(yaml.safe_load((folder / "benchmarks.yaml").read_text()), list[Benchmark])
    modes = yaml.safe_load((folder / "modes.yaml").read_text())
    if odd := {m for group in modes["never_think"]["groups"] for m in group["models"]} - ids:
        raise ValueError(f"modes.yaml: no models {sorted(odd)}")
    by_name = {each.name: each for each in benchmarks}
    known = Scores()
    faults: list[str] = []
    for path in sorted(folder.glob("*.csv")):
        table, wrong = rows(path.read_text(encoding="utf-8"))
        found, more = read([_with_mode(row, modes) for row in table], by_name, ids, beside=known)
        faults += [f"{path.name} {each}" for each in (*wrong, *more)]
        known = known.with_more(found)
    if faults:
        raise ValueError("\n".join(faults))
    return _encoded(benchmarks, known)


def _with_mode(row: Row, modes: dict[str, Any]) -> Row:
    """A row whose measurer names no mode, with the one that modes.yaml knows."""
    line, cells = row
    named = {each.strip().lower() for each in cells["setting"].replace(";", ",").split(",")}
    without = modes["never_think"]
    said = ""
    if cells["measured_by"] in without["measurers"] and not named & {"thinking", "high", "low", "medium"}:
        if any(cells["model_id"] in group["models"] for group in without["groups"]):
            said = "without thinking"
        elif cells["measured_by"] in modes["by_itself"] and not named & {"no-thinking"}:
            said = "as it answers by itself"
    return (line, cells | {"setting": "; ".join(filter(None, [said, cells["setting"]]))}) if said else row


def _encoded(benchmarks: list[Benchmark], known: Scores) -> bytes:
    texts: dict[str, int] = {"": 0}
    boards = []
    for name in sorted(known.cohorts):
        lines = [
            Line(
                model=each.model, value=each.value, error=each.error, served=each.served, date=each.date,
                source=texts.setdefault(each.source, len(texts)), note=texts.setdefault(each.note, len(texts)),
                trust=each.trust,
            )
            for each in sorted(known.by_cohort[name], key=lambda s: (s.model, s.served))
        ]  # fmt: skip
        boards.append(msgspec.json.encode(Board(cohort=known.cohorts[name], lines=tuple(lines))))
    parts = (
        b'"benchmarks":[\n' + b",\n".join(map(msgspec.json.encode, benchmarks)) + b"\n]",
        b'"texts":[\n' + b",\n".join(map(msgspec.json.encode, texts)) + b"\n]",
        b'"boards":[\n' + b",\n".join(boards) + b"\n]",
    )
    return b"{" + b",\n".join(parts) + b"}\n"


if __name__ == "__main__":
    sys.exit(main())
