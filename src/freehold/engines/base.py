"""What Freehold must know of an engine, with what holds for most of them: one derives from this, and says the rest."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import msgspec
from msgspec import Struct

from freehold.engines import fields
from freehold.errors import BadConfig, FreeholdError
from freehold.facts import Card, Model
from freehold.types import (
    Adapter,
    Build,
    Call,
    Host,
    Launch,
    Plan,
    Refusal,
    Service,
    Signals,
    Stated,
    Tokens,
    WireError,
)


class Wanted(Struct, frozen=True, kw_only=True):
    """What an endpoint asks of a machine. None: the engine's own choice."""

    context: int | None = None
    longest: bool = False  # the longest context that fits will do
    parallel: int = 1
    threads: int = 1
    card: Card | None = None  # None: the CPU alone
    free_bytes: int = 0  # of the card with the least
    tp: int = 1
    pp: int = 1
    ep: int = 1
    card_share: float | None = None
    batched_tokens: int | None = None
    kv_dtype: str = ""
    draft: Build | None = None  # a small model that guesses
    draft_model: Model | None = None
    draft_tokens: int = 0
    mtp: bool = False  # guessed by the model's own layers
    version: tuple[int, ...] = ()

    @property
    def draft_bytes(self) -> int:
        return self.draft.weight_bytes if self.draft else 0

    @property
    def draft_layers(self) -> int:
        return self.draft.layers if self.draft else 0


class Stage(NamedTuple):
    """Of a start; `share` of it is done, 0 to 1, where that is known."""

    name: str
    share: float | None = None


class _Body(msgspec.Struct):
    message: str
    type: str | None = None
    code: str | int | None = None
    param: str | None = None


class _Envelope(msgspec.Struct):
    error: _Body


_decode = msgspec.json.Decoder(_Envelope).decode
_TOO_LONG = re.compile(r"(?:maximum|model's) context length").search  # vLLM's words, and SGLang's
_LINE = 500  # characters of a line that are looked at: an engine may print any
_OPTION = re.compile(r"-(?![\d.])")


def _plain(option: str) -> str:
    """Parsers take --some_name, --no-some-name and --some-name.key=value too."""
    name = re.split("[=.]", option, maxsplit=1)[0].replace("_", "-")
    return "--" + name[5:] if name.startswith("--no-") else name


class Engine:
    """How to talk to an OpenAI-compatible server. It describes, and never does."""

    ready_path = "/health"  # answers 200 once requests can be served
    metrics_path = "/metrics"
    stream_fields: Mapping[str, object] = {}  # added to a request that streams
    answers_by_stream = False  # ask it for a stream even when the caller wants the answer whole
    refused_fields: Mapping[str, str] = fields.EXTERNAL  # of a request: they reach past it; why
    holds_only: Mapping[str, tuple[Sequence[bytes], str]] = {}  # of a field these values, as JSON; what to do instead
    repeats_prompts = False  # its counters have the prompt once for each choice
    hides_cache_hits = True  # one cache for all callers, so none may see its hits; unless a salt keeps them apart

    def isolate(self, salt: str, slot: int | None, *, same: bool, salted: bool) -> Mapping[str, object]:  # noqa: ARG002
        """Fields to add to a request, so that no group of callers reads from its cache what another one left there.

        `salt`: of the group, never to be guessed; vLLM and SGLang hash it into every block of a prompt. `slot`: of the
        engine's cache, where we hand them out; `same`: the last prompt there was of the same group. `salted`: it is
        known to know salts.
        """
        return {"cache_salt": salt} if salted else {}

    def counters(self, metrics: bytes) -> Tokens:  # noqa: ARG002
        """Tokens since the process started, such that they equal the sum of `usage`; zeros where it counts none."""
        return Tokens()

    def signals(self, metrics: bytes) -> Signals:  # noqa: ARG002
        """What else its metrics say."""
        return Signals()

    def error(self, status: int, body: bytes) -> tuple[int, WireError]:
        """The HTTP status and error that OpenAI's clients expect for this answer.

        An OpenAI error passes as it is, and anything else is wrapped, so that clients always find the shape they
        expect. What it has against Freehold itself (its key, the URL) is not the caller's fault, nor theirs to read.
        """
        if status in (401, 403) or status < 400:
            message = f"The engine answered Freehold with {status}; its operator must look at it."
            return 502, WireError(message=message, type="server_error", code="engine_failed")
        kind = "invalid_request_error" if 400 <= status < 500 else "server_error"
        try:
            said = _decode(body).error
        except msgspec.DecodeError:
            text = body[:200].decode("utf-8", "replace").strip() or "nothing"
            status = status if 400 <= status < 500 else 502
            return status, WireError(message=f"The engine answered: {text}", type=kind, code="engine_failed")
        code = said.code if isinstance(said.code, str) else None  # vLLM repeats the HTTP status here
        if status == 400 and code is None and _TOO_LONG(said.message):
            code = "context_length_exceeded"
        return status, WireError(message=said.message, type=said.type or kind, code=code, param=said.param)


