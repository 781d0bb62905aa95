"""Law where it bites: at `up`, at every start and at every request, with the event in the book."""

import json
from datetime import UTC, date, datetime

import pytest

from freehold.errors import BadConfig
from freehold.fleet.config import Config, Endpoint, Machine
from freehold.fleet.permission import permissions
from freehold.policy.law import Acceptance, Rules

MRL = 'model = "mistral-large-2411"'
ACCEPTED = '[policy.accepted."{}"]\nby = "J. Weber"\non = 2026-01-02\nwhy = "reviewed"'


def refused(team, model, **more):
    """A request that policy refuses: what the caller is told."""
    answer = team.post(model, **more)
    error = json.loads(answer.read())["error"]
    assert (answer.status, error["code"], error["param"]) == (403, "refused", "model")
    return error["message"]


def test_a_non_commercial_model_is_refused_at_up_and_on_each_request(team):
    team.write(demo=team.demo(MRL), far=f'engine = "external"\nurl = "http://127.0.0.1:9"\n{MRL}')
    team.serve()
    assert "section 3.2" in refused(team, "demo")  # before anybody brought it up
    said = team.run("up", "demo", code=3)
    assert "allows no commercial use" in said
    assert "another model; or an agreement with the publisher" in said
    assert "policy.accepted" not in said  # it would not help
    assert "section 3.2" in refused(team, "far")
    assert team.up("far")["exit_code"] == 3
    assert team.events("engine.launching") == team.events("weights.checking") == []  # not even looked at
    events = team.events("policy.refused")
    assert [each["subject"] for each in events] == ["demo", "demo", "far", "far"]
    assert {each["detail"]["rules"] for each in events} == {"licence-non-commercial, licence-unaccepted"}
    assert "MRL-0.1" in events[0]["detail"]["reason"]
    assert team.records(probes=True) == []


def test_no_acceptance_makes_a_non_commercial_model_commercial(team):
    team.write(policy=ACCEPTED.format("mrl-0.1"), demo=team.demo(MRL))
    team.serve()
    assert "the licence itself grants no such right" in team.run("up", "demo", code=3)


def test_what_was_accepted_is_served_and_the_book_says_by_whom(team):
    policy = f"{ACCEPTED.format('llama3.1-community')}\nuntil = 2099-12-31"
    team.write(policy=policy, demo=team.demo('model = "llama-3.1-8b"'), other=team.demo('model = "gemma-3-4b"'))
    team.serve()
    assert team.up("demo") == {"up": "demo"}
    team.ask("demo", max_tokens=1)
    (event,) = team.events("policy.allowed")
    assert event["detail"]["accepted"] == "J. Weber, 2026-01-02: reviewed"
    assert event["detail"]["until"] == "2099-12-31"
    assert "Built with Llama" in event["detail"]["duties"]
    assert '[policy.accepted."gemma-terms"]' in refused(team, "other")


def test_weights_of_a_format_that_is_not_allowed(team):
    team.write(policy='formats = ["safetensors"]', demo=team.demo())
    team.serve()
    assert "policy.formats allows safetensors" in team.run("up", "demo", code=3)
    assert team.events("engine.launching") == []


class Book:
    """The ground of permissions: a clock, and what was told."""

    def __init__(self, day="2026-11-21"):
        self.told = []
        self.set(day)

    def set(self, day, hour=12):
        at = datetime.fromisoformat(day).replace(hour=hour, tzinfo=UTC)
        self.now_ns = int(at.timestamp()) * 10**9

    def clock_ns(self):
        return self.now_ns

    def tell(self, kind, subject, **detail):
        self.told.append(kind)


FAR = {"engine": "external", "url": "http://gpu.example.org"}


def refusal(ground=None, machine=None, rules=None, **endpoint):
    ground = ground or Book()
    config = Config(
        machine=Machine(**machine or {}),
        policy=Rules(**rules or {}),
        endpoints={"a": Endpoint(**{"weights": "x", **endpoint})},
    )
    return permissions(config, ground)["a"].refusal(ground.now_ns)


