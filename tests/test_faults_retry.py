"""When another engine, or the same one again, may be asked: before the first byte of an answer, and never twice for one
record."""

import contextlib
import socket
from collections import Counter
from pathlib import Path

import pytest
from wild_caller import PATHS, Line, house_in, question
from wild_engine import Wild


@pytest.fixture(params=PATHS)
def path(request):
    return request.param


@contextlib.contextmanager
def two(folder: Path, path: str, **limits: str):
    """A house with two engines: `far-1` is the house's own, `far-2` the other."""
    with Wild(folder / "other.sock").running() as other:
        places = ", ".join(f'{{ url = "unix:{folder / name}.sock" }}' for name in ("wild", "other"))
        with house_in(folder, path, far=f"replicas = [{places}]\n", **limits) as house:
            house.begin()
            yield house, other
            house.team.until(lambda: house.busy() == 0, 5)


def test_a_connection_that_closes_just_when_it_is_used_again(tmp_path, path):
    with house_in(tmp_path, path, far="") as house:
        house.begin()
        answers = [house.ask("far", "@@closes_when_used_again", stream=n % 2 == 0) for n in range(6)]
        assert all(answer.text == " w0 w1 w2 w3" for answer in answers)
        assert house.wild.accepted >= 6  # none was answered over another's connection
        rows = house.new()
        assert [row["request"] for row in rows] == [answer.request for answer in answers]
        assert {(row["outcome"], row["prompt_tokens"], row["completion_tokens"]) for row in rows} == {("ok", 7, 4)}
        house.rest()


@pytest.mark.parametrize("way", ["closes_before_the_head", "dead"])
def test_another_replica_answers_when_one_does_not_begin_to(tmp_path, path, way):
    with two(tmp_path, path) as (house, other):
        house.wild.always = way
        if way == "dead":
            (tmp_path / "wild.sock").unlink()
        answers = [house.ask("far", f"hi {n}", stream=n % 2 == 0) for n in range(6)]
        assert {answer.text for answer in answers} == {" w0 w1 w2 w3"}
        rows = house.new()
        assert [row["request"] for row in rows] == [answer.request for answer in answers]
        assert {(row["outcome"], row["replica"], row["lower_bound"]) for row in rows} == {("ok", "far-2", 0)}
        assert sum(row["completion_tokens"] for row in rows) == 4 * 6 == 4 * len(other.seen)


def test_nobody_else_is_asked_once_an_answer_has_begun(tmp_path, path):
    with two(tmp_path, path) as (house, other):
        for way in ("closes_in_the_head", "closes_in_the_middle", "garbage"):
            house.begin()
            other.seen.clear()
            house.wild.always = other.always = way
            heard = house.ask("far", "hi", stream=True)
            assert (heard.error, len(house.wild.seen) + len(other.seen)) == ("engine_failed", 1)
            (row,) = house.new()
            assert (row["outcome"], row["lower_bound"]) == ("error", 1)
            assert row["replica"] == ("far-1" if house.wild.seen else "far-2")


def test_when_no_replica_answers_it_is_said_once(tmp_path, path):
    with two(tmp_path, path) as (house, other):
        house.wild.always = other.always = "closes_before_the_head"
        heard = house.ask("far", "hi")
        assert (heard.status, heard.error) == (502, "engine_failed")
        assert len(house.wild.seen) == len(other.seen) == 1
        (row,) = house.new()
        assert (row["outcome"], row["completion_tokens"], row["lower_bound"]) == ("error", 0, 1)


def test_an_engine_that_is_reached_too_late_is_not_asked(tmp_path, path):
    """Its queue of connections is full; by the time it takes ours, the caller has been told that it does not answer."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full, contextlib.ExitStack() as stack:
        url = f"http://127.0.0.1:{full.getsockname()[1]}"
        stuck = stack.enter_context(socket.create_connection(full.getsockname()))
        late = f'url = "{url}"\nfirst_byte_seconds = 0.3\n'
        house = stack.enter_context(house_in(tmp_path, path, late=late, calm=""))
        house.begin()
        line = stack.enter_context(Line(house.team))
        line.send(question(house.team, "late", stream=True))
        heard = line.answer()
        assert (heard.status, heard.error) == (504, "timeout")
        stuck.close()
        full.accept()[0].close()
        line.send(question(house.team, "calm", "@@paced=100", stream=True))
        full.settimeout(5)
        said = b"probe"
        while said:  # until the one for the request comes, which is closed without a word
            connection = stack.enter_context(full.accept()[0])
            said = connection.recv(1 << 16)
            assert not said.startswith(b"POST")
        heard = line.answer()
        assert heard.text == " w0 w1 w2 w3"
        assert [(row["endpoint"], row["outcome"]) for row in house.new()] == [("late", "error"), ("calm", "ok")]


def test_a_burst_that_the_engines_door_cannot_take_at_once(tmp_path, path):
    """A full queue of a Unix socket refuses at once, which is not the end of an engine."""
    with house_in(tmp_path, path, far="", backlog=4) as house:
        house.begin()
        with contextlib.ExitStack() as stack:
            lines = [stack.enter_context(Line(house.team)) for _ in range(300)]
            for line in lines:
                line.send(question(house.team, "far"))
            assert Counter(line.answer().status for line in lines) == {200: 300}
        assert len(house.new()) == len(house.wild.seen) == 300
        house.rest()
