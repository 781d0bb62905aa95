"""What quantization loses: only matched pairs count, recomputed, and nothing stands in for what nobody measured."""

from __future__ import annotations

import csv
import importlib.util
import json
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from freehold import catalogue
from freehold.cli.main import cli
from freehold.facts import Pair
from freehold.plan.quantization import (
    UNQUANTIZED,
    answer,
    contradicts,
    loss,
    nearest,
    of_model,
    of_scheme,
    pooled,
    recovery_pct,
    why_not,
)
from freehold.plan.weights import SCHEMES

ROOT = Path(__file__).parents[1]
PAIRS = catalogue.pairs()
EVERYTHING = catalogue.load()
SIZES = {m.id: m.parameters.total for m in (*EVERYTHING.known, *EVERYTHING.models) if m.parameters.total}
PLAIN = Pair(
    model="m", scheme="int8", label="INT8", base="bf16", benchmark="b", base_value=80.0, value=79.0, measured_by="x"
)


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("quantization_tool", ROOT / "tools" / "quantization.py")
    sys.modules[spec.name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(*words: str, code: int = 0) -> str:
    result = CliRunner().invoke(cli, ["quantization", *words], catch_exceptions=False)
    assert result.exit_code == code, result.output
    return result.output


# the data


def test_the_json_is_what_the_tables_give(tool):
    assert tool.TARGET.read_bytes() == tool.build(tool.SOURCE), "run tools/quantization.py"


def test_every_pair_that_was_found_is_there_with_its_source():
    assert len(PAIRS) == 1012 + 39  # and the second metric of EuroEval where the first subtracts chance
    assert all(pair.source and pair.measured_by and pair.date for pair in PAIRS)
    assert not [pair for pair in PAIRS if "stored" in pair.source or "index" in pair.source]


def test_it_is_read_quickly():
    begin = time.perf_counter()
    catalogue.pairs()
    assert time.perf_counter() - begin < 0.1  # 1.5 ms on an idle machine


@pytest.mark.parametrize(
    ("column", "text", "says"),
    [
        ("scheme", "int3", "no precision"),
        ("model", "qwen3-33b", "no model"),
        ("maker", "perhaps", "perhaps"),
        ("base_value", "eighty", "eighty"),
        ("value", "", "left_out must say why"),
        ("unit", "points", "points"),
        ("source", "", "no source"),
    ],
)
def test_a_slip_of_the_pen_is_an_error(tool, tmp_path, column, text, says):
    with (ROOT / "catalogue" / "quantization" / "red-hat.csv").open(newline="") as file:
        row = next(csv.DictReader(file))
    with (tmp_path / "one.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, row)
        writer.writeheader()
        writer.writerow(row | {column: text})
    with pytest.raises(ValueError, match=says):
        tool.build(tmp_path)


def test_a_column_too_many_is_an_error(tool, tmp_path):
    (tmp_path / "one.csv").write_text("model,opinion\nqwen3-32b,good\n")
    with pytest.raises(ValueError, match="columns"):
        tool.build(tmp_path)


# what counts


@pytest.mark.parametrize(
    "changed",
    [
        {"left_out": "not a matched pair"},
        {"unit": "kl-divergence"},
        {"unit": "perplexity"},
        {"unit": "agreement"},
        {"base": "fp8-block"},
        {"base": "gguf-q8_0"},
        {"trust": "low"},
        {"base_value": None},
        {"value": None},
        {"base_value": 0.0},
        {"base_value": 9.9},
        {"base_value": 0.07, "value": 0.05, "unit": "fraction"},
    ],
    ids=str,
)
def test_what_does_not_count_changes_no_figure(changed):
    other = replace(PLAIN, **changed)
    assert why_not(other)
    assert loss([other], "m", "int8") is None
    assert loss([PLAIN, other], "m", "int8").pairs == 1
    assert loss([PLAIN, other], "m", "int8").left_out == ((why_not(other), 1),)


def test_no_kl_divergence_ever_becomes_a_percentage():
    assert {why_not(pair) for pair in PAIRS if pair.unit in ("kl-divergence", "perplexity", "agreement")} == {
        "kl-divergence is no score", "perplexity is no score", "agreement is no score",
        "a range over several variants is printed",
    }  # fmt: skip


def test_what_the_notes_call_no_pair_is_left_out():
    mixed = [pair for pair in PAIRS if "Artificial Analysis" in pair.measured_by]
    assert len(mixed) == 7
    assert all("not a matched pair" in why_not(pair) for pair in mixed)
    glm = [pair for pair in PAIRS if pair.model == "glm-4.6"]
    assert glm
    assert all("quantized itself" in why_not(pair) for pair in glm)
    assert loss(PAIRS, "glm-4.6", "fp8") is None
    assert loss(PAIRS, "deepseek-r1-0528", "int4-gptq") is None  # its base is the publisher's FP8


@pytest.mark.parametrize(
    ("model", "benchmark"),
    [
        ("qwen3.5-122b-a10b", "IFEval prompt-level strict (0-shot)"),
        ("qwen3-235b-a22b-instruct-2507", "OpenLLM V1 / Average"),
        ("mistral-small-3.1-24b-2503", "GPQA CoT main (5-shot)"),
    ],
)
def test_a_printed_recovery_that_contradicts_its_row_is_found(model, benchmark):
    assert any(contradicts(pair) for pair in PAIRS if (pair.model, pair.benchmark) == (model, benchmark))


@given(st.integers(100, 10_000), st.integers(0, 10_000))
def test_a_printed_recovery_that_was_only_rounded_is_not(base, value):
    """Both values are rounded to two digits, and so is the quotient, computed before the rounding or after."""
    pair = replace(PLAIN, base_value=base / 100, value=value / 100, printed=round(100 * value / base, 2))
    assert not contradicts(pair)
    assert contradicts(replace(pair, printed=pair.printed + 60))


# the range


values = st.floats(10.0, 100.0)


@given(st.lists(st.tuples(values, values), min_size=1, max_size=20))
def test_the_range_holds_every_pair(points):
    found = [replace(PLAIN, base_value=base, value=value, benchmark=str(i)) for i, (base, value) in enumerate(points)]
    kept = loss(found, "m", "int8")
    assert kept.least <= kept.median <= kept.most
    assert kept.pairs == kept.benchmarks == len(points)
    assert all(kept.least <= recovery_pct(pair) <= kept.most for pair in found)
    assert loss(reversed(found), "m", "int8") == kept
    assert pooled(found, "int8").median == kept.median
    assert loss(found, "m", "fp8") is None
    assert loss(found, "n", "int8") is None


@given(st.sampled_from(PAIRS))
def test_a_loss_is_of_one_model_in_one_precision_from_pairs_with_a_base_in_16_bits(pair):
    found = loss(PAIRS, pair.model, pair.scheme)
    counted = [p for p in PAIRS if (p.model, p.scheme) == (pair.model, pair.scheme) and not why_not(p)]
    assert (found is None) == (not counted)
    assert all(p.base in UNQUANTIZED and p.base_value >= 0.1 for p in counted)
    if found:
        assert found.pairs == len(counted)
        assert found.pairs + sum(n for _, n in found.left_out) == sum(
            (p.model, p.scheme) == (pair.model, pair.scheme) for p in PAIRS
        )


def test_small_models_lose_most_and_the_view_by_size_shows_it():
    found = of_scheme(PAIRS, "int4-gptq", SIZES)
    sizes = [SIZES.get(each.model, float("inf")) for each in found]
    assert sizes == sorted(sizes)
    assert found[0].model == "qwen3-0.6b"
    assert found[0].median < 95
    assert next(each.median for each in found if each.model == "llama-3.3-70b") > 99.5


def test_of_a_model_the_finer_precision_comes_first():
    schemes = [each.scheme for each in of_model(PAIRS, "llama-3.3-70b")]
    assert schemes == ["fp8", "int8", "int4-gptq"]


def test_the_nearest_is_named_and_never_stands_in():
    assert loss(PAIRS, "qwen3-32b", "int4-awq") is None
    near = nearest(PAIRS, "qwen3-32b", "int4-awq", SIZES)
    assert (near.model, near.scheme) == ("qwen3-32b", "int4-gptq")
    said = answer(PAIRS, "qwen3-32b", "int4-awq", SIZES)
    assert said.startswith("not measured; the nearest that was, which is something else: qwen3-32b in int4-gptq")
    assert nearest(PAIRS, "llama-3.1-405b", "fp8", SIZES).model == "qwen3.5-397b-a17b"
    assert answer(PAIRS, "kimi-k2.6", "int4-awq", SIZES) == "not measured"


def test_every_precision_of_a_pair_is_one_that_is_planned():
    assert {pair.scheme for pair in PAIRS} <= {"", *SCHEMES}


# the command


def test_without_a_model_every_precision_that_was_measured():
    lines = run().splitlines()
    assert lines[0].split() == ["PRECISION", "LEAST", "MEDIAN", "MOST", "PAIRS", "MEASURED", "BY"]
    assert [line.split()[0] for line in lines[1:4]] == ["fp8", "fp8-block", "int8"]


def test_a_model_in_a_precision_with_the_pairs_and_their_sources():
    out = run("Llama-3.3-70B-Instruct", "--scheme", "fp8", "--sources")
    assert out.startswith("llama-3.3-70b in fp8: keeps 99.1 to 105.5 % (median 99.9) of its scores in 16 bits, in 21")
    assert "RedHatAI/Llama-3.3-70B-Instruct-FP8-dynamic" in out


def test_what_nobody_measured_is_said_and_is_no_failure():
    assert run("qwen3-32b", "--scheme", "int4-awq").startswith("qwen3-32b in int4-awq: not measured; the nearest")
    assert run("kimi-k2.6") == "kimi-k2.6: not measured\n"
    assert run("deepseek-v4-flash").startswith("deepseek-v4-flash: not measured\n")


def test_a_fine_tune_has_no_share_in_what_its_base_lost():
    assert run("somebody/Llama-3.3-70B-Instruct-abliterated", "--scheme", "fp8").split(": ")[1].startswith("not meas")


def test_for_programs():
    found = json.loads(run("qwen3-32b", "--scheme", "int4-gptq", "--json"))
    assert found["losses"][0]["pairs"] == 14
    assert {row["why_not"] for row in found["pairs"]} >= {"", "chance is subtracted on this scale"}
    assert all((row["recovery_pct"] is None) == bool(row["why_not"]) for row in found["pairs"])
    assert json.loads(run("kimi-k2.6", "--json"))["losses"] == []


def test_a_name_that_is_none_is_an_error():
    result = CliRunner().invoke(cli, ["quantization", "--scheme", "int5"])
    assert "no precision is called" in str(result.exception)


def test_the_decision_says_it_of_what_is_not_the_publishers_own():
    def plan(*words: str) -> dict:
        result = CliRunner().invoke(cli, ["plan", *words, "--cards", "2xH100", "--explain", "--json"])
        return json.loads(result.output)["choice"]["plans"][0]

    assert plan("llama-3.3-70b", "--quantization", "fp8")["quality"][0].startswith("quality in FP8 per channel: keeps")
    assert "not measured" in plan("llama-3.3-70b", "--quantization", "int4-awq")["quality"][0]
    assert plan("qwen3-32b", "--quantization", "bf16")["quality"] == []