def test_an_acceptance_may_last_as_long_as_there_are_dates():
    ada = Acceptance(by="Ada", on=date(2026, 1, 1), why="read", until=date.max)
    assert refusal(rules={"accepted": {"gemma-terms": ada}}, model="gemma-3-4b") is None


def test_an_acceptance_ends_with_its_last_day_while_the_daemon_runs():
    ground = Book()
    ada = Acceptance(by="Ada", on=date(2026, 1, 1), why="read", until=date(2026, 11, 30))
    config = Config(
        policy=Rules(accepted={"gemma-terms": ada}), endpoints={"a": Endpoint(weights="x", model="gemma-3-4b")}
    )
    permission = permissions(config, ground)["a"]
    permission.require()
    ground.set("2026-11-30", 23)
    assert permission.refusal(ground.now_ns) is None
    ground.set("2026-12-01", 0)
    for _ in range(3):
        assert "the acceptance by Ada is not in force" in str(permission.refusal(ground.now_ns))
    assert ground.told == ["policy.allowed", "policy.refused"]  # once, not for every request


@pytest.mark.parametrize(
    ("rules", "machine", "endpoint", "says"),
    [
        ({}, {}, {}, None),
        ({"publishers_not": ["Meta"]}, {}, {}, "nobody said which model this is"),
        ({"unreviewed": "refuse"}, {}, {}, "nobody said which model this is"),
        ({"publisher_countries_not": ["CN"]}, {}, {"model": "qwen3-8b"}, "CN (China), which is not allowed"),
        ({}, {}, {"model": "Qwen/Qwen3-8B"}, None),
        ({"residency": ["EU"]}, {}, {}, "nobody said where"),
        ({"residency": ["EU"]}, {"country": "DE"}, {}, None),
        ({"residency": ["EU"]}, {"country": "DE"}, {"engine": "external", "url": "unix:/x"}, None),
        ({"residency": ["EU"]}, {"country": "DE"}, {"engine": "external", "url": "http://localhost:1"}, None),
        ({"residency": ["EU"]}, {"country": "DE"}, FAR, "nobody said where"),
        ({"residency": ["EU"]}, {"country": "DE"}, {**FAR, "country": "US"}, "US (United States)"),
        ({"residency": ["EU"]}, {}, {**FAR, "country": "France"}, None),
        ({"jurisdiction_not": ["US"], "country": "DE"}, {}, {}, None),
        ({"jurisdiction_not": ["US"], "country": "DE"}, {"operator": "aws"}, {}, "Amazon.com"),
        ({"jurisdiction_not": ["US"], "country": "DE"}, {"operator": "Scaleway SAS"}, {}, None),
        ({"jurisdiction_not": ["US"], "country": "DE"}, {"operator": "Bob"}, {}, "Bob is under a law that is unknown"),
        ({"jurisdiction_not": ["US"], "country": "DE"}, {}, FAR, "whoever runs `a`"),
        ({"jurisdiction_not": ["US"], "country": "DE"}, {}, {**FAR, "operator": ""}, None),
        ({"jurisdiction_not": ["US"], "country": "DE"}, {}, {**FAR, "operator": "scaleway"}, None),
    ],
)
def test_what_is_said_of_machine_and_endpoint(rules, machine, endpoint, says):
    rules = {key: tuple(value) if isinstance(value, list) else value for key, value in rules.items()}
    error = refusal(None, machine, rules, **{"weights": None if "url" in endpoint else "x", **endpoint})
    assert says in str(error) if says else error is None


@pytest.mark.parametrize("name", ["qwen3-8c", "someone/Qwen3-8B-finetune-GGUF", "someone/Qwen3-8B"])
def test_a_model_must_be_named_by_its_own_name(name):
    with pytest.raises(BadConfig) as refused:
        refusal(model=name)
    assert "qwen3-8b" in refused.value.hint
