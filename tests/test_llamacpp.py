"""The contract with llama.cpp, held against the real one in the sandbox: what the gateway and the meter rely on."""

from __future__ import annotations

import json
import os
import signal
from itertools import pairwise
from pathlib import Path

import msgspec
import pytest
import pytest_asyncio
import unixhttp

from freehold.engines import engine
from freehold.executors.local import Local
from freehold.types import Plan, Service, Tokens

GGUF = Path(os.environ.get("FREEHOLD_TEST_GGUF") or Path(__file__).parents[1] / "demo" / "demo.gguf")
CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
HELLO = [{"role": "user", "content": "Hello"}]
PLAN = Plan(
    build="demo",
    host="here",
    context=2048,
    parallel=2,
    threads=1,
    weight_bytes=0,
    kv_bytes_per_token=0,
    kv_bytes=0,
    compute_bytes=0,
    available_bytes=0,
    requests_that_fit=2,
    steps=(),
)

pytestmark = pytest.mark.skipif(not GGUF.exists(), reason=f"no model at {GGUF}: demo/train.py makes it")
llamacpp = engine("llamacpp")


def service(weights: Path, socket: str, **more) -> Service:
    return Service(name="acme", weights=str(weights), socket=socket, plan=PLAN, **more)


async def start(folder: Path, weights: Path = GGUF):
    launch = llamacpp.launch(service(weights, str(folder / "e" / "x.sock")))
    return launch.socket, await Local(folder / "run").start(launch, "acme", folder / "log")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def path(tmp_path_factory):
    """Socket of a running engine."""
    folder = tmp_path_factory.mktemp("llamacpp")
    socket, process = await start(folder)
    unixhttp.wait_ready(socket, llamacpp.ready_path, folder / "log")
    yield socket
    await process.stop()


def counted(path: str) -> Tokens:
    return llamacpp.counters(unixhttp.request(path, "GET", llamacpp.metrics_path)[1])


def difference(before: Tokens, after: Tokens) -> Tokens:
    return Tokens(**{name: getattr(after, name) - getattr(before, name) for name in Tokens.__struct_fields__})


def used(usage: dict) -> Tokens:
    cached = usage["prompt_tokens_details"]["cached_tokens"]
    return Tokens(prompt=usage["prompt_tokens"], completion=usage["completion_tokens"], cached=cached)


def test_a_chat_is_answered_under_the_alias(path):
    answer = unixhttp.post(path, CHAT, model="somebody/else", messages=HELLO, max_tokens=5)
    assert answer["model"] == "acme"
    assert answer["object"] == "chat.completion"
    assert answer["choices"][0]["message"]["role"] == "assistant"
    assert answer["usage"]["total_tokens"] == answer["usage"]["prompt_tokens"] + answer["usage"]["completion_tokens"]


def test_the_alias_is_the_only_model(path):
    models = json.loads(unixhttp.request(path, "GET", "/v1/models")[1])
    assert [model["id"] for model in models["data"]] == ["acme"]


def test_a_stream_ends_with_usage_and_done(path):
    asked = {"messages": HELLO, "max_tokens": 4, "ignore_eos": True, "stream_options": {"include_usage": True}}
    *frames, usage, done = unixhttp.events(path, CHAT, **asked)
    assert done == "[DONE]"
    assert usage["choices"] == []
    assert usage["usage"]["completion_tokens"] == 4
    assert all("usage" not in frame and frame["model"] == "acme" for frame in frames)
    assert frames[0]["choices"][0]["delta"]["role"] == "assistant"
    assert frames[-1]["choices"][0]["finish_reason"] == "length"


def test_a_stream_has_no_usage_unless_asked(path):
    *frames, _ = unixhttp.events(path, CHAT, messages=HELLO, max_tokens=2)
    assert not any("usage" in frame for frame in frames)


def test_stop_ends_the_answer_before_the_stop_string(path):
    asked = {"messages": HELLO, "max_tokens": 40, "temperature": 0, "ignore_eos": True}
    whole = unixhttp.post(path, CHAT, **asked)["choices"][0]["message"]["content"]
    stop = next(b for a, b in pairwise(whole) if b.isascii() and b != a)
    choice = unixhttp.post(path, CHAT, **asked, stop=[stop])["choices"][0]
    assert choice["message"]["content"] == whole[: whole.index(stop)]
    assert choice["finish_reason"] == "stop"


