"""What happens to the daemon's own ground, on both paths: no disk, a book that somebody holds, no money, a cold engine,
and keys where they should not be."""

import contextlib
import json
import sqlite3
import subprocess
from collections import Counter

import pytest
from conftest import team_in
from wild_caller import PATHS, House, Line, external, house_in, question
from wild_engine import Wild

TEXT = " w0 w1 w2 w3"
REQUESTS = 1000
# Four tokens cost 4, and the prompt nothing, so that ten requests take a budget of 40 to the last token.
PRICED = "prompt_price = 0\ncompletion_price = 1_000_000"


@pytest.fixture(params=PATHS)
def path(request):
    return request.param


@contextlib.contextmanager
def asking(house, count: int, content: str, **more):
    """So many callers at once, each with a connection; who they are."""
    with contextlib.ExitStack() as stack:
        lines = [stack.enter_context(Line(house.team)) for _ in range(count)]
        for line in lines:
            line.socket.settimeout(20)
            line.send(question(house.team, "far", content, **more))
        yield lines


# money


def budgeted(team, budget: float) -> dict:
    limits = {"budget_per_day": budget}
    secret = team.daemon.ask("POST", "/keys", {"name": "poor", "limits": limits})["secret"]
    return {"key": secret, "max_tokens": 4}


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
def test_a_thousand_at_once_on_a_budget_for_ten(tmp_path, path, stream):
    with house_in(tmp_path, path, far=PRICED) as house:
        house.begin()
        poor = budgeted(house.team, 40)
        with asking(house, REQUESTS, "@@paced=30", stream=stream, **poor) as lines:
            answers = [line.answer() for line in lines]
        assert Counter(each.status for each in answers) == {200: 10, 429: REQUESTS - 10}
        assert {each.error for each in answers if each.status == 429} == {"insufficient_quota"}
        assert len(house.wild.seen) == 10
        assert sum(row["charge_pico"] for row in house.new()) == 40 * 10**12
        house.rest()


def test_what_a_crash_cut_stays_held(tmp_path, path):
    """Ten fit: five are answered, five cut by kill -9 of the daemon. Nobody knows how far those went."""
    with house_in(tmp_path, path, far=PRICED) as house:
        house.begin()
        team = house.team
        poor = budgeted(team, 40)
        for _ in range(5):
            assert house.ask("far", "@@well", **poor).text == TEXT
        with asking(house, REQUESTS, "@@stalls_in_the_middle", stream=True, **poor) as lines:
            team.until(lambda: len(house.wild.seen) == 10)
            assert Counter(line.answer().status for line in lines[5:]) == {429: REQUESTS - 5}
            team.kill()
        team.serve()
        rows = house.new()
        assert Counter(row["outcome"] for row in rows) == {"ok": 5, "cut": 5}
        assert {row["lower_bound"] for row in rows if row["outcome"] == "cut"} == {1}
        with asking(house, 100, "@@well", **poor) as lines:
            assert Counter(line.answer().error for line in lines) == {"insufficient_quota": 100}
        assert len(house.wild.seen) == 10


# the book


