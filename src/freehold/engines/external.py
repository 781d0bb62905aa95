"""An OpenAI-compatible server that somebody else started: vLLM, SGLang, llama-server, a gateway of another team."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from freehold.engines import fields, prometheus
from freehold.types import Tokens, WireError


class _Body(msgspec.Struct):
    message: str
    type: str | None = None
    code: str | int | None = None
    param: str | None = None


class _Envelope(msgspec.Struct):
    error: _Body


_decode = msgspec.json.Decoder(_Envelope).decode


class External:
    """Describes how to talk to it, not how to start it."""

    ready_path = "/v1/models"
    metrics_path = "/metrics"
    stream_fields: Mapping[str, object] = {}  # nothing that some server might refuse
    answers_by_stream = False
    refused_fields: Mapping[str, str] = fields.EXTERNAL
    hides_cache_hits = True

    def isolate(self, salt: str, slot: int | None, *, same: bool, salted: bool) -> Mapping[str, object]:  # noqa: ARG002
        """vLLM and SGLang hash the salt into every block of a prompt; another server might refuse it."""
        return {"cache_salt": salt} if salted else {}

    def counters(self, metrics: bytes) -> Tokens:
        """Read the tokens counted since that server started; zeros where it counts none.

        vLLM's prompt tokens include cached ones, like `usage`; llama.cpp's do not.
        """
        counted = prometheus.totals(metrics)
        llamacpp_cached = counted.get("llamacpp:prompt_tokens_cached_total", 0)
        return Tokens(
            prompt=counted.get("vllm:prompt_tokens_total", 0)
            + counted.get("llamacpp:prompt_tokens_total", 0)
            + llamacpp_cached,
            completion=counted.get("vllm:generation_tokens_total", 0)
            + counted.get("llamacpp:tokens_predicted_total", 0),
            cached=counted.get("vllm:prefix_cache_hits_total", 0) + llamacpp_cached,
        )

    def error(self, status: int, body: bytes) -> tuple[int, WireError]:
        """Pass an OpenAI error on as it is; wrap anything else, so that clients always find the shape they expect.

        What it has against Freehold itself (its key, the URL) is not the caller's fault, nor theirs to read.
        """
        if status in (401, 403) or status < 400:
            message = f"The engine answered Freehold with {status}; its operator must look at it."
            return 502, WireError(message=message, type="server_error", code="engine_failed")
        kind = "invalid_request_error" if 400 <= status < 500 else "server_error"
        try:
            said = _decode(body).error
        except msgspec.DecodeError:
            text = body[:200].decode("utf-8", "replace").strip() or "nothing"
            status = status if 400 <= status < 500 else 502
            return status, WireError(message=f"The engine answered: {text}", type=kind, code="engine_failed")
        code = said.code if isinstance(said.code, str) else None  # vLLM repeats the HTTP status here
        return status, WireError(message=said.message, type=said.type or kind, code=code, param=said.param)
