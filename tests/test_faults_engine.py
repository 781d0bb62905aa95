"""An engine that fails in every way we know, behind both paths: what the caller sees, and the one record of it."""

from typing import NamedTuple

import pytest
from wild_caller import PATHS, house_in
from wild_ways import PROMPT, WORDS

LIMITS = {
    "calm": "",
    "first": "first_byte_seconds = 0.3",
    "stall": "stall_seconds = 0.3",
    "total": "request_seconds = 0.4",
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


TEXT = " w0 w1 w2 w3"


class Fate(NamedTuple):
    """What becomes of a request. `code`: of its error; without one the caller has the whole answer."""

    code: str | None = None
    status: int = 200
    prompt: int = PROMPT
    completion: int = WORDS
    exact: bool = True


WELL = Fate()
SEEN = Fate(prompt=0, exact=False)  # no usage: counted as it passed


def fails(code: str, status: int, completion: int = 0) -> Fate:
    return Fate(code, status, 0, completion, exact=False)


FAILED, LATE = fails("engine_failed", 502), fails("timeout", 504)
ANY = -1
REFUSED = Fate("it hurts", 500, 0, 0)  # so nothing was computed
REFUSED_HTML = Fate("engine_failed", 502, 0, 0)


def midway(fate: Fate, completion: int) -> Fate:
    """In a stream that has begun; so many words had passed."""
    return fate._replace(status=200, completion=completion)


# How the engine answers: the endpoint, then the fate of a stream and of a whole answer.
FATES = {
    "well": ("calm", WELL, WELL),
    "trickles": ("calm", WELL, WELL),
    "early_hints": ("calm", WELL, WELL),
    "answers_twice": ("calm", WELL, WELL),
    "stalls_before_the_head": ("first", LATE, LATE),
    "stalls_in_the_head": ("first", LATE, LATE),
    "stalls_in_the_middle": ("stall", midway(LATE, 1), LATE),
    "trickles_for_ever": ("total", midway(LATE, ANY), LATE),
    "refuses_for_ever": ("total", LATE._replace(exact=True), LATE._replace(exact=True)),
    "closes_before_the_head": ("calm", FAILED, FAILED),
    "closes_in_the_head": ("calm", FAILED, FAILED),
    "closes_in_the_middle": ("calm", midway(FAILED, 1), FAILED),
    "closes_without_the_last_chunk": ("calm", midway(FAILED, WORDS)._replace(prompt=PROMPT, exact=True), FAILED),
    "ends_in_the_middle": ("calm", midway(FAILED, 2), FAILED),
    "says_nothing": ("calm", midway(FAILED, 0), FAILED),
    "says_too_little": ("calm", midway(FAILED, WORDS), FAILED),
    "says_too_much": ("calm", midway(FAILED, 2), FAILED),
    "http_1_0": ("calm", WELL, FAILED),  # of a whole answer nobody could tell whether it is
    "garbage": ("calm", FAILED, FAILED),
    "garbage_in_the_middle": ("calm", midway(FAILED, 2), FAILED),
    "switches_protocols": ("calm", FAILED, FAILED),
    "garbage_json": ("calm", WELL, FAILED),  # a stream's frames are not ours to judge
    "huge_frame": ("calm", midway(FAILED, 0), FAILED),
    "error_in_200": ("calm", midway(FAILED, 0), REFUSED),
    "error_frame": ("calm", midway(REFUSED, 2)._replace(code=500, exact=False), None),
    "usage_twice": ("calm", WELL, WELL),
    "usage_never": ("calm", SEEN, SEEN._replace(completion=0)),
    "usage_beside_text": ("calm", WELL, None),
    "usage_running": ("calm", WELL, None),
    "usage_running=3": ("calm", midway(FAILED, 6)._replace(prompt=PROMPT), None),
    "no_blank_line": ("calm", WELL, None),
    "no_done": ("calm", WELL, WELL),
    "talks_after_done": ("calm", WELL, None),
    "refuses=500": ("calm", REFUSED_HTML, REFUSED_HTML),
    "refuses=503": ("calm", REFUSED_HTML, REFUSED_HTML),
    "refuses=401": ("calm", REFUSED_HTML, REFUSED_HTML),
    "refuses=302": ("calm", REFUSED_HTML, REFUSED_HTML),
    "refuses=599": ("calm", REFUSED_HTML, REFUSED_HTML),
    "refuses=999": ("calm", REFUSED_HTML, REFUSED_HTML),
    "refuses=418": ("calm", REFUSED_HTML._replace(status=418), REFUSED_HTML._replace(status=418)),
    "refuses=499": ("calm", REFUSED_HTML._replace(status=499), REFUSED_HTML._replace(status=499)),
    "refuses=204": ("calm", REFUSED_HTML, REFUSED_HTML),
}
CASES = [
    pytest.param(way, stream, id=f"{way}-{'stream' if stream else 'whole'}")
    for way, (_, *fates) in FATES.items()
    for stream, fate in zip((True, False), fates, strict=True)
    if fate
]


@pytest.mark.parametrize(("way", "stream"), CASES)
def test_an_engine_fails(house, way, stream):
    endpoint, *fates = FATES[way]
    fate = fates[not stream]
    heard = house.ask(endpoint, f"@@{way}", stream=stream)
    row = house.record()
    assert (heard.error, heard.lost) == (fate.code, False), heard
    assert heard.seems_whole == (fate.code is None)
    assert heard.status == row["status"] == fate.status
    assert row["outcome"] == ("error" if fate.code else "ok")
    completion = row["completion_tokens"]
    assert completion == fate.completion or (fate.completion == ANY and completion > 1)
    assert (row["prompt_tokens"], not row["lower_bound"]) == (fate.prompt, fate.exact)
    assert row["charge_pico"] == (fate.prompt + 2 * completion) * 10**6
    house.team.until(lambda: all(talk.over for talk in house.wild.seen), 5)  # nobody works for nobody
    if not fate.code:
        assert heard.text == TEXT
    assert house.ask(endpoint, "@@well").text == TEXT  # one failure does not close the door
