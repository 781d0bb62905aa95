"""Scores: the tables that ship, cohorts, ranks inside them, and what is never done with them."""

from __future__ import annotations

import importlib.util
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from freehold.catalogue import load, scores
from freehold.errors import BadRequest, Unknown
from freehold.facts import Benchmark, Cohort, Score
from freehold.plan.cohorts import COLUMNS, read, rows
from freehold.plan.panels import of_language, of_task, panels
from freehold.plan.scores import Scores, caveat, composite, entries, error, floor_of, missing, refusal, tied

ROOT = Path(__file__).parents[1]
ALL = scores()
GERMAN = "euroeval-knowledge.german.2026-04-20.without-thinking"
TAU = "tau2-bench.retail-pass-1.sierra-research.1_0_1"


def tool():
    spec = importlib.util.spec_from_file_location("scores_tool", ROOT / "tools" / "scores.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def table(*lines: str) -> str:
    return "\n".join([",".join(COLUMNS), *lines])


def one(setting: str = "", *, note: str = "", variant: str = "v", unit: str = "percent", value: str = "50"):
    text = table(f'qwen3-8b,B,{variant},{value},"{setting}",X,independent,s,2026-01-02,{note},{unit},high')
    found, faults = read(rows(text)[0], {}, None)
    assert not faults
    return found[0]


# the tables that ship


def test_the_json_is_what_the_tables_give_and_names_every_bad_line(tmp_path):
    built = tool()
    assert built.TARGET.read_bytes() == built.build(built.SOURCE)
    for path in built.SOURCE.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "mine.csv").write_text(table("nobody,B,,1,,X,independent,s,2026,,percent,high", "a,b"))
    with pytest.raises(ValueError, match=r"mine.csv line 3: 2 cells.*\n.*line 2: no model `nobody`"):
        built.build(tmp_path)


def test_the_whole_table_is_there_and_is_read_in_a_moment():
    began = time.perf_counter()
    again = scores()
    assert time.perf_counter() - began < 0.5  # 4 ms on an idle machine
    assert sum(map(len, again.by_cohort.values())) == 6176
    ids = {each.id for each in load().models}
    assert all(each.model in ids for those in again.by_cohort.values() for each in those)
    text = " ".join({s.source + s.note + s.date for those in again.by_cohort.values() for s in those})
    assert not any(word in text for word in ("stored", "index file"))


def test_every_language_of_euroeval_has_a_view_and_german_is_one_readable_ranking():
    iso = {each.language for each in ALL.cohorts.values()} - {""}
    assert len(iso) >= 26
    first = panels(ALL, of_language(ALL, "German"))[0]
    assert (first.measured_by, first.mode, first.setting) == ("EuroEval", "without thinking", "")
    assert len(first.keys) == 25
    assert {each.benchmark for each in first.composed} == {
        "EuroEval knowledge", "EuroEval common sense", "EuroEval reading comprehension",
    }  # fmt: skip
    assert ("teuken-7b-instruct-commercial-v0.4", "") not in first.composite  # lacks one of the three
    assert of_language(ALL, "de") == of_language(ALL, "german")
    with pytest.raises(Unknown, match="no scores for the language"):
        of_language(ALL, "klingon")


@pytest.mark.parametrize(
    ("name", "model", "value", "error"),
    [
        (GERMAN, "gemma-3-27b", 71.21, 0.8),
        ("euroeval-reading-comprehension.german.2026-04-20.without-thinking", "gemma-3-27b", 53.49, 0.9),
        ("aime-2025.lm-eval-aime25-0-shot-e-93b9", "deepseek-v3.2", 93.33, 9.07),  # the source prints a standard error
        ("arena-hard.v2_0-preview-prompt-style", "gemma-3-27b", None, None),
    ],
)
def test_intervals_are_those_of_the_source(name, model, value, error):
    cohort = next(each for each in ALL.cohorts if each.startswith(name.rpartition("-")[0]) and model in by_model(each))
    found = ALL.of(cohort, model)
    assert found
    assert found.error is not None
    if value is not None:
        assert (found.value, round(found.error, 2)) == (value, pytest.approx(error, abs=0.06))


