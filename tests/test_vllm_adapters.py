"""Adapters on the real vLLM, on two replicas, while many ask: added, tried, taken back, removed, and a replica killed.

What is right is what vLLM answers to one question at a time. FREEHOLD_VLLM names the Python of an environment that has
it. Room is made for as many adapters as are asked for at once: a further one would wait until one of them rests. The
tests go on from one another.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import struct
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from conftest import Team, team_in
from lora_mix import GERMAN, QUESTIONS, Line, Load, Right, body, scaled, wrong
from test_vllm import ENGINE, MODEL, VLLM, inside
from unixhttp import JSON, Connection

MEANT = {
    **dict.fromkeys(("german@1", "german@2"), "demo:german"),
    **dict.fromkeys(("inverse@1", "inverse@2", "german@3", "german@4"), "demo:inverse"),
}
ROOM = 5  # versions that one process may ever be given
REQUEST_S = 20  # so long a version that nobody means any more stays
pytestmark = [pytest.mark.vllm, pytest.mark.skipif(not VLLM, reason="FREEHOLD_VLLM names no Python")]


class Pair(NamedTuple):
    team: Team
    right: Right
    inverse: Path  # an adapter that answers otherwise


@pytest.fixture(scope="module")
def pair(tmp_path_factory) -> Iterator[Pair]:
    folder = tmp_path_factory.mktemp("adapters")
    inverse = scaled(folder / "inverse", -1)
    with team_in(folder) as team:
        team.write(
            demo=f'{ENGINE}weights = "{MODEL}"\ncontext = 512\nreplicas = 2\nmax_loras = {ROOM}\nmax_lora_rank = 16\n'
            f"request_seconds = {REQUEST_S}\n"
        )
        team.serve()
        assert team.up("demo") == {"up": "demo"}
        add(team, "german", GERMAN)
        add(team, "inverse", inverse)
        right = {name: alone(team, name) for name in ("demo", "demo:german", "demo:inverse")}
        assert all(len(set(three)) == 3 for three in zip(*(each.values() for each in right.values()), strict=True))
        for name in ("german", "inverse"):
            team.run("adapters", "remove", name, "--base", "demo")
        yield Pair(team, right, inverse)


def add(team: Team, name: str, path: Path, *more: str, code: int = 0) -> str:
    return team.run("adapters", "add", name, str(path), "--base", "demo", *more, code=code)


def alone(team: Team, model: str) -> dict[str, str]:
    """What it answers to one question at a time."""
    with contextlib.closing(Line(team.url, team.key)) as line:
        return {each: line.ask(model, each, body(model, each)).text for each in QUESTIONS}


def load(team: Team, *models: str, **more) -> Load:
    return Load(team.url, team.key, models, **more)


def check(pair: Pair, asked: Load) -> None:
    """Each text is what the version in its record says."""
    versions = {row["request"]: row["served_model"].partition("-")[0] for row in pair.team.records()}
    served = {request: MEANT[version] for request, version in versions.items() if version}
    assert wrong(asked.answers, pair.right, served) == []


def known_to(team: Team, replica: str) -> set[str]:
    """What vLLM itself lists, without the base."""
    listed = json.loads(team.engine(replica, "/v1/models"))["data"]
    return {each["id"].partition("-")[0] for each in listed} - {"demo"}


def statuses(team: Team) -> dict[str, dict]:
    return {each["replica"]: each for each in team.daemon.ask("GET", "/status")["endpoints"]}


def say(*figures: object) -> None:
    sys.stdout.write(f"{' '.join(map(str, figures))}\n")


def test_adapters_come_and_go_under_load_and_nobody_notices(pair):
    team = pair.team
    with load(team, "demo", threads=4) as base:
        base.reach(20)
        add(team, "german", GERMAN)
        with load(team, "demo:german", threads=4) as both:
            both.reach(20)
            add(team, "inverse", pair.inverse)
            both.models.append("demo:inverse")
            both.reach(40)
            base.reach(20)
    assert base.failed == both.failed == []
    check(pair, base)
    check(pair, both)
    for name in ("demo-1", "demo-2"):
        assert {"german@2", "inverse@2"} <= known_to(team, name)
    at = {kind: [each["at_ns"] for each in team.events(f"adapter.{kind}")][-2:] for kind in ("loading", "probed")}
    took_ms = [round((done - begun) / 1e6) for begun, done in zip(at["loading"], at["probed"], strict=True)]
    say(f"{len(base.answers) + len(both.answers)} answers, 0 failed, 0 wrong; loaded and asked on both: {took_ms} ms")


def test_loading_takes_milliseconds(pair):
    """vLLM alone, with a folder that it has read before."""
    team, seconds = pair.team, []
    folder = next(each["alias"]["current"]["adapter"]["path"] for each in team.daemon.ask("GET", "/adapters"))
    with contextlib.closing(Connection(str(team.socket("demo-1")))) as connection:
        for number in range(5):
            for verb, more in (("load", {"lora_path": folder}), ("unload", {})):
                said = json.dumps({"lora_name": f"timed-{number}", **more})
                began_s = time.perf_counter()
                connection.request("POST", f"/v1/{verb}_lora_adapter", said, JSON)
                answer = connection.getresponse()
                answer.read()
                seconds.append((verb, time.perf_counter() - began_s))
                assert answer.status == 200
    loads = sorted(each for verb, each in seconds if verb == "load")
    assert loads[2] < 0.5
    say("vLLM loads an adapter in", ", ".join(f"{1e3 * each:.1f}" for each in loads), "ms")


def test_what_vllm_cannot_load_leaves_the_version_before(pair):
    team, dora = pair.team, shutil.copytree(GERMAN, pair.inverse.with_name("dora"))
    config = json.loads((dora / "adapter_config.json").read_text())
    (dora / "adapter_config.json").write_text(json.dumps(config | {"use_dora": True}))
    with load(team, "demo:german", threads=2) as asked:
        asked.reach(10)
        said = add(team, "german", dora, code=5)
        asked.reach(10)
    assert "DoRA" in said
    assert asked.failed == []
    check(pair, asked)
    (alias,) = [each["alias"] for each in team.daemon.ask("GET", "/adapters") if each["name"] == "german"]
    assert (alias["current"]["number"], alias["trial"]) == (2, None)


def test_a_trial_gets_exactly_its_share(pair):
    team = pair.team
    assert "30 % of its requests go to version" in add(team, "german", pair.inverse, "--percent", "30")
    before = {row["request"] for row in team.records()}
    with load(team, "demo:german", threads=4, most=100) as asked:
        asked.join()
    assert asked.failed == []
    check(pair, asked)
    told = [row["served_model"].partition("-")[0] for row in team.records() if row["request"] not in before]
    assert (told.count("german@2"), len(told)) == (70, 100)
    team.run("adapters", "rollback", "german", "--base", "demo")


def test_a_rank_that_there_is_no_room_for_is_refused_before_vllm_sees_it(pair):
    loading = len(pair.team.events("adapter.loading"))
    said = add(pair.team, "wide", wider(pair.inverse.with_name("wide"), 32), code=4)
    assert "the adapter has rank 32, and `demo` makes room for 16" in said
    assert "max_lora_rank = 32" in said
    assert len(pair.team.events("adapter.loading")) == loading


def test_a_replica_that_was_killed_has_all_of_them_before_it_serves_again(pair):
    team = pair.team
    with load(team, *pair.right, threads=1) as asked:  # the one that starts needs a core too
        asked.reach(20)
        os.kill(inside(team, "demo-1").api, signal.SIGKILL)
        began_s = time.monotonic()
        team.until(lambda: team.events("engine.exited"))
        asked.reach(20)
        team.until(lambda: statuses(team)["demo-1"]["state"] == "ready", timeout_s=280)
        back_s = time.monotonic() - began_s
        assert known_to(team, "demo-1") == {"german@2", "inverse@2"}
    with load(team, *pair.right, threads=6, most=60) as more:
        more.join()
    check(pair, asked)
    check(pair, more)
    by = {(row["replica"], row["run"], row["served_model"].partition("@")[0]) for row in team.records()}
    assert {("demo-1", 2, name) for name in ("", "german", "inverse")} <= by
    say(f"{len(asked.answers)} answers, {len(asked.failed)} failed, back after {back_s:.1f} s")
    assert asked.failed == more.failed == []


def test_when_one_was_given_all_it_may_be_given_successors_take_over(pair):
    """On a CPU a process that was given more would answer for the base with an adapter."""
    team, half = pair.team, scaled(pair.inverse.with_name("half"), 0.5)
    wanted = {"name": "half", "path": str(half), "percent": 100}
    began_s = time.monotonic()
    team.daemon.ask("POST", "/endpoints/demo/adapters", wanted, timeout_s=None)
    say(f"two successors in {time.monotonic() - began_s:.1f} s")
    team.until(lambda: statuses(team).keys() == {"demo-1+2", "demo-2+3"})
    for replica in statuses(team):
        assert known_to(team, replica) == {"german@2", "inverse@2", "half@1"}
    with load(team, *pair.right, threads=6, most=60) as asked:
        asked.join()
    assert asked.failed == []
    check(pair, asked)


def test_every_token_is_accounted_for(pair):
    runs = json.loads(pair.team.run("usage", "--reconcile", "--json"))
    say(runs)
    assert "differs" not in pair.team.run("usage", "--reconcile")


def test_what_is_removed_is_gone_from_every_replica_once_nobody_can_mean_it(pair):
    team = pair.team
    for name in ("german", "inverse"):
        team.run("adapters", "remove", name, "--base", "demo")
        assert team.post(f"demo:{name}").status == 404
    team.until(lambda: not any(known_to(team, each) - {"half@1"} for each in statuses(team)), REQUEST_S + 10)
    assert all(len(each["adapters"]) == 1 for each in statuses(team).values())


def wider(folder: Path, rank: int) -> Path:
    """The German adapter with zeros beside its values: it answers the same, and takes more room."""
    folder.mkdir()
    config = json.loads((GERMAN / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | {"r": rank, "lora_alpha": 2 * rank}))
    data = (GERMAN / "adapter_model.safetensors").read_bytes()
    (size,) = struct.unpack_from("<Q", data)
    header, pieces, end = {}, [], 0
    for name, each in json.loads(data[8 : 8 + size]).items():
        if name == "__metadata__":
            continue
        begin, until = each["data_offsets"]
        values, (rows, columns) = data[8 + size + begin : 8 + size + until], each["shape"]
        if "lora_A" in name:
            values, shape = values.ljust(rank * columns * 4, b"\0"), [rank, columns]
        else:
            step = columns * 4
            cut = (values[at : at + step] for at in range(0, len(values), step))
            values, shape = b"".join(row.ljust(rank * 4, b"\0") for row in cut), [rows, rank]
        header[name] = {"dtype": each["dtype"], "shape": shape, "data_offsets": [end, end + len(values)]}
        pieces.append(values)
        end += len(values)
    raw = json.dumps(header).encode()
    (folder / "adapter_model.safetensors").write_bytes(struct.pack("<Q", len(raw)) + raw + b"".join(pieces))
    return folder
