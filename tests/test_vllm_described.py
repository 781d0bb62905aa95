"""vLLM as it is described: what is started, and how what it says is read. test_vllm.py runs the real one.

Log lines are as vLLM 0.32.0 writes them; those of GPUs were read in its source, as there is none here.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from freehold.engines import Wanted, contract, families, flags
from freehold.engines.vllm import VERSION, Vllm
from freehold.errors import BadConfig, DoesNotFit, NotReady
from freehold.types import Adapter, Build, Host, Options, Plan, Refusal, Service, Signals, Stated, Tokens

VLLM = Vllm()
GIB = 1 << 30
KNOWN = flags.decode((Path(__file__).parent / "data/flags/vllm-0.32.0.json").read_bytes())
ON_CPU = {"card": "", "card_share": 0.0, "kv_bytes": 17 << 20}
BEGIN = ("/opt/vllm/bin/python", "-I", "-m", "vllm.entrypoints.openai.api_server")


def service(plan: dict[str, Any] | None = None, options: dict[str, Any] | None = None, **changes: Any) -> Service:
    made = contract.service(program=BEGIN[0], plan=contract.plan(**(plan or {})), **changes)
    return replace(made, options=Options(**(options or {})))


def given_to(asked: Service) -> dict[str, str]:
    """Its options, by name; each launch is one that vLLM's own parser takes."""
    argv = VLLM.launch(asked).argv
    assert argv[:4] == BEGIN
    assert flags.problems(argv[4:], KNOWN) == []
    found: dict[str, str] = {}
    for word in argv[4:]:
        if word.startswith("--"):
            found[word] = ""
        else:
            assert not found[list(found)[-1]], f"{word} follows no option"
            found[list(found)[-1]] = word
    return found


LAUNCHES: dict[str, tuple[Service, dict[str, str], set[str]]] = {  # what it must say, and what it must not
    "a CPU": (
        service(ON_CPU),
        {"--max-model-len": "4096", "--max-num-seqs": "32", "--kv-cache-memory-bytes": str(17 << 20)},
        {"--gpu-memory-utilization", "--tensor-parallel-size", "--kv-cache-dtype", "--max-num-batched-tokens"},
    ),
    "one card": (
        service(),
        {"--gpu-memory-utilization": "0.9", "--tensor-parallel-size": "1", "--pipeline-parallel-size": "1"},
        {"--kv-cache-memory-bytes", "--enable-expert-parallel", "--enable-lora", "--speculative-config"},
    ),
    "eight cards, experts on each": (
        service({"tp": 4, "pp": 2, "ep": 4, "batched_tokens": 8192}),
        {"--tensor-parallel-size": "4", "--pipeline-parallel-size": "2", "--enable-expert-parallel": "",
         "--max-num-batched-tokens": "8192"},
        set(),
    ),
    "FP8 cache": (service({"kv_dtype": "fp8"}), {"--kv-cache-dtype": "fp8"}, set()),
    "FP16 cache, as vLLM calls it": (service({"kv_dtype": "fp16"}), {"--kv-cache-dtype": "float16"}, set()),
    "NVFP4 cache": (service({"kv_dtype": "nvfp4"}), {"--kv-cache-dtype": "nvfp4"}, set()),
    "the model's own cache": (service({"kv_dtype": "bf16"}), {}, {"--kv-cache-dtype"}),
    "no prefix cache": (
        service(options={"prefix_caching": False}), {"--no-enable-prefix-caching": ""}, {"--enable-prefix-caching"},
    ),
    "a prefix cache": (service(), {"--enable-prefix-caching": ""}, {"--no-enable-prefix-caching"}),
    "time to finish": (service(drain_s=30), {"--shutdown-timeout": "30"}, set()),
    "a template": (service(options={"chat_template": "/w/chat.jinja"}), {"--chat-template": "/w/chat.jinja"}, set()),
    "room for adapters": (
        service(options={"max_loras": 4, "max_lora_rank": 20}),
        {"--enable-lora": "", "--max-loras": "4", "--max-cpu-loras": "8", "--max-lora-rank": "32"},
        set(),
    ),
    "room for adapters on a CPU": (
        service(ON_CPU, {"max_loras": 4, "max_lora_rank": 8}), {"--max-loras": "5", "--max-cpu-loras": "8"}, set(),
    ),
    "arguments of the team's own": (service(options={"arguments": ("--seed", "7")}), {"--seed": "7"}, set()),
}  # fmt: skip


