"""What the real `openai` client is told when it does not get what it asked, and what is left when it leaves."""

import os
import signal
import threading

import openai
import pytest
from asking import ASKING, CONTEXT, LONG, chat, connect, counted, engine_counters

# refusals


def test_wrong_key(served, ledger):
    with connect(served, "fh-nobody-has-this") as client, pytest.raises(openai.AuthenticationError) as refused:
        chat(client)
    assert refused.value.code == "invalid_api_key"
    with connect(served, "fh-nobody-has-this") as client, pytest.raises(openai.AuthenticationError):
        client.models.list()
    assert not ledger()


def test_no_key(client):
    with pytest.raises(openai.AuthenticationError) as refused:
        chat(client, extra_headers={"Authorization": openai.Omit()})
    assert refused.value.code == "invalid_api_key"


def test_key_for_another_endpoint(served, ledger):
    secret = served.daemon.ask("POST", "/keys", {"name": "elsewhere", "endpoints": ["oth*"]})["secret"]
    with connect(served, secret) as client:
        assert [model.id for model in client.models.list()] == ["other"]
        with pytest.raises(openai.PermissionDeniedError) as refused:
            chat(client)
        assert refused.value.param == "model"
        with pytest.raises(openai.NotFoundError):
            client.models.retrieve("demo")
    assert not ledger()


def test_revoked_key_is_dead_at_once(served):
    secret = served.daemon.ask("POST", "/keys", {"name": "leaver"})["secret"]
    with connect(served, secret) as client:
        chat(client, max_tokens=1)
        served.daemon.ask("DELETE", "/keys/leaver")
        with pytest.raises(openai.AuthenticationError, match="revoked") as refused:
            chat(client)
    assert refused.value.code == "invalid_api_key"


def test_expired_key(served):
    secret = served.daemon.ask("POST", "/keys", {"name": "visitor", "expires_ns": 1})["secret"]
    with connect(served, secret) as client, pytest.raises(openai.AuthenticationError, match="expired") as refused:
        chat(client)
    assert refused.value.code == "invalid_api_key"


def test_unknown_model(client, ledger):
    with pytest.raises(openai.NotFoundError) as refused:
        chat(client, model="gpt-4o")
    assert (refused.value.code, refused.value.param) == ("model_not_found", "model")
    assert not ledger()


@pytest.mark.parametrize("stream", [False, True])
def test_too_long_prompt(client, ledger, stream):
    with pytest.raises(openai.BadRequestError) as refused:
        chat(client, "word " * CONTEXT, stream=stream)
    assert refused.value.code == "context_length_exceeded"
    assert refused.value.type == "invalid_request_error"
    (record,) = ledger()
    assert (record["status"], record["outcome"], *counted(record)) == (400, "error", 0, 0)


def test_bad_json(client, ledger):
    headers = {"Content-Type": "application/json"}
    with pytest.raises(openai.BadRequestError) as refused:
        client.post("/chat/completions", cast_to=object, content=b'{"model": "demo", ', options={"headers": headers})
    assert refused.value.type == "invalid_request_error"
    assert not ledger()


def test_missing_model(client):
    with pytest.raises(openai.BadRequestError) as refused:
        client.post("/chat/completions", cast_to=object, body={"messages": ASKING})
    assert refused.value.param == "model"


@pytest.mark.parametrize("field", ["lora", "id_slot", "n_predict", "chat_template"])
def test_a_field_that_reaches_into_what_callers_share(client, ledger, field):
    with pytest.raises(openai.BadRequestError, match=field) as refused:
        chat(client, extra_body={field: 1})
    assert refused.value.param == field
    assert not ledger()


NAMED = {"type": "function", "function": {"name": "licence"}}


@pytest.mark.parametrize(("field", "value"), [("tool_choice", "required"), ("tool_choice", NAMED), ("functions", [])])
def test_what_the_engine_would_answer_and_not_do(client, ledger, field, value):
    with pytest.raises(openai.BadRequestError, match="does not hold to this") as refused:
        chat(client, extra_body={field: value, "tools": [NAMED]})
    assert (refused.value.code, refused.value.param) == ("not_supported", field)
    assert not ledger()


@pytest.mark.parametrize("value", ["auto", "none", None])
def test_a_choice_that_is_left_to_the_model(client, value):
    assert chat(client, extra_body={"tool_choice": value, "tools": [NAMED], "functions": None}).choices


def test_a_bad_value_is_the_callers_mistake(client, ledger):
    with pytest.raises(openai.BadRequestError):
        chat(client, temperature="hot")
    assert [row["outcome"] for row in ledger()] == ["error"]


def test_a_value_that_we_read_ourselves_never_reaches_the_engine(client, ledger):
    with pytest.raises(openai.BadRequestError) as refused:
        chat(client, max_tokens="many")
    assert refused.value.param == "max_tokens"
    assert not ledger()


