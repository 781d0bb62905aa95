"""What is said about engines, without one: the described process, the counters, the errors."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from freehold.engines import Launchable, engine, prometheus
from freehold.errors import Unknown
from freehold.types import Launch, Plan, Service, Tokens, WireError

PLAN = Plan(
    build="smol-q8",
    host="here",
    context=4096,
    parallel=4,
    threads=7,
    weight_bytes=1,
    kv_bytes_per_token=1,
    kv_bytes=1,
    compute_bytes=1,
    available_bytes=9,
    requests_that_fit=4,
    steps=(),
)
FLAGS = (
    *("--model", "/w/smol.gguf", "--alias", "smol", "--host", "/run/e/x.sock"),
    *("--ctx-size", "16384", "--parallel", "4", "--threads", "7", "--threads-batch", "7", "--threads-http", "16"),
    *("--cache-ram", "0", "--fit", "off", "--log-verbosity", "2", "--metrics", "--slots", "--jinja", "--no-webui"),
)
ENV = {"HOME": "/tmp", "LANG": "C.UTF-8", "OMP_WAIT_POLICY": "PASSIVE", "PATH": "/usr/bin:/bin"}


STRANGE = "The engine answered Freehold with"


def launched(weights="/w/smol.gguf", name="smol", socket="/run/e/x.sock", **more) -> Launch:
    found = engine("llamacpp")
    assert isinstance(found, Launchable)
    return found.launch(Service(name=name, weights=weights, socket=socket, plan=PLAN, **more))


def test_llama_server_is_described():
    described = launched(program="/opt/llama-server")
    assert described == Launch(
        argv=("/opt/llama-server", *FLAGS),
        socket="/run/e/x.sock",
        env=ENV,
        weights=("/w/smol.gguf",),
        readable=("/opt/llama-server",),
    )


def test_the_embedded_llama_cpp_is_described():
    described = launched()
    server = next(path for path in described.readable if path.endswith("llamacpp_server.py"))
    assert described.argv == (sys.executable, "-I", server, *FLAGS)
    assert described.env == ENV
    assert described.weights == ("/w/smol.gguf",)
    assert sys.prefix not in described.readable  # it may be the folder that also holds the team's keys
    assert all(Path(path).exists() for path in described.readable)


def test_libraries_beside_a_binary_and_all_shards_can_be_read(tmp_path):
    for name in ("llama-server", "libllama.so", "libggml.so.0", "id_rsa"):
        (tmp_path / name).touch()
    binary = str(tmp_path / "llama-server")
    described = launched("/w/m-00001-of-00002.gguf", "m", "/run/x.sock", program=binary)
    assert described.weights == ("/w/m-00001-of-00002.gguf", "/w/m-00002-of-00002.gguf")
    assert described.readable == (binary, str(tmp_path / "libggml.so.0"), str(tmp_path / "libllama.so"))


def test_a_socket_that_llama_cpp_would_take_for_a_host_is_refused():
    with pytest.raises(ValueError, match=r"\.sock"):
        launched(socket="/run/e/socket")


LLAMACPP_METRICS = b"""# HELP llamacpp:prompt_tokens_total Number of prompt tokens processed, excluding cached tokens
# TYPE llamacpp:prompt_tokens_total counter
llamacpp:prompt_tokens_total 43
llamacpp:prompt_tokens_cached_total 40
llamacpp:tokens_predicted_total 1.2e+01
llamacpp:prompt_tokens_seconds 0.5
"""
VLLM_METRICS = b"""vllm:prompt_tokens_total{engine="0",model_name="a b} c"} 30.0
vllm:prompt_tokens_total{engine="1",model_name="a b} c"} 11.0 1700000000000
vllm:generation_tokens_total{engine="0",model_name="x"} 5.0
vllm:prefix_cache_hits_total{engine="0"} 16.0
vllm:e2e_request_latency_seconds_bucket{le="+Inf"} NaN
"""


@pytest.mark.parametrize(
    ("name", "metrics", "expected"),
    [
        ("llamacpp", LLAMACPP_METRICS, Tokens(prompt=83, completion=12, cached=40)),
        ("external", LLAMACPP_METRICS, Tokens(prompt=83, completion=12, cached=40)),
        ("external", VLLM_METRICS, Tokens(prompt=41, completion=5, cached=16)),
        ("llamacpp", b"", Tokens()),
        ("external", b"<html>\n} \n{\nnot metrics at all\n\xff", Tokens()),
    ],
)
def test_counters(name, metrics, expected):
    assert engine(name).counters(metrics) == expected


def test_a_metric_is_summed_over_its_labels():
    assert prometheus.totals(b'a{x="1"} 1\na{x="2"} 2 1700000000000\nb 3\nc NaN\nd +Inf\n') == {"a": 3, "b": 3}


def invalid(message: str, code: str | None = None) -> WireError:
    return WireError(message=message, type="invalid_request_error", code=code)


def broken(message: str, code: str) -> WireError:
    return WireError(message=message, type="server_error", code=code)


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (
            400,
            b'{"error":{"code":400,"message":"too long","type":"exceed_context_size_error","n_ctx":9}}',
            (400, invalid("too long", "context_length_exceeded")),
        ),
        (400, b'{"error":{"code":400,"message":"no","type":"invalid_request_error"}}', (400, invalid("no"))),
        (404, b'{"error":{"code":404,"message":"gone","type":"not_found_error"}}', (404, invalid("gone"))),
        (
            501,
            b'{"error":{"code":501,"message":"no embeddings","type":"not_supported_error"}}',
            (400, invalid("no embeddings", "not_supported")),
        ),
        (
            500,
            b'{"error":{"code":500,"message":"image input is not supported - hint","type":"server_error"}}',
            (400, invalid("image input is not supported - hint", "not_supported")),
        ),
        (
            503,
            b'{"error":{"code":503,"message":"Loading model","type":"unavailable_error"}}',
            (503, broken("Loading model", "engine_unavailable")),
        ),
        (500, b'{"error":{"code":500,"message":"oops","type":"server_error"}}', (502, broken("oops", "engine_failed"))),
        (500, b'{"error":{"code":500,"message":"new","type":"new"}}', (500, broken("new", "engine_failed"))),
        (500, b"<html>", (502, broken("The engine answered: <html>", "engine_failed"))),
        (413, b"", (413, invalid("The engine answered: nothing", "engine_failed"))),
        (200, b'{"error":"words"}', (502, broken(f"{STRANGE} 200; its operator must look at it.", "engine_failed"))),
    ],
)
def test_llama_cpps_errors_become_openais(status, body, expected):
    assert engine("llamacpp").error(status, body) == expected


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (
            400,
            b'{"error":{"message":"m","type":"BadRequestError","param":"input_tokens","code":400}}',
            (400, WireError(message="m", type="BadRequestError", param="input_tokens")),
        ),
        (429, b'{"error":{"message":"m","code":"slow_down"}}', (429, invalid("m", "slow_down"))),
        (502, b"Bad Gateway", (502, broken("The engine answered: Bad Gateway", "engine_failed"))),
    ],
)
def test_another_servers_errors_pass_as_they_are(status, body, expected):
    assert engine("external").error(status, body) == expected


def test_engines_go_by_name():
    assert isinstance(engine("llamacpp"), Launchable)
    assert not isinstance(engine("external"), Launchable)
    assert engine("external").ready_path == "/v1/models"
    assert {"lora", "id_slot"} <= engine("llamacpp").refused_fields.keys() <= engine("external").refused_fields.keys()
    with pytest.raises(Unknown) as unknown:
        engine("tgi")
    assert "external, llamacpp" in unknown.value.hint


def test_llama_cpp_keeps_groups_apart_by_their_slots():
    isolate = engine("llamacpp").isolate
    assert isolate("salt", 2, same=True, salted=False) == {"id_slot": 2, "cache_prompt": True}
    assert isolate("salt", 0, same=False, salted=False) == {"id_slot": 0, "cache_prompt": False}
    assert isolate("salt", None, same=True, salted=False) == {"cache_prompt": False}


def test_another_server_is_only_salted_where_it_knows_salts():
    isolate = engine("external").isolate
    assert isolate("salt", None, same=False, salted=True) == {"cache_salt": "salt"}
    assert isolate("salt", None, same=False, salted=False) == {}
    assert engine("external").hides_cache_hits


def test_a_third_party_engine_is_found_by_its_entry_point(tmp_path, monkeypatch):
    (tmp_path / "their_engine.py").write_text("class Theirs:\n    ready_path = '/ready'\n")
    metadata = tmp_path / "theirs-1.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1\n")
    (metadata / "entry_points.txt").write_text("[freehold.engines]\ntheirs = their_engine:Theirs\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert engine("theirs").ready_path == "/ready"