@pytest.mark.parametrize(("asked", "said", "unsaid"), LAUNCHES.values(), ids=LAUNCHES)
def test_what_it_is_told(asked: Service, said: dict[str, str], unsaid: set[str]) -> None:
    told = given_to(asked)
    assert {name: told.get(name) for name in said} == said
    assert not unsaid & told.keys()
    assert told["--model"] == asked.weights
    assert (told["--uds"], told["--served-model-name"]) == (asked.socket, "demo")


SPECULATION = {
    "ngram": {"method": "ngram", "prompt_lookup_max": 4, "prompt_lookup_min": 2},
    "draft": {"method": "draft_model", "model": "/models/small"},
    "mtp": {"method": "mtp"},
}


@pytest.mark.parametrize("kind", SPECULATION)
def test_how_it_guesses(kind: str) -> None:
    told = given_to(service(options={"speculative": kind, "draft_tokens": 5}, draft="/models/small",
                            draft_files=("/models/small/model.safetensors",)))  # fmt: skip
    assert json.loads(told["--speculative-config"]) == {**SPECULATION[kind], "num_speculative_tokens": 5}


def test_a_draft_model_is_one_of_its_weights() -> None:
    asked = service(options={"speculative": "draft"}, draft="/models/small", draft_files=("/models/small/a",))
    assert set(VLLM.launch(asked).weights) == {*asked.files, "/models/small/a"}


@pytest.mark.parametrize(
    ("family", "marks", "own", "tools", "reasoning"),
    [
        ("qwen3", {"<tool_call>"}, {}, "hermes", None),
        ("qwen3", set(), {}, None, None),  # vLLM would not start without the mark
        ("qwen3", set(), {"tool_parser": "hermes", "reasoning_parser": "qwen3"}, "hermes", "qwen3"),
        ("llama", {"<|python_tag|>"}, {}, "llama3_json", None),
        ("llama", {"<tool_call>"}, {}, None, None),
        ("mistral", {"[TOOL_CALLS]"}, {}, "mistral", None),
        ("gpt_oss", set(), {}, "openai", "openai_gptoss"),
        ("minimax_m2", set(), {}, "minimax_m2", "minimax_m2"),
        ("nobody_knows", {"<tool_call>"}, {}, None, None),
    ],
)
def test_parsers_are_those_of_the_family(family, marks, own, tools, reasoning) -> None:
    told = given_to(service(options=own, family=family, marks=frozenset(marks)))
    assert (told.get("--tool-call-parser"), told.get("--reasoning-parser")) == (tools, reasoning)
    assert ("--enable-auto-tool-choice" in told) == bool(tools)


def test_every_tool_parser_of_ours_is_one_of_vllm_s() -> None:
    """Of those that its help names; it names all that it comes with."""
    known = KNOWN.option("--tool-call-parser")
    assert known
    assert set(families.TOOLS.values()) <= set(known.known)
    assert families.MARKS.keys() <= set(families.TOOLS.values())


@given(st.integers(1, 512))
def test_room_for_a_rank_is_the_next_that_vllm_knows(rank: int) -> None:
    said = int(given_to(service(options={"max_loras": 1, "max_lora_rank": rank}))["--max-lora-rank"])
    known = sorted(int(each) for each in KNOWN.option("--max-lora-rank").choices)  # type: ignore[union-attr]
    assert said == min(each for each in known if each >= rank)


@pytest.mark.parametrize(
    "argument",
    ["--model", "--port=1", "--api-key", "--trust-remote-code", "--middleware", "--lora-modules=a=b", "--config=x",
     "--worker-cls=x.Y", "--hf-token", "--tool_parser_plugin=x.py", "--trust_remote_code",
     "--trust-remote", "--allowed_local_media_path=/", "-tp=2", "-O3", "-sc.method=ngram", "--",
     "--speculative-config.x=1", "--no-enable-prefix-caching", "--no-trust-remote-code", "--max-model-len",
     "--max_num_seqs=9", "--uds", "--enable-mm", "--served_model_name.x"],
)  # fmt: skip
def test_what_an_endpoint_may_not_say(argument: str) -> None:
    with pytest.raises(BadConfig, match="cannot be among the arguments"):
        VLLM.launch(service(options={"arguments": (argument,)}))


