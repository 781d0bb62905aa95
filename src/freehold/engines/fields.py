"""Fields of a request that reach past it, an engine, each with why. Whatever else an engine knows may pass.

Read in ggml-org/llama.cpp@0177c342 (tools/server/server-schema.cpp; the same in b11549), vllm-project/vllm@002032ee
(vllm/entrypoints/openai/{chat_completion,completion}/protocol.py), sgl-project/sglang@004c82e0 and the wheel of 0.5.23
(python/sglang/srt/entrypoints/openai/protocol.py), NVIDIA/TensorRT-LLM@54cf7be0 and later
(tensorrt_llm/serve/openai_protocol.py) and the wheels of ai-dynamo 1.6.1.
"""

from __future__ import annotations

_CACHE = "it chooses whose cached prompts are used"
_QUEUE = "it goes before other callers, or to a part of the engine of its choice"
_MEMORY = "it takes memory that the engine was not planned with"
_INNER = "it is the server's own note to itself"
_NAME = "it takes a name that another caller's request or session may have"
_PEER = "it makes the engine fetch from, or send to, a host of the caller's"
_HITS = "it shows what other callers' prompts left in the cache"
_CODE = "the engine would run it"
_ADAPTER = "it chooses an adapter; ask for one by `model`"

LLAMACPP = {
    "backend_sampling": _MEMORY,
    "chat_format": _INNER,
    "chat_parser": _INNER,
    "chat_template": _CODE,
    "generation_prompt": _INNER,
    "id_slot": _CACHE,
    "lora": "it mixes adapters in the prompt cache that all callers share",  # llama.cpp #26207
    "n_cache_reuse": "it lets cached text be shifted into answers, at the cost of their quality",
    "n_cmpl": "it is another name for `n`",
    "n_predict": "it is another name for `max_tokens`",
    "speculative.n_max": _MEMORY,
    "speculative.n_min": _MEMORY,
    "speculative.p_min": _MEMORY,
    "speculative.type": _MEMORY,
    "speculative.types": _MEMORY,
    "verbose": "it puts the engine's settings and the rendered prompt into the answer",
}

VLLM = {
    "cache_salt": _CACHE,
    "chat_template": _CODE,
    "ec_transfer_params": _PEER,
    "kv_transfer_params": _PEER,
    "logits_processors": _CODE,  # of older releases
    "media_io_kwargs": _MEMORY,
    "mm_processor_kwargs": _MEMORY,
    "priority": _QUEUE,
    "prompt_embeds": "the engine would load it as a file of tensors",  # CVE-2025-62164
    "request_id": _NAME,
    "session_id": _NAME,
    "vllm_xargs": "it sets the engine's own extensions, the transfer of caches among them",
}

SGLANG = {
    "bootstrap_host": _PEER,
    "bootstrap_port": _PEER,
    "bootstrap_room": _PEER,
    "cache_salt": _CACHE,
    "custom_labels": "it writes into the engine's metrics",
    "custom_logit_processor": _CODE,
    "data_parallel_rank": _QUEUE,
    "disagg_prefill_dp_rank": _PEER,
    "extra_key": _CACHE,
    "lora_path": _ADAPTER,
    "mm_processor_kwargs": _MEMORY,
    "ngram_corpus_id": _CACHE,
    "priority": _QUEUE,
    "return_cached_tokens_details": _HITS,
    "return_hidden_states": _MEMORY,
    "return_meta_info": _HITS,
    "return_routed_experts": _MEMORY,
    "rid": _NAME,
    "routed_dp_rank": _QUEUE,
    "session_id": _NAME,
    "session_params": _NAME,
    "stop_regex": "a slow pattern stops the engine for everybody",
}

TENSORRT_LLM = {
    "agent_hierarchy": _QUEUE,
    "cache_salt": _CACHE,
    "chat_template": _CODE,
    "conversation_params": _CACHE,
    "disaggregated_params": _PEER,
    "lora_request": "it names a folder that the engine would load an adapter from",
    "media_io_kwargs": _MEMORY,
    "mm_processor_kwargs": _MEMORY,
    "priority": _QUEUE,
    "prompt_token_ids": _INNER,
    "prompt_token_ids_b64": _INNER,
    "return_context_logits": _MEMORY,
}

DYNAMO = {**VLLM, "nvext": "it chooses workers, priorities, and whose cached prompts are used"}

# Fields that llama.cpp may answer 200 to and not hold to, but for these values: with `required`, or the name of a
# function, it keeps a model from ending without a call and lets it talk on instead, or does nothing, by the template
# (llama.cpp #27217).
LLAMACPP_HOLDS_ONLY = {
    "functions": ((b"null",), "say it in `tools`"),
    "tool_choice": (
        (b'"auto"', b'"none"', b"null"),
        "leave the choice to the model with `auto`, or ask for the arguments as `response_format` with a json_schema",
    ),
}

# Nobody says which engine is behind a URL. The first two only show hits where the cache cannot be kept apart.
EXTERNAL = {"return_progress": _HITS, "timings_per_token": _HITS, **LLAMACPP, **SGLANG, **TENSORRT_LLM, **DYNAMO}
