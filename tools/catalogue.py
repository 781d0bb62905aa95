"""Builds the package's catalogue.json from the YAML in catalogue/ that people edit; --check only compares.

Strict: a key that is neither taken nor listed as left out is an error, so that a slip of the pen is one.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any, TypeVar, get_args

import msgspec
import yaml

from freehold.catalogue import Catalogue
from freehold.facts import Attention, Context, Indexer, Model, Moe, Parameters
from freehold.plan.params import count

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "catalogue"
TARGET = ROOT / "src" / "freehold" / "catalogue" / "data" / "catalogue.json"
FILES = {  # list of the catalogue: its file; offers stand with their providers
    **{name: f"{name}.yaml" for name in ("models", "known", "licences", "cards", "providers", "closed_prices")},
    "rates": "currency.yaml",
}
Entry = dict[str, Any]
Kind = TypeVar("Kind")


def _names(struct: type[msgspec.Struct], **renamed: str) -> dict[str, str]:
    """Key in the YAML: field of the struct. What is not renamed keeps its name."""
    return {field: field for field in struct.__struct_fields__ if field not in renamed.values()} | renamed


def _left_out(keys: str) -> dict[str, str]:
    return dict.fromkeys(keys.split(), "")


# models.yaml is older and says more than the package needs: what each key of a section becomes; "": left out on purpose
SECTIONS = {
    "dims": {
        "num_hidden_layers": "layers", "hidden_size": "hidden_size", "intermediate_size": "intermediate_size",
        "num_dense_ffn_layers": "dense_layers", "vocab_size": "vocab_size", "output_vocab_size": "output_vocab_size",
        "tie_word_embeddings": "tied_embeddings", "mlp_gated": "mlp_gated", "block_norms": "layer_norms",
        "non_attention_layers": "other_layers", "mlp_extra_per_layer": "mlp_extra_per_layer",
        **_left_out(
            "num_attention_heads num_key_value_heads head_dim global_head_dim num_global_key_value_heads activation "
            "attention_k_eq_v head_dim_note intermediate_size_note layer_note dense_mlp_beside_moe"
        ),
    },
    "attention": _left_out("groups kv_cache_derived layer_pattern note"),
    "group": {
        **_names(Attention, num_attention_heads="heads", num_key_value_heads="kv_heads", attention_sinks="sinks"),
        "num_heads": "heads", "chunk": "window", "sparse_indexer": "indexer", "n_groups": "state_groups",
        "num_key_heads": "key_heads", "num_value_heads": "value_heads",
        **_left_out(
            "state_dtype partial_rotary_factor rotary_dim rope note kv_source_layer block_size topk_blocks local_blocks"
        ),
    },
    "indexer": _names(Indexer),
    "moe": {
        **_names(Moe, num_moe_layers="layers", num_experts="experts", moe_intermediate_size="intermediate_size"),
        "num_shared_experts": "shared_experts", "shared_expert_intermediate_size": "shared_intermediate_size",
        "shared_expert_gate": "shared_gate",
        **_left_out("first_k_dense interleave_moe_layer_step n_group topk_group num_hash_routed_layers note"),
    },
    "mtp": {
        "layers": "layers", "style": "style", "ffn": "ffn", "checkpoint_repeats_embeddings": "repeats_embeddings",
        **_left_out("attention_group dedicated_embeddings published published_params note"),
    },
    "parameters": {
        "method": "method", "computed_text": "text", "computed_total": "total", "computed_active": "active",
        "hf_safetensors_total": "checkpoint", "published_total": "published", "published_active": "published_active",
        "published_total_basis": "published_basis", "matches_hf_exactly": "exact",
        "tolerance_published_pct": "tolerance_published_pct", "tolerance_hf_pct": "tolerance_checkpoint_pct",
        **_left_out(
            "computed_mtp deviation_vs_published_pct deviation_vs_hf_pct active_deviation_pct published_total_note "
            "hf_safetensors_total_from"
        ),
    },
    "context": {**_names(Context), **_left_out("config_max_position_embeddings claimed")},
    "licence": {  # the terms are in licences.yaml; the two sources go to the model's sources
        "id": "id", "conditions": "conditions", "hf_licence_tag": "tag", "eu_company_may_run_weights": "eu_companies",
        **_left_out("spdx name commercial_use url eu_restriction contracting_party text_source claim_source"),
    },
    "precision": _left_out(  # read in _checkpoint
        "checkpoint_quantisation confirmed note note_confirmation confirmed_by not_converted torch_dtype size_gb "
        "checkpoint_size_gb"
    ),
    "multimodal": {
        "input": "inputs", "encoder_params": "encoder_params",
        **_left_out("is_multimodal output encoder_params_note image_limit_tested"),
    },
    "": {  # the entry itself
        **{name: name for name in ("id", "name", "family", "publisher", "architecture", "notes", "disagreements")},
        "unknown": "unknown", "hf_repo": "repo", "release_date": "released", "release_date_basis": "released_basis",
        "official_quantised_variants": "quantized", "publisher_country": "publisher_country",
        **_left_out(
            "model_type text_model_type vllm_recipe publisher_min_gpu_memory_gb dims dims_status moe attention context "
            "precision multimodal mtp licence parameters sources catalogue_ready"
        ),
    },
}  # fmt: skip
ONLY_A_TAG = re.compile(r"(PyPI )?llmfit\b[^;]*")  # a scrape of the hub's tags
SOURCES_LEFT_OUT = {"publisher_min_gpu_memory_gb"}
CHECKPOINTS = (  # how the words about a checkpoint begin: its scheme
    ("none", "bf16"),
    ("two repositories: FP8", "bf16"),  # GLM-5.3: the count has no room for scales
    ("unknown (a separate GLM-5.3-Flash-BF16", "bf16"),  # the larger of the two
    ("FP8 e4m3, 128x128", "fp8-block"),
    ("FP8 blocks", "fp8-block"),
    ("FP8", "fp8"),
    ("FP4 experts", "fp4-experts"),
    ("MXFP4", "mxfp4-experts"),
    ("INT4 group-32", "int4-experts"),
)


def main() -> int:
    """Write the JSON, or with --check say whether it is what the YAML gives."""
    built = build(SOURCE)
    if "--check" in sys.argv[1:]:
        same = TARGET.exists() and TARGET.read_bytes() == built
        print("catalogue.json is what the YAML gives" if same else "catalogue.json is stale: run tools/catalogue.py")
        return int(not same)
    TARGET.parent.mkdir(parents=True, exist_ok=True)
    TARGET.write_bytes(built)
    print(f"{TARGET.relative_to(ROOT)}: {len(built):,} bytes")
    return 0


def build(folder: Path) -> bytes:
    """The catalogue as JSON, one line an entry. Raises ValueError with the entry and the key that is wrong."""
    lists: dict[str, list[Entry]] = {name: _read(folder / file) for name, file in FILES.items()}
    lists["models"] = [_whole(entry) for entry in lists["models"]]
    lists["offers"] = [
        offer | {"provider": each["id"]} for each in lists["providers"] for offer in each.pop("offers", ())
    ]
    lists["known"] = [_counted(entry) for entry in lists["known"]]
    types = {field.name: get_args(field.type)[0] for field in msgspec.structs.fields(Catalogue)}
    whole = Catalogue(
        **{name: tuple(_converted(entry, types[name], name) for entry in entries) for name, entries in lists.items()}
    )
    _refuse_twins(whole)
    encode = msgspec.json.Encoder(order="deterministic").encode
    parts = [
        b'"%s":[\n%s\n]' % (name.encode(), b",\n".join(map(encode, getattr(whole, name))))
        for name in Catalogue.__struct_fields__
    ]
    return b"{" + b",\n".join(parts) + b"}\n"


def _plain(text: str) -> str:
    """models.yaml names some sources by the number they have in an index that nobody else can open."""
    numbers = r"(?:index )?ids? \d{8,}(?:(?:,| and) \d{8,})*"
    text = re.sub(
        rf"(?:stored )?(?:public |test |comparison )?(?:files?|config copies)?,? ?{numbers}", "public copy", text
    )
    return re.sub(r"\bstored (?:public )?(?=page|file|config|test|h-tiny)", "public copy of ", text)


def _read(path: Path) -> list[Entry]:
    document = yaml.load(_plain(path.read_text()), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    return document["models"] if path.name == "models.yaml" else document


def _converted(entry: Entry, kind: type[Kind], where: str) -> Kind:
    try:
        return msgspec.convert(entry, kind, strict=True)
    except msgspec.ValidationError as error:
        raise ValueError(f"{where} {entry.get('id', '')}: {error}") from None


def _refuse_twins(catalogue: Catalogue) -> None:
    for names in (
        [model.id for model in (*catalogue.models, *catalogue.known)],
        *([each.id for each in getattr(catalogue, kind)] for kind in ("licences", "cards", "providers", "offers")),
    ):
        if twins := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"twice in the catalogue: {twins}")


def _take(section: str, found: Entry, where: str) -> Entry:
    """A section under the structs' names, without nulls; a key that its table does not name is an error."""
    names = SECTIONS[section]
    if unknown := sorted(found.keys() - names.keys()):
        raise ValueError(f"models {where} {section}: nobody reads {unknown}")
    return {names[key]: value for key, value in found.items() if names[key] and value is not None}