# the sandbox that it gets


def test_what_it_finds_in_the_sandbox(tmp_path: Path) -> None:
    """The virtual environment, the Python it was made from, and what it looks at to know the machine."""
    base, made = tmp_path / "python", tmp_path / "vllm"
    for folder in (base / "bin", base / "lib", base / "include", made / "bin"):
        folder.mkdir(parents=True)
    (base / "bin" / "python3").touch()
    (made / "bin" / "python").symlink_to(base / "bin" / "python3")
    asked = service(ON_CPU, {"chat_template": "/w/chat.jinja"}, adapter_folder="/state/adapters")
    launch = VLLM.launch(replace(asked, program=str(made / "bin" / "python"), devices=("/dev/nvidia0",)))
    expected = {str(made / "bin"), *(str(base / part) for part in ("bin", "lib", "include"))}
    assert expected | {"/w/chat.jinja", "/state/adapters"} <= set(launch.readable)
    assert launch.weights == asked.files
    assert launch.devices == ("/dev/nvidia0",)
    assert launch.writable == ("/var/cache/team/compiled",)
    assert launch.env["PATH"].startswith(f"{made}/bin:")
    assert {launch.env[name] for name in ("VLLM_CACHE_ROOT", "TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR")} == {
        f"/var/cache/team/compiled/{each}" for each in ("vllm", "triton", "inductor")
    }


def test_replicas_on_a_cpu_are_not_bound_to_the_same_cores() -> None:
    env = VLLM.launch(service({**ON_CPU, "threads": 7})).env
    assert (env["OMP_NUM_THREADS"], env["VLLM_CPU_OMP_THREADS_BIND"]) == ("7", "nobind")
    assert not {name for name in VLLM.launch(service()).env if "OMP" in name}


