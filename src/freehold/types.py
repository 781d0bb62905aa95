"""The types that pass through doors: frozen, and without behaviour beyond arithmetic on their own fields.

Sizes are bytes unless the name says otherwise. Money is in `pico`: millionths of a millionth of the currency unit,
because tokens x (millionths per million tokens) is then an exact integer; it is rounded once, when it is shown.
Times are nanoseconds since 1970 (`_ns`) or milliseconds of duration (`_ms`).
"""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

PICO_PER_UNIT = 10**12
LARGEST_PICO = 2**63 - 1  # of one amount in the book: 9.2 million units


class Gpu(Struct, frozen=True, kw_only=True):
    """One card as last seen."""

    name: str
    memory_bytes: int
    free_bytes: int
    driver: str = ""
    node: str = ""  # /dev/nvidia0


class Host(Struct, frozen=True, kw_only=True):
    """A machine as last seen."""

    name: str
    cpu: str
    cores: int  # physical
    memory_bytes: int
    available_bytes: int
    gpus: tuple[Gpu, ...] = ()


class Build(Struct, frozen=True, kw_only=True):
    """One concrete set of weight files at one precision, as their headers describe it."""

    name: str
    format: Literal["gguf", "safetensors"]
    architecture: str
    precision: str
    weight_bytes: int
    layers: int
    kv_heads: int
    key_dim: int  # of one head
    value_dim: int
    hidden_size: int
    vocabulary: int
    context: int  # longest the model was trained for, tokens
    weights_source: str = ""  # where weight_bytes comes from, in words


class Plan(Struct, frozen=True, kw_only=True):
    """One way to serve a build on a host, with the arithmetic that supports it."""

    build: str
    host: str
    context: int  # tokens a request may use
    parallel: int  # requests served at once, each with the whole context
    threads: int
    weight_bytes: int
    kv_bytes_per_token: int
    kv_bytes: int
    compute_bytes: int
    available_bytes: int
    requests_that_fit: int  # at this context, if memory were the only bound
    steps: tuple[str, ...]  # every number above, expanded
    card: str = ""  # as the catalogue calls it; "": the CPU alone
    tp: int = 1  # cards that share each layer
    pp: int = 1  # groups of cards with a part of the layers each
    ep: int = 1  # ranks that share the experts
    card_share: float = 0.0  # of each card's memory that the engine may take
    batched_tokens: int = 0  # computed in one step; 0: the engine's default
    kv_dtype: str = ""  # "": the engine's default

    @property
    def cards(self) -> int:
        return self.tp * self.pp if self.card else 0

    @property
    def total_bytes(self) -> int:
        return self.weight_bytes + self.kv_bytes + self.compute_bytes

    @property
    def predicted(self) -> Stated:
        """The same as what an engine states: of the fullest card, where there are cards."""
        total = {"card_bytes" if self.card else "process_bytes": self.total_bytes}
        return Stated(weight_bytes=self.weight_bytes, kv_bytes=self.kv_bytes, compute_bytes=self.compute_bytes, **total)


class Refusal(Struct, frozen=True, kw_only=True):
    """Why a candidate was turned down and what would change it: a value, never a missing row."""

    subject: str
    reason: str
    hint: str = ""
    steps: tuple[str, ...] = ()


