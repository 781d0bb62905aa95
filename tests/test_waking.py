"""Who asks for a cold engine: how long they wait, what they are told meanwhile, and what comes when it is in vain."""

import json
import math
import time
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import openai
import pytest
from asking import ASKING, chat, connect, text_of
from conftest import team_in

START_S = 0.8
PROGRESS = {"x-wake-progress": "1"}


@pytest.fixture(scope="module")
def team(tmp_path_factory):
    """Each test has an endpoint of its own, that is cold."""
    with team_in(tmp_path_factory.mktemp("waking")) as team:
        soon = ("forgotten", "hasty", "patient", "garbled", "told", "told_whole", "measured")
        team.write(
            **{name: team.fake("idle_seconds = 0.2", delay_s=START_S) for name in soon},
            **{name: team.fake("wait_seconds = 0.6", delay_s=60) for name in ("never", "never_told")},
            broken=team.fake(fail="no such luck"),
            broken_told=team.fake(error=500, delay_s=0.6),
            ramp=team.fake("parallel = 8", delay_s=START_S),
            full=team.fake("max_waiting = 1", delay_s=START_S),
        )
        team.serve()
        yield team


class Told(NamedTuple):
    status: int
    retry_after: str | None
    took_s: float
    body: bytes


def ask(team, model, wait: str | None = None, headers=(), **more) -> Told:
    """`wait`: X-Scale-Up-Timeout."""
    headers = {"Authorization": f"Bearer {team.key}", **dict(headers)}
    if wait is not None:
        headers["X-Scale-Up-Timeout"] = wait
    connection, began_s = team.connect(), time.monotonic()
    connection.request(
        "POST", "/v1/chat/completions", json.dumps({"model": model, "messages": ASKING, **more}), headers
    )
    answer = connection.getresponse()
    body = answer.read()
    return Told(answer.status, answer.getheader("retry-after"), time.monotonic() - began_s, body)


def test_who_does_not_wait_is_told_at_once_and_wakes_it_nevertheless(team):
    told = ask(team, "hasty", "0")
    assert (told.status, told.retry_after) == (503, "10")  # nobody knows yet how long it takes
    assert told.took_s < START_S / 2
    assert team.until(lambda: team.status("hasty")["state"] == "ready")


def test_who_waits_so_long_at_most(team):
    told = ask(team, "patient", "0.3")
    assert told.status == 503
    assert 0.3 <= told.took_s < START_S
    assert ask(team, "patient", "30").status == 200


def test_a_header_that_is_no_number_is_as_if_it_were_not_there(team):
    assert {ask(team, "garbled", wait).status for wait in ("soon", "-1", "1e3", "")} == {200}


def test_what_is_in_vain_ends_with_the_endpoints_own_patience(team):
    told = ask(team, "never")
    assert (told.status, told.took_s < 2) == (503, True)
    assert int(told.retry_after) > 0


def test_retry_after_is_what_starts_took_here(team):
    assert ask(team, "measured").status == 200
    team.until(lambda: team.status("measured")["state"] == "cold")
    (ready,) = (e for e in team.events("replica.ready") if e["subject"] == "measured")
    told = ask(team, "measured", "0")
    assert (told.status, int(told.retry_after)) == (503, math.ceil(ready["detail"]["seconds"]))


def test_when_enough_wait_another_is_sent_away(team):
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(ask, team, "full")
        team.until(lambda: team.status("full")["waiting"] == 1)
        assert ask(team, "full").status == 503
        assert first.result().status == 200


def comments(body: bytes) -> list[dict]:
    return [json.loads(line[2:]) for line in body.split(b"\n\n") if line.startswith(b": ")]


