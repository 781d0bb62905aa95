"""Published tables of speeds: rows that are read as cases, rows that say why not, and none that ends it."""

from __future__ import annotations

import csv
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from freehold import catalogue
from freehold.catalogue.places import by_words

BENCH = Path(__file__).resolve().parents[1] / "bench"
sys.path.insert(0, str(BENCH))
import speed_accuracy  # noqa: E402  of bench, which is no package
import throughput  # noqa: E402

sys.path.remove(str(BENCH))
OFFLINE = {
    "trtllm_version": "1.x (developer-guide)", "model": "GPT-OSS 120B", "gpu": "H200", "precision": "FP8",
    "parallelism": "TP1", "tp": "1", "pp": "1", "isl": "1000", "osl": "1000", "batch_size": "",
    "metric": "output throughput per GPU", "value": "6868.0", "unit": "tokens/s/GPU", "notes": "",
}  # fmt: skip
SERVING = {
    "engine": "vllm", "engine_version": "0.19.0", "model": "Qwen/Qwen3-32B", "precision": "fp8", "gpu": "h100_sxm",
    "tp": "2", "pp": "1", "dp": "1", "ep": "1", "scenario": "agg", "isl": "1024", "osl": "1024", "concurrency": "16",
    "ttft_ms_median": "100", "tpot_ms_median": "12", "notes": "",
}  # fmt: skip


def table(folder: Path, *rows: dict[str, str]) -> Path:
    path = folder / "rows.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(name for row in rows for name in row)))
        writer.writeheader()
        writer.writerows(rows)
    return path


def read(folder: Path, row: dict[str, str]) -> throughput.Case | str:
    """The case of a row, or why it is none."""
    cases, unanswered = throughput.read(table(folder, row))
    return cases[0] if cases else next(iter(unanswered))


@pytest.mark.parametrize("base", [OFFLINE, SERVING])
@pytest.mark.parametrize("junk", [None, "", "0", "0.5", "-1", "nan", "1e400", "DEP8,PP2", "abc", "\u202e", "1,000"])
def test_no_cell_ends_the_reading_and_none_is_lost(tmp_path, base, junk):
    rows = [{name: value for name, value in base.items() if name != each} for each in base]
    if junk is not None:
        rows = [base | {each: junk} for each in base]
    for row in rows:
        found, unanswered = throughput.read(table(tmp_path, row))
        assert len(found) + sum(map(len, unanswered.values())) == 1
        for case in found:
            with suppress(LookupError):  # a value, too: nobody can say
                assert all(abs(each.error_pct) < float("inf") for each in speed_accuracy.answers(case, fitted=False))


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"precision": "INT4"}, "int4-awq"),
        ({"precision": "W4A16"}, "int4-awq"),
        ({"precision": "INT8"}, "int8"),
        ({"precision": "BF16"}, "bf16"),
        ({"precision": "Mixed"}, "bf16"),
        ({"precision": "FP4"}, "nvfp4"),
        ({"precision": "FP3"}, "a precision of FP3 is not one we know"),
    ],
)
def test_precisions_are_those_that_the_table_names(tmp_path, change, what):
    for base in (OFFLINE | {"model": "LLaMA v3.3 70B", "gpu": "B200"}, SERVING):
        found = read(tmp_path, base | change)
        assert (found if isinstance(found, str) else found.scheme) == what


@pytest.mark.parametrize(
    ("change", "split"),
    [
        ({"parallelism": "TP8,PP2", "tp": "8", "pp": "2"}, (8, 2, 1)),
        ({"parallelism": "DEP4", "tp": "4"}, (1, 1, 4)),
        ({"parallelism": "TEP4", "tp": "4"}, (4, 1, 1)),
    ],
)
def test_ranks_are_read_as_the_table_means_them(tmp_path, change, split):
    found = read(tmp_path, OFFLINE | change)
    assert isinstance(found, throughput.Case)
    assert found.work.split == split
    assert found.tokens_per_s == 6868 * split[0] * split[1] * split[2]


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"metric": "inter-token latency (ms)"}, "gives no figure that is ours to predict"),
        ({"tp": ""}, "says not over how many cards it was split"),
        ({"gpu": "8x B200, 4x H100"}, "ran on cards of several kinds"),
        ({"gpu": "Gaudi 3"}, "no card known as Gaudi 3"),
        ({"model": "GPT-J 6B"}, "no dimensions known for GPT-J 6B"),
    ],
)
def test_a_row_without_an_answer_says_why(tmp_path, change, why):
    assert read(tmp_path, OFFLINE | change) == why


@pytest.mark.parametrize(
    ("name", "card"),
    [
        ("NVIDIA H100 80GB HBM3", "H100-SXM"),
        ("NVIDIA H100 PCIe", "H100-PCIe"),
        ("h200_nvl", "H200-NVL"),
        ("A100-SXM4-40GB", "A100-40GB"),
        ("A100-PCIE-80GB", "A100-80GB-PCIe"),
    ],
)
def test_cards_are_of_the_form_that_is_named(tmp_path, name, card):
    found = read(tmp_path, SERVING | {"gpu": name, "model": "Qwen/Qwen3-8B"})
    assert isinstance(found, throughput.Case)
    assert found.card.id == card
    assert by_words(catalogue.load().cards, name.replace("_", " "))[0].id == card


def test_rows_are_fitted_ones_however_they_were_rounded_and_others_are_not(tmp_path):
    with (BENCH / "data/throughput_serving.csv").open(newline="") as file:
        row = next(csv.DictReader(file))
    said = float(row["tpot_ms_unlabelled"])
    for factor, which in ((1.0003, "fitted rows"), (1.01, "new rows")):
        found = speed_accuracy.report(table(tmp_path, row | {"tpot_ms_unlabelled": str(said * factor)}), show=False)
        assert all(name.endswith(which) for name in found)
