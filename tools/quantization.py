"""Builds the package's pairs.json from the tables in catalogue/quantization/ that people edit; --check only compares.

Strict: a column, a precision, a word or a model that is not known is an error, so that a slip of the pen is one.
"""

from __future__ import annotations

import csv
import sys
from collections import Counter
from pathlib import Path

import msgspec

from freehold.catalogue import load
from freehold.facts import Pair
from freehold.plan.weights import SCHEMES

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "catalogue" / "quantization"
TARGET = ROOT / "src" / "freehold" / "catalogue" / "data" / "pairs.json"
COLUMNS = Pair.__struct_fields__
NUMBERS = {"base_value", "value", "printed"}
OUTSIDE = {  # models that are not in the catalogue, by their names
    "Llama-3.1-8B (base)", "Llama-3.1-Nemotron-70B-Instruct-HF", "Meta-Llama-3-8B-Instruct", "Qwen2.5-7B-Instruct",
    "NVIDIA-Nemotron-Nano-9B-v2", "Qwen3-Coder-Next", "Qwen3-VL-235B-A22B-Instruct", "gemma-2-9b-it",
    "gemma-3n-E4B-it", "granite-3.1-8b-base", "granite-3.1-8b-instruct", "sarvam-105b", "sarvam-30b",
}  # fmt: skip


def main() -> int:
    """Write the JSON, or with --check say whether it is what the tables give."""
    built = build(SOURCE)
    if "--check" in sys.argv[1:]:
        same = TARGET.exists() and TARGET.read_bytes() == built
        print("pairs.json is what the tables give" if same else "pairs.json is stale: run tools/quantization.py")
        return int(not same)
    TARGET.write_bytes(built)
    print(f"{TARGET.relative_to(ROOT)}: {len(built):,} bytes")
    return 0


def build(folder: Path) -> bytes:
    """All pairs as JSON, one line each. Raises ValueError with the file, the line and what is wrong there."""
    catalogue = load()
    models = {model.id for model in (*catalogue.models, *catalogue.known)} | OUTSIDE
    pairs = [pair for path in sorted(folder.glob("*.csv")) for pair in _read(path, models)]
    if twins := [pair for pair, times in Counter(pairs).items() if times > 1]:
        raise ValueError(f"twice in the tables: {twins[0]}")
    return b"[\n%s\n]\n" % b",\n".join(map(msgspec.json.Encoder().encode, pairs))


def _read(path: Path, models: set[str]) -> list[Pair]:
    with path.open(newline="") as file:
        rows = csv.DictReader(file)
        if set(rows.fieldnames or ()) != set(COLUMNS):
            raise ValueError(f"{path.name}: the columns are not those of facts.Pair")
        return [_pair(row, models, f"{path.name}:{rows.line_num}") for row in rows]


def _pair(row: dict[str, str], models: set[str], where: str) -> Pair:
    try:
        given = {key: float(each) if key in NUMBERS else each.strip() for key, each in row.items() if each}
        given["maker"] = {"yes": True, "no": False}[row["maker"]]
        pair = msgspec.convert({"scheme": ""} | given, Pair, strict=True)
    except (KeyError, ValueError, AttributeError) as error:
        raise ValueError(f"{where}: {error}") from None
    if pair.model not in models:
        raise ValueError(f"{where}: no model is called {pair.model!r}: correct it, or name it in OUTSIDE")
    if pair.scheme and pair.scheme not in SCHEMES:
        raise ValueError(f"{where}: no precision is called {pair.scheme!r}")
    if None in (pair.base_value, pair.value) and not pair.left_out:
        raise ValueError(f"{where}: a value is missing, so left_out must say why")
    if not pair.source:
        raise ValueError(f"{where}: no source")
    return pair


if __name__ == "__main__":
    sys.exit(main())
