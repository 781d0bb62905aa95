"""Adapters of a real llama.cpp on two replicas, added, tried, taken back and removed while many ask.

What is right is what llama.cpp answers with one adapter alone. Of each answer the record says which version gave it.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading

import pytest
from crash import processes
from lora_mix import GERMAN, Load, alone, gguf_of, scaled, wrong

from freehold.errors import FreeholdError

ALL = ("demo", "demo:german", "demo:inverse")


@pytest.fixture(scope="module")
def inverse(tmp_path_factory):
    """Another adapter, which answers otherwise."""
    return scaled(tmp_path_factory.mktemp("adapters") / "inverse", -1)


@pytest.fixture(scope="module")
def right(inverse):
    german = shutil.copytree(GERMAN, inverse.with_name("german"))
    answers = {"demo": alone(None), "demo:german": alone(gguf_of(german)), "demo:inverse": alone(gguf_of(inverse))}
    base, one, two = (list(each.values()) for each in answers.values())
    assert not any(a == b for pair in ((base, one), (base, two), (one, two)) for a, b in zip(*pair, strict=True))
    return answers


@pytest.fixture
def pair(team):
    """Two replicas, up."""
    start(team)
    return team


def start(team, more="replicas = 2"):
    team.write(demo=team.demo(more))
    team.serve()
    assert team.up("demo") == {"up": "demo"}


def add(team, name, path, *more, code=0):
    return team.run("adapters", "add", name, str(path), "--base", "demo", *more, code=code)


def change(team, verb, name, *more):
    return team.run("adapters", verb, name, "--base", "demo", *more)


def load(team, *models, **more):
    return Load(team.url, team.key, models, **more)


def served(team):
    """By request, the version that answered; "": the base."""
    return {row["request"]: row["served_model"] for row in team.records()}


def check(team, load, right, versions):
    """Nothing failed, and each text is what the version in its record says. `versions`: how a name begins, and whose
    answers those are."""
    assert load.failed == []
    meant = {request: next((versions[v] for v in versions if at.startswith(v)), at) for request, at in
             served(team).items() if at}  # fmt: skip
    assert wrong(load.answers, right, meant) == []


def statuses(team):
    return [each for each in team.daemon.ask("GET", "/status")["endpoints"] if each["endpoint"] == "demo"]


def ready(team, *names):
    """Two replicas serve, and both have these adapters."""
    states = [each for each in statuses(team) if each["state"] == "ready"]
    return len(states) == len(statuses(team)) == 2 and all(
        [name.partition("-")[0] for name in each["adapters"]] == list(names) for each in states
    )


def adapter_files(team):
    return sorted(each.name.rpartition("-")[0] for each in (team.state / "adapters" / "demo").iterdir())


def of(team, kind):
    return [(each["subject"], each["detail"]) for each in team.events(kind)]


def test_the_life_of_an_adapter_under_load(pair, right, inverse):
    """Added, another version tried, given all, rolled back, removed: nobody fails, and no answer is of another one."""
    versions = {"german@1": "demo:german", "german@2": "demo:inverse"}
    with load(pair, "demo", threads=6) as base:
        base.reach(30)
        assert "demo:german is version 1" in add(pair, "german", GERMAN)
        with load(pair, "demo:german", threads=2) as german:
            german.reach(30)
            assert "30 % of its requests go to version 2" in add(pair, "german", inverse, "--percent", "30")
            german.reach(30)
            change(pair, "share", "german", "--percent", "100")
            german.reach(20)
            change(pair, "rollback", "german")
            german.reach(20)
    check(pair, base, right, versions)
    check(pair, german, right, versions)
    told = [row["served_model"][:8] for row in pair.records() if row["endpoint"] == "demo:german"]
    assert set(told[:30]) == set(told[-10:]) == {"german@1"}
    assert "german@2" in told
    assert {row["served_model"] for row in pair.records() if row["endpoint"] == "demo"} == {""}
    change(pair, "remove", "german")
    assert pair.post("demo:german").status == 404
    for kind, count in {"loading": 2, "probed": 2, "opened": 2, "shared": 1, "rolled_back": 1, "removed": 1}.items():
        assert len(pair.events(f"adapter.{kind}")) == count, kind
    assert len(of(pair, "adapter.probed")[0][1]["version"]) > len("german@1-")
    reconciled = pair.run("usage", "--reconcile")
    assert "unattributed" not in reconciled
    assert reconciled.count("exact") == 6  # two replicas, and twice two successors


def test_a_trial_gets_exactly_its_share(pair, right, inverse):
    add(pair, "german", GERMAN)
    add(pair, "german", inverse, "--percent", "30")
    with load(pair, "demo:german", "demo", threads=8, most=400) as asked:
        asked.join()
    check(pair, asked, right, {"german@1": "demo:german", "german@2": "demo:inverse"})
    told = [row["served_model"][:8] for row in pair.records() if row["endpoint"] == "demo:german"]
    assert len(told) > 100
    assert {told[at : at + 100].count("german@2") for at in range(len(told) - 99)} == {30}


def test_two_hundred_of_all_in_any_order(pair, right, inverse):
    add(pair, "german", GERMAN)
    add(pair, "inverse", inverse)
    with load(pair, *ALL, most=200) as asked:
        asked.join()
    check(pair, asked, right, {"german@1": "demo:german", "inverse@1": "demo:inverse"})
    assert len(asked.answers) == 200
    assert sum(row["cached_tokens"] for row in pair.records()) > 1000  # caches were hit, and not wrongly


def test_a_killed_engine_has_all_of_them_before_it_serves_again(pair, right, inverse):
    add(pair, "german", GERMAN)
    add(pair, "inverse", inverse)
    with load(pair, *ALL) as asked:
        asked.reach(30)
        victim = min(pid for pid, said in processes(pair).items() if "bwrap" not in said.split()[0])
        os.kill(victim, signal.SIGKILL)
        pair.until(lambda: pair.events("engine.exited"))
        pair.until(lambda: ready(pair, "german@1", "inverse@1"))
        asked.reach(60)
    assert all("engine_failed" in each for each in asked.failed), asked.failed
    assert len(asked.failed) <= 4  # of one replica's slots: their answers had begun
    told = {request: f"demo:{at.partition('@')[0]}" for request, at in served(pair).items() if at}
    assert wrong(asked.answers, right, told) == []


def test_a_new_daemon_knows_them(pair, right, inverse):
    add(pair, "german", GERMAN)
    add(pair, "german", inverse, "--percent", "50")
    before = pair.daemon.ask("GET", "/adapters")
    (pair.state / "adapters" / "demo" / "half-done-123").mkdir()  # of a daemon that was killed in the middle
    pair.end()
    pair.serve()
    after = pair.daemon.ask("GET", "/adapters")
    assert [each | {"replicas": 2} for each in after] == before
    assert adapter_files(pair) == ["german", "german"]
    with load(pair, "demo", "demo:german", most=60) as asked:  # wakes it
        asked.join()
    check(pair, asked, right, {"german@1": "demo:german", "german@2": "demo:inverse"})
    assert "german is version 1" in change(pair, "rollback", "german")
    assert "german is version 3" in add(pair, "german", GERMAN)  # names of replicas begin anew: that is counted apart
    assert "unattributed" not in pair.run("usage", "--reconcile")


def test_who_may_use_which(pair):
    add(pair, "german", GERMAN)
    keys = {
        scope: pair.daemon.ask("POST", "/keys", {"name": f"of-{at}", "endpoints": [scope]})["secret"]
        for at, scope in enumerate(("demo", "demo:*", "demo*", "demo:german"))
    }
    seen = {}
    for scope, key in keys.items():
        connection = pair.connect()
        connection.request("GET", "/v1/models", headers={"Authorization": f"Bearer {key}"})
        listed = [each["id"] for each in json.loads(connection.getresponse().read())["data"]]
        asked = [pair.post(name, key=key, max_tokens=2).status for name in ("demo", "demo:german", "demo:other")]
        seen[scope] = (listed, asked)
    assert seen == {
        "demo": (["demo"], [200, 403, 404]),
        "demo:*": (["demo:german"], [403, 200, 404]),
        "demo*": (["demo", "demo:german"], [200, 200, 404]),
        "demo:german": (["demo:german"], [403, 200, 404]),
    }


def spoil(folder, source, old=b"", new=b"", cut=None):
    shutil.copytree(source, folder)
    path = folder / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:cut].replace(old, new))
    return folder


def test_what_cannot_be_loaded_changes_nothing(pair, right, tmp_path):
    add(pair, "german", GERMAN)
    corrupt = spoil(tmp_path / "corrupt", GERMAN, cut=-100)
    narrow = spoil(tmp_path / "narrow", GERMAN, b'"shape":[16,256]', b'"shape":[32,128]')
    strange = tmp_path / "strange.gguf"  # of an unknown type: the gate lets it pass, llama.cpp does not
    strange.write_bytes((GERMAN.parent / "adapter.gguf").read_bytes().replace(b"\0lora\x12", b"\0lorb\x12", 1))
    with load(pair, "demo", "demo:german", threads=4) as asked:
        asked.reach(20)
        for path, code in ((corrupt, 3), (narrow, 3), (strange, 5), (tmp_path / "nowhere", 2)):
            for name in ("german", "other"):
                said = add(pair, name, path, code=code)
                assert "error:" in said, said
        asked.reach(20)
    check(pair, asked, right, {"german@1": "demo:german"})
    assert ready(pair, "german@1")
    assert [each["name"] for each in pair.daemon.ask("GET", "/adapters")] == ["german"]
    assert adapter_files(pair) == ["german"]
    assert [subject for subject, _ in of(pair, "adapter.refused")] == ["demo:german", "demo:other"] * 4
    assert all(detail["why"] for _, detail in of(pair, "adapter.refused"))
    serving = {each["replica"] for each in statuses(pair)}
    assert len(serving) == 2, "a successor that failed is still there"


def test_versions_are_bounded(team, inverse):
    start(team, "max_loras = 2")
    add(team, "german", GERMAN)
    add(team, "german", inverse, "--percent", "10")
    said = add(team, "other", inverse, code=2)
    assert "has 2 versions of adapters, and max_loras is 2" in said
    assert "freehold adapters remove" in said


@pytest.mark.parametrize(
    ("context", "left_bytes", "why"),
    [
        ("512", 1 << 20, "`demo+2` does not fit"),
        ('"auto"', (1 << 30) + (27 << 20), "a successor of `demo` would have a context of"),
    ],
)
def test_no_memory_for_a_successor(team, right, context, left_bytes, why):
    """A machine that has become too small: what serves goes on serving, and the operator is told what to do."""
    small = team.folder / "small"
    program = f"""
