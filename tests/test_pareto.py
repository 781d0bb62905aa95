"""Quality against cost."""

from __future__ import annotations

import json
from itertools import pairwise
from xml.etree import ElementTree as ET

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from freehold.catalogue import scores
from freehold.cli.main import cli
from freehold.errors import BadRequest, DoesNotFit
from freehold.plan.cohorts import COLUMNS
from freehold.plan.pareto import Point, dominates, front

GERMAN = "euroeval-knowledge.german.2026-04-20.without-thinking"
FP8_ABOVE = {"BF16": 69, "FP8": 71}
POINTS = st.lists(
    st.builds(
        Point,
        model=st.text(max_size=3), scheme=st.just("bf16"), where=st.just("x"),
        value=st.integers(0, 9).map(float), cost=st.integers(0, 9).map(float),
    ),
    max_size=30,
)  # fmt: skip


@given(POINTS, st.booleans())
def test_no_member_is_dominated_and_every_other_is(points, lower):
    found = front(points, lower_is_better=lower)
    assert len(found.members) + len(found.dominated) == len(points)
    for each in found.members:
        assert not any(dominates(p, each, lower_is_better=lower) for p in points)
    names = {each.model for each in found.members}
    for each in found.dominated:
        assert each.by in names
        assert any(m.model == each.by and dominates(m, each.point, lower_is_better=lower) for m in found.members)


@given(POINTS)
def test_what_costs_more_on_the_front_is_better(points):
    members = front(points).members
    assert all(a.cost <= b.cost and a.value <= b.value for a, b in pairwise(members))


def plan(*words: str):
    return CliRunner().invoke(cli, ["plan", *words])


def test_the_front_as_a_table_json_and_a_plot(tmp_path):
    svg = tmp_path / "front.svg"
    asked = ("--offer", "on-demand", "--pareto", GERMAN)
    said = plan(*asked, "--svg", str(svg))
    assert said.exit_code == 0, said.output
    assert "EUR A MONTH" in said.output
    found = json.loads(plan(*asked, "--json").output)
    values = [each["value"] for each in found["members"]]
    assert values == sorted(values)
    assert len(values) > 1
    assert all(each["by"] in {m["model"] for m in found["members"]} for each in found["dominated"])
    assert found["unknown"]
    tree = ET.fromstring(svg.read_text())
    texts = "".join(tree.itertext())
    assert all(each["model"] in texts for each in found["members"])
    assert "prefers-color-scheme: dark" in texts


def test_a_plot_goes_into_a_file_of_that_name_and_nowhere_else(tmp_path):
    (tmp_path / "victim").write_text("mine")
    (tmp_path / "link.svg").symlink_to("victim")
    for name in ("link.svg", "no/such.svg"):
        said = plan("qwen3-8b", "--offer", "on-demand", "--pareto", GERMAN, "--svg", str(tmp_path / name))
        assert isinstance(said.exception, BadRequest)
        assert "cannot be written" in str(said.exception)
    assert (tmp_path / "victim").read_text() == "mine"


def test_names_in_a_plot_do_not_lie_on_each_other(tmp_path):
    svg = tmp_path / "front.svg"
    plan("--offer", "on-demand", "--pareto", GERMAN, "--svg", str(svg))
    texts = [each for each in ET.fromstring(svg.read_text()).iter() if each.tag.endswith("text")]
    names = sorted(float(each.get("y")) for each in texts if each.get("class") == "member-name")
    assert len(names) > 1
    assert all(below - above >= 14 for above, below in pairwise(names))


@pytest.mark.parametrize("also", [("--write", "first"), ("--explain",), ("--md",)])
def test_a_front_does_not_leave_out_what_else_was_asked_without_a_word(also):
    said = plan("--offer", "on-demand", "--pareto", GERMAN, *also)
    assert said.exit_code == 2
    assert "leave out --write, --explain and --md" in said.output


def test_what_only_informs_has_no_front():
    saturated = next(each.id for each in scores().cohorts.values() if each.benchmark == "MATH-500" and not each.setting)
    said = plan("--offer", "on-demand", "--pareto", saturated)
    assert "does not rank: saturated" in str(said.exception)


def test_a_million_tokens_is_the_cost_where_a_rate_is_stated():
    said = plan("--cards", "1xH100", "--offer", "on-demand", "--rate", "1000", "--pareto", GERMAN)
    assert "EUR A MILLION TOKENS" in said.output
    asked = ("qwen3-32b", "--cards", "1xH100", "--offer", "on-demand", "--rate", "1000")
    (point,) = json.loads(plan(*asked, "--pareto", GERMAN, "--json").output)["members"]
    found = json.loads(plan(*asked, "--every", "--json").output)["choice"]["plans"]
    assert point["cost"] in {each["per_million"] for each in found if each["scheme"] == point["scheme"]}