@pytest.mark.parametrize("again", [b'"model": "other"', b'"\\u006dodel": "other"', b'"user": "a", "user": "b"'])
def test_a_field_given_twice(client, ledger, again):
    body = b'{"model": "demo", "messages": [{"role": "user", "content": "hi"}], %b}' % again
    headers = {"Content-Type": "application/json"}
    with pytest.raises(openai.BadRequestError, match="more than once"):
        client.post("/chat/completions", cast_to=object, content=body, options={"headers": headers})
    assert not ledger()


def test_too_large_a_body(client, ledger):
    with pytest.raises(openai.APIStatusError) as refused:
        chat(client, "word " * (1 << 20))
    assert refused.value.status_code == 413
    assert refused.value.code == "request_too_large"
    assert not ledger()


def test_unknown_url(client):
    with pytest.raises(openai.NotFoundError, match="Invalid URL"):
        client.moderations.create(input="x")


# leaving


def test_closing_a_stream_stops_the_engines_work(served, client, ledger):
    before = (chat(client, max_tokens=1), engine_counters(served))[1]
    stream = chat(client, stream=True, **LONG)
    for _ in range(5):
        next(stream)
    stream.close()
    record = served.until(lambda: next((row for row in ledger() if row["outcome"] == "cut"), None))
    served.until(lambda: b"llamacpp:requests_processing 0" in served.engine("demo", "/metrics"))
    after = engine_counters(served)
    assert record["lower_bound"] == 1
    assert record["status"] == 200
    assert record["prompt_tokens"] == after[0] - before[0]
    assert 0 < record["completion_tokens"] <= after[1] - before[1] < 1900
    assert served.until(lambda: served.status("demo")["in_flight"] == 0)


def test_giving_up_on_a_whole_answer_stops_the_engines_work(served, client, ledger):
    before = (chat(client, max_tokens=1), engine_counters(served))[1]
    with pytest.raises(openai.APITimeoutError):
        chat(client, n=4, timeout=0.5, **LONG)
    record = served.until(lambda: next((row for row in ledger() if row["outcome"] == "cut"), None))
    served.until(lambda: b"llamacpp:requests_processing 0" in served.engine("demo", "/metrics"))
    after = engine_counters(served)
    assert record["lower_bound"] == 1
    assert record["prompt_tokens"] == after[0] - before[0]
    assert 0 < record["completion_tokens"] <= after[1] - before[1] < 4 * 1900


def test_others_are_not_disturbed_by_who_leaves(client):
    quiet = chat(client, temperature=0).choices[0].message.content
    streams = [chat(client, stream=True, **LONG) for _ in range(3)]
    for stream in streams:
        next(stream)
        stream.close()
    assert chat(client, temperature=0).choices[0].message.content == quiet


# trying again


class Statuses(list):
    """Each answer's status and Retry-After, as they reach the client."""

    def note(self, response) -> None:
        self.append((response.status_code, response.headers.get("retry-after")))


def test_a_full_queue_says_when_to_try_again_and_the_client_does(served):
    for _ in served.daemon.lines("POST", "/up?endpoint=tiny"):  # a start is measured: just over 0.9 s
        pass
    os.kill(served.status("tiny")["pid"], signal.SIGKILL)
    served.until(lambda: served.status("tiny")["state"] != "ready")  # or what is asked meanwhile fails with it
    waking = threading.Thread(target=served.ask, args=("tiny",))
    waking.start()
    served.until(lambda: served.status("tiny")["waiting"] == 1)  # all that may wait

    seen = Statuses()
    http = openai.DefaultHttpxClient(event_hooks={"response": [seen.note]})
    with connect(served, max_retries=2, http_client=http) as client:
        assert chat(client, model="tiny").choices
    waking.join()
    assert seen[0][0] == 503
    assert 1 <= int(seen[0][1]) <= 2
    assert seen[-1] == (200, None)


def test_a_stopped_endpoint_is_unavailable_until_it_is_opened(served, ledger):
    served.daemon.ask("POST", "/endpoints/other/stop")
    with connect(served) as client, pytest.raises(openai.InternalServerError, match="stopped") as refused:
        chat(client, model="other")
    assert refused.value.status_code == 503
    assert refused.value.code == "engine_unavailable"

    seen = Statuses()

    def open_it(response):
        seen.note(response)
        if len(seen) == 1:
            assert list(served.daemon.lines("POST", "/up?endpoint=other"))[-1] == {"up": "other"}

    http = openai.DefaultHttpxClient(event_hooks={"response": [open_it]})
    with connect(served, max_retries=1, http_client=http) as client:
        assert chat(client, model="other", max_tokens=1).choices
    assert [status for status, _ in seen] == [503, 200]
    assert [(row["status"], row["outcome"]) for row in ledger()] == [(503, "error"), (503, "error"), (200, "ok")]
