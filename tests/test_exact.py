"""A hundred callers at once on a cold endpoint: one engine start, a hundred answers, and every token in the ledger."""

import asyncio
from itertools import cycle

import openai

from freehold.engines.llamacpp import LlamaCpp

CALLERS = 100
NAMES = ("Qwen3-8B", "Llama-3.1-8B", "gpt-oss-20b", "Nobody-7B", "gemma-3-27b", "Mistral-7B", "phi-4")
QUESTIONS = ("What is the licence of {}?", "How many parameters does {} have?", "Who made {}?")
WAYS = (  # how callers ask, in turn
    {},
    {"stream": True},
    {"stream": True, "stream_options": {"include_usage": True}},
    {"n": 2, "temperature": 1.2},
    {"n": 2, "stream": True},
    {"max_tokens": 3},
    {"stop": ["is"], "stream": True},
    {"max_tokens": 40, "extra_body": {"ignore_eos": True}},
)


async def call(client, number, way) -> tuple[str, list[str]]:
    """The request's id, and the texts of its choices."""
    question = QUESTIONS[number % len(QUESTIONS)].format(NAMES[number % len(NAMES)])
    raw = await client.chat.completions.with_raw_response.create(
        model="demo", messages=[{"role": "user", "content": question}], **way
    )
    request = raw.headers["x-request-id"]
    answer = raw.parse()
    if "stream" not in way:
        return request, [choice.message.content for choice in answer.choices]
    texts = [""] * way.get("n", 1)
    async for chunk in answer:
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
    return request, texts


async def test_a_hundred_callers_on_a_cold_endpoint(team):
    team.write(demo=team.demo())
    team.serve()
    async with openai.AsyncOpenAI(base_url=team.url, api_key=team.key, max_retries=0) as client:
        ways = [way for way, _ in zip(cycle(WAYS), range(CALLERS), strict=False)]
        answers = await asyncio.gather(*(call(client, number, way) for number, way in enumerate(ways)))

    assert len(answers) == CALLERS
    assert all(len(texts) == way.get("n", 1) for (_, texts), way in zip(answers, ways, strict=True))
    assert all("".join(texts) for (_, texts), way in zip(answers, ways, strict=True) if "stop" not in way)
    assert len(team.events("replica.starting")) == 1
    assert len(team.events("replica.ready")) == 1
    assert not team.events("probe.counts_differ")

    records = team.records()
    assert {row["request"] for row in records} == {request for request, _ in answers}
    assert len(records) == CALLERS
    assert {(row["outcome"], row["status"], row["lower_bound"]) for row in records} == {("ok", 200, 0)}

    every = team.records(probes=True)
    assert len(every) == CALLERS + 1
    counters = LlamaCpp().counters(await asyncio.to_thread(team.engine, "demo", "/metrics"))
    assert sum(row["prompt_tokens"] for row in every) == counters.prompt
    assert sum(row["completion_tokens"] for row in every) == counters.completion
    assert sum(row["cached_tokens"] for row in every) == counters.cached
    assert sum(row["charge_pico"] for row in records) == sum(
        (row["prompt_tokens"] + 2 * row["completion_tokens"]) * 10**6 for row in records
    )
