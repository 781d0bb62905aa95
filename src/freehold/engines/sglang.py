"""SGLang, in an environment of its own and behind the bridge: described, never run here.

Read in the wheel sglang 0.5.23: server_args and arg_groups for its options (the tests hold them against its own parser
too), entrypoints/http_server.py and entrypoints/openai for its routes, observability/metrics_collector.py for its
counters, model_executor for what its log says. Nothing was started: the wheel wants a GPU.

- HTTP answers before the model does: /health with 503 until the warm-up is over. Later /health makes a token, and takes
  a second at least; /ready only looks.
- `cache_salt` is taken by chat and by completions, and is part of the key of its prefix cache, as is the adapter's id.
- An adapter is asked for as `lora_path`, by its name, or as `model` with a colon, which goes before `lora_path`.
- Its counters count a request when it ends.
- Its share, --mem-fraction-static, is of weights and KV cache alone; activations and graphs come on top. vLLM's is of
  all of it: so the plan's own sum is told. The constants of that plan are vLLM's, and unmeasured here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import msgspec

from freehold.engines import fields, prometheus
from freehold.engines.bridged import Bridged, port
from freehold.errors import DoesNotFit, FreeholdError
from freehold.plan.units import GIB
from freehold.types import Adapter, Call, Launch, Plan, Service, Signals, Stated, Tokens

VERSION = (0, 5, 23)  # that was read
_KV = {"fp8": "fp8_e4m3", "nvfp4": "nvfp4"}  # all others: as the model is
_STAGES = (
    (re.compile(r"Load weight begin"), "loading the weights"),
    (re.compile(r"loading .*shards: +(\d{1,3})%", re.IGNORECASE), "loading the weights"),
    (re.compile(r"Memory pool end"), "making room for the KV cache"),
    (re.compile(r"Capturing batches.*?: +(\d{1,3})%"), "capturing graphs"),
    (re.compile(r"Uvicorn running on"), "warming up"),
)
_WEIGHTS = re.compile(r"Load weight end\..{0,200}mem usage=(\d{1,9}(?:\.\d{1,9})?) GB")  # it calls 2^30 a GB
_FULL = re.compile(r"Not enough memory\. Please try to increase --mem-fraction-static|CUDA out of memory")


class SGLang(Bridged):
    """One process group serves one folder of safetensors, its KV cache shared by all requests."""

    ready_path = "/ready"
    refused_fields: Mapping[str, str] = fields.SGLANG
    salts = True
    adapters = "hot"
    stages = _STAGES
    takes = Bridged.takes | {"prefix_caching", "speculative", "draft", "draft_tokens", "max_loras", "max_lora_rank"}
    given = frozenset({
        *("--model", "--api-key", "--admin-api-key", "--ssl-keyfile", "--ssl-certfile", "--config", "--lora-paths"),
        *("--trust-remote-code", "--enable-custom-logit-processor", "--trust-request-chat-template"),
        *("--forward-hooks", "--download-dir", "--dist-init-addr", "--log-requests", "--crash-dump-folder"),
        *("--tp", "--tensor-parallel-size", "--pipeline-parallel-size", "--expert-parallel-size", "--ep"),
    })  # fmt: skip

    def launch(self, service: Service) -> Launch:
        """`service.program` is the Python of its environment. Raises BadConfig for arguments that are ours to give."""
        options, plan = service.options, service.plan
        program = (
            *(service.program, "-I", "-m", "sglang.launch_server"),
            *("--model-path", service.weights, "--served-model-name", service.name),
            *("--host", "127.0.0.1", "--port", str(port(service))),
            *("--context-length", str(plan.context), "--max-running-requests", str(plan.parallel)),
            *(("--chunked-prefill-size", str(plan.batched_tokens)) if plan.batched_tokens else ()),
            *(("--mem-fraction-static", f"{_share(plan):.3f}") if plan.card else ()),
            *("--tp-size", str(plan.tp), "--pp-size", str(plan.pp), "--ep-size", str(plan.ep)),
            *(("--kv-cache-dtype", _KV[plan.kv_dtype]) if plan.kv_dtype in _KV else ()),
            *(() if options.prefix_caching else ("--disable-radix-cache",)),
            *("--enable-metrics", "--enable-cache-report", "--log-level-http", "warning"),
            "--constrained-json-disable-any-whitespace",
            *_speculation(service),
            *(("--tool-call-parser", options.tool_parser) if options.tool_parser else ()),
            *(("--reasoning-parser", options.reasoning_parser) if options.reasoning_parser else ()),
            *(("--chat-template", options.chat_template) if options.chat_template else ()),
            *_loras(service),
        )
        return self.described(service, (program,), {})

    def counters(self, metrics: bytes) -> Tokens:
        counted = prometheus.totals(metrics)
        return Tokens(
            prompt=counted.get("sglang:prompt_tokens_total", 0),
            completion=counted.get("sglang:generation_tokens_total", 0),
            cached=counted.get("sglang:cached_tokens_total", 0),
        )

    def signals(self, metrics: bytes) -> Signals:
        """Of speculation it tells rates, not counts."""
        counted = prometheus.totals(metrics)
        return Signals(
            running=counted.get("sglang:num_running_reqs"),
            waiting=counted.get("sglang:num_queue_reqs"),
            kv_usage=prometheus.first(metrics, "sglang:token_usage"),
            prefix_asked=counted.get("sglang:prompt_tokens_total", 0),
            prefix_hit=counted.get("sglang:cached_tokens_total", 0),
        )

    def stated(self, log: str, metrics: bytes) -> Stated:
        weights = _WEIGHTS.search(log)
        kv, graphs = (prometheus.first(metrics, f"sglang:{each}_memory_usage_gb") for each in ("kv_cache", "graph"))
        tokens = prometheus.first(metrics, "sglang:max_total_num_tokens")
        return Stated(
            weight_bytes=round(float(weights[1]) * GIB) if weights else None,
            kv_bytes=_whole(kv, GIB),
            kv_tokens=_whole(tokens),
            graph_bytes=_whole(graphs, GIB),
        )

    def complaint(self, log: str, plan: Plan) -> FreeholdError | None:  # noqa: ARG002
        if _FULL.search(log):
            why = "the card's memory was full before it could serve"
            return DoesNotFit(why, hint="a smaller build, less context, more cards, or another card_share")
        return None

    def load(self, adapter: Adapter) -> Call:
        body = msgspec.json.encode({"lora_name": adapter.name, "lora_path": adapter.path})
        return Call(method="POST", path="/load_lora_adapter", body=body)

    def unload(self, adapter: Adapter) -> Call:
        return Call(method="POST", path="/unload_lora_adapter", body=msgspec.json.encode({"lora_name": adapter.name}))

    def ask(self, adapter: Adapter, launched: Sequence[Adapter]) -> Mapping[str, object]:  # noqa: ARG002
        return {"lora_path": adapter.name}


def _share(plan: Plan) -> float:
    card_bytes = plan.available_bytes / plan.card_share
    return min((plan.weight_bytes + plan.kv_bytes) / card_bytes, 0.95)


def _whole(value: float | None, unit: int = 1) -> int | None:
    return None if value is None or not 0 <= value < 1e15 else round(value * unit)


def _speculation(service: Service) -> tuple[str, ...]:
    """It counts the token it verifies among those of a step."""
    many = service.options.draft_tokens
    chain = ("--speculative-num-steps", str(many), "--speculative-eagle-topk", "1")
    tokens = ("--speculative-num-draft-tokens", str(many + 1))
    match service.options.speculative:
        case "ngram":
            return ("--speculative-algorithm", "NGRAM", *tokens)
        case "draft":
            draft = ("--speculative-draft-model-path", service.draft)
            return ("--speculative-algorithm", "STANDALONE", *draft, *chain, *tokens)
        case "mtp":
            return ("--speculative-algorithm", "NEXTN", *chain, *tokens)
    return ()


def _loras(service: Service) -> tuple[str, ...]:
    """The base counts among those of a batch; at most twice as many may be loaded."""
    many = service.options.max_loras
    if not many:
        return ()
    return (
        *("--enable-lora", "--max-lora-rank", str(service.options.max_lora_rank), "--lora-target-modules", "all"),
        *("--max-loras-per-batch", str(many + 1), "--max-loaded-loras", str(2 * (many + 1))),
    )
