"""An OpenAI-compatible server that somebody else started: vLLM, SGLang, llama-server, a gateway of another team."""

from __future__ import annotations

from freehold.engines import prometheus
from freehold.engines.base import Engine
from freehold.types import Tokens


class External(Engine):
    """Describes how to talk to it, not how to start it."""

    ready_path = "/v1/models"

    def counters(self, metrics: bytes) -> Tokens:
        """vLLM's prompt tokens include cached ones, like `usage`; llama.cpp's do not."""
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
