"""How tests ask through the real `openai` client."""

import openai

from freehold.engines.llamacpp import LlamaCpp

QUESTION = "What is the licence of Qwen3-8B?"
LONG = {"max_tokens": 1900, "extra_body": {"ignore_eos": True}}  # about a second of tokens
CONTEXT = 2048
ASKING = [{"role": "user", "content": QUESTION}]


def connect(team, key=None, **more) -> openai.OpenAI:
    return openai.OpenAI(base_url=team.url, api_key=team.key if key is None else key, **{"max_retries": 0, **more})


def chat(client, text=QUESTION, model="demo", **more):
    return client.chat.completions.create(model=model, messages=[{"role": "user", "content": text}], **more)


def counted(record) -> tuple[int, int]:
    return record["prompt_tokens"], record["completion_tokens"]


def stated(usage) -> tuple[int, int]:
    return usage.prompt_tokens, usage.completion_tokens


def text_of(chunks, index=0) -> str:
    return "".join(c.delta.content or "" for chunk in chunks for c in chunk.choices if c.index == index)


def engine_counters(team) -> tuple[int, int]:
    counters = LlamaCpp().counters(team.engine("demo", "/metrics"))
    return counters.prompt, counters.completion
