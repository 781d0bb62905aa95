"""The real `openai` client against a daemon that serves the demonstration model on the real llama.cpp in its sandbox:
every answer and every refusal is what the client knows from OpenAI, and the ledger holds what it must."""

import openai
import pytest
import unixhttp
from asking import ASKING, CONTEXT, chat, counted, engine_counters, stated, text_of


def test_chat(client, ledger):
    answer = chat(client, temperature=0)
    assert answer.object == "chat.completion"
    assert answer.model == "demo"
    assert answer.id.startswith("chatcmpl-")
    assert answer.choices[0].message.role == "assistant"
    assert "Qwen3-8B" in answer.choices[0].message.content
    assert answer.choices[0].finish_reason == "stop"
    (record,) = ledger()
    assert counted(record) == stated(answer.usage)
    assert record["outcome"] == "ok"
    assert record["status"] == 200
    assert record["lower_bound"] == 0
    assert record["charge_pico"] == 10**6 * (answer.usage.prompt_tokens + 2 * answer.usage.completion_tokens)
    assert record["machine_pico"] > 0


def test_temperature_0_says_the_same_every_time_whole_or_streamed(client):
    first, second = (chat(client, temperature=0).choices[0].message.content for _ in range(2))
    with chat(client, temperature=0, stream=True) as stream:
        assert first == second == text_of(list(stream))


def test_stream_without_usage_is_counted_all_the_same(served, client, ledger):
    before = (chat(client, max_tokens=1), engine_counters(served))[1]
    with chat(client, stream=True) as stream:
        chunks = list(stream)
    assert all(chunk.usage is None for chunk in chunks)
    assert all(len(chunk.choices) == 1 for chunk in chunks)  # no frame that only states usage
    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].choices[0].finish_reason == "stop"
    record = ledger()[-1]
    after = engine_counters(served)
    assert counted(record) == (after[0] - before[0], after[1] - before[1])
    assert record["outcome"] == "ok"
    assert record["lower_bound"] == 0
    assert record["stream"] == 1
    assert 0 < record["first_byte_ms"] <= record["total_ms"]