def test_logprobs_are_one_a_token(path):
    answer = unixhttp.post(path, CHAT, messages=HELLO, max_tokens=3, ignore_eos=True, logprobs=True, top_logprobs=2)
    content = answer["choices"][0]["logprobs"]["content"]
    assert [len(token["top_logprobs"]) for token in content] == [2, 2, 2]
    assert all(token["logprob"] <= 0 for token in content)


def test_the_counters_are_the_sum_of_usage(path):
    before, total = counted(path), Tokens()
    for url, body in (
        (CHAT, {"messages": HELLO, "max_tokens": 7}),
        (CHAT, {"messages": HELLO, "max_tokens": 7}),  # its prompt is cached
        (CHAT, {"messages": HELLO, "max_tokens": 30, "stop": ["e", "a"]}),
        (COMPLETIONS, {"prompt": "Once upon a time", "max_tokens": 3}),
    ):
        usage = used(unixhttp.post(path, url, **body)["usage"])
        total = Tokens(
            prompt=total.prompt + usage.prompt,
            completion=total.completion + usage.completion,
            cached=total.cached + usage.cached,
        )
    assert total.cached > 0
    assert difference(before, counted(path)) == total


def test_usage_leaves_out_choices_but_the_counters_do_not(path):
    """If this fails, llama.cpp has mended #27318: then say so where the meter works around it."""
    asked = {"messages": HELLO, "max_tokens": 3, "n": 2, "ignore_eos": True}
    before = counted(path)
    answer = unixhttp.post(path, CHAT, **asked)
    after = counted(path)
    assert [choice["index"] for choice in answer["choices"]] == [0, 1]
    assert difference(before, after).completion == 6
    assert answer["usage"]["completion_tokens"] == 3
    frames = list(unixhttp.events(path, CHAT, **asked, stream_options={"include_usage": True}))
    usages = [frame["usage"] for frame in frames[:-1] if "usage" in frame]
    assert sum(usage["completion_tokens"] for usage in usages) == 6
    streamed = difference(after, counted(path))
    assert streamed.completion == 6
    assert streamed.prompt == usages[0]["prompt_tokens"] == usages[1]["prompt_tokens"]


STORY = "Once upon a time there was a " * 20


def cached(path: str, slot: int | None, *, same: bool, prompt: object = STORY, **more) -> int:
    """Tokens of the first prompt that came from the cache."""
    fields = llamacpp.isolate("", slot, same=same, salted=False)
    answer = unixhttp.post(path, COMPLETIONS, prompt=prompt, max_tokens=1, **fields, **more)
    return answer["usage"]["prompt_tokens_details"]["cached_tokens"]


def test_a_slot_gives_its_cache_to_the_same_group_only(path):
    assert cached(path, 0, same=False) == 0
    assert cached(path, 0, same=True) > 100
    assert cached(path, 1, same=False, prompt="x") == 0
    assert cached(path, 1, same=True) == 0  # the other slot has it
    assert cached(path, 0, same=False) == 0
    assert cached(path, None, same=False) == 0  # it may choose a slot that has it, and reads it all the same


def test_several_choices_leave_nothing_in_other_slots(path):
    cached(path, 1, same=False, prompt="x")
    assert cached(path, 0, same=False, n=2) == 0
    assert cached(path, 1, same=True) == 0
    assert cached(path, 0, same=True, n=2) > 100


def test_several_prompts_stay_in_their_slot(path):
    cached(path, 1, same=False, prompt="zebra " * 40)
    assert cached(path, 0, same=False, prompt=[STORY, STORY, STORY]) == 0
    assert cached(path, 1, same=True, prompt="zebra " * 40) > 100


def test_a_slot_that_is_busy_is_waited_for(path):
    stream = unixhttp.events(path, CHAT, messages=HELLO, max_tokens=300, ignore_eos=True, id_slot=0)
    next(stream)
    assert cached(path, 1, same=False) == 0  # and nobody else waits
    assert cached(path, 0, same=False) == 0
    stream.close()


