"""NVIDIA Dynamo for real: its frontend in our sandbox, behind the bridge and the gateway. In place of vLLM computes its
mocker, which needs no GPU: it takes its time as an engine does, and answers with any tokens."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import psutil
import pytest
from conftest import team_in

PYTHON = os.environ.get("FREEHOLD_DYNAMO", "")
MODEL = Path(__file__).parents[1] / "demo/model"
pytestmark = [
    pytest.mark.dynamo,
    pytest.mark.skipif(not PYTHON, reason="FREEHOLD_DYNAMO names no Python that has ai-dynamo"),
]
# Only its worker differs from the engine that it derives from.
MOCKED = """
from freehold.engines.dynamo import Dynamo
from freehold.engines.vllm import Vllm

class Mocked(Dynamo):
    environment = uses_cards = False

    def fit(self, build, model, host, wanted):
        return Vllm().fit(build, model, host, wanted)

    def worker(self, service):
        return ("dynamo.mocker", "--model-path", service.weights, "--model-name", service.name)
"""


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A team whose daemon finds the engine as it finds that of any other package."""
    folder = tmp_path_factory.mktemp("mocked")
    (folder / "mocked.py").write_text(MOCKED)
    about = folder / "mocked-1.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: mocked\nVersion: 1\n")
    (about / "entry_points.txt").write_text("[freehold.engines]\nmocked = mocked:Mocked\n")
    lines = f'engine = "mocked"\nweights = "{MODEL}"\nbinary = "{PYTHON}"\ncontext = 2048\nprompt_price = 1\n'
    with pytest.MonkeyPatch.context() as patch, team_in(folder) as team:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")]))
        team.write(demo=lines)
        team.serve()
        assert team.up("demo").get("up"), (team.folder / "daemon.log").read_text()
        yield team


def counted(team) -> tuple[int, int]:
    from freehold.engines.dynamo import Dynamo

    said = Dynamo().counters(team.engine("demo", "/metrics"))
    return said.prompt, said.completion


def test_chat_is_counted(served) -> None:
    before = counted(served)
    usage = served.ask("demo", "How are you?", max_tokens=12)["usage"]
    record = served.records()[-1]
    assert usage["completion_tokens"] == 12
    assert (record["prompt_tokens"], record["completion_tokens"]) == (usage["prompt_tokens"], 12)
    assert record["charge_pico"] == usage["prompt_tokens"] * 10**6
    assert counted(served) == (before[0] + usage["prompt_tokens"], before[1] + 12)


def test_a_stream(served) -> None:
    answer = served.post("demo", max_tokens=9, stream=True, stream_options={"include_usage": True})
    frames = [line[6:] for line in answer.read().decode().splitlines() if line.startswith("data: ")]
    assert frames[-1] == "[DONE]"
    pieces = [json.loads(frame) for frame in frames[:-1]]
    assert [piece["usage"]["completion_tokens"] for piece in pieces if piece.get("usage")] == [9]
    assert "".join(choice["delta"].get("content") or "" for piece in pieces for choice in piece["choices"])
    assert {piece["model"] for piece in pieces} == {"demo"}


def test_an_error_is_in_openai_s_words(served) -> None:
    answer = served.post("demo", max_tokens=8, temperature=99)
    error = json.loads(answer.read())["error"]
    assert (answer.status, error["code"] is None or isinstance(error["code"], str)) == (400, True)
    assert "temperature" in error["message"].lower()


def test_callers_cannot_reach_past_their_request(served) -> None:
    answer = served.post("demo", nvext={"cache_salt": "another group's"})
    assert (answer.status, json.loads(answer.read())["error"]["param"]) == (400, "nvext")


@pytest.mark.parametrize("stream", [True, False], ids=["a stream", "a whole answer"])
def test_a_caller_who_leaves_stops_it(served, stream: bool) -> None:
    before = counted(served)
    connection = served.connect()
    body = {"model": "demo", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 1900, "stream": stream}
    connection.request("POST", "/v1/chat/completions", json.dumps(body), {"Authorization": f"Bearer {served.key}"})
    served.until(lambda: counted(served)[1] > before[1] + 20)
    connection.sock.close()
    served.until(lambda: served.records()[-1]["outcome"] == "cut")
    served.until(lambda: b'dynamo_frontend_inflight_requests{model="demo"} 0' in served.engine("demo", "/metrics"))
    stopped = counted(served)
    time.sleep(0.3)  # it would have made some fifty more
    assert counted(served) == stopped
    assert stopped[1] - before[1] < 1000
    assert served.records()[-1]["completion_tokens"] <= stopped[1] - before[1]


def test_a_worker_that_dies_is_started_again(served) -> None:
    worker = next(each for each in family(served) if "dynamo.mocker" in each.cmdline())
    worker.kill()
    served.until(lambda: served.status("demo")["state"] != "ready")
    assert served.ask("demo", max_tokens=3)["usage"]["completion_tokens"] == 3


def family(team) -> list[psutil.Process]:
    assert team.process
    return psutil.Process(team.process.pid).children(recursive=True)


def test_a_stop_leaves_nothing(served) -> None:
    running = [each for each in family(served) if "dynamo.frontend" in each.cmdline()]
    assert running
    served.daemon.ask("POST", "/endpoints/demo/stop")
    _, alive = psutil.wait_procs(running, timeout=10)
    assert not alive
    assert not [each for each in family(served) if "dynamo" in " ".join(each.cmdline())]
