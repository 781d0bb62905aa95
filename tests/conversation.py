"""One conversation with any engine, through the real `openai` client: what it does of each feature, in words.

The same functions ask an engine itself and ask it through the gateway: see test_conversation.py. Each returns OK, or
what was got instead; nobody here decides what is right for which engine.
"""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Callable
from typing import NamedTuple

import openai

from freehold.engines import prometheus

OK = "ok"
QUESTION = "What is the licence of Qwen3-8B?"
ANSWER = "Qwen3-8B is licensed under the Apache License 2.0."  # the demonstration model knows it by heart
USER = [{"role": "user", "content": QUESTION}]
HISTORY = [
    {"role": "system", "content": "Answer questions about models."},
    *USER,
    {"role": "assistant", "content": ANSWER},
    {"role": "user", "content": "What is the licence of Llama-3.1-8B?"},
]
SCHEMA = {
    "type": "object",
    "properties": {"licence": {"enum": ["Apache-2.0", "MIT"]}, "open": {"type": "boolean"}},
    "required": ["licence", "open"],
    "additionalProperties": False,
}
TOOL = {
    "type": "function",
    "function": {
        "name": "licence",
        "parameters": {
            "type": "object",
            "properties": {"model": {"enum": ["Qwen3-8B", "Llama-3.1-8B"]}},
            "required": ["model"],
            "additionalProperties": False,
        },
    },
}
LONG = 1500  # tokens, of an answer that nobody stays for
LEAVES_AFTER = 5
PATIENCE_S = 120.0
_WORKING = ("llamacpp:requests_processing", "llamacpp:requests_deferred", "vllm:num_requests_running")
_GENERATED = ("llamacpp:tokens_predicted_total", "vllm:generation_tokens_total")


class Talk(NamedTuple):
    """Somebody to talk to."""

    client: openai.OpenAI
    model: str
    context: int  # tokens
    connect: Callable[[], http.client.HTTPConnection]  # to the same server, for those who hang up
    headers: dict[str, str]
    metrics: Callable[[], bytes]  # of the engine itself
    records: Callable[[], list[dict]] | None = None  # of the gateway; None: it is the engine that is asked

    def chat(self, **more):
        return self.client.chat.completions.create(**{"model": self.model, "messages": USER, "temperature": 0, **more})

    def counted(self, names: tuple[str, ...]) -> int:
        totals = prometheus.totals(self.metrics())
        return sum(totals.get(name, 0) for name in names)

    def until(self, what: Callable[[], bool]) -> None:
        """Engines say what they do to nobody who does not ask."""
        deadline = time.monotonic() + PATIENCE_S
        while not what():
            assert time.monotonic() < deadline, f"the engine does not change for {PATIENCE_S} s"
            time.sleep(0.005)

    def until_idle(self) -> None:
        self.until(lambda: not self.counted(_WORKING))


def outcome(feature: Callable[[Talk], str], talk: Talk) -> str:
    """What the feature does; a refusal by its status and code."""
    try:
        return feature(talk)
    except openai.APIStatusError as error:
        code = error.type if str(error.code).isdigit() else error.code or error.type  # many repeat the status there
        return f"{error.status_code} {code or 'without a code'}"
    except openai.APIError as error:  # in the middle of a stream
        return f"breaks off: {error.code or error.type}"


def first_of(*checks: tuple[bool, str]) -> str:
    """The first that does not hold, in words."""
    return next((words for holds, words in checks if not holds), OK)


def chat(talk: Talk) -> str:
    answer = talk.chat()
    (choice,) = answer.choices
    usage = answer.usage
    return first_of(
        (choice.message.content == ANSWER, f"says {choice.message.content!r}"),
        (choice.finish_reason == "stop", f"ends with {choice.finish_reason}"),
        (answer.model == talk.model, "calls itself otherwise"),
        (usage.total_tokens == usage.prompt_tokens + usage.completion_tokens > 0, "its usage does not add up"),
    )


def history(talk: Talk) -> str:
    said = talk.chat(messages=HISTORY).choices[0].message.content
    return first_of(("Llama-3.1-8B" in said and "Qwen" not in said, f"says {said!r}"))


def _streamed(talk: Talk, **more) -> tuple[str, list]:
    with talk.chat(stream=True, **more) as stream:
        chunks = list(stream)
    return "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices), chunks