def test_the_deployment_in_the_precision_that_was_scored_comes_before_a_cheaper_one():
    asked = ("qwen3-32b", "--offer", "on-demand")
    (point,) = json.loads(plan(*asked, "--pareto", GERMAN, "--json").output)["members"]
    found = json.loads(plan(*asked, "--every", "--json").output)["choice"]["plans"]
    assert (point["scheme"], point["scored"]) == ("bf16", "")
    assert any(each["month"] < point["cost"] for each in found if each["month"])


@pytest.mark.parametrize("value", ["74", "99"])
def test_a_floor_refuses_and_says_how_far_it_would_have_to_go(value):
    said = plan("--cards", "1xH100", "--floor", f"{GERMAN}>={value}", "--json")
    found = json.loads(said.stdout)
    if value == "74":
        assert {each["model"] for each in found["choice"]["plans"]} == {
            "llama-4-scout-17b-16e", "qwen3-30b-a3b-instruct-2507", "qwen3-32b", "mistral-small-3.1-24b-2503",
        }  # fmt: skip
        assert all("by EuroEval" in line for each in found["choice"]["plans"] for line in each["scored"])
        reasons = {each["subject"]: each["reason"] for each in found["choice"]["refusals"]}
        assert reasons["gemma-3-27b"] == f"quality: 71.21 ± 0.8 in {GERMAN} by EuroEval, at least 74 is asked"
        assert reasons["gpt-oss-20b"] == f"quality: no score in {GERMAN}"
    else:
        assert isinstance(said.exception, DoesNotFit)
        assert "--floor is too strict" in str(said.exception)
        assert f"a floor of {GERMAN}>=75.86, for example with qwen3-32b" in said.exception.hint


def test_unknown_may_pass_where_policy_or_the_asker_says_so(tmp_path):
    asked = ("gpt-oss-20b", "--cards", "1xH100", "--floor", f"{GERMAN}>=74")
    refused = plan(*asked).exception
    assert isinstance(refused, DoesNotFit)
    assert "--unscored allow" in refused.hint
    said = plan(*asked, "--unscored", "allow")
    assert said.exit_code == 0
    assert f"Allowed without a score in {GERMAN}: gpt-oss-20b." in said.output
    config = tmp_path / "freehold.toml"
    config.write_text('[policy]\nunscored = "allow"\n')
    assert CliRunner().invoke(cli, ["-c", str(config), "plan", *asked]).exit_code == 0


def test_a_quantized_deployment_is_marked():
    said = plan("llama-4-scout", "--cards", "1xH100", "--quantization", "int4-awq", "--floor", f"{GERMAN}>=70")
    assert "(scored as shipped; " in said.output


def test_a_precision_that_was_scored_itself_answers_for_itself():
    cohort = "euroeval-knowledge.german.2026-04-20.as-it-answers-by-itself.val"  # FP8: 19.3, as shipped: 78.2
    asked = ("nemotron-3-nano-30b-a3b", "--cards", "1xH100", "--floor", f"{cohort}>=70", "--every", "--json")
    found = json.loads(plan(*asked).stdout)["choice"]["plans"]
    assert found
    assert not any(each["scheme"].startswith("fp8") for each in found)
    alone = plan(*asked, "--quantization", "fp8")
    (out,) = json.loads(alone.stdout)["choice"]["refusals"]
    assert out["reason"] == f"quality: 19.34 ± 1.1 in {cohort} by EuroEval, served in FP8, at least 70 is asked"


def test_a_precision_that_reaches_a_floor_is_not_refused_for_another_that_does_not(tmp_path):
    """FP8 happens to be scored above BF16."""
    rows = [f"qwen3-8b,B,,{value},served {served},X,own,s,2026,,percent,high" for served, value in FP8_ABOVE.items()]
    (tmp_path / "freehold.toml").write_text("")
    (tmp_path / "house.csv").write_text("\n".join([",".join(COLUMNS), *rows]))
    at = ["-c", str(tmp_path / "freehold.toml")]
    CliRunner().invoke(cli, [*at, "scores", "import", str(tmp_path / "house.csv")], catch_exceptions=False)
    asked = ["plan", "qwen3-8b", "--cards", "1xH100", "--floor", "own.b.x.2026>=70", "--every", "--json"]
    found = json.loads(CliRunner().invoke(cli, [*at, *asked], catch_exceptions=False).stdout)["choice"]["plans"]
    assert {each["scheme"].partition("-")[0] for each in found} == {"fp8"}
