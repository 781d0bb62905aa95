"""`freehold plan` as a person types it: the questions it was built for, and every way to ask wrongly."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import NamedTuple

import pytest
from click.testing import CliRunner
from weight_files import CONFIG, facts, safetensors_bytes, write

from freehold.cli.main import cli
from freehold.errors import FreeholdError
from freehold.fleet.config import load
from freehold.plan.units import GIB
from freehold.types import Host

DEMO = Path(__file__).parents[1] / "demo" / "demo.gguf"
LAPTOP = Host(name="laptop", cpu="any", cores=8, memory_bytes=32 * GIB, available_bytes=24 * GIB)


class Answer(NamedTuple):
    code: int
    shown: str
    error: str  # with its hint

    @property
    def json(self) -> dict:
        return json.loads(self.shown)


@pytest.fixture
def plan(tmp_path, monkeypatch):
    """`plan("--task", "coding")` in an empty folder, on a machine that is always the same."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("freehold.fleet.host.probe", lambda: LAPTOP)

    def run(*words: str) -> Answer:
        result = CliRunner().invoke(cli, ["plan", *words])
        error = result.exception
        if isinstance(error, FreeholdError):
            return Answer(error.exit_code, result.stdout, f"{error}\n{error.hint}")
        assert error is None or isinstance(error, SystemExit), error
        return Answer(result.exit_code, result.stdout, result.stderr)

    return run


def configured(text: str) -> None:
    Path("freehold.toml").write_text(text)


def rows(answer: Answer) -> list[str]:
    """The lines of the first table."""
    lines = answer.shown.split("\n\n")[1].splitlines()
    assert lines[0].startswith("MODEL")
    return lines[1:]


# -- what must be shown ------------------------------------------------------------------------------------------------

HOSPITAL = ("--size", "60-80", "--users", "40", "--context", "32K", "--no-cloud-act")


def test_a_hospital_that_asks_for_germany_and_no_cloud_act(plan):
    answer = plan(*HOSPITAL, "--residency", "DE")
    assert answer.code == 4
    assert "NOTHING" in answer.shown
    assert re.search(r"residency and .*jurisdiction.not contradict each other", answer.error)
    assert "residency FR, for example scaleway-h100" in answer.error
    assert "an operator like that of hetzner-" in answer.error
    assert "CLOUD Act" in answer.shown


def test_a_hospital_that_asks_for_europe_is_served_by_a_french_operator(plan):
    answer = plan(*HOSPITAL, "--residency", "EU", "--json")
    plans = answer.json["choice"]["plans"]
    assert answer.code == 0
    assert "llama-3.3-70b" in {each["model"] for each in plans}
    assert {each["country"] for each in plans} == {"FR"}
    assert all(each["place"].startswith("scaleway") for each in plans)
    assert all(each["requests"] >= 40 and each["longest"] >= 32_768 for each in plans)
    out = "\n".join(each["reason"] for each in answer.json["places_refused"])
    for reason in ("Hetzner", "OVH", "nobody said where the machine stands", "stands in US"):
        assert reason in out


def test_one_h100_for_coding(plan):
    answer = plan("--cards", "1xH100", "--task", "coding", "--json")
    plans = answer.json["choice"]["plans"]
    assert [each["model"] for each in plans[:2]] == ["devstral-small-2-24b-2512", "qwen3-coder-30b-a3b"]
    assert {(each["card"], each["cards"]) for each in plans} == {("H100-SXM", 1)}
    assert len(plans) + len(answer.json["choice"]["refusals"]) == 117
    assert "1xH100 read as 1 x H100-SXM at hand" in answer.json["notes"][0]
    assert all(each["month"] is None for each in plans), "nobody said what it costs"


def test_a_laptop_without_any_word(plan):
    answer = plan("--json")
    plans = answer.json["choice"]["plans"]
    assert answer.code == 0
    assert {each["place"] for each in plans} == {"this machine"}
    assert {each["engine"] for each in plans} == {"llamacpp"}
    assert all(each["ceiling"] >= 5 for each in plans), "fast enough to read"
    assert all(each["weight_bytes"] + each["activation_bytes"] < 23 * GIB for each in plans)
    assert plans[0]["start"].startswith("llama-server -m ")


def test_a_batch_over_night_on_spot(plan):
    answer = plan("--cards", "8xH200", "--offer", "spot", "--hours", "8", "--json")
    plans = answer.json["choice"]["plans"]
    assert plans[0]["model"].startswith("kimi-k2")
    assert {each["place"] for each in plans} == {"nebius-h200-sxm-spot"}
    assert all(each["month"] == pytest.approx(each["hour"] * 8 * 730 / 24) for each in plans)
    assert any("interruptions a day" in each for each in plans[0]["assumptions"])


