"""What the gate costs and catches: the corpus by family, files of 1.6 GB, a JSON string of 100 MB, hashing.

python bench/gate.py [--folder DIR] [--rounds 5]

Files of 6.4 GB are made in a temporary folder below --folder, and removed. Each figure of time and memory is of a
process of its own; the page cache is warm.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from figures import keep, machine

from freehold.weights import verify
from freehold.weights.files import list_files
from freehold.weights.hashing import hash_files

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))  # the corpus is theirs
import corpus_adapters
import corpus_bytes
import corpus_content
import corpus_disguise
import corpus_folders
import corpus_layout
from weight_files import BASE, facts, gguf_bytes, safetensors_bytes, tensor, write

FAMILIES = (corpus_adapters, corpus_bytes, corpus_content, corpus_disguise, corpus_folders, corpus_layout)
CASES = [case for family in FAMILIES for case in family.CASES]
BIG_BYTES, TENSORS = 1_600_000_000, 300
ROW = BIG_BYTES // TENSORS // 64 * 64
THREADS = min(8, os.cpu_count() or 1)

GATE_ALONE = """
import re, sys, time
from pathlib import Path
from freehold.weights.files import list_files
from freehold.weights.gate import examine
def peak_kib():
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
Path("/proc/self/clear_refs").write_text("5")  # the peak begins again at what is used now
before = peak_kib()
began = time.perf_counter()
files, findings = list_files(Path(sys.argv[1]))
findings += examine(files)
took = time.perf_counter() - began
print(took, (peak_kib() - before) * 1024, *{each.rule for each in findings})
"""


def corpus() -> dict:
    """By family: cases, hostile ones caught for the reason expected or another, clean ones refused, seconds."""
    rows: dict[str, Counter] = {}
    for case in CASES:
        row = rows.setdefault(case.family, Counter())
        with tempfile.TemporaryDirectory() as parent:
            folder = Path(parent) / "model"
            folder.mkdir()
            path = case.build(folder) or folder
            began = time.perf_counter()
            verdict = verify(path)
            row["seconds"] += time.perf_counter() - began
        row["hostile" if case.rule else "clean"] += 1
        row["caught"] += bool(case.rule) and not verdict.accepted
        row["false_alarms"] += case.rule is None and not verdict.accepted
    names = ("hostile", "caught", "clean", "false_alarms")
    return {
        family: {**{name: row[name] for name in names}, "s": round(row["seconds"], 2)} for family, row in rows.items()
    }


def big_files(folder: Path) -> dict[str, Path]:
    """A safetensors and a GGUF file of 1.6 GB with random tensors, and four shards of as much."""
    block = os.urandom(1 << 20)

    def filled(path: Path, head: bytes) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as stream:
            stream.write(head)
            left = ROW * TENSORS
            while left:
                left -= stream.write(block[: min(left, len(block))])
        return path.parent

    shape = {f"model.layers.{n}.weight": facts("F16", (ROW // 2,), (n * ROW, (n + 1) * ROW)) for n in range(TENSORS)}
    safetensors = safetensors_bytes(shape, b"")
    rows = [tensor(f"blk.{n}.weight", (ROW // 2,), 1, n * ROW) for n in range(TENSORS)]
    found = {
        "safetensors": filled(folder / "safetensors/model.safetensors", safetensors),
        "gguf": filled(folder / "gguf/m.gguf", gguf_bytes(BASE, rows, data=b"")),
    }
    for n in range(2):
        found["shards"] = filled(folder / f"shards/part{n}.safetensors", safetensors)
    return found


def odd_files(folder: Path) -> dict[str, Path]:
    """A JSON string of 100 MB; and a tokenizer of 60 MB as large vocabularies have it."""
    stems = [f"token{n:06}{'x' * 9}" for n in range(450_000)]
    words = {word: n for n, word in enumerate(["s", *stems, *(stem + "s" for stem in stems)])}
    merges = [[stem, "s"] for stem in stems]
    tokenizer = json.dumps(
        {"version": "1.0", "added_tokens": [], "model": {"type": "BPE", "vocab": words, "merges": merges}}
    )
    model = {"model.safetensors": safetensors_bytes()}
    text = b'"' + b"a" * 100_000_000 + b'"'
    header = struct.pack("<Q", len(text) + 5) + b'{"a":' + text[:-5]
    return {
        "json string of 100 MB": write(folder / "string", {**model, "big.json": text}),
        "header of 100 MB": write(folder / "header", {"model.safetensors": header}),
        f"tokenizer of {len(tokenizer) / 1e6:.0f} MB": write(
            folder / "tokenizer", {**model, "tokenizer.json": tokenizer}
        ),
    }


def gate_alone(path: Path) -> dict:
    said = subprocess.run([sys.executable, "-c", GATE_ALONE, path], check=True, capture_output=True, text=True)
    took, peak_bytes, *rules = said.stdout.split()
    return {"s": round(float(took), 3), "extra_mb": round(int(peak_bytes) / 1e6, 1), "rules": rules}


def hashing(path: Path, rounds: int) -> dict:
    """hash_files against plain hashlib with as many threads and blocks as large, in turns; the first is left out."""
    files, _ = list_files(path)
    size_bytes = sum(file.size_bytes for file in files)

    def raw(file: Path) -> str:
        with file.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()

    def plain() -> None:
        with ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(raw, [file.real for file in files]))

    ours, theirs = [], []
    for _ in range(rounds + 1):
        for work, into in ((plain, theirs), (lambda: hash_files(files), ours)):
            began = time.perf_counter()
            work()
            into.append(size_bytes / (time.perf_counter() - began) / 1e9)
    ours, theirs = statistics.median(ours[1:]), statistics.median(theirs[1:])
    return {"gb": round(size_bytes / 1e9, 1), "files": len(files), "threads": THREADS, "raw_gb_s": round(theirs, 2),
            "ours_gb_s": round(ours, 2), "of_raw_pct": round(100 * ours / theirs, 1)}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--rounds", type=int, default=5)
    asked = parser.parse_args()
    about, found = machine(), {"corpus": corpus()}
    with tempfile.TemporaryDirectory(dir=asked.folder) as folder:
        big = big_files(Path(folder))
        found["gate"] = {name: gate_alone(path) for name, path in {**big, **odd_files(Path(folder))}.items()}
        found["hashing"] = {name: hashing(big[name], asked.rounds) for name in ("safetensors", "shards")}
    print(f"{about['cpu']}, {about['cores']} cores\n")
    for part, rows in found.items():
        print(part)
        for name, row in rows.items():
            print(f"  {name:24}" + "  ".join(f"{key} {value}" for key, value in row.items()))
    keep("gate", found)


if __name__ == "__main__":
    main()