def test_who_wants_to_be_told_is_told_while_it_wakes(team):
    told = ask(team, "told", headers=PROGRESS, stream=True)
    said = comments(told.body)
    assert {each["waking"] for each in said} == {"told"}
    assert {each["estimated_seconds"] for each in said} == {None}  # never started before
    assert "loading the engine" in {each["stage"] for each in said}
    assert told.body.rstrip().endswith(b"data: [DONE]")
    team.until(lambda: team.status("told")["state"] == "cold")
    with connect(team) as client:
        stream = client.chat.completions.with_raw_response.create(
            model="told", messages=ASKING, stream=True, extra_headers=PROGRESS
        )
        assert stream.headers["content-type"].startswith("text/event-stream")
        assert "w7" in text_of(stream.parse())  # the client reads past them
    team.until(lambda: team.status("told")["state"] == "cold")
    guesses = [each["estimated_seconds"] for each in comments(ask(team, "told", headers=PROGRESS, stream=True).body)]
    assert START_S + 1 > guesses[0] > guesses[-1] >= 0
    assert [row["outcome"] for row in team.records() if row["endpoint"] == "told"] == ["ok"] * 3
    assert all(row["wake_ms"] > 100 for row in team.records() if row["endpoint"] == "told")


def test_a_whole_answer_has_no_comments(team):
    told = ask(team, "told_whole", headers=PROGRESS)
    assert (told.status, json.loads(told.body)["model"]) == (200, "told_whole")


@pytest.mark.parametrize("model", ["never_told", "broken_told"])
def test_what_fails_after_that_comes_as_a_frame(team, model):
    with connect(team) as client:
        stream = chat(client, model=model, stream=True, extra_headers=PROGRESS)
        with pytest.raises(openai.APIError) as error:
            list(stream)
    assert error.value.body["code"] == "engine_unavailable"
    assert "it hurts" not in str(error.value)  # that is its operator's to know
    told = ask(team, model, headers=PROGRESS, stream=True)
    assert told.body.count(b"data: ") == 1
    (row, *_) = (row for row in team.records() if row["endpoint"] == model)
    assert (row["outcome"], row["replica"]) == ("error", "")


def test_without_the_header_it_is_an_answer_of_its_own(team):
    with connect(team) as client, pytest.raises(openai.InternalServerError) as error:
        chat(client, model="broken", stream=True)
    assert error.value.status_code == 503
    assert int(error.value.response.headers["retry-after"]) > 0


def test_a_crowd_wakes_it_once_and_all_are_served(team):
    with ThreadPoolExecutor(20) as pool:
        answers = [pool.submit(ask, team, "ramp") for _ in range(20)]
        assert {answer.result().status for answer in answers} == {200}
    assert len([e for e in team.events("replica.starting") if e["subject"] == "ramp"]) == 1
    rows = [row for row in team.records() if row["endpoint"] == "ramp"]
    assert (len(rows), {row["run"] for row in rows}) == (20, {1})


def test_no_group_reads_what_another_left_in_the_cache_of_the_real_engine(tmp_path):
    with team_in(tmp_path) as team:
        team.write(demo=team.demo("parallel = 1"))
        with (tmp_path / "freehold.toml").open("a") as file:
            file.write("\n[groups.a]\n[groups.b]\n")
        team.serve()
        keys = {
            name: team.daemon.ask("POST", "/keys", {"name": name, "group": name[0]})["secret"]
            for name in ("a1", "a2", "b1")
        }

        def cached(name: str) -> int:
            usage = team.ask("demo", "The same long beginning. " * 8, key=keys[name], max_tokens=2)["usage"]
            return usage.get("prompt_tokens_details", {}).get("cached_tokens", 0)

        assert [bool(cached(name)) for name in ("a1", "a2", "b1", "b1", "a1", "a1")] == [
            False, True, False, True, False, True
        ]  # fmt: skip


def test_an_engine_that_nobody_waited_for_goes_to_sleep_again(team):
    """They were told to come back, and did not."""
    assert ask(team, "forgotten", "0").status == 503
    team.until(lambda: team.status("forgotten")["state"] == "ready")
    team.until(lambda: team.status("forgotten")["state"] == "cold")
