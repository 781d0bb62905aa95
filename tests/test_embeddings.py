"""Embeddings through the gateway, with the real `openai` client and the real llama.cpp, on both paths."""

from __future__ import annotations

import http.client
import json
import threading
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

import openai
import pytest
from asking import chat, connect, engine_counters
from conftest import team_in
from test_engines import PLAN
from weight_files import SHAPE, entry, gguf_bytes

from freehold.engines.llamacpp import LlamaCpp
from freehold.errors import BadRequest
from freehold.gateway.openai import MOST_INPUTS, read_ask
from freehold.types import Options, Service
from freehold.weights.describe import describe

TEXT = "Qwen3-8B is licensed under the Apache License 2.0."
LONG = "word " * 400  # three tokens each: more than llama.cpp computes in one step
SIZE = 256  # the demonstration model's


class NoSuchRoute(BaseHTTPRequestHandler):
    """A server that knows no POST: Python's own answers 501, as HTML."""

    def log_message(self, *args):
        pass


@pytest.fixture(scope="module")
def strange():
    server = ThreadingHTTPServer(("127.0.0.1", 0), NoSuchRoute)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module", params=["true", "false"], ids=["fast", "asgi"])
def served(request, strange, tmp_path_factory):
    """`demo` embeds, `plain` does not, and `far` is somebody else's server without such a route."""
    with team_in(tmp_path_factory.mktemp("embeddings")) as team:
        far = f'engine = "external"\nurl = "{strange}"'
        server = f"fast_path = {request.param}"
        team.write(server=server, demo=team.demo("embeddings = true"), plain=team.demo(), far=far)
        team.serve()
        team.ask("demo")
        yield team


def embed(client, texts, model="demo", **more):
    return client.embeddings.create(model=model, input=texts, **more)


@pytest.mark.parametrize(
    ("texts", "vectors"), [(TEXT, 1), ([TEXT, "Hello"], 2), ([5, 6, 7], 1), ([[5, 6, 7], [8]], 2), (["a"] * 40, 40)]
)
def test_vectors_and_their_record(served, client, ledger, texts, vectors):
    before = engine_counters(served)
    answer = embed(client, texts)  # the client asks for base64 unless told otherwise
    after = engine_counters(served)
    assert [each.index for each in answer.data] == list(range(vectors))
    assert {len(each.embedding) for each in answer.data} == {SIZE}
    assert sum(x * x for x in answer.data[0].embedding) == pytest.approx(1, abs=1e-5)
    assert answer.model == "demo"
    plain = embed(client, texts, encoding_format="float")
    for one, other in zip(answer.data, plain.data, strict=True):
        assert one.embedding == pytest.approx(other.embedding, abs=1e-6)
    record = ledger()[0]
    assert (record["kind"], record["outcome"], record["status"], record["lower_bound"]) == ("embedding", "ok", 200, 0)
    used = answer.usage.prompt_tokens
    assert answer.usage.total_tokens == used == record["prompt_tokens"] == after[0] - before[0]
    assert (record["completion_tokens"], record["charge_pico"]) == (0, used * 10**6)


@pytest.mark.parametrize(
    ("asked", "code", "param"),
    [
        ({"model": "plain", "texts": TEXT}, "not_supported", "model"),
        ({"model": "far", "texts": TEXT}, "not_supported", "model"),
        ({"texts": LONG}, "context_length_exceeded", None),
        ({"texts": TEXT, "extra_body": {"stream": True}}, None, "stream"),
        ({"texts": ["a"] * (MOST_INPUTS + 1)}, None, "input"),
        ({"texts": [TEXT, ""]}, None, None),
    ],
)
def test_what_cannot_be_embedded_is_a_bad_request(client, asked, code, param):
    with pytest.raises(openai.BadRequestError) as refused:
        embed(client, **asked)
    error = refused.value
    assert (error.type, error.code, error.param) == ("invalid_request_error", code, param)


def test_an_engine_that_embeds_nothing_is_not_even_woken(served, client, ledger):
    with pytest.raises(openai.BadRequestError, match="embeddings = true"):
        embed(client, TEXT, model="plain")
    assert not ledger()
    assert served.status("plain")["state"] == "cold"


def test_a_budget_reserves_the_prompt_and_nothing_more(served, ledger):
    """The prompt's bound is here the context, 512 tokens at 1 a million."""
    refused, passes = (
        served.daemon.ask("POST", "/keys", {"name": f"{served.key[-6:]}-{most}", "limits": {"budget_per_day": most}})
        for most in (0.0005, 0.0006)
    )
    with connect(served, refused["secret"]) as poor, pytest.raises(openai.RateLimitError) as hit:
        embed(poor, TEXT)
    assert hit.value.code == "insufficient_quota"
    with connect(served, passes["secret"]) as rich:
        for _ in range(3):  # what was not used comes back
            embed(rich, TEXT)
    assert {(row["outcome"], row["held_tokens"]) for row in ledger()} == {("ok", 0)}