def by_model(cohort: str) -> set[str]:
    return {each.model for each in ALL.by_cohort[cohort]}


def test_what_only_informs_never_ranks():
    whys = {each.benchmark: each.informs for each in ALL.cohorts.values() if each.informs}
    assert whys["MATH-500"]
    assert whys["HumanEval"]
    assert "superseded" in whys["BFCL v3"]
    for each in ALL.cohorts.values():
        if "Red Hat" in each.measured_by:
            assert each.informs == "pair baseline, not a capability score"
        if each.informs:
            assert not any(entry.rank for entry in entries(each, ALL.by_cohort[each.id]))


def test_competitors_scaffolds_and_harness_versions_are_visible():
    nvidia = [each for each in ALL.cohorts.values() if each.measured_by.startswith("NVIDIA (own runs")]
    assert all("competitor-run" in each.setting for each in nvidia)
    swe = [each for each in ALL.cohorts.values() if each.benchmark.startswith(("SWE-bench", "DeepSWE"))]
    named = ("scaffold", "framework", "(", "harness", "Agent", "pair baseline")
    assert all(any(word in each.setting + each.variant for word in named) for each in swe)
    assert {each.version for each in ALL.cohorts.values() if each.measured_by == "Sierra Research"} == {"1.0.1"}


# settings


@pytest.mark.parametrize(
    ("setting", "mode", "served", "rest"),
    [
        ("no-thinking", "without thinking", "", ""),
        ("thinking, temp 1.0, BF16 baseline; pair baseline", "thinking", "BF16", "temp 1.0; pair baseline"),
        ("val; served FP8", "", "FP8", "val"),
        ("mode FC thinking", "thinking", "", "FC"),
        ("reasoning_effort max", "effort max", "", ""),
        ("temp 0.6, max 32,768 tokens", "", "", "temp 0.6; max 32,768 tokens"),
        ("Think High", "thinking high", "", ""),
        ("thinking mode not stated", "", "", ""),
    ],
)
def test_a_setting_is_mode_precision_and_the_rest(setting, mode, served, rest):
    cohort, score = one(setting)
    assert (cohort.mode, score.served, cohort.setting) == (mode, served, rest)


def test_another_mode_version_or_measurer_is_another_cohort():
    settings = ("", "thinking", "no-thinking", "high", "val", "harness 1.2", "thinking; val")
    assert len({one(each)[0].id for each in settings}) == len(settings)
    assert one("served FP8")[0] == one("served BF16")[0]
    assert one(variant="a")[0].id != one(variant="b")[0].id
    assert one(unit="rank score")[0].lower_is_better