def test_stream_with_usage(client, ledger):
    with chat(client, stream=True, stream_options={"include_usage": True}) as stream:
        chunks = list(stream)
    assert [chunk.usage is not None for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    assert chunks[-1].choices == []
    assert counted(ledger()[0]) == stated(chunks[-1].usage)


def test_two_answers(served, client, ledger):
    before = (chat(client, max_tokens=1), engine_counters(served))[1]
    answer = chat(client, n=2, temperature=1)
    after = engine_counters(served)
    assert [choice.index for choice in answer.choices] == [0, 1]
    assert all(choice.message.content and choice.finish_reason == "stop" for choice in answer.choices)
    record = ledger()[-1]
    assert counted(record) == stated(answer.usage) == (after[0] - before[0], after[1] - before[1])


@pytest.mark.parametrize("include_usage", [False, True])
def test_two_answers_streamed(served, client, ledger, include_usage):
    before = (chat(client, max_tokens=1), engine_counters(served))[1]
    options = {"stream_options": {"include_usage": True}} if include_usage else {}
    with chat(client, n=2, temperature=1, stream=True, **options) as stream:
        chunks = list(stream)
    after = engine_counters(served)
    assert text_of(chunks, 0)
    assert text_of(chunks, 1)
    used = (after[0] - before[0], after[1] - before[1])
    assert [stated(chunk.usage) for chunk in chunks if chunk.usage] == [used] * include_usage
    record = ledger()[-1]
    assert counted(record) == used
    assert record["lower_bound"] == 0


def test_stop(client, ledger):
    whole = chat(client, temperature=0).choices[0].message.content
    word = whole.split()[2]
    answer = chat(client, temperature=0, stop=[word])
    assert answer.choices[0].message.content == whole[: whole.index(word)]
    assert answer.choices[0].finish_reason == "stop"
    assert counted(ledger()[-1]) == stated(answer.usage)


def test_max_tokens(client, ledger):
    answer = chat(client, max_tokens=3)
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.completion_tokens == 3
    assert counted(ledger()[0]) == stated(answer.usage)


def test_logprobs(client, ledger):
    answer = chat(client, temperature=0, logprobs=True, top_logprobs=3, max_tokens=4)
    tokens = answer.choices[0].logprobs.content
    assert "".join(token.token for token in tokens) == answer.choices[0].message.content
    assert all(len(token.top_logprobs) == 3 for token in tokens)
    assert all(token.logprob == max(top.logprob for top in token.top_logprobs) <= 0 for token in tokens)
    assert counted(ledger()[0]) == (answer.usage.prompt_tokens, 4)


def test_logprobs_streamed(client):
    with chat(client, logprobs=True, top_logprobs=2, max_tokens=4, stream=True) as stream:
        spoken = [c for chunk in stream for c in chunk.choices if c.delta.content]
    assert all(len(token.top_logprobs) == 2 for choice in spoken for token in choice.logprobs.content)


def test_completions(client, ledger):
    asked = {"model": "demo", "prompt": "Qwen3-8B is", "max_tokens": 5, "temperature": 0}
    answer = client.completions.create(**asked)
    assert answer.object == "text_completion"
    assert answer.model == "demo"
    assert answer.choices[0].text
    with client.completions.create(**asked, stream=True) as stream:
        chunks = list(stream)
    assert "".join(c.text for chunk in chunks for c in chunk.choices) == answer.choices[0].text
    assert {chunk.model for chunk in chunks} == {"demo"}
    whole, streamed = ledger()
    assert counted(whole) == stated(answer.usage) == counted(streamed)
    assert {whole["kind"], streamed["kind"]} == {"completion"}
    assert {whole["lower_bound"], streamed["lower_bound"]} == {0}


PROMPTS = ["Qwen3-8B is", "What"]


@pytest.mark.parametrize("asked", [{"prompt": PROMPTS[0], "n": 2}, {"prompt": PROMPTS}, {"prompt": PROMPTS, "n": 2}])
def test_several_completions(served, client, ledger, asked):
    before = (chat(client, max_tokens=1), engine_counters(served))[1]
    answer = client.completions.create(model="demo", max_tokens=5, **asked)
    between = engine_counters(served)
    usage = {"stream_options": {"include_usage": True}}
    with client.completions.create(model="demo", max_tokens=5, stream=True, **usage, **asked) as stream:
        chunks = list(stream)
    after = engine_counters(served)
    assert [choice.index for choice in answer.choices] == list(range(len(answer.choices)))
    assert {c.index for chunk in chunks for c in chunk.choices} == {c.index for c in answer.choices}
    assert chunks[-1].choices == []
    whole, streamed = ledger()[-2:]
    assert counted(whole) == stated(answer.usage) == (between[0] - before[0], between[1] - before[1])
    assert counted(streamed) == stated(chunks[-1].usage) == (after[0] - between[0], after[1] - between[1])
    assert {whole["lower_bound"], streamed["lower_bound"]} == {0}


@pytest.mark.parametrize(
    ("path", "asked"),
    [
        ("/v1/chat/completions", {"messages": ASKING}),
        ("/v1/chat/completions", {"messages": ASKING, "logprobs": True, "top_logprobs": 2, "max_tokens": 5}),
        ("/v1/chat/completions", {"messages": ASKING, "stop": ["Qwen"]}),
        ("/v1/completions", {"prompt": "Qwen3-8B is", "max_tokens": 5}),
        ("/v1/completions", {"prompt": "Qwen3-8B is", "max_tokens": 5, "logprobs": 2}),
        ("/v1/completions", {"prompt": "Qwen3-8B is", "max_tokens": 0}),
    ],
)
def test_a_whole_answer_is_the_engines_own(served, client, path, asked):
    """Freehold asks for a stream and puts it together; nobody should be able to tell. (But for logprobs of an answer
    that ends by itself: the engine, unlike OpenAI, then gives those of the token that ends it, too.)
    """
    chat(client, max_tokens=1)
    body = {"model": "demo", "temperature": 0, "seed": 1, **asked}
    own = unixhttp.post(str(served.socket("demo")), path, **body)
    ours = client.post(path.removeprefix("/v1"), cast_to=object, body=body)
    for answer in (own, ours):
        for each_time in ("id", "created", "timings"):
            answer.pop(each_time, None)
        answer["usage"].pop("prompt_tokens_details")
    assert rounded(ours) == rounded(own)


def rounded(answer):
    """Whether the prompt came from a cache changes logprobs a little: that there is a number is all that counts."""
    match answer:
        case float():
            return "a number"
        case dict():
            return {name: rounded(value) for name, value in answer.items()}
        case list():
            return [rounded(value) for value in answer]
    return answer


def test_the_model_is_called_what_the_caller_called_it(client, ledger):
    """The engine behind `tiny` calls itself something else."""
    answer = chat(client, model="tiny")
    assert answer.model == "tiny"
    with chat(client, model="tiny", stream=True) as stream:
        assert {chunk.model for chunk in stream} == {"tiny"}
    assert {row["endpoint"] for row in ledger()} == {"tiny"}


def test_models(client):
    listed = client.models.list()
    assert [model.id for model in listed] == ["demo", "other", "tiny"]
    model = client.models.retrieve("demo")
    assert (model.id, model.object, model.owned_by) == ("demo", "model", "freehold")
    with pytest.raises(openai.NotFoundError) as refused:
        client.models.retrieve("gpt-4o")
    assert refused.value.code == "model_not_found"


def test_the_request_id_leads_to_the_record(client, ledger):
    raw = client.chat.completions.with_raw_response.create(model="demo", messages=ASKING, max_tokens=2)
    (record,) = ledger()
    assert raw.headers["x-request-id"] == raw.parse()._request_id == record["request"]
    with pytest.raises(openai.BadRequestError) as refused:
        chat(client, "word " * CONTEXT)
    assert refused.value.request_id == ledger()[-1]["request"]


async def test_async_client(served, ledger):
    async with openai.AsyncOpenAI(base_url=served.url, api_key=served.key, max_retries=0) as client:
        whole = await client.chat.completions.create(model="demo", messages=ASKING, temperature=0)
        stream = await client.chat.completions.create(model="demo", messages=ASKING, temperature=0, stream=True)
        chunks = [chunk async for chunk in stream]
    assert text_of(chunks) == whole.choices[0].message.content
    assert [counted(row) for row in ledger()] == [stated(whole.usage)] * 2
