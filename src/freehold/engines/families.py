"""Which parser of tool calls, and of reasoning, a family of models needs in vLLM; names as of 0.32.

Families are the `model_type` of config.json. From vLLM's own recipes and the docstrings of its parsers
(vllm/tool_parsers, vllm/reasoning); where one family has models of several conventions, that of its newest. A tool
parser looks at answers to requests with tools only; vLLM does not start with one whose mark the tokenizer lacks.
"""

from __future__ import annotations

MARKS = {  # that a parser looks for, where it insists
    "deepseek_v3": "<｜tool▁calls▁begin｜>",  # noqa: RUF001 - they are so written
    "hermes": "<tool_call>",
    "llama3_json": "<|python_tag|>",
    "mistral": "[TOOL_CALLS]",
}
TOOLS = {
    "cohere2": "cohere_command3",
    "deepseek_v3": "deepseek_v3",
    "deepseek_v32": "deepseek_v32",
    "deepseek_v4": "deepseek_v4",
    "ernie4_5_moe": "ernie45",
    "gemma4": "gemma4",
    "glm4_moe": "glm45",
    "glm_moe_dsa": "glm47",
    "gpt_oss": "openai",
    "granite": "granite",
    "granitemoehybrid": "granite4",
    "hunyuan_v1_moe": "hunyuan_a13b",
    "kimi_k2": "kimi_k2",
    "kimi_k25": "kimi_k2",
    "llama": "llama3_json",
    "llama4": "llama4_pythonic",
    "minimax_m2": "minimax_m2",
    "mistral": "mistral",
    "mistral3": "mistral",
    "mixtral": "mistral",
    "olmo3": "olmo3",
    "phi3": "phi4_mini_json",
    "qwen2": "hermes",
    "qwen2_moe": "hermes",
    "qwen3": "hermes",
    "qwen3_moe": "hermes",
    "qwen3_next": "hermes",
    "qwen3_5": "qwen3_coder",
    "qwen3_5_moe": "qwen3_coder",
    "seed_oss": "seed_oss",
}
# Only families all of whose models reason: of a model that does not, some parsers would take the answer for reasoning.
# Of others (Qwen3 is both) the endpoint says `reasoning_parser`.
REASONING = {
    "deepseek_v4": "deepseek_v4",
    "glm4_moe": "glm45",
    "glm_moe_dsa": "glm47",
    "gpt_oss": "openai_gptoss",
    "minimax_m2": "minimax_m2",
    "seed_oss": "seed_oss",
}


def tool_parser(family: str, marks: frozenset[str]) -> str:
    """The parser for a model of this family with these words added to its vocabulary; "": none that would work."""
    parser = TOOLS.get(family, "")
    return parser if MARKS.get(parser, "") in ("", *marks) else ""