def test_a_length_is_a_number_of_tokens_and_says_what_was_printed():
    _, score = one(unit="tokens (text)", value=">128K")
    assert (score.value, score.note) == (131072, 'printed ">128K"')


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("nope,B,,1,,X,independent,s,2026-01-02,,percent,high", "no model"),
        ("qwen3-8b,B,,101,,X,independent,s,2026-01-02,,percent,high", "no percentage"),
        ("qwen3-8b,B,,nan,,X,independent,s,2026-01-02,,percent,high", "no number"),
        ("qwen3-8b,B,,1e400,,X,independent,s,2026-01-02,,percent,high", "no number"),
        ("qwen3-8b,B,,1,,X,me,s,2026-01-02,,percent,high", "kind `me`"),
        ("qwen3-8b,B,,1,,X,independent,s,2026-01-02,,percent,sure", "trust `sure`"),
        ("qwen3-8b,B,,1,,X,independent,,2026-01-02,,percent,high", "`source` is empty"),
        ("qwen3-8b,B,\x1b[2J,1,,X,independent,s,2026-01-02,,percent,high", "control characters"),
        ("qwen3-8b,B,=cmd(),1,,X,independent,s,2026-01-02,,percent,high", "like a formula"),
        ("qwen3-8b,-2+3+cmd|calc!A0,,1,,X,independent,s,2026-01-02,,percent,high", "like a formula"),
        ("qwen3-8b,B,,\u0665\u0660,,X,independent,s,2026-01-02,,percent,high", "no number"),
        ("qwen3-8b,B,,1e308,,X,independent,s,2026-01-02,,percent,high", "no number"),
        ("qwen3-8b,B,,1,,X,independent,s,,,percent,high", "`date` is empty"),
        (f"qwen3-8b,{'b' * 300},,1,,X,independent,s,2026-01-02,,percent,high", "300 characters"),
        ("qwen3-8b,B,,1", "4 cells"),
    ],
)
def test_a_bad_line_is_named_with_what_to_do(line, what):
    good = "qwen3-8b,Good,,1,,X,independent,s,2026-01-02,,percent,high"
    found, bad = rows(table(good, line))
    _, more = read(found, {}, {"qwen3-8b"})
    (fault,) = (*bad, *more)
    assert fault.line == 3
    assert what in fault.what
    assert fault.hint


@pytest.mark.parametrize(
    ("day", "good"),
    [
        ("2026", True),
        ("2026-11", True),
        ("2026-11-22", True),
        ("2026-13", False),
        ("01.11.2026", False),
        ("soon", False),
    ],
)
def test_an_import_says_when_in_days_of_the_calendar(day, good):
    found, faults = read(rows(table(f"a,B,,1,,X,own,s,{day},,percent,high"))[0], {}, None, own=True)
    assert (len(found), len(faults)) == (good, not good)
    assert all("is no day" in each.what for each in faults)


def test_a_table_with_semicolons_is_told_in_one_line():
    _, faults = rows(";".join(COLUMNS) + "\n")
    assert [each.what for each in faults] == ["the cells are separated by semicolons"]


def test_duplicates_and_odd_columns_are_faults():
    line = "qwen3-8b,B,,1,,X,independent,s,2026-01-02,,percent,high"
    assert "the same as line 2" in read(rows(table(line, line))[0], {}, None)[1][0].what
    _, faults = rows("model_id,secret\nqwen3-8b,1")
    assert any("nobody reads a column `secret`" in each.what for each in faults)


@pytest.mark.parametrize(
    ("first", "second", "apart"),
    [
        ("数学,,1,,X,own,s,2026,,percent", "代码,,1,,X,own,s,2026,,percent", True),
        ("C++,,1,,X,own,s,2026,,percent", "C,,1,,X,own,s,2026,,percent", True),
        ("C#,,1,,X,own,s,2026,,percent", "C,,1,,X,own,s,2026,,percent", True),
        ("B,,1,,X,own,s,2026,,percent", "B,,1,,X,own,s,2026,,points", False),
        ("B,,1,,X (one),own,s,2026,,percent", "B,,1,,X (two),own,s,2026,,percent", False),
        ("B,v 数,1,,X,own,s,2026,,percent", "B,v 代,1,,X,own,s,2026,,percent", False),
    ],
)
def test_what_cannot_be_compared_is_never_in_one_cohort(first, second, apart):
    found, faults = read(rows(table(f"a,{first},high", f"b,{second},high"))[0], {}, None, own=True)
    assert len({cohort.id for cohort, _ in found}) == 1 + apart
    assert ["is already" in fault.what for fault in faults] == [True] * (not apart)


def test_a_table_of_bad_lines_ends():
    found, faults = rows(table(*["a"] * 100_000))
    assert (found, len(faults)) == ([], 1)
    assert "more than 20,000 rows" in faults[0].what


