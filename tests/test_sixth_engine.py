"""An engine of somebody else's, as a package of its own: installed by pip, found by its entry point, held to the
contract, and then served, metered and kept apart like any of ours."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import DEMO, team_in

from freehold.engines import contract

PACKAGE = Path(__file__).with_name("sixth_engine")


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """The folder that pip put it into."""
    folder = tmp_path_factory.mktemp("site")
    flags = (
        "--no-deps",
        "--no-build-isolation",
        "--no-index",
        "--disable-pip-version-check",
        "--root-user-action=ignore",
    )
    pip = [sys.executable, "-m", "pip", "install", "--quiet", *flags, "--target", str(folder), str(PACKAGE)]
    done = subprocess.run(pip, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def served(tmp_path_factory, installed):
    with pytest.MonkeyPatch.context() as patch, team_in(tmp_path_factory.mktemp("sixth")) as team:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(installed), os.environ.get("PYTHONPATH", "")]))
        team.write(demo=f'engine = "sixth"\nweights = "{DEMO}"\nprompt_price = 1\ncompletion_price = 2\n')
        team.serve()
        assert team.up("demo").get("up"), (team.folder / "daemon.log").read_text()
        yield team


def test_the_contract(installed, monkeypatch) -> None:
    monkeypatch.syspath_prepend(installed)
    from freehold.engines import Launchable, engine, names

    assert "sixth" in names()
    sixth = engine("sixth")
    assert isinstance(sixth, Launchable)
    contract.check(sixth, contract.service(weights=str(DEMO), files=(str(DEMO),)))


def test_chat_is_metered(served) -> None:
    answer = served.ask("demo", "say hello")
    assert answer["choices"][0]["message"]["content"] == "hello"
    assert answer["usage"] == {"prompt_tokens": 2, "completion_tokens": 5, "total_tokens": 7}
    record = served.records()[-1]
    assert (record["prompt_tokens"], record["completion_tokens"], record["charge_pico"]) == (2, 5, 12 * 10**6)
    assert (record["outcome"], record["replica"]) == ("ok", "demo")


def test_a_stream_is_metered(served) -> None:
    answer = served.post("demo", "say goodbye", stream=True, max_tokens=4)
    frames = [line[6:] for line in answer.read().decode().splitlines() if line.startswith("data: ")]
    assert frames[-1] == "[DONE]"
    pieces = [json.loads(frame) for frame in frames[:-1]]
    assert "".join(choice["delta"].get("content", "") for piece in pieces for choice in piece["choices"]) == "good"
    record = served.records()[-1]
    assert (record["prompt_tokens"], record["completion_tokens"], record["outcome"]) == (2, 4, "ok")


def test_groups_are_kept_apart(served) -> None:
    def salts_after(key: str) -> set[str]:
        served.ask("demo", "mine", key=key)
        return set(json.loads(served.engine("demo", "/salts")))

    mine = salts_after(served.key)
    assert salts_after(served.key) == mine
    other = served.daemon.ask("POST", "/keys", {"name": "other"})["secret"]
    assert len(salts_after(other) - mine) == 1
    refused = served.post("demo", "hi", cache_salt=mine.pop())
    assert (refused.status, json.loads(refused.read())["error"]["param"]) == (400, "cache_salt")


def test_its_error_is_the_callers(served) -> None:
    refused = served.post("demo", messages=[])
    assert (refused.status, json.loads(refused.read())["error"]["type"]) == (400, "invalid_request_error")


def test_its_stages_are_told(served) -> None:
    assert "measuring the weights" in [event["detail"]["stage"] for event in served.events("engine.stage")]
