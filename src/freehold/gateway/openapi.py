"""What callers may send to the public routes, and what comes back, as OpenAPI 3.1: GET /openapi.json.

Only the fields that Freehold reads itself are typed. All others go to the engine, which has its own opinion of them.
"""

from __future__ import annotations

from typing import Any

import msgspec

from freehold import __version__
from freehold.gateway.openai import LONGEST_MODEL, MOST_CHOICES, MOST_INPUTS, MOST_PROMPTS

_Schema = dict[str, Any]

# Any of these may come from us; an engine's own refusals have other statuses of the 400s, in the same shape.
_REFUSALS = {
    400: "The request is not one that an engine could answer.",
    401: "No key, or one that is unknown, expired or revoked.",
    403: "The key is good, but not for this; or policy says no.",
    404: "No such endpoint, or none of this key's.",
    405: "Another method is meant.",
    408: "The request did not arrive in time.",
    413: "The body is larger than this server reads.",
    431: "The headers are larger than this server reads.",
    429: "A limit of the key or its group is reached; `retry-after` says when to come again.",
    500: "Something failed that was not foreseen.",
    502: "The engine went away, or answered nonsense.",
    503: "No engine is ready; `retry-after` says when one may be.",
    504: "It took longer than the endpoint allows.",
}
_COUNT: _Schema = {"type": "integer", "minimum": 0}
_TEXT: _Schema = {"type": "string"}
_CHOICES: _Schema = {"type": "integer", "minimum": 1, "maximum": MOST_CHOICES}


def _ref(name: str) -> _Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def _object(required: list[str], **properties: _Schema) -> _Schema:
    return {"type": "object", "required": required, "properties": properties}


def _optional(schema: _Schema) -> _Schema:
    return {"anyOf": [schema, {"type": "null"}]}


def _json(schema: _Schema) -> _Schema:
    return {"application/json": {"schema": schema}}


def _answers(good: str, content: _Schema, *refusals: int) -> _Schema:
    """Without `refusals`: all there are."""
    answers: _Schema = {"200": {"description": good, "content": content}}
    for status in refusals or _REFUSALS:
        answers[str(status)] = {"description": _REFUSALS[status], "content": _json(_ref("Refusal"))}
        if status in (429, 503):
            answers[str(status)]["headers"] = {"retry-after": {"description": "Seconds.", "schema": {"type": "string"}}}
    if not refusals:
        answers["default"] = {"description": "What the engine refuses.", "content": _json(_ref("Refusal"))}
    return answers


def _completion(name: str, summary: str, field: str, schema: _Schema, fewest: int) -> _Schema:
    """`fewest`: tokens that an answer may be limited to."""
    stream = {"schema": {"description": "Frames `data: {...}`, the last one `data: [DONE]`."}}
    limit = _optional({"anyOf": [{"type": "integer", "minimum": fewest, "maximum": 2**31 - 1}, {"const": -1}]})
    answer = {**_json(_ref(f"{name}Answer")), "text/event-stream": stream}
    asked = _object(
        ["model", field],
        model={"type": "string", "maxLength": LONGEST_MODEL, "description": "An endpoint's name."},
        **{field: schema},
        stream=_optional({"type": "boolean"}),
        stream_options=_optional(_object([], include_usage=_optional({"type": "boolean"}))),
        n=_optional(_CHOICES),
        max_tokens=limit,
        max_completion_tokens=limit,
    )
    return _asked(f"create{name}", summary, asked, "The answer, whole or as a stream.", answer)


def _asked(operation: str, summary: str, asked: _Schema, good: str, answer: _Schema) -> _Schema:
    headers = ("x-request-id", "traceparent", "tracestate", "X-Scale-Up-Timeout")
    return {
        "operationId": operation,
        "summary": summary,
        "parameters": [{"name": each, "in": "header", "required": False, "schema": _TEXT} for each in headers],
        "requestBody": {"required": True, "content": _json(asked)},
        "responses": _answers(good, answer),
    }


def _answer(**choice: _Schema) -> _Schema:
    """`choice`: what is in one of its choices."""
    one = _object(["index"], index=_COUNT, finish_reason=_optional(_TEXT), **choice)
    named = {**_TEXT, "description": "The endpoint's name."}
    more: _Schema = {"choices": {"type": "array", "items": one}, "usage": _ref("Usage")}
    return _object(["model", "choices"], id=_TEXT, object=_TEXT, created=_COUNT, model=named, **more)