@given(st.text(max_size=400))
def test_no_table_breaks_the_reader(text):
    found, _ = rows(text)
    read(found, {}, None, own=True)
    found, _ = rows(table(text))
    for cohort, score in read(found, {}, None, own=True)[0]:
        assert cohort.kind == "own"
        assert (cohort.id + cohort.variant + score.source).isprintable()


# ranks

VALUES = st.integers(0, 1000).map(lambda tenths: tenths / 10)
LISTS = st.dictionaries(st.sampled_from("abcdefghij"), st.tuples(VALUES, st.none() | VALUES.map(lambda v: v / 20)))
BOARD = Cohort(id="c", benchmark="C", measured_by="X", kind="independent")


def listed(values: dict, cohort: Cohort = BOARD) -> list[Score]:
    return [Score(cohort=cohort.id, model=m, value=v, error=e) for m, (v, e) in values.items()]


@given(LISTS, st.booleans())
def test_ranks_are_shared_only_by_what_cannot_be_told_apart(values, lower):
    cohort = replace(BOARD, lower_is_better=lower)
    found = entries(cohort, listed(values, cohort))
    by_rank: dict[int, list] = {}
    for each in found:
        by_rank.setdefault(each.rank or 0, []).append(each.score)
    before = 0
    for rank in sorted(by_rank):
        assert rank == before + 1
        best = (min if lower else max)(by_rank[rank], key=lambda each: each.value)
        assert any(
            all(tied(cohort, lead, each) for each in by_rank[rank])
            for lead in by_rank[rank]
            if lead.value == best.value
        )
        before += len(by_rank[rank])
    assert all(0 <= each.percentile <= 100 for each in found if each.percentile is not None)


@given(LISTS)
def test_a_model_without_a_score_changes_no_rank(values):
    before = entries(BOARD, listed(values))
    elsewhere = Score(cohort="other", model="new", value=99.0)
    assert entries(BOARD, [*listed(values), elsewhere]) == before
    assert missing({*values, "new"}, before) == 1


@given(LISTS, LISTS)
def test_publishers_and_low_trust_never_enter_an_independent_rank(values, others):
    publisher = replace(BOARD, id="p", kind="publisher")
    low = [replace(each, trust="low", model=each.model * 2) for each in listed(others)]
    found = entries(BOARD, [*listed(values), *listed(others, publisher), *low])
    assert [each for each in found if each.rank] == entries(BOARD, listed(values))
    assert composite([BOARD, replace(publisher, benchmark="P")], of({"c": values, "p": others})) == {}


def of(boards: dict[str, dict], **more: str) -> Scores:
    cohorts = {name: replace(BOARD, id=name, benchmark=name.upper(), **more) for name in boards}
    return Scores(cohorts=cohorts, by_cohort={name: listed(v, cohorts[name]) for name, v in boards.items()})


@given(LISTS, LISTS, st.floats(1, 50))
def test_a_composite_is_over_the_same_cohorts_for_all_and_never_over_values(first, second, factor):
    known = of({"a": first, "b": second})
    found = composite([*known.cohorts.values()], known)
    assert {model for model, _ in found} <= first.keys() & second.keys()
    # percentiles know ranks alone: another scale in one cohort changes nothing
    scaled = {m: (v * factor, None if e is None else e * factor) for m, (v, e) in second.items()}
    again = of({"a": first, "b": scaled}, unit="points")
    exact = {m: (round(v, 1), None) for m, (v, _) in second.items()}
    plain = of({"a": first, "b": exact}, unit="points")
    moved = of({"a": first, "b": {m: (v * 2, None) for m, (v, _) in exact.items()}}, unit="points")
    assert composite([*again.cohorts.values()], again).keys() == found.keys()
    assert composite([*plain.cohorts.values()], plain) == composite([*moved.cohorts.values()], moved)
    assert composite([known.cohorts["a"]], known) == {}  # one benchmark is named, not composed


