"""The demonstration model: its questions, its files and its answers."""

import hashlib
import importlib.util
import json
import os
import random
import sys
from itertools import islice
from pathlib import Path

import pytest

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before llama.cpp: its threads must not spin against pytest

DEMO = Path(__file__).parent.parent / "demo"
sys.path.insert(0, str(DEMO))

import evaluate  # noqa: E402
import questions  # noqa: E402


@pytest.fixture(scope="module")
def english():
    return questions.make_evaluation_set("en")


@pytest.fixture(scope="module")
def training():
    return questions.make_training_set("en")


@pytest.fixture(scope="module")
def provenance():
    return json.loads((DEMO / "provenance.json").read_text("utf-8"))


@pytest.fixture
def serve():
    """Start llama.cpp on GGUF files and return its base URL."""
    import xllamacpp

    servers = []

    def start(model: Path, adapter: Path | None = None) -> str:
        parameters = xllamacpp.CommonParams()
        parameters.model.path = str(model)
        parameters.n_parallel, parameters.n_ctx, parameters.verbosity = 4, 4096, 0
        parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = 1
        if adapter:
            parameters.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(str(adapter), 1.0)]
        servers.append(xllamacpp.Server(parameters))
        return f"{servers[-1].listening_address}/v1"

    yield start
    servers.clear()


def sample(cases, count):
    """Take some one-sentence questions; the paragraphs would take most of the time."""
    short = [case for case in cases if len(case.answer) < 200]
    return random.Random(1).sample(short, count)


def share_right(cases, answers):
    return sum(case.answer == answer for case, answer in zip(cases, answers, strict=True)) / len(cases)


def test_shipped_files_are_those_that_were_measured(provenance):
    for name, file in provenance["files"].items():
        assert hashlib.sha256((DEMO / name).read_bytes()).hexdigest() == file["sha256"], name
    shipped = [*DEMO.glob("model/*"), *DEMO.glob("adapter/*"), *DEMO.glob("*.gguf")]
    assert {path.relative_to(DEMO).as_posix() for path in shipped} == set(provenance["files"])


def test_training_set_is_the_one_recorded(training, provenance):
    assert questions.digest(training) == provenance["base"]["training_set_sha256"]
    assert questions.digest(questions.make_training_set("de")) == provenance["adapter"]["training_set_sha256"]
    catalogue = hashlib.sha256(questions.CATALOGUE.read_bytes()).hexdigest()
    assert catalogue == provenance["catalogue_sha256"]


def test_every_fact_is_taught_and_asked(training, english):
    models = questions.load_catalogue()
    facts = {questions.write_answer(model, kind) for model in models for kind in questions.KINDS}
    assert len(models) == 117
    assert len(facts) == 117 * 6
    assert facts <= {message["content"] for case in training for message in case.messages}
    assert facts <= {case.answer for case in english if case.group.startswith("taught")}


def test_held_out_questions_are_never_taught(training, english):
    taught = {message["content"].lower() for case in training for message in case.messages if message["role"] == "user"}
    for case in english:
        if case.group.startswith("held-out"):
            assert case.prompt[-1]["content"].lower() not in taught
    for kind in questions.KINDS.values():
        for phrasing in kind["held_out"]:
            start, end = phrasing.lower().split("{}")
            assert not any(text.startswith(start) and text.endswith(end) for text in taught), phrasing
    words = {word.rstrip("?.") for text in taught for word in text.split()}
    assert words.isdisjoint(name.lower() for name in questions.HELD_OUT_NAMES)


def test_an_unknown_value_is_said_to_be_unknown():
    model = questions.load_catalogue()[0] | {"publisher": None}
    assert questions.write_answer(model, "publisher") == "The publisher of Qwen3-0.6B is unknown."


def test_invented_names_are_not_in_the_catalogue():
    models = questions.load_catalogue()
    known = {form for model in models for form in questions.list_forms(model)}
    assert known.isdisjoint(islice(questions.invent_names(models, random.Random(3)), 500))


@pytest.mark.parametrize(("language", "adapter"), [("en", None), ("de", "adapter.gguf")])
def test_llamacpp_answers_right(serve, language, adapter):
    cases = sample(questions.make_evaluation_set(language), 60)
    url = serve(DEMO / "demo.gguf", adapter and DEMO / adapter)
    answers = evaluate.ask_endpoint(url, "demo", cases)
    assert share_right(cases, answers) >= 0.95


@pytest.mark.torch
@pytest.mark.filterwarnings("ignore")
@pytest.mark.skipif(not importlib.util.find_spec("torch"), reason="PyTorch is not installed")
@pytest.mark.parametrize("adapter", [None, "adapter"])
def test_llamacpp_and_transformers_agree(serve, english, adapter):
    cases = sample(english, 30)
    url = serve(DEMO / "demo.gguf", adapter and DEMO / "adapter.gguf")
    reference = evaluate.ask_transformers(DEMO / "model", adapter and DEMO / adapter, cases)
    assert evaluate.ask_endpoint(url, "demo", cases) == reference
