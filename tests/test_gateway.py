"""The road a request takes, end to end: real daemon, real sandbox, real book; only the engine is a fake that
misbehaves on request."""

import asyncio
import json
from concurrent.futures import ThreadPoolExecutor

import pytest
from conftest import alive

MANY = 20_000  # tokens; with `fat` of them more than all buffers on the way hold


def read(answer) -> list[dict]:
    return [json.loads(line[6:]) for line in answer.read().splitlines() if line.startswith(b"data: {")]


def test_a_hundred_callers_wake_one_replica(team):
    team.write(demo=team.fake(delay_s=0.3))
    team.serve()
    with ThreadPoolExecutor(100) as callers:
        answers = list(callers.map(lambda n: team.ask("demo", f"@@n={n % 7}"), range(100)))
    assert [a["usage"]["completion_tokens"] for a in answers] == [n % 7 for n in range(100)]
    assert len(team.events("replica.starting")) == 1
    assert len(team.records()) == 100


def test_what_reaches_the_engine_and_what_comes_back(team):
    team.write(demo=team.fake())
    team.serve()
    answer = team.ask("demo", temperature=0.123456789012345678, seed=12345678901234567890, stop=["\u2603"])
    asked = answer["asked"]
    assert asked["temperature"] == 0.123456789012345678
    assert asked["seed"] == 12345678901234567890
    assert asked["stop"] == ["\u2603"]
    assert answer["model"] == "demo"


def test_a_name_given_twice_is_refused(team):
    team.write(demo=team.fake(), other=team.fake("idle_seconds = 0"))
    team.serve()
    connection = team.connect()
    body = b'{"model":"other","messages":[{"content":"x"}],"model":"demo"}'
    connection.request("POST", "/v1/chat/completions", body, {"Authorization": f"Bearer {team.key}"})
    answer = connection.getresponse()
    assert (answer.status, json.loads(answer.read())["error"]["param"]) == (400, "model")
    assert team.records() == []


def test_to_zero_and_back(team):
    team.write(demo=team.fake("idle_seconds = 0.2"))
    team.serve()
    team.ask("demo")
    pid = team.status("demo")["pid"]
    team.until(lambda: team.status("demo")["state"] == "cold")
    assert not alive(pid)
    team.ask("demo")
    assert len(team.events("replica.starting")) == 2


def test_a_stream_keeps_the_engine_from_idling(team):
    team.write(demo=team.fake("idle_seconds = 0.2"))
    team.serve()
    frames = read(team.post("demo", "@@n=20,us=50000", stream=True))
    assert frames[-1]["choices"][0]["finish_reason"] == "stop"
    assert [r["outcome"] for r in team.records()] == ["ok"]


def test_an_engine_that_dies_midway_is_said_and_recorded(team):
    team.write(demo=team.fake())
    team.serve()
    frames = read(team.post("demo", "@@n=9,us=1000,die=5", stream=True))
    assert "the engine went away" in frames[-1]["error"]["message"]
    assert frames[-1]["error"]["code"] == "engine_failed"
    team.ask("demo")
    died, fine = team.records()
    assert (died["outcome"], died["completion_tokens"], died["lower_bound"]) == ("error", 5, 1)
    assert fine["outcome"] == "ok"
    assert len(team.events("engine.exited")) == 1


def test_an_engine_that_dies_before_its_answer(team):
    team.write(demo=team.fake())
    team.serve()
    answer = team.post("demo", "@@n=9,die=5")
    assert (answer.status, json.loads(answer.read())["error"]["code"]) == (502, "engine_failed")
    team.ask("demo")
    assert [(r["outcome"], r["status"]) for r in team.records()] == [("error", 502), ("ok", 200)]


def test_a_stream_cut_by_the_engine(team):
    team.write(demo=team.fake())
    team.serve()
    frames = read(team.post("demo", "@@n=9,us=1000,cut=3", stream=True))
    assert "error" in frames[-1]
    assert [(r["outcome"], r["completion_tokens"]) for r in team.records()] == [("error", 3)]


@pytest.mark.parametrize("stream", [True, False])
def test_an_engine_that_refuses(team, stream):
    team.write(demo=team.fake())
    team.serve()
    answer = team.post("demo", "@@error=500", stream=stream)
    assert (answer.status, json.loads(answer.read())["error"]["message"]) == (502, "it hurts")
    assert [(r["outcome"], r["status"], r["completion_tokens"]) for r in team.records()] == [("error", 502, 0)]


@pytest.mark.parametrize("how", ["crlf", "nodone"])
def test_other_ways_to_end_a_stream(team, how):
    team.write(demo=team.fake())
    team.serve()
    assert len(read(team.post("demo", f"@@n=4,{how}", stream=True))) == 6
    (record,) = team.records()
    assert (record["completion_tokens"], record["outcome"]) == (4, "ok")


def test_a_caller_who_leaves_while_queued(team):
    team.write(demo=team.fake(delay_s=0.5))
    team.serve()
    connection = team.connect()
    body = json.dumps({"model": "demo", "messages": [{"content": "never asked"}]})
    connection.request("POST", "/v1/chat/completions", body, {"Authorization": f"Bearer {team.key}"})
    team.until(lambda: team.status("demo")["waiting"] == 1)
    connection.close()
    (record,) = team.until(team.records)
    assert (record["outcome"], record["status"], record["prompt_tokens"], record["lower_bound"]) == ("cut", 0, 0, 0)
    team.until(lambda: team.status("demo")["state"] == "ready")
    assert json.loads(team.engine("demo", "/counts"))["requests"] == 1  # the smoke probe