def test_a_request_that_is_refused_leaves_the_slot_as_it_was(path):
    """So whoever hands out slots must not take it for the refused one's."""
    cached(path, 0, same=False)
    fields = {"prompt": "word " * 3000, "max_tokens": 1, **llamacpp.isolate("", 0, same=False, salted=False)}
    assert unixhttp.request(path, "POST", COMPLETIONS, fields)[0] == 400
    assert cached(path, 0, same=True) > 100


@pytest.mark.parametrize(
    ("limits", "tokens"),
    [
        ({"max_tokens": 3, "max_completion_tokens": 7}, 7),
        ({"max_tokens": 7, "max_completion_tokens": 3}, 3),
        ({"max_tokens": 0}, 1),
        ({"max_tokens": 2, "n_predict": 5}, 5),
    ],
)
def test_which_limit_counts(path, limits, tokens):
    answer = unixhttp.post(path, CHAT, messages=HELLO, ignore_eos=True, **limits)
    assert answer["usage"]["completion_tokens"] == tokens


def test_a_stream_is_cancelled_when_its_client_goes(path):
    before = counted(path)
    stream = unixhttp.events(path, CHAT, messages=HELLO, max_tokens=1900, ignore_eos=True)
    next(stream), next(stream)
    stream.close()
    while b"llamacpp:requests_processing 0" not in unixhttp.request(path, "GET", llamacpp.metrics_path)[1]:
        pass
    assert 1 <= difference(before, counted(path)).completion < 1900


@pytest.mark.parametrize(
    ("body", "code", "message"),
    [
        ({"messages": [{"role": "user", "content": "word " * 3000}]}, "context_length_exceeded", "exceeds the"),
        ({"messages": "Hello"}, None, "messages"),
        ({"messages": HELLO, "temperature": "hot"}, None, "temperature"),
        ({"messages": HELLO, "n": 99}, None, "Field 'n'"),
        ({"messages": HELLO, "grammar": "root ::= ("}, None, "grammar"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]}]},
            "not_supported",
            "image input is not supported",
        ),
    ],
)
def test_a_bad_request_becomes_openais_error_and_counts_nothing(path, body, code, message):
    before = counted(path)
    status, error = llamacpp.error(*unixhttp.request(path, "POST", CHAT, body))
    assert (status, error.type, error.code) == (400, "invalid_request_error", code)
    assert message in error.message
    assert counted(path) == before


async def test_it_says_503_while_it_loads_and_sigterm_ends_it_at_once(tmp_path):
    launch = llamacpp.launch(service(GGUF, str(tmp_path / "e" / "x.sock")))
    process = await Local(tmp_path / "run", "off").start(launch, "acme", tmp_path / "log")
    seen = unixhttp.wait_ready(launch.socket, llamacpp.ready_path, tmp_path / "log")
    assert seen <= {0, 503, 200}
    stream = unixhttp.events(launch.socket, CHAT, messages=HELLO, max_tokens=450, ignore_eos=True)
    next(stream)
    os.kill(process.pid, signal.SIGTERM)
    assert await process.wait() == -signal.SIGTERM
    stream.close()


async def test_weights_that_cannot_be_loaded_are_one_clear_line(tmp_path):
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF" + bytes(60))
    _, process = await start(tmp_path, broken)
    assert await process.wait() == 1
    said = (tmp_path / "log").read_text()  # another thread of llama.cpp may speak just before, or have the last word
    assert f"llamacpp_server: {broken} could not be loaded" in said


def test_a_llama_server_would_understand_the_same_flags():
    """The launcher takes every flag the description uses, and refuses the rest as llama-server would."""
    launch = llamacpp.launch(service(GGUF, "/run/x.sock", program="/opt/llama-server"))
    ours = llamacpp.launch(service(GGUF, "/run/x.sock"))
    assert launch.argv[0] == "/opt/llama-server"
    assert launch.argv[1:] == ours.argv[3:]
    assert msgspec.structs.replace(launch, argv=(), readable=()) == msgspec.structs.replace(ours, argv=(), readable=())