import os
import freehold.fleet.outfit as outfit
from msgspec.structs import replace
found = outfit.probe
outfit.probe = lambda: replace(found(), available_bytes={left_bytes}) if os.path.exists({str(small)!r}) else found()
from freehold.cli.main import main
main()
"""
    team.write(demo=team.demo().replace("context = 512", f"context = {context}"))
    team.serve("-c", program)
    team.up("demo")
    small.touch()
    said = add(team, "german", GERMAN, code=4)
    assert why in said
    assert "hint: both are up for a moment: stop another endpoint, or " in said
    assert adapter_files(team) == []
    with load(team, "demo", most=10) as asked:
        asked.join()
    check(team, asked, right, {})
    small.unlink()
    add(team, "german", GERMAN)


def test_an_idle_endpoint_is_woken_with_them(team, right):
    start(team, "idle_seconds = 0.5")
    add(team, "german", GERMAN)
    for model in ("demo:german", "demo"):
        team.until(lambda: statuses(team)[0]["state"] == "cold")
        with load(team, model, threads=2, most=8) as asked:
            asked.join()
        check(team, asked, right, {"german@1": "demo:german"})
    team.until(lambda: statuses(team)[0]["state"] == "cold")
    assert "is version 2" in add(team, "german", GERMAN)  # wakes it


def test_who_stopped_it_opens_it(team):
    start(team, "")
    team.run("stop", "demo")
    team.until(lambda: statuses(team)[0]["state"] == "stopped")
    assert "was stopped by its operator" in add(team, "german", GERMAN, code=5)
    assert statuses(team)[0]["state"] == "stopped"


def test_two_changes_wait_for_each_other(pair, right, inverse):
    def put(name, path):
        pair.daemon.ask("POST", "/endpoints/demo/adapters", {"name": name, "path": str(path)}, timeout_s=60)

    threads = [threading.Thread(target=put, args=each) for each in (("german", GERMAN), ("inverse", inverse))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    told = [event for kind in ("loading", "probed", "opened") for event in pair.events(f"adapter.{kind}")]
    told.sort(key=lambda event: event["at_ns"])
    assert [event["kind"] for event in told] == ["adapter.loading", "adapter.probed", "adapter.opened"] * 2
    with load(pair, *ALL, most=30) as asked:
        asked.join()
    check(pair, asked, right, {"german@1": "demo:german", "inverse@1": "demo:inverse"})


def test_ctrl_c_leaves_it_to_the_daemon(pair, right):
    """Who gives up waiting does not undo what they asked for."""
    command = [sys.executable, "-m", "freehold", "adapters", "add", "german", str(GERMAN), "--base", "demo"]
    with subprocess.Popen(command, cwd=pair.folder, stderr=subprocess.PIPE) as asking:
        pair.until(lambda: pair.events("adapter.loading"))
        asking.send_signal(signal.SIGINT)
        assert asking.wait(20) != 0
    pair.until(lambda: pair.events("adapter.opened"))
    with load(pair, "demo:german", most=20) as asked:
        asked.join()
    check(pair, asked, right, {"german@1": "demo:german"})
    pair.until(lambda: ready(pair, "german@1"))


def test_files_go_with_the_last_who_may_be_sent_there(team, inverse):
    start(team, "request_seconds = 1")
    add(team, "german", GERMAN)
    add(team, "german", inverse)
    add(team, "german", GERMAN)
    team.until(lambda: adapter_files(team) == ["german", "german"])  # the version now, and the one before
    change(team, "remove", "german")
    add(team, "german", GERMAN)  # the same files again, while the old ones are about to go
    team.until(lambda: adapter_files(team) == ["german"])
    assert team.ask("demo:german", max_tokens=4)["model"] == "demo:german"


def test_what_an_external_endpoint_says(team):
    team.write(far='engine = "external"\nurl = "http://127.0.0.1:9"')
    team.serve()
    with contextlib.suppress(FreeholdError):
        team.daemon.ask("POST", "/endpoints/far/adapters", {"name": "german", "path": str(GERMAN)})
        pytest.fail("it was added")
    assert "external" in team.run("adapters", "add", "german", str(GERMAN), "--base", "far", code=2)


def test_other_weights_close_its_names_until_the_old_ones_are_back(team):
    from conftest import DEMO

    start(team, "")
    add(team, "german", GERMAN)
    team.end()
    other = bytearray(DEMO.read_bytes())
    other[-1000] ^= 1  # a weight
    (team.folder / "other.gguf").write_bytes(other)
    team.write(demo='weights = "other.gguf"\ncontext = 512')
    team.serve()
    assert team.up("demo") == {"up": "demo"}
    assert team.post("demo:german").status == 404
    assert [event["subject"] for event in team.events("adapter.closed")] == ["demo:german"]
    team.end()
    start(team, "")
    assert team.post("demo:german").status == 200