def stream(talk: Talk) -> str:
    text, chunks = _streamed(talk)
    return first_of(
        (text == ANSWER, f"says {text!r}"),
        (len(chunks) > 3, "comes in one piece"),
        (chunks[-1].choices[-1].finish_reason == "stop", "has no end"),
        (not any(chunk.usage for chunk in chunks), "usage that nobody asked for"),
    )


def stream_usage(talk: Talk) -> str:
    whole = talk.chat().usage
    _, chunks = _streamed(talk, stream_options={"include_usage": True})
    stated = [chunk.usage for chunk in chunks if chunk.usage]
    last = stated[-1] if stated else None
    return first_of(
        (len(stated) == 1 and not chunks[-1].choices, f"{len(stated)} frames with usage"),
        (last is not None and last.completion_tokens == whole.completion_tokens, "another usage than of the whole"),
    )


def json_schema(talk: Talk) -> str:
    asked = {"type": "json_schema", "json_schema": {"name": "licence", "strict": True, "schema": SCHEMA}}
    choice = talk.chat(response_format=asked, max_tokens=100).choices[0]
    try:
        said = json.loads(choice.message.content)
    except ValueError:
        return f"no JSON, ends with {choice.finish_reason}"
    fits = isinstance(said, dict) and said.keys() == {"licence", "open"} and said["licence"] in ("Apache-2.0", "MIT")
    return first_of((fits and isinstance(said["open"], bool), "JSON of another shape"))


def _called(talk: Talk, tool_choice) -> str:
    choice = talk.chat(tools=[TOOL], tool_choice=tool_choice, max_tokens=100).choices[0]
    calls = choice.message.tool_calls or []
    if not calls:
        return "200, and no call" if choice.message.content else "200, and nothing"
    try:
        fits = json.loads(calls[0].function.arguments)["model"] in ("Qwen3-8B", "Llama-3.1-8B")
    except (ValueError, TypeError, KeyError):
        fits = False
    return first_of((calls[0].function.name == "licence" and fits, "a call with other arguments"))


def tools_auto(talk: Talk) -> str:
    """This model was never taught to call: that it is answered is all there is to see."""
    called = _called(talk, "auto")
    return OK if called == "200, and no call" else called


def tools_required(talk: Talk) -> str:
    return _called(talk, "required")


def tools_named(talk: Talk) -> str:
    return _called(talk, {"type": "function", "function": {"name": "licence"}})


def logprobs(talk: Talk) -> str:
    choice = talk.chat(logprobs=True, top_logprobs=5, max_tokens=4).choices[0]
    tokens = choice.logprobs.content if choice.logprobs else None
    if not tokens:
        return "none"
    return first_of(
        ("".join(token.token for token in tokens) == choice.message.content, "of other tokens than the text has"),
        (all(len(token.top_logprobs) == 5 for token in tokens), "fewer than 5"),
        (all(token.logprob <= 0 for token in tokens), "above 0"),
    )


def two_choices(talk: Talk) -> str:
    answer = talk.chat(n=2, temperature=1, max_tokens=8, extra_body={"ignore_eos": True})  # vLLM: not greedy
    return first_of(
        (len(answer.choices) == 2, f"{len(answer.choices)} choices"),
        (answer.usage.completion_tokens == 16, "usage counts one choice of two"),
    )


def stop(talk: Talk) -> str:
    choice = talk.chat(stop=["under"]).choices[0]
    return first_of(
        (choice.message.content == ANSWER[: ANSWER.index("under")], f"says {choice.message.content!r}"),
        (choice.finish_reason == "stop", f"ends with {choice.finish_reason}"),
    )


def greedy(talk: Talk) -> str:
    return first_of((len({talk.chat().choices[0].message.content for _ in range(3)}) == 1, "differs"))


def seed(talk: Talk) -> str:
    """At a temperature at which this model says something else each time."""
    said = {talk.chat(temperature=2, seed=7, max_tokens=24).choices[0].message.content for _ in range(3)}
    return first_of((len(said) == 1, "differs"))


def _words(talk: Talk, tokens: int) -> list[dict]:
    """A message that makes a prompt of so many tokens, or a few less."""
    short, long = (
        talk.chat(messages=[{"role": "user", "content": "model " * count}], max_tokens=1).usage.prompt_tokens
        for count in (20, 40)
    )
    each = (long - short) / 20
    return [{"role": "user", "content": "model " * int((tokens - short) / each + 20)}]


