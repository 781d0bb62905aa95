"""What is known of models, cards, providers, prices and licences, each with its source; None where nobody said.

Dimensions have the meaning they have in a model's config.json. Sizes are counts of parameters or values, not bytes.
Dates are ISO texts. Money is a plain number of the currency named beside it.
"""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

Sources = dict[str, tuple[str, ...]]  # by field: where the value was read

AttentionKind = Literal[
    "full",
    "sliding",  # sees `window` tokens back
    "chunked",  # sees its own chunk of `window` tokens
    "sparse_block",  # reads some blocks, keeps all
    "mla",  # one compressed latent for all heads
    "mla_dsa",  # mla, and an indexer that picks what is read
    "mla_dsa_shared",  # mla that uses another layer's indexer
    "mla_dsa_kv_shared",  # mla that reads another layer's latent and keeps none
    "gated_deltanet",  # linear attention: a state per sequence, nothing per token
    "kda",  # linear attention of Kimi
    "mamba2",  # a state space layer
]


class Indexer(Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """The small attention that chooses which tokens the large one reads."""

    heads: int
    dim: int
    topk: int = 0


class Attention(Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """Layers of one model that attend alike. A field that means nothing for the kind is 0."""

    kind: AttentionKind
    layers: int
    heads: int = 0  # of queries; of the state for mamba2 and kda
    kv_heads: int = 0
    head_dim: int = 0  # of queries and keys; for mla the compressed part is below
    v_head_dim: int = 0  # 0: as head_dim
    window: int = 0  # tokens: sliding and chunked
    output_gate: bool = False  # the query projection is doubled for it
    k_eq_v: bool = False  # one projection for keys and values; both are cached
    qkv_bias: bool = False
    o_bias: bool = False
    sinks: bool = False
    qk_norm: Literal["", "per_head_dim", "per_projection"] = ""
    q_lora_rank: int = 0
    kv_lora_rank: int = 0
    qk_nope_head_dim: int = 0
    qk_rope_head_dim: int = 0
    indexer: Indexer | None = None
    key_heads: int = 0  # gated_deltanet
    value_heads: int = 0
    key_head_dim: int = 0
    value_head_dim: int = 0
    conv_kernel: int = 0  # gated_deltanet, kda, mamba2
    conv_bias: bool = False
    state_dim: int = 0  # mamba2
    state_groups: int = 0


class Moe(Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """A mixture of experts, in `layers` of the model's layers."""

    layers: int
    experts: int
    experts_per_token: int
    intermediate_size: int  # of one expert
    shared_experts: int = 0
    shared_intermediate_size: int = 0
    shared_gate: bool = False
    latent_size: int = 0  # experts work at this width; 0: at the hidden size
    gated: bool = True
    router_bias: bool = False
    expert_bias: bool = False


class Mtp(Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """Layers that predict further tokens; used for speculation only."""

    layers: int
    style: Literal["", "qwen3_5", "deepseek_nextn"] = ""  # "": not counted
    ffn: Literal["moe", "dense"] = "moe"
    attention: Attention | None = None  # None: the model's first full or mla group
    repeats_embeddings: bool = False


class Parameters(Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """How many there are: by the dimensions, by the checkpoint, by the publisher."""

    method: Literal["formula", "transformers_meta", "none"]  # how `text`, `total` and `active` were counted
    text: int | None = None  # the decoder with its embeddings
    total: int | None = None  # text, MTP and encoders
    active: int | None = None  # touched by one token, embeddings included
    checkpoint: int | None = None  # elements in the published checkpoint, scales included
    published: int | None = None
    published_basis: Literal["text", "total"] = "text"
    published_active: int | None = None
    exact: bool = False  # total equals the checkpoint to the last parameter
    tolerance_published_pct: float = 2.5
    tolerance_checkpoint_pct: float = 0.02


class Context(Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """Tokens, prompt and answer together."""

    native: int
    extended: int | None = None
    extension: str = ""  # how
    note: str = ""


class LicenceOf(Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """What licence one model is under, and who says so. Its terms are the Licence of that id."""

    id: str
    read: bool = True  # by somebody, in the publisher's words; False: only the tag at the hub names it
    tag: str = ""  # as scraped from the hub
    conditions: tuple[str, ...] = ()  # particular to this model
    eu_companies: bool | None = None  # False: a company in the EU gets no right to run the weights


class Model(Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """A publisher's model, with the dimensions from which everything else is counted."""

    id: str
    name: str
    repo: str  # at the hub: owner/name
    family: str
    publisher: str
    publisher_country: str  # ISO 3166 two letters, or EU; of two homes US/FR; "" unknown
    architecture: str
    released: str = ""  # date
    released_basis: str = ""
    layers: int = 0
    hidden_size: int = 0
    intermediate_size: int = 0  # of a dense layer
    dense_layers: int = 0  # that have one
    vocab_size: int = 0
    output_vocab_size: int = 0  # 0: as vocab_size
    tied_embeddings: bool = False
    mlp_gated: bool = True
    layer_norms: int = 2  # in each layer
    norm_bias: bool = False
    other_layers: int = 0  # without attention, for example experts alone
    mlp_extra_per_layer: int = 0
    extra_params: int = 0
    attention: tuple[Attention, ...] = ()  # (): outside the formulas, see `attention_note`
    attention_note: str = ""
    moe: Moe | None = None
    mtp: Mtp | None = None
    encoder_params: int = 0  # of vision and audio
    inputs: tuple[str, ...] = ("text",)
    digests: tuple[str, ...] = ()  # of its builds, as Verdict has them; (): nobody says which files are it
    context: Context
    checkpoint: str = "bf16"  # precision of the named repository: a key of plan.weights.SCHEMES
    checkpoint_note: str = ""
    checkpoint_confirmed: bool = True
    quantized: tuple[str, ...] = ()  # other repositories of the publisher
    also: tuple[str, ...] = ()  # names of other models with the same dimensions
    parameters: Parameters
    licence: LicenceOf
    notes: tuple[str, ...] = ()
    disagreements: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()
    sources: Sources = {}
    file_bytes: int = 0  # of the weights, where it was read from files
    ready: bool = True  # False: too little is known to plan with it


TermKind = Literal[
    "non-commercial",  # no commercial use at all
    "monthly-users",  # above `limit` monthly active users another licence is needed
    "revenue",  # above `limit` of `unit` another licence is needed
    "model-service",  # offering the model as a service to others needs another licence; above `limit` if there is one
    "eu-exclusion",  # companies established in the EU get no rights
    "attribution",  # a notice or display
    "naming",  # derived models must carry a name
    "acceptable-use",  # a use policy binds
    "pass-on",  # restrictions must be passed on to those who get the model
    "notify",  # the publisher must be told
    "unread",  # the text was not found: what it says is unknown
]


class Term(Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """One thing a licence says, in plain words, with its clause."""

    kind: TermKind
    says: str
    clause: str  # section or quoted words
    source: str
    limit: int | None = None  # users, or money in `unit`
    unit: str = ""  # for example "USD a year"
    above: Literal["forbidden", "attribution"] = "forbidden"  # what happens above the limit
    commercial: bool = False  # binds commercial use only


class Licence(Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """The terms of a licence as far as they were read."""

    id: str
    name: str
    spdx: str = ""
    url: str = ""
    commercial_use: Literal["yes", "conditional", "no", "unknown"]
    terms: tuple[Term, ...] = ()


class Card(Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """An accelerator's data sheet."""

    id: str
    vendor: Literal["NVIDIA", "AMD"]
    memory_gb: int  # as sold: powers of ten
    memory_bytes: int  # what an engine sees
    memory_source: str
    bandwidth_gb_s: float | None = None
    bf16_tflops: float | None = None  # all dense
    fp8_tflops: float | None = None
    fp4_tflops: float | None = None
    int8_tflops: float | None = None
    power_w: int | None = None
    compute_capability: str = ""  # NVIDIA
    link_gb_s: float | None = None  # NVLink, one direction; None: PCIe only or unknown
    unified: bool = False  # shares the machine's memory
    note: str = ""
    source: str = ""


OfferKind = Literal["on-demand", "spot", "reserved", "dedicated", "owned"]


class Offer(Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """What somebody asks for one card, or one machine, for an hour or a month."""

    id: str = ""
    provider: str  # id
    card: str  # id; "": a machine without one
    cards: int = 1  # that `price` buys
    kind: OfferKind
    price: float
    currency: str = "EUR"
    per: Literal["hour", "month"] = "hour"
    setup: float = 0.0  # once
    billing_s: int = 3600  # smallest time that is billed
    countries: tuple[str, ...] = ()  # where the machines may stand; (): unknown
    date: str = ""  # "": undated
    source: str = ""
    note: str = ""


class Provider(Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """Who rents machines out, and under whose law."""

    id: str
    name: str  # legal entity
    parent: str = ""
    home: str = ""  # country of the operating entity; "": unknown
    parent_home: str = ""  # country of the ultimate parent; "": unknown
    us_exposure: bool | None = None  # a US parent, entity or listing; None: unknown
    us_nexus: str = ""  # in words
    countries: tuple[str, ...] = ()  # of its data centres
    certifications: tuple[str, ...] = ()
    notes: str = ""
    sources: tuple[str, ...] = ()


class Rate(Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """What one unit of `base` costs in `quote`, on a day."""

    base: str
    quote: str
    rate: float
    date: str
    source: str = ""
    note: str = ""


class ApiPrice(Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """What a closed API asks for a million tokens."""

    id: str
    publisher: str
    prompt: float  # per million tokens
    completion: float
    currency: str = "USD"
    date: str = ""  # "": undated
    source: str = ""
    note: str = ""


class Benchmark(Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """What is known of a benchmark whoever runs it."""

    name: str
    tasks: tuple[str, ...] = ()
    items: int = 0  # questions; 0: no source was read
    items_source: str = ""
    summary: bool = False  # made of others: no part of a composite
    languages: bool = False  # its variants begin with the name of a language
    informs: dict[str, str] = {}  # pattern of a variant ("" fits all): why such scores do not rank


class Cohort(Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """Scores that may be compared with each other: one benchmark, run by one party in one way."""

    id: str  # short and stable, for example euroeval-german-knowledge
    benchmark: str
    variant: str = ""  # subset, language and metric, length, scaffold
    measured_by: str
    kind: Literal["independent", "publisher", "own"]  # own: imported by the company
    version: str = ""  # of the harness or the run; where nobody said it, its date
    mode: str = ""  # of thinking, as the source says it; "": not stated
    setting: str = ""  # shots, tools, split: what else was the same for all
    unit: str = "percent"
    lower_is_better: bool = False
    language: str = ""  # ISO 639-1
    tasks: tuple[str, ...] = ()  # reasoning, coding, agentic, maths, instruction, long-context
    items: int = 0  # questions of the benchmark, where a source says; 0: not known
    informs: str = ""  # why it does not rank: superseded, saturated, a baseline of pairs; "": it ranks


class Score(Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """What one model reached in one cohort."""

    cohort: str  # id
    model: str  # id
    value: float
    error: float | None = None  # half of the 95 % interval, where the source prints one
    served: str = ""  # precision it was served in, where the source says so
    date: str = ""
    source: str = ""
    note: str = ""
    trust: Literal["high", "medium", "low"] = "high"


class Pair(Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """The same model in two precisions, measured by the same party in the same harness; or why it is no such pair."""

    model: str  # id; of a model that is not in the catalogue its name
    scheme: str  # a key of plan.weights.SCHEMES; "": none of them
    label: str  # as the source names what was measured
    base: str  # a key of plan.weights.SCHEMES, or as the source names it
    benchmark: str
    base_value: float | None = None
    value: float | None = None
    printed: float | None = None  # value in percent of the base, as the source prints it
    unit: Literal["score", "fraction", "kl-divergence", "perplexity", "agreement"] = "score"  # a score is of 100
    measured_by: str
    maker: bool = False  # whoever measured also made the quantized files
    date: str = ""
    source: str = ""
    note: str = ""
    trust: Literal["high", "medium", "low"] = "high"
    left_out: str = ""  # why it says nothing of a loss