def test_its_environment_asks_nobody() -> None:
    env = VLLM.launch(service()).env
    assert (env["HF_HUB_OFFLINE"], env["VLLM_NO_USAGE_STATS"], env["VLLM_HOST_IP"]) == ("1", "1", "127.0.0.1")
    assert env["VLLM_PLUGINS"] == ""
    assert env["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] == "0"
    assert VLLM.launch(service(options={"max_loras": 1})).env["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] == "1"
    assert "VLLM_SERVER_DEV_MODE" not in env  # POST /sleep would be open, and free nothing


# what it says

CORE, WORKER = "(EngineCore pid=20) INFO 11-22 08:35:31 ", "(Worker pid=32) INFO 11-22 08:35:31 "
SHARDS = "Loading safetensors checkpoint shards:"
STAGES = {
    f"{CORE}[core.py:133] Initializing a V1 LLM engine (v0.32.0) with config: ...": ("starting the engine core", None),
    f"{WORKER}[gpu_model_runner.py:5040] Starting to load model /m...": ("loading the weights", None),
    f"{SHARDS}  25% Completed | 1/4 [00:01<00:03,  1.0it/s]": ("loading the weights", 0.25),
    f"\x1b[0;36m(Worker_TP0 pid=9)\x1b[0;0m {SHARDS} 100% Completed | 4/4": ("loading the weights", 1.0),
    f"{CORE}[backends.py:1167] Dynamo bytecode transform time: 4.21 s": ("compiling", None),
    f"{CORE}[backends.py:399] Compiling a graph for compile range (1, 8192) takes 9.81 s": ("compiling", None),
    f"{WORKER}[cpu_model_runner.py:87] Warming up model for the compilation...": ("compiling", None),
    "Capturing CUDA graphs (mixed prefill-decode, PIECEWISE):  40%|####      | 14/35": ("capturing graphs", 0.4),
    "Capturing CUDA graphs (decode, FULL): 100%|##########| 35/35": ("capturing graphs", 1.0),
    f"{CORE}[core.py:402] init engine (profile, create kv cache, warmup model) took 1 s": ("opening its socket", None),
    f"{CORE}[utils.py:347] Using LBHNC KV cache layout.": None,
    "": None,
}


@pytest.mark.parametrize(("line", "stage"), STAGES.items())
def test_the_stages_of_a_start(line: str, stage: tuple[str, float | None] | None) -> None:
    assert VLLM.stage(line) == stage


GPU_LOG = """\
(EngineCore pid=9) INFO 11-22 08:35:31 [gpu_model_runner.py:5150] Model loading took 14.99 GiB memory and 3.1 seconds
(EngineCore pid=9) INFO 11-22 08:35:39 [gpu_worker.py:760] Available KV cache memory: 58.11 GiB
(EngineCore pid=9) INFO 11-22 08:35:39 [kv_cache_utils.py:2327] GPU KV cache size: 476,000 tokens, Maximum ...
(EngineCore pid=9) INFO 11-22 08:35:45 [gpu_model_runner.py:6582] Graph capturing finished in 6 secs, took 0.52 GiB
"""
GPU_METRICS = (
    b'vllm:cache_config_info{block_size="16",engine="0",gpu_memory_utilization="0.95",kv_cache_max_concurrency='
    b'"58.105","kv_cache_memory_bytes"="None",kv_cache_memory_bytes="None",kv_cache_size_tokens="476000"} 1.0\n'
)
CPU_METRICS = GPU_METRICS.replace(b'kv_cache_memory_bytes="None"', b'kv_cache_memory_bytes="17039360"')


def test_what_it_says_of_its_memory() -> None:
    assert VLLM.stated(GPU_LOG, GPU_METRICS) == Stated(
        weight_bytes=round(14.99 * GIB), kv_bytes=round(58.11 * GIB), graph_bytes=round(0.52 * GIB), kv_tokens=476_000,
        concurrency=58.105,
    )  # fmt: skip
    assert VLLM.stated("", CPU_METRICS) == Stated(kv_bytes=17_039_360, kv_tokens=476_000, concurrency=58.105)
    assert VLLM.stated("", b"") == Stated()


PYDANTIC = "pydantic_core._pydantic_core.ValidationError: 1 validation error for SchedulerConfig\n  Value error, "
INPUT = "[type=value_error, input_value=ArgsKwargs((), {'runner_type': 'generate'}), input_type=ArgsKwargs]"
ERROR = "(EngineCore pid=22) ERROR 11-22 08:39:38 [core.py:1510] "
COMPLAINTS: dict[str, tuple[type[Exception], str]] = {
    "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79 GiB": (
        DoesNotFit, "full before the KV cache"),
    "ValueError: No available memory for the cache blocks. Try increasing `gpu_memory_utilization` when ...": (
        DoesNotFit, "full before the KV cache"),
    "ValueError: Free memory on device cuda:0 (10.2/79.19 GiB) on startup is less than desired GPU memory utilization "
    "(0.92, 72.85 GiB). Decrease GPU memory utilization or reduce GPU memory used by other processes.": (
        DoesNotFit, "other processes hold"),
    f"{PYDANTIC}Model architectures ['NewForCausalLM'] are not supported for now. Supported: dict_keys(['A']) {INPUT}":
        (NotReady, r"architecture: \['NewForCausalLM'\]"),
    f"{PYDANTIC}max_num_batched_tokens (4) must be greater than or equal to max_num_seqs (8). {INPUT}": (
        BadConfig, r"told: max_num_batched_tokens \(4\) must be greater than or equal to max_num_seqs \(8\)$"),
    f"{ERROR}EngineCore failed to start.\n{ERROR}    raise ValueError(\n{ERROR}ValueError: block_size 7 is not known\n"
    "RuntimeError: Engine core initialization failed. See root cause above.": (
        NotReady, "did not start: ValueError: block_size 7 is not known$"),
    "(Worker_TP1 pid=3) ERROR 11-22 08:39:38 [multiproc_executor.py:9] torch.AcceleratorError: CUDA error: no kernel\n"
    f"{ERROR}RuntimeError: Worker failed with error": (
        NotReady, "torch.AcceleratorError: CUDA error: no kernel$"),
}  # fmt: skip


@pytest.mark.parametrize(("log", "kind", "match"), [(log, *why) for log, why in COMPLAINTS.items()])
def test_why_it_does_not_start(log: str, kind: type[Exception], match: str) -> None:
    error = VLLM.complaint(f"something before\n{log}\nsomething after\n", contract.plan())
    with pytest.raises(kind, match=match):
        raise error or AssertionError("nothing")
    assert error
    assert error.hint


def test_of_an_ordinary_log_it_says_nothing() -> None:
    assert VLLM.complaint(GPU_LOG, contract.plan()) is None


TOO_LONG = (
    "ValueError: To serve at least one request with the model's max seq len (131072), (16.0 GiB KV cache is needed, "
    "which is larger than the available KV cache memory (5.25 GiB). {}Try increasing `gpu_memory_utilization` ..."
)


def test_a_context_that_does_not_fit_comes_with_one_that_does() -> None:
    plan: Plan = contract.plan(context=131_072)
    log = TOO_LONG.format("Based on the available memory, the estimated maximum model length is 43008. ")
    error = VLLM.complaint(log, plan)
    assert isinstance(error, DoesNotFit)
    assert (error.longest, error.hint) == (43_008, 'this fits: a context of 43,008; or context = "auto"')
    assert str(error) == "one request of 131,072 tokens needs 16.0 GiB of KV cache, and there are 5.25"
    without = VLLM.complaint(TOO_LONG.format(""), plan)
    assert isinstance(without, DoesNotFit)
    assert not without.longest


# what it counts

METRICS = b"""\
# HELP vllm:prompt_tokens_total Number of prefill tokens processed.
vllm:prompt_tokens_total{engine="0",model_name="demo"} 300.0
vllm:prompt_tokens_cached_total{engine="0",model_name="demo"} 128.0
vllm:generation_tokens_total{engine="0",model_name="demo"} 42.0
vllm:generation_tokens_total{engine="1",model_name="demo"} 8.0
vllm:num_requests_running{engine="0",model_name="demo"} 2.0
vllm:num_requests_waiting{engine="0",model_name="demo"} 1.0
vllm:kv_cache_usage_perc{engine="0",model_name="demo"} 0.25
vllm:prefix_cache_queries_total{engine="0",model_name="demo"} 300.0
vllm:prefix_cache_hits_total{engine="0",model_name="demo"} 128.0
vllm:spec_decode_num_draft_tokens_total{engine="0",model_name="demo"} 30.0
vllm:spec_decode_num_accepted_tokens_total{engine="0",model_name="demo"} 12.0
"""


def test_what_it_counts() -> None:
    assert VLLM.counters(METRICS) == Tokens(prompt=300, completion=50, cached=128)
    assert VLLM.signals(METRICS) == Signals(
        running=2, waiting=1, kv_usage=0.25, prefix_asked=300, prefix_hit=128, drafted=30, accepted=12
    )


def test_on_a_cpu_it_is_not_started_with_speculation() -> None:
    """Its answers go wrong; see docs/engines.md. With a card it is planned."""
    build, host = small(), Host(name="here", cpu="", cores=2, memory_bytes=1 << 40, available_bytes=1 << 40)
    refused = VLLM.fit(build, None, host, Wanted(context=64, draft_tokens=3))
    assert isinstance(refused, Refusal)
    assert "speculation" in refused.reason
    assert isinstance(VLLM.fit(build, None, host, Wanted(context=64)), Plan)


def small() -> Build:
    return Build(
        name="small", format="safetensors", architecture="llama", precision="BF16", weight_bytes=1 << 20, layers=2,
        kv_heads=2, key_dim=64, value_dim=64, hidden_size=128, vocabulary=1000, context=128,
    )  # fmt: skip


def test_on_a_cpu_the_last_slot_stays_empty() -> None:
    asked = service(ON_CPU, {"max_loras": 4})
    assert VLLM.room(asked) == int(given_to(asked)["--max-loras"]) - 1 == 4
    assert VLLM.room(service(options={"max_loras": 4})) is None


def test_adapters_are_put_on_it_while_it_serves() -> None:
    adapter = Adapter(name="german@2-ab", path="/state/adapters/demo/german-x/given", rank=8)
    call, gone = VLLM.load(adapter), VLLM.unload(adapter)
    assert (call.method, call.path, gone.path) == ("POST", "/v1/load_lora_adapter", "/v1/unload_lora_adapter")
    assert msgspec.json.decode(call.body) == {"lora_name": adapter.name, "lora_path": adapter.path}
    assert msgspec.json.decode(gone.body) == {"lora_name": adapter.name}
    assert VLLM.ask(adapter, ()) == {"model": "german@2-ab"}
    assert VERSION == (0, 32, 0)
