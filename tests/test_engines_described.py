"""SGLang, TensorRT-LLM and Dynamo as they are described: what is started, and how what they say is read."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from freehold.engines import Wanted, contract, engine
from freehold.engines.bridged import config_file, port
from freehold.engines.dynamo import Dynamo
from freehold.engines.flags import Flags, modules, problems
from freehold.engines.sglang import SGLang
from freehold.engines.trtllm import TensorRTLLM
from freehold.errors import BadConfig, DoesNotFit
from freehold.types import Adapter, Build, Host, Options, Plan, Refusal, Service, Stated, Tokens

GIB = 1 << 30
FLAGS = Path(__file__).parent / "data/flags"
SERVICE = contract.service(program="/opt/e/bin/python", devices=("/dev/nvidia0",))
SPECULATION = [
    {},
    {"speculative": "ngram", "draft_tokens": 4},
    {"speculative": "draft", "draft_tokens": 2},
    {"speculative": "mtp"},
]
# Of trtllm-serve in NVIDIA/TensorRT-LLM@029e223d: tests/unittest/api_stability/references/trtllm_serve_cli.yaml.
TRTLLM_SERVE = {
    *("--served_model_name", "--host", "--port", "--max_seq_len", "--max_batch_size", "--max_num_tokens", "--config"),
    *("--tensor_parallel_size", "--pipeline_parallel_size", "--moe_expert_parallel_size", "--kv_cache_dtype"),
    *("--tool_parser", "--reasoning_parser", "--chat_template", "--no-telemetry"),
}


def flags(name: str) -> Flags:
    return msgspec.json.decode((FLAGS / f"{name}.json").read_bytes(), type=Flags)


def given(launchable: Any, service: Service) -> dict[str, tuple[str, ...]]:
    return dict(modules(launchable.launch(service).argv))


def with_options(**options: Any) -> Service:
    return replace(SERVICE, options=Options(**options), draft="/models/small")


def value(words: tuple[str, ...], name: str) -> str:
    return words[words.index(name) + 1]


@pytest.mark.parametrize("name", ["sglang", "tensorrt-llm", "dynamo"])
def test_behind_the_bridge(name: str) -> None:
    launch = engine(name).launch(SERVICE)  # type: ignore[attr-defined]
    assert launch.argv[:2] == ("/opt/e/bin/python", "-I")
    assert launch.argv[2].endswith("/engines/bridge.py")
    assert launch.argv[2] in launch.readable
    at = launch.argv.index(SERVICE.socket)
    assert launch.argv[at + 1].partition("/")[0] == str(port(SERVICE))
    assert str(port(SERVICE)) in launch.argv[at + 2 :]


def test_replicas_have_ports_of_their_own() -> None:
    """Without a sandbox they share the machine."""
    ports = {port(replace(SERVICE, socket=f"/run/team/e-{number}/engine.sock")) for number in range(20)}
    assert len(ports) > 15


@pytest.mark.parametrize("options", SPECULATION)
@pytest.mark.parametrize(
    "plan", [{}, {"tp": 4, "ep": 4, "kv_dtype": "fp8", "batched_tokens": 8192}, {"kv_dtype": "bf16"}]
)
def test_sglang_takes_its_options(options: dict[str, Any], plan: dict[str, Any]) -> None:
    """As its own parser decides, of the release that is named."""
    service = with_options(**options, max_loras=4, tool_parser="qwen25", reasoning_parser="qwen3", prefix_caching=False)
    words = given(SGLang(), replace(service, plan=contract.plan(**plan)))["sglang.launch_server"]
    assert problems(words, flags("sglang-0.5.23")) == []
    assert value(words, "--max-loras-per-batch") == "5"  # the base is one of them


def test_sglang_is_told_the_share_of_weights_and_cache() -> None:
    """Of 80 GiB: 16 of weights and 40 of cache; the rest of vLLM's 90 % stays for activations and graphs."""
    words = given(SGLang(), SERVICE)["sglang.launch_server"]
    assert value(words, "--mem-fraction-static") == "0.700"


def test_trtllm_takes_its_options() -> None:
    plan = contract.plan(tp=2, ep=2, kv_dtype="fp8", batched_tokens=4096)
    service = replace(with_options(tool_parser="auto", reasoning_parser="auto"), plan=plan)
    words = given(TensorRTLLM(), service)["tensorrt_llm.commands.serve"]
    assert words[:2] == ("serve", SERVICE.weights)
    assert {word for word in words if word.startswith("--")} <= TRTLLM_SERVE


def test_trtllm_reads_the_rest_from_a_file() -> None:
    """Of what 80 GiB have left beside 16 of weights and 6 more, 40 are for the cache."""
    argv = TensorRTLLM().launch(SERVICE).argv
    at = argv.index("-w")
    assert argv[at + 1] == config_file(SERVICE) == "/run/team/e-1/config.yaml"
    settings = json.loads(argv[at + 2])
    assert settings["kv_cache_config"] == {"enable_block_reuse": False, "free_gpu_memory_fraction": 0.69}
    assert settings["return_perf_metrics"] is True
    assert value(argv, "--config") == config_file(SERVICE)