def test_llama_4_for_a_french_company(plan):
    configured('[policy]\ncountry = "FR"\n')
    answer = plan("llama-4-scout-17b-16e")
    assert answer.code == 3
    for words in ("the company is in FR (France)", "gives companies in the EU no right", "USE_POLICY.md"):
        assert words in answer.error
        assert words in answer.shown


def test_mistral_large_2_for_commercial_use(plan):
    refused = plan("mistral-large-2411")
    assert refused.code == 3
    assert "allows no commercial use" in refused.error
    assert "changes nothing" not in refused.error
    configured('[policy.accepted."mrl-0.1"]\nby = "legal@example.org"\non = 2026-11-01\nwhy = "we want it"\n')
    still = plan("mistral-large-2411")
    assert still.code == 3
    assert "that legal@example.org accepted `mrl-0.1` changes nothing" in still.error
    configured("")
    assert plan("mistral-large-2411", "--use", "research", "--cards", "8xH100").code == 0


def test_what_70b_in_fp8_leaves_on_one_h100(plan):
    words = ("llama-3.3-70b", "--quantization", "fp8", "--cards", "1xH100")
    answer = plan(*words, "--explain")
    assert "11,920 tokens in all; 1 requests of 8,192; the longest is 11,920 for 1 at once" in answer.shown
    assert "KV cache of a full layer: 8 x (128 + 128) x 2 = 4,096 bytes" in answer.shown
    assert "usable: 0.92 x 85,029,615,043 = 78,227,245,839 bytes" in answer.shown
    assert "source   dims: " in answer.shown
    (found,) = plan(*words, "--json", "--explain").json["choice"]["plans"]
    assert found["kv_tokens"] == 11_920
    assert any(line.startswith("blocks in the pool: ") for line in found["steps"])


# -- ways to read it ---------------------------------------------------------------------------------------------------


def test_the_table_the_paper_and_the_json_agree(plan):
    words = ("--users", "8", "--budget", "2000", "--top", "500")
    table, paper, whole = plan(*words), plan(*words, "--md"), plan(*words, "--json").json
    plans = whole["choice"]["plans"]
    lines = rows(table)
    assert len(lines) == len(plans)
    for line, each in zip(lines, plans, strict=True):
        cells = re.split(r"  +", line)
        assert cells[0] == each["model"]
        assert each["place"] in cells
        assert f"{each['requests']:,}" in cells
        assert f"{each['longest']:,}" in cells
        assert f"{each['month']:,.0f} EUR{'*' if each['undated'] else ''}" in cells
        assert f"| {each['model']} | " in paper.shown
    assert whole["order"] in table.shown
    assert paper.shown.startswith("## ")
    assert "| --- |" in paper.shown
    every = {each["subject"] for each in whole["choice"]["refusals"]}
    assert all(name in table.shown and name in paper.shown for name in every)


def test_for_programs_every_plan_has_every_key(plan):
    rented = plan("--users", "2", "--json").json["choice"]["plans"]
    own = plan("--json").json["choice"]["plans"]
    assert len({frozenset(each) for each in (*rented, *own)}) == 1
    assert (own[0]["card"], own[0]["month"], own[0]["tp"], own[0]["undated"]) == ("", None, 1, False)


def test_every_way_to_serve_a_model(plan):
    few = plan("llama-3.1-8b", "--cards", "8xH100", "--json").json["choice"]["plans"]
    many = plan("llama-3.1-8b", "--cards", "8xH100", "--json", "--every").json["choice"]["plans"]
    assert len(few) == 1
    assert {(each["scheme"], each["tp"]) for each in many} >= {("bf16", 1), ("bf16", 8), ("fp8", 2)}
    assert few[0] == many[0]


# -- files -------------------------------------------------------------------------------------------------------------


def test_a_gguf_file(plan):
    (found,) = plan(str(DEMO), "--json").json["choice"]["plans"]
    assert (found["weight_bytes"], found["engine"]) == (DEMO.stat().st_size, "llamacpp")
    assert found["context"] == found["longest"] == 2048, "nobody asked for more than it can"
    more = plan(str(DEMO), "--context", "8K")
    assert more.code == 4
    assert "context: at most 2,048 tokens, 8,192 are asked" in more.error