def _whole(entry: Entry) -> Entry:
    """An entry of models.yaml as a facts.Model."""
    where, dims = entry["id"], entry["dims"]
    taken = {name: _take(name, entry[name], where) for name in SECTIONS if entry.get(name)}
    dense = dims.get("num_dense_ffn_layers", 0 if entry["moe"] else dims["num_hidden_layers"])
    if dims.get("dense_mlp_beside_moe"):
        dense = dims["num_hidden_layers"]
    model = _take("", entry, where) | taken["dims"] | {"dense_layers": dense} | taken["multimodal"]
    model |= {name: taken[name] for name in ("moe", "context", "licence", "parameters") if name in taken}
    model["attention"] = [_group(each, where) for each in entry["attention"]["groups"]]
    words = [entry["attention"].get(key, "") for key in ("layer_pattern", "note")]
    model["attention_note"] = "; ".join(each for each in words if each)
    if entry["mtp"]["layers"]:
        model["mtp"] = taken["mtp"]
        if group := entry["mtp"].get("attention_group"):
            model["mtp"]["attention"] = _group(group, where)
    model |= _checkpoint(entry)
    model["sources"] = _sources(entry, entry["licence"])
    model["licence"]["read"] = not all(ONLY_A_TAG.fullmatch(each) for each in model["sources"]["licence"])
    model["ready"] = bool(model["attention"]) and entry.get("catalogue_ready", True)
    return model


