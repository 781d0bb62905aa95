"""TensorRT-LLM's `trtllm-serve`, in an environment of its own and behind the bridge: described, never run here.

Read in NVIDIA/TensorRT-LLM: its options in @029e223d (tests/unittest/api_stability/references/trtllm_serve_cli.yaml),
its counters in @050f80de (tensorrt_llm/metrics/collector.py), its fields in @54cf7be0 (tensorrt_llm/serve/
openai_protocol.py), its routes in @00057725 (openai_server.py). PyPI has only a package that fetches the rest from
NVIDIA, so that no one release was read as a whole, and nothing was started.

- Most settings have no option, only a place in a YAML file, which beats the options: the bridge writes it.
- /metrics is JSON of the last iterations. Prometheus' text is at /prometheus/metrics, with `return_perf_metrics`.
- Chat takes `cache_salt`; completions know no such field and refuse what they do not know. So no prompt may be read
  from the cache that another request left: it is off.
- A request loads an adapter itself, from any folder that it names (`lora_request`). Nothing loads or drops one apart
  from requests, so that adapters are not offered here; and callers must not send that field.
- Its share of memory is of what is free once the weights are there. The constants of the plan are vLLM's, and
  unmeasured here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import msgspec

from freehold.engines import fields, prometheus
from freehold.engines.bridged import Bridged, config_file, port
from freehold.types import Launch, Plan, Service, Signals, Tokens

_KV = {"fp8": "fp8", "nvfp4": "nvfp4"}  # all others: as the model is
_STAGES = (
    (re.compile(r"Loading (?:safetensors )?weights.*?: +(\d{1,3})%", re.IGNORECASE), "loading the weights"),
    (re.compile(r"Uvicorn running on"), "opening its socket"),
)


class TensorRTLLM(Bridged):
    """One process group serves one folder of safetensors by its PyTorch backend."""

    metrics_path = "/prometheus/metrics"
    refused_fields: Mapping[str, str] = fields.TENSORRT_LLM
    stages = _STAGES
    given = frozenset({
        *("--extra_llm_api_options", "--trust_remote_code"),
        *("--allow_request_chat_template", "--custom_module_dirs", "--custom_tokenizer", "--middleware", "--telemetry"),
        *("--post_processor_hook", "--otlp_traces_endpoint", "--report_addr", "--server_role", "--backend", "--grpc"),
        *("--metadata_server_config_file", "--disagg_cluster_uri"),
    })  # fmt: skip

    def launch(self, service: Service) -> Launch:
        """`service.program` is the Python of its environment. Raises BadConfig for arguments that are ours to give."""
        options, plan = service.options, service.plan
        program = (
            *(service.program, "-I", "-m", "tensorrt_llm.commands.serve", "serve", service.weights),
            *("--served_model_name", service.name, "--host", "127.0.0.1", "--port", str(port(service))),
            *("--max_seq_len", str(plan.context), "--max_batch_size", str(plan.parallel)),
            *(("--max_num_tokens", str(plan.batched_tokens)) if plan.batched_tokens else ()),
            *("--tensor_parallel_size", str(plan.tp), "--pipeline_parallel_size", str(plan.pp)),
            *(("--moe_expert_parallel_size", str(plan.ep)) if plan.ep > 1 else ()),
            *(("--kv_cache_dtype", _KV[plan.kv_dtype]) if plan.kv_dtype in _KV else ()),
            *(("--tool_parser", options.tool_parser) if options.tool_parser else ()),
            *(("--reasoning_parser", options.reasoning_parser) if options.reasoning_parser else ()),
            *(("--chat_template", options.chat_template) if options.chat_template else ()),
            *("--config", config_file(service), "--no-telemetry"),
        )
        env = {"TRTLLM_RESPONSES_API_DISABLE_STORE": "1"}
        return self.described(service, (program,), env, file=msgspec.json.encode(_settings(plan)).decode())

    def counters(self, metrics: bytes) -> Tokens:
        counted = prometheus.totals(metrics)
        return Tokens(
            prompt=counted.get("trtllm_prompt_tokens_total", 0),
            completion=counted.get("trtllm_generation_tokens_total", 0),
            cached=counted.get("trtllm_prompt_cached_tokens_total", 0),
        )

    def signals(self, metrics: bytes) -> Signals:
        counted = prometheus.totals(metrics)
        return Signals(
            running=counted.get("trtllm_num_requests_running"),
            waiting=counted.get("trtllm_num_requests_waiting"),
            kv_usage=prometheus.first(metrics, "trtllm_kv_cache_utilization"),
        )


def _settings(plan: Plan) -> dict[str, object]:
    """As its YAML file has them; JSON is YAML."""
    cache: dict[str, object] = {"enable_block_reuse": False}
    if plan.card:
        free_bytes = plan.available_bytes / plan.card_share - plan.weight_bytes - plan.compute_bytes
        cache["free_gpu_memory_fraction"] = round(min(plan.kv_bytes / free_bytes, 0.95), 3)
    return {"kv_cache_config": cache, "return_perf_metrics": True, "enable_iter_perf_stats": True}