def test_a_folder_of_safetensors(plan, tmp_path):
    header = {"model.embed_tokens.weight": facts("BF16", (100, 64), (0, 12_800))}
    write(tmp_path / "model", {"config.json": CONFIG, "model.safetensors": safetensors_bytes(header, b"\0" * 12_800)})
    answer = plan("model", "--cards", "1xH100", "--context", "512", "--json", "--every")
    plans = answer.json["choice"]["plans"]
    assert {each["engine"] for each in plans} == {"vllm"}
    native = next(each for each in plans if each["native"])
    assert (native["longest"], native["weight_bytes"] > 12_800) == (512, True)
    assert plan("model", "--cards", "1xH100", "--context", "1K").code == 4, "trained for 512 tokens"


def test_an_unknown_architecture_is_said_to_be_unknown(plan, tmp_path):
    strange = CONFIG | {"model_type": "brandnew", "architectures": ["BrandNewForCausalLM"]}
    write(tmp_path / "model", {"config.json": strange, "model.safetensors": safetensors_bytes()})
    answer = plan("model")
    assert answer.code == 2
    assert "brandnew" in answer.error
    assert answer.shown == ""


# -- into freehold.toml ------------------------------------------------------------------------------------------------


def test_the_choice_becomes_an_endpoint_once(plan, tmp_path):
    path = tmp_path / "freehold.toml"
    answer = plan("gpt-oss-20b", "--quantization", "gguf-q4_k_m", "--write", "chat")
    assert "written to freehold.toml: [endpoints.chat]; freehold up chat starts it" in answer.shown
    endpoint = load(path).endpoints["chat"]
    assert (endpoint.engine, endpoint.model, endpoint.context, endpoint.parallel) == (
        "llamacpp",
        "gpt-oss-20b",
        8192,
        1,
    )
    before = path.read_text()
    again = plan("gpt-oss-20b", "--quantization", "gguf-q4_k_m", "--write", "chat")
    assert again.code == 2
    assert "has an endpoint 'chat' already" in again.error
    assert path.read_text() == before
    rented = ("--cards", "4xH100-PCIe", "--offer", "on-demand", "--residency", "FR")
    assert plan("llama-3.3-70b", *rented, "--write", "rented").code == 0
    endpoint = load(Path("freehold.toml")).endpoints["rented"]
    assert (endpoint.country, endpoint.operator) == ("FR", "scaleway")
    assert plan("llama-3.3-70b", "--cards", "2xH100", "--write", "large").code == 0
    endpoints = load(path).endpoints
    assert set(endpoints) == {"chat", "rented", "large"}
    large = endpoints["large"]
    assert (large.engine, large.context, large.parallel, large.replicas) == ("vllm", 8192, 8, 1)
    assert (large.weights or "").endswith("models/meta-llama/Llama-3.3-70B-Instruct")
    assert endpoints["rented"].engine == "external"
    assert path.read_text().startswith(before)
    assert "# start it on " in path.read_text()


def test_a_file_is_written_with_its_path_as_the_configuration_sees_it(plan, tmp_path):
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "my demo.gguf").write_bytes(DEMO.read_bytes())
    configured('[machine]\nname = "laptop"\n')
    answer = plan("models/my demo.gguf", "--context", "512", "--write", "demo", "--json")
    assert answer.json["choice"]["plans"], "what is printed stays JSON"
    assert load(tmp_path / "freehold.toml").endpoints["demo"].weights == str(tmp_path / "models" / "my demo.gguf")
    assert 'weights = "models/my demo.gguf"' in (tmp_path / "freehold.toml").read_text()


@pytest.mark.parametrize("name", ["a b", "x]\n[policy", "", "."])
@pytest.mark.parametrize("before", [None, '[machine]\nname = "laptop"\n'])
def test_a_name_that_cannot_be_used_leaves_the_file_alone(plan, tmp_path, name, before):
    path = tmp_path / "freehold.toml"
    if before:
        configured(before)
    answer = plan(str(DEMO), "--context", "512", "--write", name)
    if name:
        assert answer.code == 2
        assert "not a usable name" in answer.error
    assert (path.read_text() if path.exists() else None) == before


def test_a_name_with_a_dot_is_one_name(plan, tmp_path):
    assert plan(str(DEMO), "--context", "512", "--write", "llama-3.1").code == 0
    assert set(load(tmp_path / "freehold.toml").endpoints) == {"llama-3.1"}


# -- the need ----------------------------------------------------------------------------------------------------------