@pytest.mark.parametrize("options", SPECULATION)
def test_dynamo_s_worker_takes_vllm_s_options(options: dict[str, Any]) -> None:
    """Its own are those of dynamo/vllm/args.py of 1.6.1, of which there is no dump: its module wants vLLM."""
    service = with_options(**options, tool_parser="hermes", chat_template="/models/chat.jinja")
    started = given(Dynamo(), service)
    assert list(started) == ["dynamo.frontend", "dynamo.vllm"]
    assert problems(started["dynamo.frontend"], flags("dynamo.frontend-1.6.1")) == []
    words = list(started["dynamo.vllm"])
    for own in ("--dyn-tool-call-parser", "--custom-jinja-template"):
        at = words.index(own)
        del words[at : at + 2]
    assert problems(words, flags("vllm-0.32.0")) == []


def test_dynamo_is_up_once_it_has_the_model() -> None:
    launch = Dynamo().launch(SERVICE)
    assert f"{port(SERVICE)}/v1/models/demo" in launch.argv
    assert launch.env["DYN_FILE_KV"] == "/run/team/e-1/dynamo"
    assert {launch.env["DYN_TCP_RPC_HOST"], launch.env["DYN_TCP_RESPONSE_STREAM_HOST"]} == {"127.0.0.1"}


@pytest.mark.parametrize(
    ("name", "argument"),
    [
        *[("sglang", each) for each in ("--trust-remote-code", "--model", "--tp=2", "--no-enable-metrics", "--and")],
        *[("tensorrt-llm", each) for each in ("--config=/tmp/mine.yaml", "--trust_remote_code", "--max_seq", "--and")],
        *[("dynamo", each) for each in ("--namespace", "--kv-cache-memory-bytes=9", "--and", "--middleware")],
    ],
)
def test_what_an_endpoint_may_not_say(name: str, argument: str) -> None:
    with pytest.raises(BadConfig, match=argument.partition("=")[0]):
        engine(name).launch(with_options(arguments=(argument,)))  # type: ignore[attr-defined]


@pytest.mark.parametrize("argument", ["-ngl", "--verbose", "--lora=/a.gguf", "--no-slots", "--ctx_size", "--hos"])
def test_nor_of_llama_cpp(argument: str) -> None:
    service = replace(SERVICE, socket="/run/e.sock", options=Options(arguments=("--n-gpu-layers", "-1", argument)))
    with pytest.raises(BadConfig, match="cannot be among"):
        engine("llamacpp").launch(service)  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", ["sglang", "tensorrt-llm", "dynamo"])
def test_they_need_a_card(name: str) -> None:
    build = Build(
        name="b", format="safetensors", architecture="llama", precision="bf16", weight_bytes=GIB, layers=2, kv_heads=2,
        key_dim=64, value_dim=64, hidden_size=128, vocabulary=1000, context=2048,
    )  # fmt: skip
    host = Host(name="here", cpu="any", cores=2, memory_bytes=8 * GIB, available_bytes=8 * GIB)
    refusal = engine(name).fit(build, None, host, Wanted())  # type: ignore[attr-defined]
    assert isinstance(refusal, Refusal)
    assert "card" in refusal.reason


SGLANG_METRICS = b"""# HELP sglang:prompt_tokens_total Number of prefill tokens processed.
sglang:prompt_tokens_total{model_name="demo",is_streaming="true"} 30.0
sglang:prompt_tokens_total{model_name="demo",is_streaming="false"} 12.0
sglang:generation_tokens_total{model_name="demo",is_streaming="true"} 7.0
sglang:cached_tokens_total{model_name="demo",cache_source="device"} 16.0
sglang:cached_tokens_total{model_name="demo",cache_source="host"} 4.0
sglang:num_running_reqs{model_name="demo"} 2.0
sglang:num_queue_reqs{model_name="demo"} 5.0
sglang:token_usage{model_name="demo"} 0.25
sglang:max_total_num_tokens{model_name="demo"} 500000.0
sglang:kv_cache_memory_usage_gb{model_name="demo"} 12.5
"""
DYNAMO_METRICS = b"""dynamo_frontend_cached_tokens_sum{model="demo"} 4
dynamo_frontend_inflight_requests{model="demo"} 1
dynamo_frontend_input_sequence_tokens_sum{model="demo"} 10
dynamo_frontend_output_tokens_total{model="demo"} 8
dynamo_frontend_queued_requests{model="demo"} 0
"""
TRTLLM_METRICS = b"""trtllm_prompt_tokens_total{engine_type="undefined",model_name="undefined"} 9.0
trtllm_generation_tokens_total{engine_type="undefined",model_name="undefined"} 3.0
trtllm_num_requests_running{engine_type="undefined",model_name="undefined"} 1.0
trtllm_kv_cache_utilization{engine_type="undefined",model_name="undefined"} 0.5
"""


