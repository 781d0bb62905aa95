"""`freehold models` and `freehold show`: what they list and what they say."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from freehold.catalogue import load
from freehold.cli.main import cli, main

EVERYTHING = load()


def run(*words: str) -> str:
    result = CliRunner().invoke(cli, list(words), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def listed(*words: str) -> list[dict]:
    return json.loads(run("models", *words, "--json"))


def test_without_options_every_model_is_listed():
    lines = run("models").splitlines()
    assert lines[0].split() == ["MODEL", "TOTAL", "ACTIVE", "CONTEXT", "LICENCE", "COMMERCIAL", "FROM", "RELEASED"]
    assert lines[-1].startswith("117 models")
    assert len(lines) == 1 + 117 + 2


@pytest.mark.parametrize(
    ("words", "holds"),
    [
        (("--family", "QWEN3.5"), lambda m: m["family"] == "qwen3.5"),
        (("--publisher", "mistral"), lambda m: m["publisher"] == "Mistral AI"),
        (("--country", "fr", "--country", "CH"), lambda m: {"FR", "CH"} & {*m["publisher_country"].split("/")}),
        (("--licence", "llama"), lambda m: "llama" in m["licence"]),
        (("--commercial", "no"), lambda m: m["commercial_use"] == "no"),
        (("--min-size", "100", "--max-size", "200"), lambda m: 100e9 <= m["total"] <= 200e9),
        (("--max-active", "4"), lambda m: m["active"] <= 4e9),
        (("--context", "1000000"), lambda m: m["context"] >= 1_000_000),
        (("--since", "2026-06-01"), lambda m: m["released"] >= "2026-06-01"),
    ],
)
def test_an_option_leaves_those_it_names_and_all_of_them(words, holds):
    found, everything = listed(*words), listed()
    assert found
    assert {m["id"] for m in found} == {m["id"] for m in everything if _known(m, words) and holds(m)}


def _known(model: dict, words: tuple[str, ...]) -> bool:
    return model["active"] is not None or "--max-active" not in words


def test_sorting():
    assert [m["id"] for m in listed()] == sorted(m["id"] for m in listed())
    sizes = [m["total"] for m in listed("--sort", "size")]
    assert sizes == sorted(sizes, reverse=True)
    dates = [m["released"] for m in listed("--sort", "date")]
    assert dates[:116] == sorted(dates[:116], reverse=True)
    assert dates[116] == ""


def test_known_dimensions_are_listed_when_asked_for():
    both = listed("--known")
    assert len(both) == 117 + len(EVERYTHING.known)
    ours = {model.id for model in EVERYTHING.known}
    assert {m["commercial_use"] for m in both if m["id"] in ours} == {"unknown"}, "nobody read those licences"


@pytest.mark.parametrize("model", [*EVERYTHING.models, *EVERYTHING.known[::8]], ids=lambda model: model.id)
def test_show_says_everything_of_every_model(model):
    shown = run("show", model.id)
    assert model.repo in shown
    for said in (*model.unknown, *model.notes, *model.licence.conditions):
        assert said.split("\n")[0] in shown
    licence = next(each for each in EVERYTHING.licences if each.id == model.licence.id)
    for term in licence.terms:
        assert term.says in shown
        assert term.source in shown


def test_show_names_the_clause_that_keeps_llama_4_out_of_the_eu():
    shown = run("show", "meta-llama/Llama-4-Scout-17B-16E-Instruct")
    assert "[eu-exclusion]" in shown
    assert "USE_POLICY.md" in shown
    assert "49,152 bytes a token" in shown


def test_show_says_how_a_copy_was_recognised():
    assert "read as qwen3-32b" in run("show", "bartowski/Qwen_Qwen3-32B-GGUF")
    whole = json.loads(run("show", "qwen3-32b", "--json"))
    assert whole["model"]["id"] == "qwen3-32b"
    assert whole["kv_cache"]["bytes_per_token"] == 64 * 8 * 128 * 2 * 2


@pytest.mark.parametrize("command", [("show",), ("compare", "qwen3-8b")])
def test_a_name_gives_the_terminal_no_orders(command):
    words = [*command, "some\x1b[2Jbody/Qwen3-32B-GGUF"]
    shown = CliRunner().invoke(cli, words, catch_exceptions=False, color=True).output
    assert "read as qwen3-32b" in shown
    assert "\x1b" not in shown


def test_a_name_that_is_not_there_is_answered_with_the_nearest(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["freehold", "show", "qwen3-33b"])
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == 2
    assert "qwen3-32b" in capsys.readouterr().err