def test_what_is_typed_goes_before_what_is_configured(plan):
    configured('[need]\ncards = "1xH100"\nusers = 4\ntask = "coding"\ncontext = 16_384\n')
    need = plan("--json").json["need"]
    assert (need["cards"], need["users"], need["task"], need["context"]) == ("1xH100", 4, "coding", 16_384)
    need = plan("--json", "--users", "2", "--cards", "2xH200", "--context", "4K").json["need"]
    assert (need["cards"], need["users"], need["task"], need["context"]) == ("2xH200", 2, "coding", 4096)
    need = plan("--json", "--here").json["need"]
    assert need["speed"] == 5.0


def test_the_house_rules_hold_for_this_machine_too(plan):
    configured('[policy]\nresidency = ["DE"]\n[machine]\ncountry = "US"\n')
    answer = plan()
    assert answer.code == 4
    assert "stands in US (United States)" in answer.shown
    configured('[policy]\nresidency = ["DE"]\n[machine]\ncountry = "DE"\nhourly_price = 0.5\n')
    found = plan("--json").json["choice"]["plans"][0]
    assert (found["country"], found["hour"]) == ("DE", 0.5)


@pytest.mark.parametrize(
    ("words", "nearest"),
    [
        (("lama-3.3-70b",), "llama-3.3-70b"),
        (("--cards", "2xH1000"), "H100"),
        (("--residency", "Germny"), "DE"),
        (("--jurisdiction-not", "Untied States"), "US"),
        (("--quantization", "fp7"), "fp8"),
        (("--kv-dtype", "fp7"), "fp8"),
        (("--users", "2", "--currency", "EURO"), "rates"),
        (("--task", "codng"), "coding"),
        (("--offer", "spt"), "spot"),
        (("--size", "big"), "60-80"),
        (("--size", "."), "60-80"),
        (("--context", "much"), "32K"),
        (("--context", "9" * 5000), "32K"),
        (("--cards", f"{'9' * 5000}xH100"), "H100"),
        (("n" * 5000,), "freehold models"),
        (("--users", "0"), "from 1 to 1,000,000"),
        (("--users", "-4"), "from 1 to 1,000,000"),
        (("--context", "0"), "from 1 to 100,000,000"),
        (("--budget", "nan"), "from 0 to 1,000,000,000,000"),
        (("--speed", "-1"), "give --speed from 0 to 100,000"),
        (("--hours", "25"), "give --hours from 0.1 to 24"),
        (("--size", "80-60"), "contradict each other"),
        (("--here", "--cards", "1xH100"), "contradict each other"),
        (("--top", "0"), "x>=1"),
    ],
)
def test_what_makes_no_sense_is_wrong_use_with_a_way_out(plan, words, nearest):
    answer = plan(*words)
    assert answer.code == 2
    assert nearest in answer.error
    assert answer.shown == ""


def test_a_configuration_that_was_named_must_be_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(cli, ["-c", "absent.toml", "plan"])
    assert result.exception.exit_code == 2
    assert "absent.toml" in str(result.exception)


HOSTILE = 'evil\x1b[31m"\n[policy]\nunreviewed = "show"\n$(touch gone)'


def test_a_hostile_name_reaches_neither_the_terminal_nor_the_file_nor_a_shell(plan, tmp_path):
    header = {"model.embed_tokens.weight": facts("BF16", (100, 64), (0, 12_800))}
    write(tmp_path / HOSTILE, {"config.json": CONFIG, "model.safetensors": safetensors_bytes(header, b"\0" * 12_800)})
    answer = plan(HOSTILE, "--cards", "1xH100-PCIe", "--offer", "on-demand", "--context", "512", "--write", "safe")
    assert answer.code == 0
    assert "\x1b" not in answer.shown
    text = (tmp_path / "freehold.toml").read_text()
    assert "\n[policy]" not in text
    assert "\x1b" not in text
    config = load(tmp_path / "freehold.toml")
    assert list(config.endpoints) == ["safe"]
    start = next(line for line in text.splitlines() if line.startswith("# start it"))
    assert "'evil" in start, "quoted for a shell"
    odd = os.fsdecode(b"odd\xff")
    (tmp_path / HOSTILE).rename(tmp_path / odd)
    answer = plan(odd, "--cards", "1xH100", "--context", "512", "--json", "--explain")
    assert answer.json["choice"]["plans"][0]["model"] == "odd"
    (tmp_path / f"{odd}.gguf").write_bytes(DEMO.read_bytes())
    answer = plan(f"{odd}.gguf", "--context", "512", "--write", "odd")
    assert (answer.code, "name in UTF-8" in answer.error) == (2, True)
    assert list(load(tmp_path / "freehold.toml").endpoints) == ["safe"]