def long_prompt(talk: Talk) -> str:
    usage = talk.chat(messages=_words(talk, talk.context - 16), max_tokens=4).usage
    return first_of((talk.context - 24 <= usage.prompt_tokens < talk.context, f"reads {usage.prompt_tokens} tokens"))


def too_long_prompt(talk: Talk) -> str:
    talk.chat(messages=_words(talk, talk.context + 64), max_tokens=4)
    return "200, of a part of it"


def too_many_tokens(talk: Talk) -> str:
    """More than the context holds are asked for."""
    said = talk.chat(max_tokens=talk.context * 4).choices[0].message.content
    return first_of((said == ANSWER, f"says {said!r}"))


def unknown_model(talk: Talk) -> str:
    talk.chat(model="gpt-4o", max_tokens=1)
    return "200, by the model that is there"


def _cut(talk: Talk, before: int, known: set[str]) -> str:
    """Once the engine rests: what it computed for somebody who left, and what the record says of it."""
    talk.until_idle()
    computed = talk.counted(_GENERATED) - before
    cut = [r["outcome"] for r in talk.records() if r["request"] not in known] if talk.records else ["cut"]
    return first_of(
        (computed < LONG, "computes on to the end, for nobody"),
        (cut == ["cut"], f"its record says {cut}"),
    )


def _before(talk: Talk) -> tuple[int, set[str]]:
    talk.until_idle()
    return talk.counted(_GENERATED), {r["request"] for r in talk.records()} if talk.records else set()


def cancel_stream(talk: Talk) -> str:
    before = _before(talk)
    answer = talk.chat(stream=True, max_tokens=LONG, extra_body={"ignore_eos": True})
    for _ in range(LEAVES_AFTER):
        next(answer)
    answer.close()
    return _cut(talk, *before)


def cancel_whole(talk: Talk) -> str:
    generated, known = _before(talk)
    body = {"model": talk.model, "messages": USER, "max_tokens": LONG, "ignore_eos": True}
    connection = talk.connect()
    connection.request("POST", "/v1/chat/completions", json.dumps(body), talk.headers)
    talk.until(lambda: talk.counted(_WORKING) or talk.counted(_GENERATED) > generated)
    connection.close()
    return _cut(talk, generated, known)


def prompts(talk: Talk) -> str:
    asked = {"model": talk.model, "prompt": ["Qwen3-8B is", "Llama-3.1-8B is"], "max_tokens": 5, "temperature": 0}
    answer = talk.client.completions.create(**asked, extra_body={"ignore_eos": True})
    return first_of(
        ([choice.index for choice in answer.choices] == [0, 1], f"{len(answer.choices)} choices"),
        (all(choice.text for choice in answer.choices), "an empty text"),
        (answer.usage.completion_tokens == 10, "usage counts one prompt of two"),
    )


def embeddings(talk: Talk) -> str:
    answer = talk.client.embeddings.create(model=talk.model, input=[QUESTION, ANSWER])
    vectors = [each.embedding for each in answer.data]
    return first_of(
        (len(vectors) == 2 and len(vectors[0]) == len(vectors[1]) > 1, "other vectors than two alike"),
        (vectors[0] != vectors[1], "the same vector for two texts"),
        (answer.usage.prompt_tokens == answer.usage.total_tokens > 0, "no usage"),
    )


FEATURES: dict[str, Callable[[Talk], str]] = {
    "chat": chat,
    "system and history": history,
    "stream": stream,
    "stream with usage": stream_usage,
    "JSON schema, strict": json_schema,
    "tools, `auto`": tools_auto,
    "tools, `required`": tools_required,
    "tools, a named one": tools_named,
    "logprobs, top 5": logprobs,
    "`n` = 2": two_choices,
    "`stop`": stop,
    "greedy, three times": greedy,
    "one `seed`, three times": seed,
    "unknown model": unknown_model,
    "leaving a stream": cancel_stream,
    "leaving a whole answer": cancel_whole,
    "completions, two prompts": prompts,
    "embeddings": embeddings,
    # Last: after it vLLM on two cores hands over whole answers at once for a while, and nobody can leave in the middle.
    "prompt of nearly the context": long_prompt,
    "prompt beyond it": too_long_prompt,
    "`max_tokens` beyond it": too_many_tokens,
}
