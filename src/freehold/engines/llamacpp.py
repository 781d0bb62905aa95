"""llama.cpp, embedded through xllamacpp or as the team's own llama-server: how to start it, count it, read its errors.

What it does, as seen on build 11549 over its Unix socket:

- The answer's `model` is the alias, whatever the request named. HTTP answers 503 while the model loads.
- A stream whose client goes is cancelled at the next token, but not while a batch of its prompt is being read. An
  answer that is not streamed is never cancelled: it runs to its end for nobody, and the counters count it.
- For one prompt and one choice `usage` agrees with the counters to the token. With `n` above 1, or a list of prompts,
  the `usage` of an answer counts the first choice only (llama.cpp #27318); a stream has one usage frame a choice.
- It never states reasoning tokens, and answers 400 to invalid UTF-8.
- A slot keeps its last prompt, whoever asked, until the next one: also that of a request that was cut, and it is not
  replaced by a request that was refused, or whose client left before its turn.
- Of `max_completion_tokens` and `max_tokens` the first counts, -1 is no limit, 0 gives one token, `n_predict` beats
  both. A list of prompts with a number in it is one prompt.
- Adapters are those of its launch. Which one a request wants is said by its number; none is the base. A prompt that was
  cached with another adapter gives wrong answers without a word (llama.cpp #26207): so a slot's cache is read only by
  requests for the adapter that filled it. Adapters that are switched for all (POST /lora-adapters) are never used.
- The header X-Conversation-Id keeps a stream running without its client, and anyone who knows the id may read it:
  callers' headers must not reach the engine.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import msgspec
from msgspec.structs import replace

from freehold.engines import fields, prometheus
from freehold.engines.base import Launchable, Wanted
from freehold.errors import BadConfig, Unknown
from freehold.facts import Model
from freehold.plan.llamacpp import fit
from freehold.types import (
    Adapter,
    Build,
    Host,
    Launch,
    Options,
    Plan,
    Refusal,
    Service,
    Signals,
    Stated,
    Tokens,
    WireError,
)  # fmt: skip

_SERVER = Path(__file__).with_name("llamacpp_server.py")
_ENV = {
    "HOME": "/tmp",  # noqa: S108 - inside the sandbox, a folder of its own
    "LANG": "C.UTF-8",
    "OMP_WAIT_POLICY": "PASSIVE",  # spinning barriers collapse ~20x when a neighbour takes a core
    "PATH": "/usr/bin:/bin",
}
_SHARD = re.compile(r"-00001-of-(\d{5})\.gguf$")


class _Body(msgspec.Struct):
    message: str
    type: str


class _Envelope(msgspec.Struct):
    error: _Body


# llama.cpp's error type: the HTTP status and code that OpenAI's clients know
_KNOWN = {
    "exceed_context_size_error": (400, "context_length_exceeded"),
    "not_supported_error": (400, "not_supported"),
    "server_error": (502, "engine_failed"),
    "unavailable_error": (503, "engine_unavailable"),
}
_MEANT = {
    "input is not supported": "not_supported_error",  # an image for a text model
    "too large to process": "exceed_context_size_error",  # a text to embed, which is computed in one step
}
_decode = msgspec.json.Decoder(_Envelope).decode


_SPECULATION = {"ngram": "ngram-simple", "draft": "draft-simple", "mtp": "draft-mtp"}
_STAGES = (
    (re.compile(r"load_tensors: loading model tensors"), "loading the weights"),
    (re.compile(r"llama_context: constructing"), "making room for the KV cache"),
    (re.compile(r"warming up the model"), "warming up"),
)
_BUFFER = re.compile(r"(model|KV|RS|compute|output) buffer size = +(\d{1,12}(?:\.\d{1,9})?) MiB")
_BUFFERS = {
    "model": "weight_bytes",
    "KV": "kv_bytes",
    "RS": "kv_bytes",
    "compute": "compute_bytes",
    "output": "compute_bytes",
}
_CONTEXT = re.compile(r"n_slots = (\d{1,9}), n_ctx_slot = (\d{1,9})")


class LlamaCpp(Launchable):
    """One process serves one GGUF file, at whole context for each of `plan.parallel` requests."""

    formats = ("gguf",)
    uses_cards = False  # as built into xllamacpp from PyPI
    adapters = "launch"
    takes = frozenset({"threads", "prefix_caching", "speculative", "draft", "draft_tokens", "embeddings", "max_loras"})
    given = frozenset({
        *("--port", "--api-key", "--api-key-file", "--ssl-key-file", "--ssl-cert-file", "--path", "--media-path"),
        *("--model-url", "--hf-repo", "--hf-token", "--lora", "--lora-scaled", "--lora-init-without-apply"),
        *("--verbose", "--verbosity", "--log-prompts-dir"),  # logs have no prompts
    })  # fmt: skip
    stages = _STAGES
    stream_fields: Mapping[str, object] = {"timings_per_token": True}  # a running count, for streams that are cut
    answers_by_stream = True  # else it computes on when the caller has left, and counts one choice of several
    refused_fields: Mapping[str, str] = fields.LLAMACPP
    holds_only = fields.LLAMACPP_HOLDS_ONLY
    hides_cache_hits = False  # each slot has a cache of its own

    def isolate(self, salt: str, slot: int | None, *, same: bool, salted: bool) -> Mapping[str, object]:  # noqa: ARG002
        """Name the slot, and read from its cache only what the same group left there.

        It waits for its slot while that is busy, and for none beside it. With `n` above 1 the other choices take any
        free slots and leave them empty; several prompts follow one another in the same slot.
        """
        return {"cache_prompt": False} if slot is None else {"id_slot": slot, "cache_prompt": same}

    def fit(self, build: Build, model: Model | None, host: Host, wanted: Wanted) -> Plan | Refusal:
        """A draft model keeps a cache of its own for each request, beside the model's."""
        if wanted.mtp and not (model and model.mtp):
            reason = "the file has no layers for multi-token prediction that are known"
            return Refusal(subject=f"{build.name} on {host.name}", reason=reason, hint='speculative = "ngram"')
        context = wanted.context or build.context
        planned = partial(fit, parallel=wanted.parallel, threads=wanted.threads)
        if wanted.draft is None:
            return planned(build, host, context=context, model=model, longest=wanted.longest)
        own = min(context, wanted.draft.context)
        draft = planned(wanted.draft, host, context=own, model=wanted.draft_model)
        if isinstance(draft, Refusal):
            return draft
        host = replace(host, available_bytes=host.available_bytes - draft.total_bytes)
        plan = planned(build, host, context=context, model=model, longest=wanted.longest)
        if isinstance(plan, Refusal):
            return plan
        return replace(
            plan,
            weight_bytes=plan.weight_bytes + draft.weight_bytes,
            kv_bytes=plan.kv_bytes + draft.kv_bytes,
            compute_bytes=plan.compute_bytes + draft.compute_bytes,
            available_bytes=plan.available_bytes + draft.total_bytes,
            steps=(*plan.steps, *(f"Draft: {step}" for step in draft.steps[:-3])),
        )

    def launch(self, service: Service) -> Launch:
        """The socket must end in .sock, or llama.cpp takes it for a host name.

        With a `program` it is that llama-server, with its libraries beside it or among the system's; without, it is the
        llama.cpp inside xllamacpp.
        """
        plan, options, binary = service.plan, service.options, service.program
        if options.arguments and not binary:
            hint = "name a llama-server of your own under binary"
            raise BadConfig("the llama.cpp that comes with Freehold takes no arguments", hint=hint)
        if not service.socket.endswith(".sock"):
            raise ValueError(f"{service.socket}: llama.cpp listens on a Unix socket only if its name ends in .sock")
        command = (binary,) if binary else (sys.executable, "-I", str(_SERVER))
        program = _with_libraries(binary) if binary else _interpreter()
        flags = (
            *("--model", service.weights, "--alias", service.name, "--host", service.socket),
            *("--ctx-size", str(plan.context * plan.parallel), "--parallel", str(plan.parallel)),
            *("--threads", str(plan.threads), "--threads-batch", str(plan.threads)),
            # One thread a connection, kept ones too: enough for the gateway's and for probes beside them.
            *("--threads-http", str(2 * plan.parallel + 8)),
            # Otherwise up to 8 GiB of old prompts, which the plan does not count. Slots still keep their last prompt.
            *("--cache-ram", "0"),
            *("--fit", "off"),  # the plan is what runs, or it fails; the engine does not shrink it unasked
            *("--log-verbosity", "2"),  # warnings; otherwise five lines a request, for months
            *("--metrics", "--slots", "--jinja", "--no-webui"),
            *(("--embeddings",) if options.embeddings else ()),
            *(("--pooling", "mean") if options.embeddings and not service.pools else ()),
            *_loras(service.adapters),
            *_speculation(options, service.draft),
        )
        return Launch(
            argv=(*command, *flags, *self.arguments(service, flags)),
            socket=service.socket,
            env=dict(_ENV),
            weights=service.files or _shards(service.weights),
            readable=(*program, *(adapter.path for adapter in service.adapters), *filter(None, (service.draft,))),
        )

    def ask(self, adapter: Adapter, launched: Sequence[Adapter]) -> Mapping[str, object]:
        return {"lora": [{"id": launched.index(adapter), "scale": 1.0}]}

    def stated(self, log: str, metrics: bytes) -> Stated:  # noqa: ARG002
        """Its buffers, of all devices. A llama-server of the team's own keeps silent: it is told to."""
        sizes: dict[str, int] = {}
        for kind, mib in _BUFFER.findall(log):
            sizes[_BUFFERS[kind]] = sizes.get(_BUFFERS[kind], 0) + round(float(mib) * (1 << 20))
        slots = _CONTEXT.search(log)
        return Stated(
            **sizes,
            kv_tokens=int(slots[1]) * int(slots[2]) if slots else None,
            concurrency=float(slots[1]) if slots else None,
        )

    def counters(self, metrics: bytes) -> Tokens:
        """Read the tokens counted since the process started.

        `prompt_tokens_total` leaves out what the cache gave and `usage.prompt_tokens` counts it, so prompt is the sum
        of both; `tokens_predicted_total` is `usage.completion_tokens`, matched stop strings included. Requests that
        were refused count nowhere, and those cut off count what was really produced.
        """
        counted = prometheus.totals(metrics)
        cached = counted.get("llamacpp:prompt_tokens_cached_total", 0)
        return Tokens(
            prompt=counted.get("llamacpp:prompt_tokens_total", 0) + cached,
            completion=counted.get("llamacpp:tokens_predicted_total", 0),
            cached=cached,
        )

    def signals(self, metrics: bytes) -> Signals:
        counted = prometheus.totals(metrics)
        cached = counted.get("llamacpp:prompt_tokens_cached_total", 0)
        return Signals(
            running=counted.get("llamacpp:requests_processing"),
            waiting=counted.get("llamacpp:requests_deferred"),
            prefix_asked=counted.get("llamacpp:prompt_tokens_total", 0) + cached,
            prefix_hit=cached,
            drafted=counted.get("llamacpp:spec_decode_num_draft_tokens_total", 0),
            accepted=counted.get("llamacpp:spec_decode_num_accepted_tokens_total", 0),
        )

    def error(self, status: int, body: bytes) -> tuple[int, WireError]:
        """Put llama.cpp's error into OpenAI's words. A server's error stays one, with a status a gateway may give."""
        try:
            said = _decode(body).error
        except msgspec.DecodeError:
            return super().error(status, body)
        kind = said.type
        if kind == "server_error":  # the caller's mistakes, though it says 500
            for words, meant in _MEANT.items():
                kind = meant if words in said.message else kind
        status, code = _KNOWN.get(kind, (status, None))
        if code is None and (status < 400 or status in (401, 403)):
            return super().error(status, body)
        if status < 500:
            return status, WireError(message=said.message, type="invalid_request_error", code=code)
        return status, WireError(message=said.message, type="server_error", code=code or "engine_failed")