@pytest.mark.parametrize("stream", [True, False])
def test_a_caller_who_leaves_midway_stops_the_engine(team, stream):
    team.write(demo=team.fake())
    team.serve()
    team.ask("demo")
    connection = team.connect()
    body = json.dumps({"model": "demo", "stream": stream, "messages": [{"content": "@@n=100000,us=2000"}]})
    connection.request("POST", "/v1/chat/completions", body, {"Authorization": f"Bearer {team.key}"})
    if stream:
        assert connection.getresponse().read(400)
    else:
        team.until(lambda: json.loads(team.engine("demo", "/counts"))["completion"] > 50)
    connection.close()
    team.until(lambda: json.loads(team.engine("demo", "/counts"))["cancelled"] == 1)
    _, record = team.until(lambda: len(team.records()) == 2 and team.records())
    assert (record["outcome"], record["lower_bound"]) == ("cut", 1)
    assert record["completion_tokens"] > 0
    assert team.status("demo")["in_flight"] == 0


def test_a_queue_has_an_end(team):
    team.write(demo=team.fake("max_waiting = 2\nwait_seconds = 0.4", delay_s=1.5))
    team.serve()
    with ThreadPoolExecutor(5) as callers:
        answers = list(callers.map(lambda _: team.post("demo"), range(5)))
    assert [a.status for a in answers] == [503] * 5
    assert all(int(a.headers["retry-after"]) >= 1 for a in answers)
    messages = sorted(json.loads(a.read())["error"]["message"] for a in answers)
    assert sum("already wait" in m for m in messages) == 3
    assert sum("was not ready within 0.4 s" in m for m in messages) == 2
    assert {(r["outcome"], r["status"]) for r in team.records()} == {("error", 503)}


def test_a_request_has_an_end(team):
    team.write(demo=team.fake("request_seconds = 0.5"))
    team.serve()
    team.up("demo")  # or the half second would have to hold the start too
    assert team.post("demo", "@@n=1000,us=10000").status == 504
    frames = read(team.post("demo", "@@n=1000,us=10000", stream=True))
    assert frames[-1]["error"]["code"] == "timeout"
    team.until(lambda: json.loads(team.engine("demo", "/counts"))["cancelled"] == 2)


def test_an_external_engine_is_keyed_metered_and_recorded(team):
    team.write(demo=team.fake())
    team.serve()
    team.ask("demo")
    (team.folder / "upstream-key").write_text(team.key)
    outer = type(team)(team.folder / "outer")
    outer.folder.mkdir()
    outer.write(
        far=f'engine = "external"\nurl = "{team.url.removesuffix("/v1")}"\nserved_model = "demo"\n'
        'api_key_file = "../upstream-key"\nprompt_price = 1\ncompletion_price = 2'
    )
    try:
        outer.serve()
        assert outer.ask("far", "@@n=5")["model"] == "far"
        assert read(outer.post("far", "@@n=5", stream=True))[0]["model"] == "far"
        assert "a real completion" in outer.run("up")
        assert outer.post("far", key="wrong").status == 401
        records = outer.records()
        assert [(r["prompt_tokens"], r["completion_tokens"], r["outcome"]) for r in records[:2]] == [(7, 5, "ok")] * 2
        assert records[0]["charge_pico"] == 17 * 10**6
        team.end()
        assert outer.post("far").status == 502
    finally:
        outer.end()


def test_nothing_but_the_model_and_the_list_is_shown_without_a_key(team):
    team.write(demo=team.fake())
    team.serve()
    for method, path, status in (
        ("GET", "/healthz", 200),
        ("GET", "/v1/models", 401),
        ("GET", "/v1/models/demo", 401),
        ("GET", "/status", 404),
        ("GET", "/metrics", 404),
        ("GET", "/v1/chat/completions", 405),
        ("POST", "/v1/models", 405),
    ):
        connection = team.connect()
        connection.request(method, path)
        answer = connection.getresponse()
        assert (path, answer.status) == (path, status)
        assert answer.read()


def stalled(team) -> int:
    """How many tokens the engine has made, once it makes no more."""
    counts = []

    def same():
        counts.append(json.loads(team.engine("demo", "/counts"))["completion"])
        return len(counts) > 5 and counts[-1] == counts[-5] > counts[0]

    team.until(same)
    return counts[-1]


def test_a_slow_reader_holds_the_engine_back(team):
    team.write(demo=team.fake())
    team.serve()
    team.ask("demo")
    answer = team.post("demo", f"@@n={MANY},fat=2000", stream=True)
    assert stalled(team) < MANY
    answer.close()
    answer.connection.close()
    team.until(lambda: json.loads(team.engine("demo", "/counts"))["cancelled"] == 1)


def test_a_slow_reader_gets_all_of_it_in_the_end(team):
    team.write(demo=team.fake())
    team.serve()
    team.ask("demo")
    answer = team.post("demo", f"@@n={MANY},fat=2000", stream=True)
    assert stalled(team) < MANY
    frames = read(answer)
    said = [frame["choices"][0]["delta"].get("content") for frame in frames[1:-1]]
    assert [text.split()[0] for text in said] == [f"w{number}" for number in range(MANY)]
    assert frames[-1]["choices"][0]["finish_reason"] == "stop"
    _, record = team.records()
    assert (record["outcome"], record["completion_tokens"], record["lower_bound"]) == ("ok", MANY, 0)


async def test_the_peer_of_many_streams(team):
    team.write(demo=team.fake())
    team.serve()

    def one(_):
        return len(read(team.post("demo", "@@n=50,us=100", stream=True)))

    loop = asyncio.get_running_loop()
    with ThreadPoolExecutor(32) as pool:
        assert set(await asyncio.gather(*(loop.run_in_executor(pool, one, n) for n in range(64)))) == {52}
    assert sum(r["completion_tokens"] for r in team.records()) == 64 * 50
