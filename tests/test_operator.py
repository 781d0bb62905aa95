"""What an operator does, and what it does to callers: stop, start, keys, down; who may, and who is said to have."""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

from conftest import ME, alive
from trails import breaks


def read(answer) -> list[dict]:
    return [json.loads(line[6:]) for line in answer.read().splitlines() if line.startswith(b"data: {")]


def test_an_operator_stops_and_starts(team):
    team.write(demo=team.fake())
    team.serve()
    streaming = team.post("demo", "@@n=30,us=20000", stream=True)
    assert "stopping" in team.run("stop", "demo")
    late = team.post("demo")
    assert (late.status, "was stopped" in late.read().decode()) == (503, True)
    assert read(streaming)[-1]["choices"][0]["finish_reason"] == "stop"  # who was in may finish
    team.until(lambda: team.status("demo")["state"] == "stopped")
    assert "ready after" in team.run("start", "demo")
    team.ask("demo")
    assert len(team.records()) == 3


def test_keys_are_dead_when_the_command_returns(team):
    team.write(demo=team.fake())
    team.serve()
    secret = team.run("keys", "create", "ada", "--endpoint", "d*", "--expires", "1h").split()[0]
    assert team.post("demo", key=secret).status == 200
    team.run("keys", "revoke", "ada")
    assert team.post("demo", key=secret).status == 401
    assert "revoked" in team.run("keys", "list", "--all")
    assert " ada " not in team.run("keys", "list")
    assert secret not in (team.state / "book.db").read_bytes().decode("latin-1")
    team.end()
    team.serve()
    assert team.post("demo", key=secret).status == 401


def test_who_may_come_through_the_admin_door(team):
    team.write(demo=team.fake())
    team.serve()
    from freehold.gateway.rundir import admin_socket

    path = admin_socket(team.state)
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert team.state.stat().st_mode & 0o777 == 0o700


def test_one_daemon_a_state_folder(team):
    team.write(demo=team.fake())
    team.serve()
    assert "a daemon already runs" in team.run("serve", code=3)


def test_down_lets_requests_finish(team):
    team.write(demo=team.fake())
    team.serve()
    streaming = team.post("demo", "@@n=30,us=20000", stream=True)
    pid = team.status("demo")["pid"]
    with ThreadPoolExecutor(1) as other:
        ending = other.submit(team.run, "down")
        assert read(streaming)[-1]["choices"][0]["finish_reason"] == "stop"
        assert "no engine" in ending.result()
    assert not alive(pid)
    assert team.process.wait(10) == 0
    assert [r["outcome"] for r in team.records()] == ["ok"]


def test_down_cuts_who_does_not_finish(team):
    team.write(demo=team.fake())
    team.serve()
    streaming = team.post("demo", "@@n=100000,us=20000", stream=True)
    pid = team.status("demo")["pid"]
    team.run("down")
    streaming.close()
    assert not alive(pid)
    (record,) = team.records()
    assert (record["outcome"], record["lower_bound"]) == ("cut", 1)
    assert record["completion_tokens"] > 0


def test_the_chain_of_events_holds(team):
    team.write(demo=team.fake())
    team.serve()
    team.ask("demo")
    team.kill()
    team.serve()
    team.ask("demo")
    team.end()
    assert breaks(team.state) == []
    assert len(team.events("daemon.started")) == 2


def test_who_did_it_is_the_user_at_the_other_end(team):
    team.write(demo=team.fake())
    team.serve()
    team.run("up")
    team.run("stop", "demo")
    team.run("keys", "create", "ada")
    team.run("keys", "revoke", "ada")
    team.run("pin", "demo")
    team.run("down")
    for kind in ("endpoint.up", "endpoint.stop", "key.created", "key.revoked", "daemon.shutdown"):
        assert {event["actor"] for event in team.events(kind)} == {ME}, kind
    for kind in ("daemon.started", "replica.starting", "engine.started", "daemon.stopped"):
        assert {event["actor"] for event in team.events(kind)} == {"freehold"}, kind


def test_a_stopped_external_endpoint_refuses(team):
    team.write(far='engine = "external"\nurl = "http://127.0.0.1:9"')  # where nobody listens
    team.serve()
    assert team.post("far").status == 502
    assert "stopping" in team.run("stop", "far")
    assert team.status("far")["state"] == "stopped"
    late = team.post("far")
    assert (late.status, json.loads(late.read())["error"]["code"]) == (503, "engine_unavailable")
    assert "it cannot be reached" in team.up("far")["error"]  # it is open again, and still nobody is there
    assert team.post("far").status == 502
    assert [(record["outcome"], record["status"]) for record in team.records()] == [
        ("error", 502),
        ("error", 503),
        ("error", 502),
    ]


def test_a_shell_completes_commands(team):
    script = team.run("completion", "bash")
    assert "_FREEHOLD_COMPLETE=bash_complete" in script
    done = subprocess.run(
        [sys.executable, "-c", "import sys; sys.argv = ['freehold']; from freehold.cli.main import main; main()"],
        env={**os.environ, "_FREEHOLD_COMPLETE": "bash_complete", "COMP_WORDS": "freehold u", "COMP_CWORD": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.splitlines() == ["plain,up", "plain,usage"]