class Launchable(Engine):
    """An engine that Freehold can also start, and what it says while it does."""

    formats: tuple[str, ...] = ("safetensors",)  # of weights that it reads
    environment = False  # it lives in one of its own: `freehold engine install`
    uses_cards = True  # where there are any; else it computes on the CPU
    salts = False  # it knows `cache_salt`
    adapters: Literal["", "launch", "hot"] = ""  # none; those of its launch; more while it serves
    takes: frozenset[str] = frozenset()  # keys of an endpoint that it heeds, of those that not every engine does
    given: frozenset[str] = frozenset()  # options of its own that are forbidden beside those that its launch says
    stages: tuple[tuple[re.Pattern[str], str], ...] = ()  # of a start: what begins one, or says its per cent; its name
    warming: tuple[Mapping[str, object], ...] = ()  # fields of requests that are slow the first time

    def fit(self, build: Build, model: Model | None, host: Host, wanted: Wanted) -> Plan | Refusal:
        """How it would serve the build on this machine, or why it cannot."""
        raise NotImplementedError

    def launch(self, service: Service) -> Launch:
        """The process that serves it, on the Unix socket. Raises BadConfig."""
        raise NotImplementedError

    def arguments(self, service: Service, said: Sequence[str] = ()) -> tuple[str, ...]:
        """The endpoint's own options. Raises BadConfig for those that are not its to give, however they are spelled.

        `said`: the launch so far, which they may not say again. Parsers take the beginning of an option for all of it,
        and some have short names: so options are written in full.
        """
        ours = {_plain(each) for each in (*self.given, *said) if each.startswith("--")}
        for each in service.options.arguments:
            name = _plain(each)
            if _OPTION.match(name) and (len(name) < 4 or name[1] != "-" or any(our.startswith(name) for our in ours)):
                hint = "Freehold says it, or forbids it; or it is not written in full"
                raise BadConfig(f"{each} cannot be among the arguments", hint=hint)
        return service.options.arguments

    def stage(self, line: str) -> Stage | None:
        """What a line of its log says of a start: the stage that begins, or how far it is."""
        for pattern, name in self.stages:
            if found := pattern.search(line[:_LINE]):
                return Stage(name, min(int(found[1]), 100) / 100 if pattern.groups else None)
        return None

    def stated(self, log: str, metrics: bytes) -> Stated:  # noqa: ARG002
        """What it says of its memory: in the log of its start, and in its metrics once it is up."""
        return Stated()

    def complaint(self, log: str, plan: Plan) -> FreeholdError | None:  # noqa: ARG002
        """Why it ended while it started, where its log says that so that somebody can act on it."""
        return None

    def load(self, adapter: Adapter) -> Call | None:  # noqa: ARG002
        """Give it an adapter while it serves; None: it has those of its launch."""
        return None

    def room(self, service: Service) -> int | None:  # noqa: ARG002
        """How many adapters one process may ever be given, those it dropped among them; None: any number."""
        return None

    def unload(self, adapter: Adapter) -> Call | None:  # noqa: ARG002
        return None

    def ask(self, adapter: Adapter, launched: Sequence[Adapter]) -> Mapping[str, object]:  # noqa: ARG002
        """Fields of a request that is for the adapter. `launched`: those it was launched with, in their order."""
        return {"model": adapter.name}
