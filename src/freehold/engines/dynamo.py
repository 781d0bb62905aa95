"""NVIDIA Dynamo: its frontend and a vLLM worker in one sandbox, behind the bridge.

Of ai-dynamo 1.6.1 the frontend was run here, in the sandbox and behind the gateway, with Dynamo's mocker for a worker:
chat, streams, usage, counters, hang-ups and stops (tests/test_dynamo.py). Its vLLM worker needs a GPU and was never
started: its options were read in dynamo/vllm/args.py, those of vLLM in 0.32, though 1.6.1 pins 0.31.

- The two find one another through files in the socket's folder and talk over TCP on the loopback; no etcd, no NATS.
- /health says healthy without any worker, and the list of models is empty then. /v1/models/NAME is 404 until there is
  one: so the bridge waits for that before it makes the socket.
- A salt is taken as `nvext.cache_salt`, and handed to vLLM. `nvext` chooses workers and priorities too: callers may not
  send it. How the mocker uses a salt says nothing of vLLM.
- Adapters are loaded by each worker's own HTTP server (POST /v1/loras at DYN_SYSTEM_PORT), which the bridge does not
  reach: they are not offered here.
- Its memory, its stages and why it fails to start are vLLM's.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from freehold.engines import fields, prometheus
from freehold.engines.bridged import Bridged, port
from freehold.engines.vllm import ALONE, Vllm, memory, speculation
from freehold.errors import FreeholdError
from freehold.types import Launch, Plan, Service, Signals, Stated, Tokens

VERSION = (1, 6, 1)  # that was run
_WORKER = "dynamo.vllm"
_vllm = Vllm()


class Dynamo(Bridged):
    """One frontend and one worker, which serves one folder of safetensors."""

    refused_fields: Mapping[str, str] = fields.DYNAMO
    salts = True
    warming = Vllm.warming
    takes = Bridged.takes | {"prefix_caching", "speculative", "draft", "draft_tokens"}
    given = Vllm.given | {
        *("--discovery-backend", "--request-plane", "--event-plane", "--response-plane", "--namespace", "--endpoint"),
        *("--headless", "--custom-encoder-class", "--media-output-fs-url", "--media-output-http-url"),
        *("--dump-config-to", "--model-express-url"),
    }  # fmt: skip
    stages = Vllm.stages
    vllm = (0, 31, 0)  # that it brings

    def launch(self, service: Service) -> Launch:
        """`service.program` is the Python of its environment. Raises BadConfig for arguments that are ours to give."""
        frontend = (
            *(service.program, "-I", "-m", "dynamo.frontend"),
            *("--http-host", "127.0.0.1", "--http-port", str(port(service)), "--router-mode", "round-robin"),
        )
        env = {
            "DYN_DISCOVERY_BACKEND": "file",
            "DYN_EVENT_PLANE": "zmq",
            "DYN_FILE_KV": str(Path(service.socket).with_name("dynamo")),
            "DYN_LOG": "warn",  # else some five lines a request
            "DYN_REQUEST_PLANE": "tcp",
            "DYN_TCP_RESPONSE_STREAM_HOST": "127.0.0.1",
            "DYN_TCP_RPC_HOST": "127.0.0.1",
            **ALONE,
        }
        programs = (frontend, (service.program, "-I", "-m", *self.worker(service)))
        return self.described(service, programs, env, path=f"/v1/models/{service.name}")

    def worker(self, service: Service) -> tuple[str, ...]:
        """The module that computes, and its options."""
        options, plan = service.options, service.plan
        return (
            *(_WORKER, "--model", service.weights, "--served-model-name", service.name),
            *("--max-model-len", str(plan.context), "--max-num-seqs", str(plan.parallel)),
            *(("--max-num-batched-tokens", str(plan.batched_tokens)) if plan.batched_tokens else ()),
            *memory(plan),
            "--enable-prefix-caching" if options.prefix_caching else "--no-enable-prefix-caching",
            *("--structured-outputs-config", '{"backend":"xgrammar","disable_any_whitespace":true}'),
            *speculation(service),
            *(("--dyn-tool-call-parser", options.tool_parser) if options.tool_parser else ()),
            *(("--dyn-reasoning-parser", options.reasoning_parser) if options.reasoning_parser else ()),
            *(("--custom-jinja-template", options.chat_template) if options.chat_template else ()),
        )

    def isolate(self, salt: str, slot: int | None, *, same: bool, salted: bool) -> Mapping[str, object]:  # noqa: ARG002
        return {"nvext": {"cache_salt": salt}} if salted else {}

    def counters(self, metrics: bytes) -> Tokens:
        """The frontend's. What it sent to a caller who left counts as it does in `usage`."""
        counted = prometheus.totals(metrics)
        return Tokens(
            prompt=counted.get("dynamo_frontend_input_sequence_tokens_sum", 0),
            completion=counted.get("dynamo_frontend_output_tokens_total", 0),
            cached=counted.get("dynamo_frontend_cached_tokens_sum", 0),
        )

    def signals(self, metrics: bytes) -> Signals:
        counted = prometheus.totals(metrics)
        return Signals(
            running=counted.get("dynamo_frontend_inflight_requests"),
            waiting=counted.get("dynamo_frontend_queued_requests"),
            prefix_asked=counted.get("dynamo_frontend_input_sequence_tokens_sum", 0),
            prefix_hit=counted.get("dynamo_frontend_cached_tokens_sum", 0),
        )

    def stated(self, log: str, metrics: bytes) -> Stated:  # noqa: ARG002
        """The worker's log has it; its metrics are not the frontend's."""
        return _vllm.stated(log, b"")

    def complaint(self, log: str, plan: Plan) -> FreeholdError | None:
        return _vllm.complaint(log, plan)