def _loras(adapters: Sequence[Adapter]) -> tuple[str, ...]:
    """Loaded, and in use for nobody who does not ask: with --lora-init-without-apply those would get them too."""
    return tuple(part for adapter in adapters for part in ("--lora-scaled", f"{adapter.path}:0"))


def _speculation(options: Options, draft: str) -> tuple[str, ...]:
    if not options.speculative:
        return ()
    model = ("--spec-draft-model", draft) if draft else ()
    kind = _SPECULATION[options.speculative]
    return ("--spec-type", kind, "--spec-draft-n-max", str(options.draft_tokens), *model)


def _shards(weights: str) -> tuple[str, ...]:
    """Name every file of a model split by llama.cpp's rule: name-00001-of-00003.gguf."""
    split = _SHARD.search(weights)
    if split is None:
        return (weights,)
    stem, count = weights[: split.start()], split[1]
    return tuple(f"{stem}-{number:05d}-of-{count}.gguf" for number in range(1, int(count) + 1))


def _with_libraries(binary: str) -> tuple[str, ...]:
    """Name a program and the libraries that llama.cpp's releases put beside it, not all of their folder."""
    return (binary, *sorted(map(str, Path(binary).parent.glob("*.so*"))))


def _interpreter() -> tuple[str, ...]:
    """Name what this Python, the launcher and the wheel are made of.

    Of each prefix only its own parts: a virtual environment may lie in the folder that also holds the team's keys.
    """
    spec = find_spec("xllamacpp")
    if spec is None or spec.origin is None:
        raise Unknown("xllamacpp is not installed.", hint="pip install xllamacpp, or name a llama-server binary.")
    prefixes = dict.fromkeys((Path(sys.prefix), Path(sys.base_prefix), Path(sys.executable).resolve().parent.parent))
    parts = (prefix / part for prefix in prefixes for part in ("bin", "lib", "lib64", "pyvenv.cfg"))
    return (*(str(part) for part in parts if part.exists()), str(_SERVER), str(Path(spec.origin).parent))
