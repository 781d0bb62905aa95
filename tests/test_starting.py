"""From cold to answering, through a real daemon: which weights, what the engine gets, the probe, what it costs; and who
is told what when it fails."""

import json

import pytest
from conftest import DEMO

from freehold.fleet.host import probe


def refusal(answer) -> str:
    """What a caller is told, who can do nothing about it: to come back."""
    error = json.loads(answer.read())["error"]
    assert (answer.status, error["code"]) == (503, "engine_unavailable")
    assert int(answer.headers["retry-after"]) >= 1
    return error["message"]


def test_an_engine_that_cannot_start(team):
    team.write(demo=team.fake(fail="no such luck"))
    team.serve()
    assert "no such luck" not in refusal(team.post("demo"))
    assert "no such luck" in team.run("up", code=5)
    assert "no such luck" in team.status("demo")["reason"]
    assert "no such luck" in team.events("engine.failed")[0]["detail"]["reason"]


def test_an_engine_that_is_not_there(team):
    team.write(demo=team.fake())
    (team.folder / "fake-1" / "fake_engine.py").unlink()
    team.serve()
    refusal(team.post("demo"))
    assert team.daemon.running()


def test_what_the_configuration_asks_and_cannot_be_is_said_before_an_engine_is_started(team):
    mtp = team.demo('speculative = "mtp"')
    team.write(
        options=team.demo('arguments = ["--temp", "0.5"]'), absent=team.demo('binary = "/nowhere/llama"'), mtp=mtp
    )
    team.serve()
    why = {name: team.up(name)["error"] for name in ("options", "absent", "mtp")}
    assert "takes no arguments" in why["options"]
    assert why["absent"] == "[endpoints.absent] binary: there is no /nowhere/llama"
    assert "no layers for multi-token prediction" in why["mtp"]
    assert team.events("engine.started") == []


def test_what_a_killed_daemon_left_of_its_engines_is_cleared_away(team):
    team.write(demo=team.fake())
    team.serve()
    team.up("demo")
    left = team.socket("demo").parent
    team.kill()
    assert left.exists()
    team.serve()
    assert not left.exists()


def test_every_start_ends_with_a_real_completion_on_record(team):
    team.write(demo=team.fake())
    team.serve()
    assert team.up("demo") == {"up": "demo"}
    (probe,) = team.records(probes=True)
    assert (probe["kind"], probe["key"], probe["outcome"], probe["status"]) == ("probe", "freehold", "ok", 200)
    assert (probe["prompt_tokens"], probe["completion_tokens"], probe["charge_pico"]) == (7, 8, 0)
    (passed,) = team.events("probe.passed")
    assert passed["detail"]["engine_completion_tokens"] == 8
    assert team.events("probe.counts_differ") == []


def test_an_engine_whose_counters_disagree_is_told_of(team):
    team.write(demo=team.fake(miscount=True))
    team.serve()
    assert "ITS COUNTERS DIFFER" in team.run("up")
    (differ,) = team.events("probe.counts_differ")
    assert (differ["detail"]["completion_tokens"], differ["detail"]["engine_completion_tokens"]) == (8, 9)
    assert team.events("probe.passed") == []


def test_an_engine_that_fails_its_probe_is_not_served(team):
    team.write(demo=team.fake(error=500))
    team.serve()
    assert "it hurts" in team.up("demo")["error"]
    (probe,) = team.records(probes=True)
    assert (probe["kind"], probe["outcome"], probe["status"]) == ("probe", "error", 500)
    refusal(team.post("demo"))


def launched(team) -> dict:
    assert team.up("demo") == {"up": "demo"}
    return json.loads(team.engine("demo", "/launch"))


@pytest.mark.parametrize(("trained", "context"), [(2048, 2048), (100_000, 8192)])
def test_what_an_engine_gets_when_nothing_is_said(team, trained, context):
    content = bytearray(DEMO.read_bytes())
    key = b"llama.context_length"
    at = content.index(key) + len(key) + 4  # behind the value's type
    content[at : at + 4] = trained.to_bytes(4, "little")
    (team.folder / "copy.gguf").write_bytes(content)
    settings = team.fake("parallel = 2").replace("context = 512\n", "")
    team.write(demo=settings.replace(str(DEMO), "copy.gguf"))
    team.serve()
    args = launched(team)["args"]
    assert (args["--parallel"], args["--ctx-size"]) == ("2", str(2 * context))
    assert args["--threads"] == args["--threads-batch"] == str(max(1, probe().cores - 1))


def test_what_is_said_is_what_an_engine_gets(team):
    team.write(demo=team.fake("parallel = 3\nthreads = 7"))
    team.serve()
    args = launched(team)["args"]
    assert (args["--parallel"], args["--ctx-size"], args["--threads"]) == ("3", str(3 * 512), "7")


def test_weights_behind_a_link_are_served(team):
    (team.folder / "weights").mkdir()
    weights = team.folder / "weights" / "real.gguf"
    weights.write_bytes(DEMO.read_bytes())
    (team.folder / "current.gguf").symlink_to(weights)
    team.write(demo=team.fake().replace(str(DEMO), "current.gguf"))
    team.serve()
    seen = launched(team)
    assert seen["args"]["--model"] == str(weights)
    assert seen["model_bytes"] == DEMO.stat().st_size


def test_what_a_start_costs_is_on_the_account(team):
    team.write(demo=team.fake(delay_s=0.5))
    team.serve()
    team.ask("demo", "@@n=10,us=10000")
    found = json.loads(team.run("usage", "--cost", "--json"))
    rows = {row["phase"]: row for row in found["occupancy"] if row["endpoint"] == "demo"}
    assert rows.keys() == {"starting", "serving", "idle"}
    (ready,) = team.events("replica.ready")
    assert round(rows["starting"]["lasted_ns"] / 1e9, 3) == ready["detail"]["seconds"] >= 0.5
    (record,) = team.records()
    assert rows["serving"]["lasted_ns"] >= 0.1e9
    assert rows["serving"]["pico"] == pytest.approx(record["machine_pico"], abs=1)
    assert rows["starting"]["pico"] > 0
    assert found["difference_pico"] == 0
