"""vLLM, in an environment of its own: how to start it, what it says while it starts, how to talk to it.

What it does, as seen of 0.32.0 on its Unix socket, in the sandbox:

- HTTP answers only once everything is loaded: before, its socket refuses, so no 503. A start is seen in its log.
- It runs lscpu, which reads /sys/devices/system, and asks for its own address, which is VLLM_HOST_IP.
- kill -9 of the API server leaves EngineCore and its workers: only the sandbox ends them with it.
- An adapter that is loaded again under its name may answer from cached prompts of the old one (vLLM #42125): so each
  version has a name of its own. It takes a rank up to --max-lora-rank, of a list of its own.
- On a CPU requests for the base that share a step with others get the adapter of the last slot (`lora_weights[-1]` in
  lora/ops/torch_ops/lora_ops.py), and unloading empties no slot. Kernels for cards skip them.
- POST /sleep is answered with 200 where sleep mode is off, and nothing is freed: memory says, not the status.
- `usage` counts the prompt with what the cache gave; prompt_tokens_total does too, and once for each choice.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import msgspec

from freehold.engines import families, fields, prometheus
from freehold.engines.base import Launchable, Wanted
from freehold.errors import BadConfig, DoesNotFit, FreeholdError, NotReady
from freehold.facts import Model
from freehold.plan.units import GIB
from freehold.plan.vllm import Settings
from freehold.plan.vllm_fit import CPU_BLOCK_TOKENS, Asked, fit
from freehold.plan.weights import Split
from freehold.types import Adapter, Build, Call, Host, Launch, Plan, Refusal, Service, Signals, Stated, Tokens

VERSION = (0, 32, 0)  # that was run
_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # that --max-lora-rank takes
_CPU_FOLDERS = ("/sys/devices/system",)
_GPU_FOLDERS = ("/sys/devices", "/sys/bus/pci", "/sys/class/infiniband")
_PARTS = ("bin", "lib", "lib64", "include", "share", "opt", "pyvenv.cfg")
_COMPILER = Path("/usr/bin/g++")
_KV_NAMES = {"fp16": "float16"}  # where vLLM has other ones
_SHOWN = 300  # characters of what it says
_CACHES = {"VLLM_CACHE_ROOT": "vllm", "TRITON_CACHE_DIR": "triton", "TORCHINDUCTOR_CACHE_DIR": "inductor"}
ALONE = {"VLLM_HOST_IP": "127.0.0.1", "VLLM_NO_USAGE_STATS": "1", "VLLM_PLUGINS": ""}
_STAGES = (
    (re.compile(r"Initializing a V1 LLM engine"), "starting the engine core"),
    (re.compile(r"Starting to load model"), "loading the weights"),
    (re.compile(r"Loading safetensors checkpoint shards: +(\d{1,3})% Completed"), "loading the weights"),
    (re.compile(r"Dynamo bytecode transform|Compiling a graph|Warming up model for the compilation"), "compiling"),
    (re.compile(r"Capturing CUDA graphs.*?: +(\d{1,3})%"), "capturing graphs"),
    (re.compile(r"init engine \(profile"), "opening its socket"),
)
_TOO_LONG = re.compile(
    r"max seq len \((\d+)\), \(([\d.]+) GiB KV cache is needed, which is larger than the available KV cache memory "
    r"\(([\d.]+) GiB\)\.(?: Based on the available memory, the estimated maximum model length is (\d{1,15}))?"
)
_COMPLAINTS = (
    (
        re.compile(r"CUDA out of memory|No available memory for the cache blocks"),
        "the card's memory was full before the KV cache",
        "a smaller build, less context, more cards, or a larger card_share",
    ),
    (
        re.compile(r"Free memory on device .{0,200} is less than desired GPU memory utilization"),
        "other processes hold the card's memory",
        "nvidia-smi shows whose they are; or a smaller card_share",
    ),
    (
        re.compile(r"Model architectures (\[.{0,200}?\]) are not supported"),
        "this version of vLLM does not know the model's architecture",
        "a newer one: freehold engine install vllm --version X",
    ),
)
_WHOLE = re.compile(r"\d{1,15}")
# What vLLM says of a setting, or of why its core did not start, where nothing above knows it.
_SETTING = re.compile(r"^  Value error, (.+?)\.? \[type=value_error", re.MULTILINE)
_CAUSE = re.compile(
    r"^\((?:EngineCore|Vllm|Worker)[^)\n]{0,200}\) ERROR [^\]\n]{0,200}\] ([\w.]{0,200}(?:Error|Exception): .+)$",
    re.MULTILINE,
)
_GIB_SAID = {
    "weight_bytes": re.compile(r"Model loading took (\d{1,9}(?:\.\d{1,9})?) GiB"),
    "kv_bytes": re.compile(r"Available KV cache memory: (\d{1,9}(?:\.\d{1,9})?) GiB"),
    "graph_bytes": re.compile(r"Graph capturing finished in \d+ secs?, took (\d{1,9}(?:\.\d{1,9})?) GiB"),
}


class Vllm(Launchable):
    """One process group serves one folder of safetensors, its KV cache shared by all requests."""

    repeats_prompts = True
    refused_fields: Mapping[str, str] = fields.VLLM
    environment = True
    salts = True
    adapters = "hot"
    takes = frozenset({
        *("version", "tensor_parallel", "pipeline_parallel", "expert_parallel", "card_share", "batched_tokens"),
        *("kv_dtype", "prefix_caching", "speculative", "draft", "draft_tokens", "tool_parser", "reasoning_parser"),
        *("chat_template", "max_loras", "max_lora_rank"),
    })  # fmt: skip
    # They move it off its socket, run code or load files that nobody has gated, put prompts into the log, switch off
    # what it is counted by, or say otherwise what an endpoint has a key for.
    given = frozenset({
        *("--host", "--port", "--api-key", "--ssl-keyfile", "--ssl-certfile", "--root-path", "--config"),
        *("--trust-remote-code", "--middleware", "--tool-parser-plugin", "--reasoning-parser-plugin"),
        *("--io-processor-plugin", "--logits-processors", "--worker-cls", "--worker-extension-cls", "--scheduler-cls"),
        *("--distributed-executor-backend", "--model-class-overrides", "--lora-modules", "--allowed-local-media-path"),
        *("--allowed-media-domains", "--hf-token", "--download-dir", "--enable-prompt-embeds", "--enable-mm-embeds"),
        *("--speculative-config", "--spec-method", "--spec-model", "--spec-tokens", "--kv-cache-memory-bytes"),
        *("--gpu-memory-utilization", "--device-memory-utilization", "--tensor-parallel-size"),
        *("--pipeline-parallel-size", "--disable-log-stats", "--enable-log-requests", "--enable-log-outputs"),
    })  # fmt: skip
    stages = _STAGES
    # The first of either kind compiles for seconds, 15.6 for log probabilities on a CPU.
    warming = (
        {"logprobs": True, "top_logprobs": 1},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "boolean"}}}},
    )

    def fit(self, build: Build, model: Model | None, host: Host, wanted: Wanted) -> Plan | Refusal:
        if wanted.draft_tokens and not wanted.card:
            reason = "on a CPU vLLM 0.32 answers nonsense with speculation, wherever the temperature is above 0"
            return Refusal(subject=f"{build.name} on {host.name}", reason=reason, hint="leave speculative out")
        return paged(build, model, host, wanted)

    def launch(self, service: Service) -> Launch:
        """`service.program` is the Python of its environment. Raises BadConfig for arguments that are ours to give."""
        options, plan = service.options, service.plan
        argv = (
            *(service.program, "-I", "-m", "vllm.entrypoints.openai.api_server"),
            *("--model", service.weights, "--served-model-name", service.name, "--uds", service.socket),
            *("--max-model-len", str(plan.context), "--max-num-seqs", str(plan.parallel)),
            *(("--max-num-batched-tokens", str(plan.batched_tokens)) if plan.batched_tokens else ()),
            *memory(plan),
            "--enable-prefix-caching" if options.prefix_caching else "--no-enable-prefix-caching",
            *("--shutdown-timeout", str(service.drain_s)),
            # Otherwise a model may fill its answer with line breaks until it is cut.
            *("--structured-outputs-config", '{"backend":"xgrammar","disable_any_whitespace":true}'),
            *("--enable-prompt-tokens-details", "--disable-uvicorn-access-log"),
            *speculation(service),
            *_parsers(service),
            *(("--chat-template", options.chat_template) if options.chat_template else ()),
            *_loras(service),
        )
        return Launch(
            argv=(*argv, *self.arguments(service, argv)),
            socket=service.socket,
            env={
                **variables(service),
                **ALONE,
                "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1" if options.max_loras else "0",
                **({} if plan.card else _on_cpu(plan)),
            },
            weights=(*service.files, *service.draft_files),
            readable=(
                *interpreter(service.program),
                *machine_folders(plan),
                *((options.chat_template,) if options.chat_template else ()),
                *((service.adapter_folder,) if service.adapter_folder else ()),
            ),
            writable=(service.cache_folder,) if service.cache_folder else (),
            devices=service.devices,
        )

    def counters(self, metrics: bytes) -> Tokens:
        counted = prometheus.totals(metrics)
        return Tokens(
            prompt=counted.get("vllm:prompt_tokens_total", 0),
            completion=counted.get("vllm:generation_tokens_total", 0),
            cached=counted.get("vllm:prompt_tokens_cached_total", 0),
        )

    def signals(self, metrics: bytes) -> Signals:
        counted = prometheus.totals(metrics)
        usage = prometheus.first(metrics, "vllm:kv_cache_usage_perc")
        return Signals(
            running=counted.get("vllm:num_requests_running"),
            waiting=counted.get("vllm:num_requests_waiting"),
            kv_usage=usage,
            prefix_asked=counted.get("vllm:prefix_cache_queries_total", 0),
            prefix_hit=counted.get("vllm:prefix_cache_hits_total", 0),
            drafted=counted.get("vllm:spec_decode_num_draft_tokens_total", 0),
            accepted=counted.get("vllm:spec_decode_num_accepted_tokens_total", 0),
        )

    def stated(self, log: str, metrics: bytes) -> Stated:
        said = {name: round(float(f[1]) * GIB) for name, pattern in _GIB_SAID.items() if (f := pattern.search(log))}
        cache = prometheus.labels(metrics, "vllm:cache_config_info")
        if _WHOLE.fullmatch(kv := cache.get("kv_cache_memory_bytes", "")):
            said["kv_bytes"] = int(kv)
        tokens, concurrency = cache.get("kv_cache_size_tokens", ""), cache.get("kv_cache_max_concurrency", "")
        return Stated(
            **said,
            kv_tokens=int(tokens) if _WHOLE.fullmatch(tokens) else None,
            concurrency=float(concurrency) if re.fullmatch(r"\d{1,9}(\.\d+)?", concurrency) else None,
        )

    def complaint(self, log: str, plan: Plan) -> FreeholdError | None:
        if found := _TOO_LONG.search(log):
            longest = int(found[4] or 0)
            hint = f'this fits: a context of {longest:,}; or context = "auto"' if longest else "a smaller build"
            why = f"one request of {plan.context:,} tokens needs {found[2]} GiB of KV cache, and there are {found[3]}"
            error = DoesNotFit(why, hint=hint)
            error.longest = longest
            return error
        for pattern, why, hint in _COMPLAINTS:
            if found := pattern.search(log):
                named = f": {found[1]}" if pattern.groups else ""
                kind = NotReady if "architecture" in why else DoesNotFit
                return kind(f"{why}{named}", hint=hint)
        if found := _SETTING.search(log):
            return BadConfig(f"vLLM refuses what it is told: {found[1]}", hint="look at the endpoint in freehold.toml")
        if found := _CAUSE.search(log):
            return NotReady(f"vLLM did not start: {found[1][:_SHOWN]}", hint="freehold logs shows all it said")
        return None

    def load(self, adapter: Adapter) -> Call:
        body = msgspec.json.encode({"lora_name": adapter.name, "lora_path": adapter.path})
        return Call(method="POST", path="/v1/load_lora_adapter", body=body)

    def room(self, service: Service) -> int | None:
        """On a CPU requests without an adapter get what is in the last of its slots, and none is ever emptied."""
        return None if service.plan.card else service.options.max_loras

    def unload(self, adapter: Adapter) -> Call:
        body = msgspec.json.encode({"lora_name": adapter.name})
        return Call(method="POST", path="/v1/unload_lora_adapter", body=body)


def paged(build: Build, model: Model | None, host: Host, wanted: Wanted) -> Plan | Refusal:
    """The plan of an engine that shares one KV cache among its requests as vLLM does."""
    settings = Settings(
        version=(*wanted.version, 0, 0, 0)[:3] if wanted.version else VERSION,  # pyright: ignore[reportArgumentType]
        utilisation=wanted.card_share,
        sequences=wanted.parallel,
        batched_tokens=wanted.batched_tokens,
        kv_dtype=wanted.kv_dtype or "bf16",
        speculative=wanted.draft_tokens,
        draft_layers=wanted.draft_layers,
        block_tokens=16 if wanted.card else CPU_BLOCK_TOKENS,
    )
    asked = Asked(
        context=wanted.context or build.context,
        longest=wanted.longest,
        parallel=wanted.parallel,
        threads=wanted.threads,
        settings=settings,
        split=Split(wanted.tp, wanted.pp),
        card=wanted.card,
        free_bytes=wanted.free_bytes,
        draft_bytes=wanted.draft_bytes,
    )
    plan = fit(build, model, host, asked)
    return plan if isinstance(plan, Refusal) else msgspec.structs.replace(plan, ep=wanted.ep)


def memory(plan: Plan) -> tuple[str, ...]:
    kv = () if plan.kv_dtype in ("", "bf16") else ("--kv-cache-dtype", _KV_NAMES.get(plan.kv_dtype, plan.kv_dtype))
    if not plan.card:
        return (*kv, "--kv-cache-memory-bytes", str(plan.kv_bytes))
    return (
        *kv,
        *("--gpu-memory-utilization", f"{plan.card_share:g}"),
        *("--tensor-parallel-size", str(plan.tp), "--pipeline-parallel-size", str(plan.pp)),
        *(("--enable-expert-parallel",) if plan.ep > 1 else ()),
    )


def speculation(service: Service) -> tuple[str, ...]:
    options = service.options
    if not options.speculative:
        return ()
    how: dict[str, object] = {"num_speculative_tokens": options.draft_tokens}
    match options.speculative:
        case "ngram":
            how |= {"method": "ngram", "prompt_lookup_max": 4, "prompt_lookup_min": 2}
        case "draft":
            how |= {"method": "draft_model", "model": service.draft}
        case "mtp":
            how |= {"method": "mtp"}
    return ("--speculative-config", msgspec.json.encode(how).decode())


def _parsers(service: Service) -> tuple[str, ...]:
    tools = service.options.tool_parser or families.tool_parser(service.family, service.marks)
    reasoning = service.options.reasoning_parser or families.REASONING.get(service.family, "")
    return (
        *(("--enable-auto-tool-choice", "--tool-call-parser", tools) if tools else ()),
        *(("--reasoning-parser", reasoning) if reasoning else ()),
    )


def _loras(service: Service) -> tuple[str, ...]:
    """Twice as many stay in memory beside the card: those used longest ago are loaded again from their folders."""
    options = service.options
    if not options.max_loras:
        return ()
    rank = next((each for each in _RANKS if each >= options.max_lora_rank), _RANKS[-1])
    many = str(options.max_loras + (not service.plan.card))  # one is never filled there: see `room`
    return ("--enable-lora", "--max-loras", many, "--max-cpu-loras", str(2 * options.max_loras),
            "--max-lora-rank", str(rank))  # fmt: skip


def variables(service: Service) -> dict[str, str]:
    """Of any engine that has an environment of its own."""
    kept = service.cache_folder
    return {
        "HF_HUB_OFFLINE": "1",
        "HOME": "/tmp",  # noqa: S108 - inside the sandbox, a folder of its own
        "LANG": "C.UTF-8",
        "NO_COLOR": "1",
        "PATH": f"{Path(service.program).parent}:/usr/bin:/bin",
        **{name: f"{kept}/{folder}" for name, folder in _CACHES.items() if kept},
    }


def _on_cpu(plan: Plan) -> dict[str, str]:
    """Left to itself every replica binds its threads to the same cores: beside a busy one another never comes up."""
    return {
        "OMP_NUM_THREADS": str(plan.threads or 1),
        "OMP_WAIT_POLICY": "PASSIVE",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        # Without a compiler the first request for log probabilities would end the engine.
        **({} if _COMPILER.exists() else {"TORCHDYNAMO_DISABLE": "1"}),
    }


def machine_folders(plan: Plan) -> tuple[str, ...]:
    """What it looks at to know the machine; not every machine has all of them."""
    return tuple(folder for folder in (_GPU_FOLDERS if plan.card else _CPU_FOLDERS) if Path(folder).exists())


def interpreter(program: str) -> tuple[str, ...]:
    """An environment, and the Python that it was made from: of both only their own parts, beside which a team may have
    other things. What is compiled includes Python.h.
    """
    folder, home = Path(program).parent.parent, Path(program).resolve().parent.parent
    parts = (at / part for at in dict.fromkeys((folder, home)) for part in _PARTS)
    shown = (part for part in parts if part.exists() and not part.is_relative_to("/usr"))
    return tuple(dict.fromkeys((str(folder / "bin"), *map(str, shown))))