@pytest.mark.parametrize(
    ("name", "metrics", "tokens", "load"),
    [
        ("sglang", SGLANG_METRICS, Tokens(prompt=42, completion=7, cached=20), (2, 5, 0.25)),
        ("dynamo", DYNAMO_METRICS, Tokens(prompt=10, completion=8, cached=4), (1, 0, None)),
        ("tensorrt-llm", TRTLLM_METRICS, Tokens(prompt=9, completion=3), (1, None, 0.5)),
    ],
)
def test_what_they_count(name: str, metrics: bytes, tokens: Tokens, load: tuple[Any, ...]) -> None:
    described = engine(name)
    signals = described.signals(metrics)
    assert described.counters(metrics) == tokens
    assert (signals.running, signals.waiting, signals.kv_usage) == load


def test_what_sglang_says_of_its_memory() -> None:
    log = "Load weight end. elapsed=3.1 s, type=LlamaForCausalLM, avail mem=60.00 GB, mem usage=14.99 GB.\n"
    stated = SGLang().stated(log, SGLANG_METRICS)
    assert stated == Stated(weight_bytes=round(14.99 * GIB), kv_bytes=round(12.5 * GIB), kv_tokens=500_000)


@pytest.mark.parametrize(
    ("name", "line", "stage"),
    [
        ("sglang", "[2026-11-22] Load weight begin. avail mem=78.60 GB", ("loading the weights", None)),
        ("sglang", "Loading safetensors checkpoint shards:  50% Completed | 2/4", ("loading the weights", 0.5)),
        ("sglang", "Capturing batches (bs=8 avail_mem=6.10 GB):  25%|##", ("capturing graphs", 0.25)),
        ("sglang", "INFO:     Uvicorn running on http://127.0.0.1:20000", ("warming up", None)),
        ("dynamo", "Loading safetensors checkpoint shards:  75% Completed | 3/4", ("loading the weights", 0.75)),
        ("tensorrt-llm", "Uvicorn running on http://127.0.0.1:20000", ("opening its socket", None)),
        ("sglang", "anything else", None),
    ],
)
def test_what_they_say_while_they_start(name: str, line: str, stage: tuple[str, float | None] | None) -> None:
    assert engine(name).stage(line) == stage  # type: ignore[attr-defined]


SLOW = [
    *("vllm:cache_config_info{" + "a" * 60_000 + "} 1", "Loading weights" * 4_000, "loading shards: " * 4_000),
    *("Capturing CUDA graphs: " * 3_000, "Model architectures [" * 50_000, "Free memory on device " * 50_000),
    *("(EngineCore) ERROR ] Error" * 40_000, "Load weight end." * 60_000),
]


@pytest.mark.parametrize("name", ["vllm", "sglang", "tensorrt-llm", "dynamo", "llamacpp"])
@pytest.mark.parametrize("said", SLOW, ids=lambda said: said[:20])
def test_what_a_hostile_engine_prints_does_not_hold_up_the_daemon(name: str, said: str) -> None:
    """It reads logs and metrics on its event loop: a search that goes back and forth would stop all endpoints."""
    described: Any = engine(name)
    began_s = time.process_time()
    described.stage(said)
    described.stated(said, said.encode())
    described.complaint(said, SERVICE.plan)
    assert time.process_time() - began_s < 0.5


def test_sglang_without_room() -> None:
    plan: Plan = contract.plan()
    why = SGLang().complaint("RuntimeError: Not enough memory. Please try to increase --mem-fraction-static.", plan)
    assert isinstance(why, DoesNotFit)
    assert SGLang().complaint("all is well", plan) is None


@pytest.mark.parametrize("name", ["sglang", "tensorrt-llm", "dynamo"])
def test_a_flat_error_is_put_into_openai_s_shape(name: str) -> None:
    body = b'{"object":"error","message":"too long","type":"BadRequestError","param":"messages","code":400}'
    status, error = engine(name).error(400, body)
    assert (status, error.message, error.type, error.param, error.code) == (
        *(400, "too long", "BadRequestError", "messages", None),
    )


def test_salts_and_adapters() -> None:
    adapter = Adapter(name="german@2", path="/adapters/german")
    assert Dynamo().isolate("s", None, same=False, salted=True) == {"nvext": {"cache_salt": "s"}}
    assert SGLang().isolate("s", None, same=False, salted=True) == {"cache_salt": "s"}
    assert SGLang().ask(adapter, ()) == {"lora_path": "german@2"}
    assert json.loads(SGLang().load(adapter).body) == {"lora_name": "german@2", "lora_path": "/adapters/german"}
    assert (TensorRTLLM().salts, TensorRTLLM().adapters, Dynamo().adapters) == (False, "", "")