def test_answers_are_the_same_beside_embeddings_and_so_are_vectors_beside_answers(client):
    vector = embed(client, TEXT, encoding_format="float").data[0].embedding
    answers = [chat(client, temperature=0, model=name).choices[0].message.content for name in ("demo", "plain")]
    assert answers[0] == answers[1]
    assert "Qwen3-8B" in answers[0]
    assert embed(client, TEXT, encoding_format="float").data[0].embedding == pytest.approx(vector, abs=1e-6)


def test_nobody_reads_from_the_cache_what_somebody_else_embedded(served, client):
    """llama.cpp leaves the text in a slot of its choice: a chat that begins alike would tell by `cached_tokens`."""
    question = "Who made Qwen3-8B, and what may be done with it?"
    for _ in range(8):  # in each slot
        embed(client, f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n")
    other = served.daemon.ask("POST", "/keys", {"name": f"other-{served.key[-6:]}"})["secret"]
    with connect(served, other) as stranger:
        for _ in range(8):
            usage = chat(stranger, question, max_tokens=1).usage
            assert usage.prompt_tokens_details.cached_tokens == 0


def test_one_text_too_long_of_several_is_accounted_for(served, client, ledger):
    """The engine has embedded the others, and does not say so: the record says that it counts too little."""
    with pytest.raises(openai.BadRequestError) as refused:
        embed(client, [TEXT] * 6 + [LONG])
    assert refused.value.code == "context_length_exceeded"
    (record,) = ledger()
    assert (record["outcome"], record["prompt_tokens"], record["lower_bound"]) == ("error", 0, 1)


def test_who_leaves_is_recorded_and_the_run_still_reconciles(served, ledger):
    with closing(http.client.HTTPConnection(urlsplit(served.url).netloc, timeout=10)) as connection:
        body = json.dumps({"model": "demo", "input": ["word " * 150] * 200})
        connection.request("POST", "/v1/embeddings", body, {"Authorization": f"Bearer {served.key}"})
        served.until(lambda: served.status("demo")["in_flight"])
    (record,) = served.until(ledger)
    assert (record["kind"], record["outcome"], record["lower_bound"]) == ("embedding", "cut", 1)
    served.until(lambda: b"llamacpp:requests_processing 0" in served.engine("demo", "/metrics"))
    runs = json.loads(served.run("usage", "--reconcile", "--json"))
    assert runs
    assert not any(run["wrong"] for run in runs)


# what is read of a request


def test_the_engine_gets_what_was_asked_and_no_field_of_answers():
    body = b'{"model":"m","input":["a","b",[1]],"dimensions":8,"max_tokens":5,"stream":null}'
    ask = read_ask(body, "embedding")
    assert (ask.kind, ask.prompts, ask.n, ask.stream, ask.max_tokens) == ("embedding", 3, 3, False, None)
    sent = json.loads(ask.for_engine("served", stream=False, more={}, cap=100))
    assert sent == {**json.loads(body), "model": "served"}


@pytest.mark.parametrize("count", [1, 257, MOST_INPUTS])
def test_many_inputs(count):
    body = json.dumps({"model": "m", "input": ["a"] * count}).encode()
    assert read_ask(body, "embedding").prompts == count


@pytest.mark.parametrize("body", [b'{"input":"a"}', b'{"model":"m"}', b'{"model":5,"input":"a"}'])
def test_what_is_no_request(body):
    with pytest.raises(BadRequest):
        read_ask(body, "embedding")


# what the engine is started with


@pytest.mark.parametrize(
    ("said", "pools"), [({}, False), ({"llama.pooling_type": 0}, False), ({"llama.pooling_type": 3}, True)]
)
def test_weights_that_say_how_they_pool_are_taken_at_their_word(tmp_path, said, pools):
    """A model made for embeddings has its own way; by the mean its vectors would be wrong, and nobody would notice."""
    path = tmp_path / "m.gguf"
    path.write_bytes(gguf_bytes([entry(*pair) for pair in {**SHAPE, **said}.items()]))
    build = describe(path)
    assert build.pools == pools
    options = Options(embeddings=True)
    service = Service(name="m", weights=str(path), socket="/m/x.sock", plan=PLAN, options=options, pools=build.pools)
    launch = LlamaCpp().launch(service)
    assert "--embeddings" in launch.argv
    assert ("--pooling" in launch.argv) == (not pools)