def test_an_interval_comes_from_questions_only_where_their_number_is_sourced():
    score = Score(cohort="c", model="m", value=50.0)
    assert error(BOARD, score) is None
    assert error(replace(BOARD, items=225), score) == pytest.approx(6.53, abs=0.01)
    assert error(replace(BOARD, items=30), replace(score, value=100.0)) == pytest.approx(10.0)
    assert all(each.items == 0 or each.items_source for each in ALL.benchmarks.values())


def test_a_panel_never_holds_two_measurers_versions_or_modes():
    for task in ("reasoning", "coding", "agentic", "maths", "instruction", "long-context"):
        for panel in panels(ALL, of_task(ALL, task)):
            assert len({(c.measured_by, c.kind, c.version, c.mode) for c in panel.columns}) == 1
            assert not panel.composed or len({c.benchmark for c in panel.composed}) >= 2
            assert {c.kind for c in panel.columns} == {panel.kind}


# floors


def test_a_floor_names_its_cohort_and_the_way_that_is_better():
    assert floor_of(f"{GERMAN}>=70", ALL).value == 70
    assert floor_of("euroeval-rank-score.german.2026-04-20.without-thinking<=2", ALL).met(1.5)
    with pytest.raises(BadRequest, match="lower is better"):
        floor_of("euroeval-rank-score.german.2026-04-20.without-thinking>=2", ALL)
    with pytest.raises(BadRequest, match="does not rank: saturated"):
        floor_of(f"{next(c.id for c in ALL.cohorts.values() if c.benchmark == 'MATH-500' and not c.setting)}>=2", ALL)
    for odd in ("", "x", ">=1", f"{GERMAN}>=", f"{GERMAN}>=1e9", f"{GERMAN}=1"):
        with pytest.raises(BadRequest):
            floor_of(odd, ALL)
    with pytest.raises(Unknown, match="no cohort"):
        floor_of("nobody>=1", ALL)


def test_a_refusal_says_value_floor_and_measurer_and_unknown_is_policys():
    asked = floor_of(f"{GERMAN}>=72", ALL)
    said = refusal(asked, "gemma-3-27b", ALL, unscored="refuse")
    assert said == f"quality: 71.21 ± 0.8 in {GERMAN} by EuroEval, at least 72 is asked"
    assert refusal(asked, "qwen3-32b", ALL, unscored="refuse") == ""
    assert refusal(asked, "kimi-k3", ALL, unscored="refuse") == f"quality: no score in {GERMAN}"
    assert refusal(asked, "kimi-k3", ALL, unscored="allow") == ""


def test_no_floor_rests_on_a_figure_of_low_trust():
    low = Score(cohort=GERMAN, model="kimi-k3", value=99.0, trust="low")
    known = replace(ALL, by_cohort={GERMAN: [low]})
    said = refusal(floor_of(f"{GERMAN}>=72", ALL), "kimi-k3", known, unscored="refuse")
    assert said == f"quality: no score in {GERMAN}"


def test_a_score_of_another_precision_is_never_given_silently():
    score = Score(cohort="c", model="nobody-measured-this", value=50.0)
    assert caveat(score, ("bf16", "bf16")) == ""
    assert caveat(score, ("int4-awq", "bf16")) == "scored as shipped; loss of int4-awq not measured"
    assert caveat(replace(score, served="FP8"), ("fp8", "bf16")) == ""
    assert caveat(replace(score, served="FP8"), ("bf16", "bf16")) == "scored in FP8; loss of bf16 not measured"


def test_own_figures_are_kept_apart_from_those_that_ship():
    line = "qwen3-32b,GPQA-Diamond,,60,thinking,DeepSeek,publisher,licence,2026-01-01,,percent,high"
    found, _ = read(rows(table(line))[0], ALL.benchmarks, None, own=True)
    more = ALL.with_more(found)
    cohort = more.cohort("own.gpqa-diamond.deepseek.2026-01-01.thinking")
    assert (cohort.kind, cohort.tasks, cohort.items) == ("own", ("reasoning",), 198)
    assert Benchmark(name="x").tasks == ()