def _group(group: Entry, where: str) -> Entry:
    taken = _take("group", group, where)
    if (gate := taken.pop("output_gate", None)) is not None:
        if gate not in ("q_doubled", True):
            raise ValueError(f"{where}: no output gate is called {gate!r}")
        taken["output_gate"] = True
    return taken | ({"indexer": _take("indexer", taken["indexer"], where)} if "indexer" in taken else {})


def _checkpoint(entry: Entry) -> Entry:
    """In which precision the named repository is, and what was said of it."""
    said = entry["precision"]
    words = said["checkpoint_quantisation"]
    scheme = next((scheme for start, scheme in CHECKPOINTS if words.startswith(start)), None)
    if scheme is None:
        raise ValueError(f"models {entry['id']}: no scheme for a checkpoint that is {words!r}")
    notes = [words, said.get("note"), said.get("note_confirmation")]
    if kept := said.get("not_converted"):
        notes.append(f"not converted: {', '.join(kept)}")
    note = "; ".join(each for each in notes if each and each != "none (bfloat16)")
    return {"checkpoint": scheme, "checkpoint_note": note, "checkpoint_confirmed": said["confirmed"]}


def _sources(entry: Entry, licence: Entry) -> dict[str, list[str]]:
    """By field; what only says "as dims" is left out."""
    found = {
        key: [s for s in each if s != "as dims" and not s.startswith("see licence.")]
        for key, each in entry["sources"].items()
    }
    found["dims"].append(entry["dims_status"])
    found["licence"] += [licence[key] for key in ("text_source", "claim_source", "url") if licence.get(key)]
    found.setdefault("precision", []).extend(filter(None, [entry["precision"].get("confirmed_by")]))
    return {key: list(dict.fromkeys(each)) for key, each in found.items() if each and key not in SOURCES_LEFT_OUT}


def _counted(entry: Entry) -> Entry:
    """An entry of known.yaml: `source` is where its dimensions are from, and the rest of its parameters is counted."""
    entry = dict(entry)
    source, total = entry.pop("source"), entry.pop("checkpoint_total")
    tolerance = {"tolerance_checkpoint_pct": each} if (each := entry.pop("tolerance_pct", None)) else {}
    entry |= {
        "sources": {"dims": [source]},
        "licence": entry["licence"] | {"read": False},
        "dense_layers": entry.get("dense_layers", 0 if "moe" in entry else entry["layers"]),
    }
    counts = count(_converted(entry | {"parameters": {"method": "formula"}}, Model, "known"))
    figures = (
        Parameters(method="none", checkpoint=total)  # outside the formulas
        if counts is None
        else Parameters(
            method="formula", text=counts.text, total=counts.total, active=counts.active, checkpoint=total,
            exact=counts.total == total, **tolerance,
        )
    )  # fmt: skip
    return entry | {"parameters": msgspec.to_builtins(figures)}


if __name__ == "__main__":
    sys.exit(main())