class Objection(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One rule that something breaks: what it says, where it says so, and what would change it."""

    rule: str  # short, stable, kebab-case, for example licence-non-commercial
    reason: str
    clause: str = ""  # the words or section it rests on
    source: str = ""
    hint: str = ""


class Ruling(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What policy says of a model, a place or a build: allowed when nothing is objected."""

    objections: tuple[Objection, ...] = ()
    duties: tuple[str, ...] = ()  # what using it obliges to
    accepted: str = ""  # who accepted its terms, when and why
    until: str = ""  # date on which the acceptance ends

    @property
    def allowed(self) -> bool:
        return not self.objections


class Artifact(Struct, frozen=True, kw_only=True):
    """A file by its digest."""

    path: str  # relative to the folder that was verified
    size_bytes: int
    sha256: str  # 64 hex digits


class Finding(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One reason to refuse a file; or, with `review`, for a person to look at it, which refuses nothing."""

    path: str
    rule: str  # short, stable, kebab-case
    why: str
    fix: str
    review: bool = False


Pinned = Literal["unpinned", "pinned", "changed"]


class Verdict(Struct, frozen=True, kw_only=True):
    """What may be said of a set of weights, and why."""

    subject: str
    accepted: bool
    pinned: Pinned
    digest: str  # sha256 over the artifacts' own digests, sizes and names; "" when nothing could be hashed
    artifacts: tuple[Artifact, ...]
    findings: tuple[Finding, ...]
    base: str = ""  # of an adapter: the digest of the weights it was held against


class Manifest(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The files of one model by their digests, and where they came from: what is signed, pinned and compared."""

    digest: str  # as in Verdict
    artifacts: tuple[Artifact, ...]
    made_ns: int
    made_by: str
    repo: str = ""  # at the hub, as owner/name
    revision: str = ""  # its commit, 40 hex digits
    source: str = ""  # the hub's address, or the folder they were taken from
    model: str = ""  # of the catalogue
    base: str = ""  # of an adapter: the digest of what it was made for
    evidence: dict[str, str] = {}  # what others say of it, such as the hub's scan; never decides


class Adapter(Struct, frozen=True, kw_only=True):
    """One version of a LoRA adapter, as engines get it."""

    name: str  # what the engine calls it: of each version another, so that no cache mistakes one for the other
    path: str  # a folder as PEFT writes it, or a GGUF file
    digest: str = ""  # of it, as a verdict gives it
    rank: int = 0


class Options(Struct, frozen=True, kw_only=True):
    """What an endpoint asks of its engine beside what the plan says."""

    prefix_caching: bool = True
    speculative: Literal["", "ngram", "draft", "mtp"] = ""
    draft_tokens: int = 3  # guessed a step
    tool_parser: str = ""  # as the engine calls it; "": by the model's family
    reasoning_parser: str = ""
    chat_template: str = ""  # a file; "": the model's own
    embeddings: bool = False
    max_loras: int = 0  # adapters at the same time; 0: none
    max_lora_rank: int = 16
    arguments: tuple[str, ...] = ()  # the engine's own, after all others


class Service(Struct, frozen=True, kw_only=True):
    """What one engine process is to serve: all that a launch is described from."""

    name: str  # what the engine is to call the model
    weights: str  # a GGUF file (of a split model the first part), or a folder
    files: tuple[str, ...] = ()  # of these weights, as verified
    socket: str
    plan: Plan
    family: str = ""  # the architecture: "llama", "qwen3"
    marks: frozenset[str] = frozenset()  # words that were added to its vocabulary, such as <tool_call>
    draft: str = ""  # weights of a draft model
    draft_files: tuple[str, ...] = ()  # of these, as verified
    program: str = ""  # the engine's own binary, or the Python of its environment; "": what Freehold brings
    version: tuple[int, ...] = ()  # of the engine
    options: Options = Options()
    adapters: tuple[Adapter, ...] = ()  # that are there from the start
    pools: bool = False  # the weights say how the vectors of a text's tokens become one
    adapter_folder: str = ""  # where more may come while it serves
    cache_folder: str = ""  # what it compiles is kept there for its next start
    devices: tuple[str, ...] = ()  # nodes of the cards that are its own
    drain_s: int = 0  # it lets requests finish for so long when it is asked to end


class Launch(Struct, frozen=True, kw_only=True):
    """An engine process to start: described, not started. Nothing is inherited: this is all it gets."""

    argv: tuple[str, ...]
    socket: str  # Unix socket it will listen on; it may write to its folder
    env: dict[str, str] = {}
    weights: tuple[str, ...] = ()  # files that were verified; it may read them
    readable: tuple[str, ...] = ()  # other files and folders beside the system's libraries
    writable: tuple[str, ...] = ()  # folders of its own that outlive it
    devices: tuple[str, ...] = ()  # device nodes it may open


class Call(Struct, frozen=True, kw_only=True):
    """An HTTP request to an engine: described, not made."""

    method: str
    path: str
    body: bytes = b""


class Stated(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What an engine says of its memory after a start; None: it does not say."""

    weight_bytes: int | None = None
    kv_bytes: int | None = None
    kv_tokens: int | None = None
    compute_bytes: int | None = None  # activations and scratch memory
    graph_bytes: int | None = None  # captured CUDA graphs
    concurrency: float | None = None  # requests of the whole context that its KV cache holds
    process_bytes: int | None = None  # of all its processes, as the kernel counts: shared memory by its share
    card_bytes: int | None = None  # of its processes on the card where they have most, as the driver counts

    @property
    def total_bytes(self) -> int | None:
        """Where it computes: on its card, or in the machine's own memory."""
        return self.process_bytes if self.card_bytes is None else self.card_bytes


class Signals(Struct, frozen=True, kw_only=True):
    """What an engine's metrics say beside tokens. Counts are since it started."""

    running: int | None = None
    waiting: int | None = None
    kv_usage: float | None = None  # 0 to 1
    prefix_asked: int = 0  # tokens looked for in the prefix cache
    prefix_hit: int = 0
    drafted: int = 0  # tokens guessed by speculative decoding
    accepted: int = 0


class Tokens(Struct, frozen=True, kw_only=True):
    """Token counts, as an engine states them in `usage` or in its metrics."""

    prompt: int = 0
    completion: int = 0
    cached: int = 0  # part of prompt
    reasoning: int = 0  # part of completion


class WireError(Struct, frozen=True, kw_only=True):
    """An error as OpenAI's clients expect it."""

    message: str
    type: str
    code: str | None = None
    param: str | None = None


class Price(Struct, frozen=True, kw_only=True):
    """The price list of an endpoint. Millionths of the currency per million tokens = pico per token."""

    prompt_pico_per_token: int = 0
    completion_pico_per_token: int = 0

    def charge_pico(self, tokens: Tokens) -> int:
        charge = tokens.prompt * self.prompt_pico_per_token + tokens.completion * self.completion_pico_per_token
        return min(charge, LARGEST_PICO)


class ReplicaStatus(Struct, frozen=True, kw_only=True):
    """What `ps` shows of one replica."""

    endpoint: str
    replica: str
    engine: str
    state: str  # a lifecycle.State, stopped or external
    isolated: bool | None = None  # None: no process
    pid: int | None = None
    run: int = 0
    in_flight: int = 0
    waiting: int = 0  # for the endpoint
    slots: int | None = None  # requests it answers at once; None: nobody said
    answers: bool = True  # False: nobody is sent there until a probe is answered
    last_start_s: float | None = None
    reason: str | None = None  # why it did not start
    stage: str = ""  # of a start that is under way, and how far it is: "loading the weights 40 %"
    context: int | None = None  # tokens that a request may use
    predicted: Stated | None = None  # by the plan of the last start
    measured: Stated | None = None  # of the last start: what the engine said, the kernel and the driver
    signals: Signals | None = None  # of the last reading of its metrics
    adapters: tuple[str, ...] = ()


class Grant(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a key, or a group of keys, may use, and where. None and (): no limit."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    parallel: int | None = None  # requests at the same time
    tokens_per_day: int | None = None  # days and months are those of UTC
    tokens_per_month: int | None = None
    pico_per_day: int | None = None
    pico_per_month: int | None = None
    priority: int = 0  # when replicas are full, the higher goes first
    residency: tuple[str, ...] = ()  # only replicas in these countries
    jurisdiction_not: tuple[str, ...] = ()  # no replica whose operator is within reach of these laws
    networks: tuple[str, ...] = ()  # callers' addresses, as CIDR


class Key(Struct, frozen=True, kw_only=True):
    """Who asks, and what they may do. The secret itself is never kept."""

    id: str
    name: str
    endpoints: tuple[str, ...]  # glob patterns
    created_ns: int
    expires_ns: int | None = None
    revoked_ns: int | None = None
    content_days: int | None = None  # questions and answers are kept so long; None: they are not
    group: str = ""  # of [groups]; its grant holds for all of its keys together
    grant: Grant = Grant()


class Spent(Struct, frozen=True, kw_only=True):
    """What one key used today and this month, by UTC, while it was of this group: as the book has it."""

    key: str  # its id
    group: str
    tokens_day: int = 0
    pico_day: int = 0
    tokens_month: int = 0
    pico_month: int = 0


Outcome = Literal["ok", "cut", "error"]


class UsageRecord(Struct, kw_only=True, omit_defaults=True, gc=False):
    """One request, counted, priced and closed.

    Not frozen: one is filled in while its request goes through, at a fifth of the cost of copies. Its owner is the
    passage; from its settling on nobody changes it. New fields go to the end, with a default (see ledger/chain.py).
    """

    request: str
    key: str
    endpoint: str
    kind: Literal["chat", "completion", "embedding", "probe"]
    stream: bool
    started_ns: int
    status: int = 0  # HTTP status the caller saw; 0: none before they left
    outcome: Outcome = "cut"
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    lower_bound: bool = False  # the engine produced at least these tokens
    queue_ms: float = 0.0  # until a ready replica was held, waking included
    first_byte_ms: float | None = None
    total_ms: float = 0.0
    charge_pico: int = 0  # by the price list
    machine_pico: int = 0  # this request's share of the host's price while it was served
    content_hash: str = ""  # binds the question and answer that were kept, where the key asks for that
    group: str = ""  # of its key, then
    caller_request: str = ""  # the caller's own x-request-id
    asked: str = ""  # the endpoint that was asked for, where another one answered
    replica: str = ""  # who answered, of those of the endpoint
    run: int = 0  # which process of that replica; 0 of an external one
    served_model: str = (
        ""  # what the engine was asked for, where that is not the endpoint's name: a base, or an adapter
    )
    policy: str = ""  # the rules on place that chose the replica
    reasoning_tokens: int = 0  # part of completion_tokens
    wake_ms: float = 0.0  # part of queue_ms: until a replica was up at all
    held_tokens: int = 0  # a daemon died: how much more than was seen the engine may have produced,
    held_pico: int = 0  # and what that may cost; budgets go by it
    repeated_tokens: int = 0  # of the prompt, that the engine counts again for each further choice; nobody pays them


class Content(Struct, frozen=True, kw_only=True):
    """A question and its answer, of a key that asks to keep them."""

    question: bytes
    answer: bytes
    until_ns: int


Detail = dict[str, str | int | float | bool | None]


class Event(Struct, frozen=True, kw_only=True):
    """Anything that changed: when, by whom, what and why. The ledger chains them by hash."""

    at_ns: int
    actor: str
    kind: str  # dotted, for example replica.ready
    subject: str
    detail: Detail = {}


class Measurement(Struct, frozen=True, kw_only=True):
    """What one start of an engine took, beside what its plan said. Of several cards: the fullest."""

    at_ns: int
    endpoint: str
    replica: str
    run: int
    engine: str
    engine_version: str = ""
    model: str  # the digest of its weights
    catalogue: str = ""  # what the catalogue calls the model
    build: str
    scheme: str = ""  # its precision, as the catalogue calls it
    host: str
    card: str = ""  # "": the CPU alone
    tp: int = 1
    pp: int = 1
    context: int
    parallel: int
    kv_dtype: str = ""
    options: str = ""  # JSON of those that change memory, where they are not the default
    predicted: Stated
    stated: Stated
    start_s: dict[str, float] = {}  # seconds by stage


class Recipe(Struct, frozen=True, kw_only=True):
    """An environment for an engine: described, not made."""

    engine: str
    version: str
    requirements: tuple[str, ...]  # for pip
    packages: tuple[str, ...]  # that may hold the engine: the first one there says its version
    remove: tuple[str, ...] = ()  # packages that its requirements bring, and that break it
    programs: tuple[str, ...] = ()  # modules whose options are read
    reader: str = ""  # the script that reads them, in the new environment
    hint: str = ""  # where pip finds no such version
    run: str = ""  # what of it was run here, and what was not
