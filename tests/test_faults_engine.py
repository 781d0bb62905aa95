"""An engine that fails in every way we know, behind both paths: what the caller sees, and the one record of it."""

import json
from typing import NamedTuple

import pytest
from wild_caller import PATHS, house_in
from wild_engine import PROMPT, WORDS

LIMITS = {
    "calm": "",
    "first": "first_byte_seconds = 0.4",
    "stall": "stall_seconds = 0.4",
    "total": "request_seconds = 0.8",
}


@pytest.fixture(scope="module", params=PATHS)
def shared(request, tmp_path_factory):
    """One daemon for all of them."""
    with house_in(tmp_path_factory.mktemp("wild"), request.param, **LIMITS) as house:
        yield house


@pytest.fixture
def house(shared):
    shared.begin()
    yield shared
    shared.rest()


class Fate(NamedTuple):
    """What becomes of a request: `whole`, or the error's code and the status it has as an answer of its own; tokens."""

    code: str | None = None
    status: int = 200
    prompt: int = PROMPT
    completion: int = WORDS
    exact: bool = True


WELL = Fate()
SEEN = Fate(prompt=0, exact=False)  # counted as they passed
LATE, FAILED = ("timeout", 504), ("engine_failed", 502)


def lost(code: str, status: int, completion: int = 0) -> Fate:
    return Fate(code, status, 0, completion, exact=False)


NOTHING = lost(*FAILED)
# how the engine answers: the endpoint; the fate of a stream, and of a whole answer
FATES = {
    "well": ("calm", WELL, WELL),
    "trickles": ("calm", WELL, WELL),
    "early_hints": ("calm", WELL, WELL),
    "answers_twice": ("calm", WELL, WELL),
    "stalls_before_the_head": ("first", lost(*LATE), lost(*LATE)),
    "stalls_in_the_head": ("first", lost(*LATE), lost(*LATE)),
    "stalls_in_the_middle": ("stall", lost(*LATE, 1), lost(*LATE)),
    "trickles_for_ever": ("total", lost(*LATE, 1), lost(*LATE)),
    "refuses_for_ever": ("total", lost(*LATE), lost(*LATE)),
    "closes_before_the_head": ("calm", NOTHING, NOTHING),
    "closes_in_the_head": ("calm", NOTHING, NOTHING),
    "closes_in_the_middle": ("calm", lost(*FAILED, 1), NOTHING),
    "closes_without_the_last_chunk": ("calm", Fate(*FAILED), NOTHING),
    "ends_in_the_middle": ("calm", lost(*FAILED, 2), NOTHING),
    "says_nothing": ("calm", NOTHING, NOTHING),
    "says_too_little": ("calm", WELL, NOTHING),
    "says_too_much": ("calm", lost(*FAILED, 2), NOTHING),
    "http_1_0": ("calm", WELL, NOTHING),
    "garbage": ("calm", NOTHING, NOTHING),
    "garbage_in_the_middle": ("calm", lost(*FAILED, 2), NOTHING),
    "switches_protocols": ("calm", NOTHING, NOTHING),
    "garbage_json": ("calm", WELL, NOTHING),
    "huge_frame": ("calm", NOTHING, NOTHING),
    "error_in_200": ("calm", NOTHING, NOTHING),
    "usage_twice": ("calm", WELL, WELL),
    "usage_never": ("calm", SEEN, lost(None, 200)),
    "no_done": ("calm", WELL, WELL),
}


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
@pytest.mark.parametrize("way", FATES)
def test_an_engine_fails(house, way, stream):
    endpoint, *fates = FATES[way]
    fate = fates[not stream]
    heard = house.ask(endpoint, f"@@{way}", stream=stream)
    row = house.record()
    assert (heard.error, heard.lost) == (fate.code, False), heard
    assert heard.seems_whole == (fate.code is None)
    assert heard.status == row["status"]
    assert heard.status == (200 if stream and row["first_byte_ms"] is not None else fate.status)
    assert row["outcome"] == ("error" if fate.code else "ok")
    tokens = (row["prompt_tokens"], row["completion_tokens"], not row["lower_bound"])
    assert tokens == (fate.prompt, fate.completion, fate.exact)
    assert row["charge_pico"] == (fate.prompt + 2 * fate.completion) * 10**6
    if fate.code:  # and the engine works for nobody
        house.team.until(lambda: all(talk.over for talk in house.wild.seen))
    elif stream:
        assert heard.text == " w0 w1 w2 w3"
    else:
        assert json.loads(heard.body)["choices"][0]["message"]["content"] == " w0 w1 w2 w3"
