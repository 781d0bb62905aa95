"""The published OpenAPI against a daemon that runs: it says what is so, and nothing that it lets through breaks us."""

import http.client
import json
from urllib.parse import urlsplit

import pytest
import schemathesis
from conftest import team_in
from hypothesis import HealthCheck, settings
from schemathesis.specs.openapi.checks import positive_data_acceptance

from freehold.errors import FreeholdError
from freehold.gateway.app import ROUTES
from freehold.gateway.openai import LONGEST_MODEL
from freehold.gateway.openapi import DOCUMENT, OPENAPI


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """On the real llama.cpp: what it thinks of a request is its own judgement, not a fake's."""
    with team_in(tmp_path_factory.mktemp("openapi")) as team:
        team.write(server="max_body_mib = 1", demo=team.demo("max_completion_tokens = 4\nembeddings = true"))
        team.serve()
        team.ask("demo")
        yield team


schema = schemathesis.openapi.from_dict(DOCUMENT)


@schema.parametrize()
@settings(max_examples=30, deadline=None, derandomize=True, suppress_health_check=[*HealthCheck])
def test_whatever_is_sent_the_answer_is_as_published(case, served):
    """Valid requests and those that break the schema on purpose; a 5xx fails, so does a status or a body that is not
    in the document. The engine has its own opinion of messages, so not all that fits the schema is answered."""
    model = case.body.get("model") if isinstance(case.body, dict) else None
    if isinstance(model, str) and len(model) <= LONGEST_MODEL:  # or nearly all would be 404
        case.body["model"] = "demo"
    headers = {"Authorization": f"Bearer {served.key}"}
    base = served.url.removesuffix("/v1")
    case.call_and_validate(base_url=base, headers=headers, excluded_checks=[positive_data_acceptance])


@pytest.mark.parametrize("prompt", ["", [], [""], ["x", ""], [[]], [[5], []]])
def test_an_empty_prompt_has_one_answer(served, prompt):
    """llama.cpp would work on it without an end: found by the test above."""
    answer = served.post("demo", path="/v1/completions", prompt=prompt, n=2)
    assert (answer.status, json.loads(answer.read())["error"]["param"]) == (400, "prompt")


def test_it_has_all_routes_and_no_others():
    assert set(DOCUMENT["paths"]) == set(ROUTES)


def test_every_error_that_callers_can_meet_is_in_it():
    of_commands = {"DoesNotFit"}
    known = {int(status) for status in DOCUMENT["paths"]["/v1/completions"]["post"]["responses"] if status.isdigit()}
    assert {each.status for each in FreeholdError.__subclasses__() if each.__name__ not in of_commands} <= known


def test_it_is_openapi_and_published(served):
    schema.validate()
    connection = http.client.HTTPConnection(urlsplit(served.url).netloc, timeout=10)
    connection.request("GET", "/openapi.json")
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    assert (answer.status, answer.headers["content-type"], body) == (200, "application/json", OPENAPI)
