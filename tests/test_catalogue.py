"""The catalogue: every figure counted anew, every value with its source, every name to the right model."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import msgspec
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from freehold import catalogue
from freehold.catalogue.names import pieces
from freehold.errors import Unknown
from freehold.facts import Model
from freehold.plan.params import count

ROOT = Path(__file__).parents[1]
EVERYTHING = catalogue.load()
MODELS = (*EVERYTHING.models, *EVERYTHING.known)


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("catalogue_tool", ROOT / "tools" / "catalogue.py")
    sys.modules[spec.name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def by_id(model: Model) -> str:
    return model.id


def off_pct(ours: int | None, theirs: int | None) -> float:
    return 100 * (ours - theirs) / theirs if ours and theirs else 0.0


def test_the_json_is_what_the_yaml_gives(tool):
    assert tool.TARGET.read_bytes() == tool.build(tool.SOURCE), "run tools/catalogue.py"


def test_everything_is_there():
    sizes = {name: len(getattr(EVERYTHING, name)) for name in EVERYTHING.__struct_fields__}
    assert sizes["models"] == 117
    assert sizes["known"] >= 200
    assert all(sizes.values()), sizes
    assert {model.id for model in EVERYTHING.models if not model.ready} == {
        "deepseek-v4-flash", "deepseek-v4-pro", "deepseek-v4.1-flash",
    }  # fmt: skip


def test_one_entry_is_one_line(tool):
    lines = [line.rstrip(",") for line in tool.TARGET.read_text().splitlines()]
    entries = [msgspec.json.decode(line) for line in lines if line.startswith('{"') and line.endswith("}")]
    assert len(entries) == sum(len(getattr(EVERYTHING, name)) for name in EVERYTHING.__struct_fields__)


@pytest.mark.parametrize("model", MODELS, ids=by_id)
def test_the_dimensions_give_the_published_size(model):
    stated, counts = model.parameters, count(model)
    if stated.method == "formula":
        assert counts is not None
        assert (counts.text, counts.total, counts.active) == (stated.text, stated.total, stated.active)
    ours = {"text": stated.text, "total": stated.total}[stated.published_basis]
    assert abs(off_pct(ours, stated.published)) <= stated.tolerance_published_pct
    assert abs(off_pct(stated.total, stated.checkpoint)) <= stated.tolerance_checkpoint_pct
    if stated.exact:
        assert stated.total == stated.checkpoint


def test_most_models_are_exact_to_the_last_parameter():
    assert sum(model.parameters.exact for model in EVERYTHING.models) == 85
    assert sum(model.parameters.exact for model in EVERYTHING.known) >= 200


@pytest.mark.parametrize("model", MODELS, ids=by_id)
def test_the_layers_add_up(model):
    if model.attention:
        assert sum(group.layers for group in model.attention) + model.other_layers == model.layers
    assert all(bool(group.window) == (group.kind in ("sliding", "chunked")) for group in model.attention)
    assert model.context.native > 0


@pytest.mark.parametrize("model", EVERYTHING.models, ids=by_id)
def test_no_value_of_a_model_without_a_source(model):
    for field in ("dims", "parameters", "context", "licence", "release_date"):
        assert any(model.sources.get(field, ())), field
    assert model.released or "release date" in " ".join((model.released_basis, *model.unknown)).lower()


def test_no_value_of_anything_else_without_a_source():
    assert [each.id for each in EVERYTHING.known if not any(each.sources["dims"])] == []
    assert [each.id for each in EVERYTHING.cards if not (each.source and each.memory_source)] == []
    assert [each.id for each in EVERYTHING.providers if not each.sources] == []
    for kind in (EVERYTHING.offers, EVERYTHING.rates, EVERYTHING.closed_prices):
        assert [each for each in kind if not each.source] == []
    assert [(each.id, t.says) for each in EVERYTHING.licences for t in each.terms if not (t.clause and t.source)] == []


def test_whatever_is_named_is_there():
    licences, cards, providers = ({e.id for e in getattr(EVERYTHING, n)} for n in ("licences", "cards", "providers"))
    assert {model.licence.id for model in MODELS} <= licences
    assert {offer.card for offer in EVERYTHING.offers} <= cards | {""}
    assert {offer.provider for offer in EVERYTHING.offers} <= providers


def test_only_llama_4_is_closed_to_companies_in_the_eu():
    closed = {model.id for model in EVERYTHING.models if model.licence.eu_companies is False}
    assert closed == {"llama-4-scout-17b-16e", "llama-4-maverick-17b-128e"}


def test_a_slip_of_the_pen_is_an_error(tool, tmp_path):
    files = {name: yaml.safe_load((tool.SOURCE / name).read_text()) for name in ("known.yaml", "cards.yaml")}
    for path in tool.SOURCE.glob("*.yaml"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    for name, entries in files.items():
        (tmp_path / name).write_text(yaml.safe_dump([entries[0] | {"bandwith": 1}, *entries[1:]]))
        with pytest.raises(ValueError, match=f"{entries[0]['id']}.*`bandwith`"):
            tool.build(tmp_path)
        (tmp_path / name).write_bytes((tool.SOURCE / name).read_bytes())


NAMES = [  # what people call it, which model that is
    ("Qwen/Qwen3-32B", "qwen3-32b"),
    ("QWEN3-32B", "qwen3-32b"),
    ("unsloth/Qwen3.8-27B-NVFP4", "qwen3.8-27b"),
    ("qwen3.6-27b (vllm-qwen36-27b-dual)", "qwen3.6-27b"),
    ("qwen38-27b nvfp4", "qwen3.8-27b"),
    ("Jackrong/Qwen3.5-27B-Claude-4.6-Opus-Reasoning-Distilled", "qwen3.5-27b"),
    ("train/checkpoints/qwen25-3b-distill-merged", "qwen2.5-3b"),
    ("/cache/hub/models--Qwen--Qwen2.5-3B-Instruct/snapshots/aa8e72537993ba99e69dfaafa59ed015b17504d1", "qwen2.5-3b"),
    ("Qwen2.5-Coder-32B-Instruct-AWQ", "qwen2.5-coder-32b"),
    ("Qwen3-8B-Q4_K_M.gguf", "qwen3-8b"),
    ("qwen2.5:7b-instruct-q4_K_M", "qwen2.5-7b"),
    ("Qwen3-235B", "qwen3-235b-a22b"),
    ("Qwen3-30B-A3B-Thinking-2507-AWQ-4bit", "qwen3-30b-a3b-thinking-2507"),
    ("Qwen3-VL-8B-Instruct-FP8", "qwen3-vl-8b"),
    ("/models/Qwen3-Embedding-0.6B", "qwen3-embedding-0.6b"),
    ("RedHatAI/Meta-Llama-3.1-8B-Instruct-quantized.w4a16", "llama-3.1-8b"),
    ("hugging-quants/Meta-Llama-3.1-70B-Instruct-AWQ-INT4", "llama-3.1-70b"),
    ("Hermes-3-Llama-3.1-8B", "llama-3.1-8b"),
    ("LLaMA v3 8B", "llama-3-8b"),
    ("LLaMA v4 Maverick", "llama-4-maverick-17b-128e"),
    ("llama2-70b-99", "llama-2-70b"),
    ("DeepSeek 70b (distill)", "deepseek-r1-distill-llama-70b"),
    ("DeepSeek-R1-0528-Qwen3-8B-GGUF", "deepseek-r1-0528-qwen3-8b"),
    ("nvidia/DeepSeek-R1-0528-FP4", "deepseek-r1-0528"),
    ("DeepSeek-R1-671B", "deepseek-r1"),
    ("DeepSeek-V3.2-Exp", "deepseek-v3.2"),
    ("huihui-ai/Huihui-gpt-oss-20b-mxfp4-abliterated-v2", "gpt-oss-20b"),
    ("google/gemma-4-26B-A4B-it-qat-q4_0-unquantized", "gemma-4-26b-a4b"),
    ("TheBloke/Mistral-7B-Instruct-v0.2-GPTQ", "mistral-7b-v0.2"),
    ("Nous-Hermes-2-Mixtral-8x7B-DPO", "mixtral-8x7b"),
    ("amd/Kimi-K2.7-Code-MXFP4", "kimi-k2.7-code"),
    ("nvidia/Kimi-K2-Thinking-NVFP4", "kimi-k2-thinking"),
    ("weights/DotsOCR", "dots.ocr"),
    ("scb10x/typhoon-ocr-7b", "qwen2.5-vl-7b"),
    ("phi-4-14b", "phi-4"),
    ("Gemma-4-E4B-It", "gemma-4-e4b"),
    ("cyankiwi/Kimi-Linear-48B-A3B-Instruct-AWQ-4bit", "kimi-linear-48b-a3b"),
    ("Ministral-3-14B", "ministral-3-14b-2512"),
]
NOBODY = [  # other networks, however alike, and names that could be several
    *("", "n/a", "/models/target", "Qwen3-3B", "Qwen-7B", "qwen3", "llama3", "LLaMA 70B", "Mistral-Large", "gpt-oss"),
    *("Qwen3-Omni-30B-A3B", "Qwen2.5-Omni-7B", "cerebras/Qwen3-Coder-REAP-25B-A3B", "Qwen3.6-27B-speculator.dflash"),
    *("Llama-Guard-3-8B", "Llama-3_3-Nemotron-Super-49B-v1_5", "Llama-3.1-Nemotron-Ultra-253B-v1", "Falcon-H1-7B"),
    *("llava-v1.6-mistral-7b-hf", "Phi-4-multimodal-instruct", "Phi-4-mini-flash-reasoning", "gemma-3n-E4B-it"),
    *("GLM-4.6V", "GLM-5-2", "MiniMax-M1", "DeepSeek-R1-Distill-Qwen", "Qwen3.5-FP8 (PP8)", "Llama-3-deidentifier"),
]


@pytest.mark.parametrize(("name", "expected"), NAMES)
def test_a_name_leads_to_its_model(name, expected):
    assert catalogue.model(EVERYTHING, name).id == expected


@pytest.mark.parametrize("name", NOBODY)
def test_a_name_that_is_another_model_or_several_leads_nowhere(name):
    with pytest.raises(Unknown):
        catalogue.match(EVERYTHING, name)


@pytest.mark.parametrize("model", MODELS, ids=by_id)
def test_every_model_answers_to_its_own_names(model):
    for name in (model.id, model.repo, model.repo.upper()):
        found = catalogue.match(EVERYTHING, name)
        assert (found.model.id, found.exact) == (model.id, True)


@pytest.mark.parametrize("name", ["somebody/Qwen3-8B", "/models/qwen3-8b", "models--somebody--Qwen3-8B/snapshots/1"])
def test_a_copy_under_the_same_name_is_not_the_model_itself(name):
    found = catalogue.match(EVERYTHING, name)
    assert (found.model.id, found.exact) == ("qwen3-8b", False)


@pytest.mark.parametrize("name", ["", " ", "/"])
def test_no_name_is_no_model(name):
    nameless = msgspec.structs.replace(EVERYTHING, models=(msgspec.structs.replace(MODELS[0], repo=""),))
    with pytest.raises(Unknown):
        catalogue.match(nameless, name)


QUANTIZED = ("-AWQ", "-GPTQ-Int4", "-FP8", "-FP8-dynamic", "-quantized.w8a8", "-NVFP4", "-GGUF", "-bnb-4bit", "-MXFP4")


@given(st.sampled_from(MODELS), st.sampled_from(QUANTIZED), st.sampled_from(("", "somebody/", "/home/x/models/")))
def test_a_quantized_copy_has_the_dimensions_of_its_model(model, ending, before):
    found = catalogue.model(EVERYTHING, before + model.repo.split("/")[1] + ending)
    assert (found.layers, found.hidden_size, found.attention) == (model.layers, model.hidden_size, model.attention)


def test_a_wrong_name_is_answered_with_the_nearest():
    with pytest.raises(Unknown) as caught:
        catalogue.model(EVERYTHING, "Qwen/Qwen3-33B")
    assert "qwen3-32b" in caught.value.hint


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Llama-3_3-Nemotron-Super-49B-v1_5", ("llama", "33", "nemotron", "super", "49b", "15")),
        ("Qwen3-30B-A3B-Instruct-2507-FP8", ("qwen", "3", "30b", "a3b", "2507")),
        ("mixtral-8x22b", ("mixtral", "8x22b")),
        ("Kimi-K2.5", ("kimi", "k25")),
        ("Mistral-7B-v0.3", ("mistral", "7b", "03")),
    ],
)
def test_a_name_is_cut_into_pieces(name, expected):
    assert pieces(name) == expected