def test_a_book_that_somebody_holds_under_load(tmp_path, path):
    with house_in(tmp_path, path, far="") as house:
        house.begin()
        with contextlib.closing(sqlite3.connect(house.team.state / "book.db", isolation_level=None)) as other:
            other.execute("begin immediate")
            for number in range(5):
                with asking(house, 100, "@@well", stream=number % 2 == 0) as lines:
                    assert {line.answer().text for line in lines} == {TEXT}
            other.execute("rollback")
        rows = house.team.until(lambda: len(found := house.new()) == 500 and found)
        assert {row["request"] for row in rows} == {talk.request for talk in house.wild.seen}
        assert {(row["outcome"], row["completion_tokens"], row["lower_bound"]) for row in rows} == {("ok", 4, 0)}
        house.rest()


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 8 MiB for the state of a team; what is in the file `filler` can be given back."""
    state = tmp_path / ".freehold"
    state.mkdir(mode=0o700)
    command = ["mount", "-t", "tmpfs", "-o", "size=8m,mode=700", "tmpfs", str(state)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("only root may mount a small disk")
    yield state
    subprocess.run(["umount", "-l", str(state)], check=True)


def test_a_full_disk(tmp_path, path, small_disk):
    """Nobody is answered without a record, and none that an engine saw is lost."""
    with house_in(tmp_path, path, far="") as house:
        house.begin()
        team, seen = house.team, house.wild.seen
        with asking(house, 10, "@@paced=100", stream=True) as under_way:
            team.until(lambda: len(seen) == 10)
            filler = small_disk / "filler"
            with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
                while file.write(b"x" * 4096):
                    pass
            late = []
            for number in range(40):
                with contextlib.suppress(OSError, ValueError):
                    late.append(house.ask("far", "@@well", stream=number % 2 == 0))
            answers = [line.answer() for line in under_way]
        refused = [each for each in late if each.status != 200]
        assert {(each.status, each.error) for each in refused} <= {(503, "engine_unavailable")}
        assert refused
        filler.unlink()
        team.process.poll() is None and team.run("down")
        team.process.wait(20)
        team.serve()
        rows = {row["request"]: row for row in house.new()}
        assert len(rows) == len(house.new())
        assert {talk.request for talk in seen} <= rows.keys()
        whole = [each for each in answers + late if each.seems_whole]
        kept = [(rows[each.request]["completion_tokens"], rows[each.request]["lower_bound"]) for each in whole]
        assert all(counted == (4, 0) or counted[1] for counted in kept)  # what could not be written is marked
        assert not {each.request for each in refused} & rows.keys()
        assert house.ask("far", "hi").text == TEXT


# a cold engine


def test_who_leaves_while_an_engine_starts(tmp_path, path):
    with team_in(tmp_path) as team, Wild(tmp_path / "wild.sock").running() as wild:
        team.write(
            server=f"fast_path = {str(PATHS[path]).lower()}",
            cold=team.fake(delay_s=0.7), far=external("", wild.url),
        )  # fmt: skip
        team.serve()
        house = House(team, wild)
        house.begin()
        with contextlib.ExitStack() as leaving:
            for number in range(10):
                line = leaving.enter_context(Line(team))
                line.send(question(team, "cold", stream=number % 2 == 0))
            with Line(team) as patient:
                patient.send(question(team, "cold"))
                team.until(lambda: team.status("cold")["waiting"] == 11)
                leaving.close()
                team.until(lambda: team.status("cold")["waiting"] == 1, 5)
                assert patient.answer().status == 200
        rows = house.new()
        assert Counter(row["outcome"] for row in rows) == {"cut": 10, "ok": 1}
        assert {(r["prompt_tokens"], r["lower_bound"]) for r in rows if r["outcome"] == "cut"} == {(0, 0)}
        assert json.loads(team.engine("cold", "/counts"))["requests"] == 2  # with the probe
        assert house.busy() == 0


# keys


def test_a_key_goes_nowhere_else(tmp_path, path):
    with house_in(tmp_path, path, server="log_requests = true", far="") as house:
        house.begin()
        team = house.team
        secret = team.key.removeprefix("fh-")
        key = team.key.encode()
        said = [house.ask("far", f"@@{way}", stream=stream).body for way in ("well", "garbage") for stream in (1, 0)]
        for odd in (
            b"GET /%b HTTP/1.1\r\nHost: x\r\n\r\n" % key,
            b"POST /v1/chat/completions HTTP/1.1\r\nAuthorization: Bearer %b x\r\n\r\n" % key,
            b"POST /v1/chat/completions HTTP/1.1\r\nAuthorization: %b\r\nContent-Length: zz\r\n\r\n" % key,
            question(team, "far").replace(b'"hi"', b"'hi'"),
            b"Bearer %b\r\n\r\n" % key,
        ):
            with Line(team) as line:
                line.send(odd)
                with contextlib.suppress(OSError, ValueError):
                    said.append(line.answer().body)
        said += [team.run(*words).encode() for words in (("ps",), ("ps", "--json"), ("usage",))]
        said.append(repr(house.process.environ()).encode())
        said += [" ".join(child.cmdline()).encode() for child in (house.process, *house.process.children(True))]
        assert not any(secret in str(talk.asked) for talk in house.wild.seen)
        team.end()
        said += [file.read_bytes() for file in team.folder.rglob("*") if file.is_file()]
        shown = [text[:200] for text in said if secret.encode() in text]
        assert [text for text in shown if b"Invalid URL" not in text] == []  # what they put into a URL themselves
