"""One suite for every engine, asked itself and through the gateway: what differs is what the gateway makes up for.

What each does stands in EXPECTED, so that an engine that changes is noticed, and docs/engines.md shows it.
FREEHOLD_VLLM names the Python of an environment with vLLM; without it vLLM is not asked. To write the table again after
EXPECTED was changed: python tests/test_conversation.py
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import httpx2
import openai
import psutil
import pytest
import unixhttp
from asking import connect
from conftest import team_in
from conversation import FEATURES, OK, Talk, outcome

HERE = Path(__file__).parent
DOCS = HERE.parent / "docs" / "engines.md"
BEGIN, END = "<!-- tests/test_conversation.py writes this -->", "<!-- to here -->"
CONTEXT = 2048
TITLES = {"llamacpp": "llama.cpp b11549", "vllm": "vLLM 0.32"}
VLLM = os.environ.get("FREEHOLD_VLLM", "")
ENGINES = {
    "llamacpp": f'weights = "{HERE.parent}/demo/demo.gguf"\nparallel = 2\n',
    "embedding": f'weights = "{HERE.parent}/demo/demo.gguf"\nembeddings = true\n',
    "vllm": f'engine = "vllm"\nweights = "{HERE.parent}/demo/model"\nbinary = "{VLLM}"\nparallel = 8\n'
    'tool_parser = "hermes"\narguments = ["--enforce-eager"]\n',
}
# Of each engine, where it is not OK both times: what it does itself, and what its caller gets through the gateway.
EXPECTED: dict[str, dict[str, tuple[str, str]]] = {
    "llamacpp": {
        "tools, `required`": ("200, and no call", "400 not_supported"),
        "tools, a named one": ("200, and no call", "400 not_supported"),
        "`n` = 2": ("usage counts one choice of two", OK),
        "unknown model": ("200, by the model that is there", "404 model_not_found"),
        "leaving a whole answer": ("computes on to the end, for nobody", OK),
        "completions, two prompts": ("usage counts one prompt of two", OK),
        "prompt beyond it": ("400 exceed_context_size_error", "400 context_length_exceeded"),
    },
    "vllm": {
        "tools, `required`": ("200, and no call", "200, and no call"),  # it is forced, and the model never ends it
        "tools, a named one": ("200, and no call", "200, and no call"),
        "unknown model": ("404 NotFoundError", "404 model_not_found"),
        "embeddings": ("404 without a code", "400 not_supported"),
        "prompt beyond it": ("400 BadRequestError", "400 context_length_exceeded"),
        "`max_tokens` beyond it": ("400 BadRequestError", OK),
    },
}
MAKES_UP = {
    "chat": "`model` is the endpoint's name; one record, with what is charged",
    "stream": "usage is always asked for, and its frame taken out where the caller did not ask",
    "tools, `required`": "of llama.cpp a refusal that names another way, not an answer without a call",
    "tools, a named one": "the same",
    "`n` = 2": "usage of all choices",
    "unknown model": "404, and nothing of other callers' endpoints",
    "leaving a stream": "the engine stops; the record says `cut`, with the tokens seen",
    "leaving a whole answer": "llama.cpp is always asked for a stream, and stops too; the record says `cut`",
    "completions, two prompts": "usage of all prompts",
    "embeddings": "one refusal for every engine that makes none; a cold engine is not woken for it",
    "prompt beyond it": "the code that clients know; no tokens in the record",
    "`max_tokens` beyond it": "lowered to what the context, the endpoint or a budget allows",
}


def expected(name: str, feature: str) -> tuple[str, str]:
    return EXPECTED[name].get(feature, (OK, OK))


def give_way(daemon: int) -> None:
    """vLLM's core and worker on one core, after everybody else. With the tiny demo model they make tokens as fast as
    its server takes them, and then that hears of a caller who left when the answer is whole."""
    below = psutil.Process(daemon).children(recursive=True)
    workers = [each for each in below if each.cmdline() and each.cmdline()[0].startswith("VLLM::")]
    assert workers, "vLLM calls its processes otherwise now"
    for thread in (thread.id for each in workers for thread in each.threads()):
        os.setpriority(os.PRIO_PROCESS, thread, 19)
        os.sched_setaffinity(thread, {min(os.sched_getaffinity(0))})


@contextlib.contextmanager
def talks(name: str, folder: Path):
    """The engine itself, and the same through the gateway."""
    with team_in(folder) as team, contextlib.ExitStack() as stack:
        team.write(demo=f"{ENGINES[name]}context = {CONTEXT}\nstart_seconds = 300\nwait_seconds = 300\n")
        team.serve()
        assert team.up("demo") == {"up": "demo"}
        if name == "vllm":
            give_way(team.process.pid)
        socket = str(team.socket("demo"))
        direct = openai.OpenAI(
            base_url="http://engine/v1",
            api_key="none",
            max_retries=0,
            http_client=stack.enter_context(httpx2.Client(transport=httpx2.HTTPTransport(uds=socket), timeout=120)),
        )
        through = stack.enter_context(connect(team))
        common = {"model": "demo", "context": CONTEXT, "metrics": lambda: team.engine("demo", "/metrics")}
        yield (
            Talk(client=direct, connect=lambda: unixhttp.Connection(socket), headers=unixhttp.JSON, **common),
            Talk(
                client=through,
                connect=team.connect,
                headers={"Authorization": f"Bearer {team.key}"},
                records=team.records,
                **common,
            ),
        )


@pytest.fixture(scope="module")
def llamacpp(tmp_path_factory):
    with talks("llamacpp", tmp_path_factory.mktemp("llamacpp")) as both:
        yield both


@pytest.fixture(scope="module")
def vllm(tmp_path_factory):
    if not VLLM:
        pytest.skip("FREEHOLD_VLLM names no Python with vLLM")
    with talks("vllm", tmp_path_factory.mktemp("vllm")) as both:
        yield both


@pytest.fixture(scope="module")
def embedding(tmp_path_factory):
    with talks("embedding", tmp_path_factory.mktemp("embedding")) as both:
        yield both


@pytest.mark.parametrize("feature", FEATURES)
def test_llamacpp(request, feature):
    both = request.getfixturevalue("embedding" if feature == "embeddings" else "llamacpp")
    got = tuple(outcome(FEATURES[feature], talk) for talk in both)
    assert got == expected("llamacpp", feature)


@pytest.mark.vllm
@pytest.mark.parametrize("feature", FEATURES)
def test_vllm(vllm, feature):
    got = tuple(outcome(FEATURES[feature], talk) for talk in vllm)
    assert got == expected("vllm", feature)


# the table


def table() -> str:
    rows = [["feature", *(f"{name}, {how}" for name in TITLES.values() for how in ("itself", "through Freehold"))]]
    rows[0].append("what the gateway makes up for")
    rows.append(["---"] * len(rows[0]))
    for feature in FEATURES:
        both = [each for name in TITLES for each in expected(name, feature)]
        rows.append([feature, *both, MAKES_UP.get(feature, "")])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def written(docs: str) -> str:
    """The page with the table as it should be."""
    before, rest = docs.split(BEGIN)
    return f"{before}{BEGIN}\n\n{table()}\n\n{END}{rest.split(END)[1]}"


def test_the_page_has_this_table():
    assert DOCS.read_text() == written(DOCS.read_text())


if __name__ == "__main__":
    DOCS.write_text(written(DOCS.read_text()))