def _read(operation: str, summary: str, good: str, schema: _Schema, *refusals: int, **more: Any) -> _Schema:
    return {
        "get": {
            "operationId": operation,
            "summary": summary,
            **more,
            "responses": _answers(good, _json(schema), *refusals),
        }
    }


_MESSAGE = _object(["role"], role=_TEXT)
_MESSAGES: _Schema = {"type": "array", "items": _MESSAGE}
_TOKENS: _Schema = {"type": "array", "items": _COUNT}
_ONE: _Schema = {"anyOf": [_TEXT, _TOKENS]}
_PROMPT: _Schema = {"anyOf": [_TEXT, _TOKENS, {"type": "array", "maxItems": MOST_PROMPTS, "items": _ONE}]}
_INPUT: _Schema = {"anyOf": [_TEXT, _TOKENS, {"type": "array", "maxItems": MOST_INPUTS, "items": _ONE}]}
_VECTOR: _Schema = {"anyOf": [{"type": "array", "items": {"type": "number"}}, {**_TEXT, "contentEncoding": "base64"}]}
_EMBEDDING = _object(["index", "embedding"], object={"const": "embedding"}, index=_COUNT, embedding=_VECTOR)
_EMBED = _object(
    ["model", "input"],
    model={"type": "string", "maxLength": LONGEST_MODEL, "description": "An endpoint's name."},
    input=_INPUT,
    encoding_format={"enum": ["float", "base64"]},
    stream=_optional({"const": False}),
)
_NAMED: list[_Schema] = [{"name": "model", "in": "path", "required": True, "schema": _TEXT}]
_HEALTH = _object(["status"], status={"const": "ok"})
_SELF = _object(["openapi", "paths"], openapi=_TEXT)
_ERROR = ["message", "type", "code", "param"]
_USAGE = ["prompt_tokens", "completion_tokens", "total_tokens"]
_MODEL = ["id", "object", "created", "owned_by"]

DOCUMENT: _Schema = {
    "openapi": "3.1.0",
    "info": {
        "title": "Freehold",
        "version": __version__,
        "description": "OpenAI's API in front of engines that a team runs itself.",
        "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
    },
    "servers": [{"url": "/"}],
    "security": [{"key": []}],
    "paths": {
        "/v1/chat/completions": {"post": _completion("Chat", "Answer a chat.", "messages", _MESSAGES, 1)},
        "/v1/completions": {"post": _completion("Text", "Go on with a text.", "prompt", _PROMPT, 0)},
        "/v1/embeddings": {
            "post": _asked("createEmbeddings", "Embed texts.", _EMBED, "A vector each.", _json(_ref("Embeddings")))
        },
        "/v1/models": _read(
            "listModels", "The endpoints that this key may use.", "All of them.", _ref("Models"), 401, 403
        ),
        "/v1/models/{model}": {
            "parameters": _NAMED,
            **_read("readModel", "One of them.", "It.", _ref("Model"), 401, 403, 404),
        },
        "/healthz": _read(
            "readHealth", "Whether the gateway answers; nothing of the engines.", "It does.", _HEALTH, 500, security=[]
        ),
        "/openapi.json": _read("readOpenapi", "This document.", "It.", _SELF, 500, security=[]),
    },
    "components": {
        "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        "schemas": {
            "Refusal": _object(
                ["error"],
                error=_object(_ERROR, message=_TEXT, type=_TEXT, code=_optional(_TEXT), param=_optional(_TEXT)),
            ),
            "Usage": _object(_USAGE, **dict.fromkeys(_USAGE, _COUNT)),
            "ChatAnswer": _answer(message=_MESSAGE),
            "TextAnswer": _answer(text=_TEXT),
            "Embeddings": _object(
                ["object", "data", "model", "usage"],
                object={"const": "list"},
                data={"type": "array", "items": _EMBEDDING},
                model=_TEXT,
                usage=_object(["prompt_tokens", "total_tokens"], prompt_tokens=_COUNT, total_tokens=_COUNT),
            ),
            "Model": _object(_MODEL, id=_TEXT, object={"const": "model"}, created=_COUNT, owned_by=_TEXT),
            "Models": _object(
                ["object", "data"], object={"const": "list"}, data={"type": "array", "items": _ref("Model")}
            ),
        },
    },
}
OPENAPI = msgspec.json.encode(DOCUMENT)
