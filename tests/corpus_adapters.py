"""Adapters, hostile and clean, by the rule they break."""

from __future__ import annotations

import json
import math
import struct

from corpus import Case, case
from weight_files import entry, gguf_bytes, tensor

LORA = {
    "peft_type": "LORA", "base_model_name_or_path": "owner/name", "r": 8, "lora_alpha": 16, "lora_dropout": 0.05,
    "target_modules": ["q_proj", "v_proj"], "modules_to_save": None, "auto_mapping": None, "megatron_config": None,
    "megatron_core": "megatron.core", "rank_pattern": {}, "alpha_pattern": {}, "task_type": "CAUSAL_LM", "bias": "none",
}  # fmt: skip
Q = "base_model.model.model.layers.0.self_attn.q_proj"
TENSORS = {f"{Q}.lora_A.weight": (8, 64), f"{Q}.lora_B.weight": (64, 8)}


def lora(tensors: dict[str, tuple[int, ...]] | None = None, **changes) -> dict:
    header, end = {}, 0
    for name, shape in (TENSORS if tensors is None else tensors).items():
        size = 4
        for each in shape:
            size *= each
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [end, end + size]}
        end += size
    raw = json.dumps(header).encode()
    weights = struct.pack("<Q", len(raw)) + raw + b"\0" * end
    return {"adapter_config.json": {**LORA, **changes}, "adapter_model.safetensors": weights}


def glora(*tensors: tuple[str, tuple[int, ...]]) -> dict:
    starts = [sum(math.prod(shape) * 4 for _, shape in tensors[:at]) for at in range(len(tensors) + 1)]
    entries = [tensor(name, shape, 0, start) for (name, shape), start in zip(tensors, starts, strict=False)]
    return {"lora.gguf": gguf_bytes([entry("general.type", "adapter")], entries, data=b"\1" * starts[-1])}


ADAPTERS: dict[str, list[dict]] = {
    "adapter-type": [lora(peft_type="XLORA"), lora(peft_type=None), lora(peft_type=["LORA"]),
                     lora(layer_replication=[[0, 4], [2, 8]])],
    "adapter-base": [
        lora(base_model_name_or_path=each) for each in ("", None, "https://example.org/x", "../x", "/root/x", "a/b/c")
    ] + [lora(revision="../x")],
    "adapter-rank": [lora(r=0), lora(r=10**6), lora(r="8"), lora(rank_pattern={"q_proj": -1})],
    "adapter-config": [
        lora(target_modules="(a+)+b"), lora(target_modules=["q proj; rm"]), lora(lora_alpha="x"),
        lora(rank_pattern=[1]),
        lora(target_modules=7),
    ],
    "adapter-tensor": [
        lora({f"{Q}.lora_A.weight": (8, 64)}), lora({**TENSORS, "evil": (4,)}),
        lora({**TENSORS, "model.layers.0.mlp.up_proj.weight": (4, 4)}),
        lora(target_modules=["k_proj", "proj"]), lora(target_modules=["layers.1.self_attn.q_proj"]),
        glora(("blk.0.attn_q.weight.lora_a", (32, 8))), glora(("blk.0.attn_q.weight.lora_b", (8, 32))),
    ],
    "adapter-shape": [
        lora({f"{Q}.lora_A.weight": (4, 64), f"{Q}.lora_B.weight": (64, 4)}),
        lora({f"{Q}.lora_A.weight": (8, 64), f"{Q}.lora_B.weight": (64, 16)}),
        lora({f"{Q}.lora_A.weight": (8,), f"{Q}.lora_B.weight": (8,)}),
        glora(("blk.0.attn_q.weight.lora_a", (32, 8)), ("blk.0.attn_q.weight.lora_b", (4, 32))),
        glora(("blk.0.attn_q.weight.lora_a", (32,)), ("blk.0.attn_q.weight.lora_b", (4, 32))),
        glora(("token_embd.weight.lora_a", (8, 64)), ("token_embd.weight.lora_b", (4, 32))),
    ],
}  # fmt: skip
CLEAN_ADAPTERS = {
    "plain": lora(),
    "another rank for one module": lora(
        {f"{Q}.lora_A.weight": (4, 64), f"{Q}.lora_B.weight": (64, 4)}, rank_pattern={"q_proj": 4}
    ),
    "DoRA, embeddings and a head": lora(
        {
            **TENSORS, f"{Q}.lora_magnitude_vector": (64,), "base_model.model.lm_head.weight": (10, 4),
            "base_model.model.model.embed_tokens.lora_embedding_A": (8, 10),
            "base_model.model.model.embed_tokens.lora_embedding_B": (4, 8),
            "base_model.model.score.weight": (2, 4),
        },
        modules_to_save=["score"], use_dora=True, target_modules="all-linear",
    ),
    "IA3 (review)": lora({f"{Q}.ia3_l": (64, 1)}, peft_type="IA3", r=None),
    "prompt tuning (review)": lora({"prompt_embeddings": (20, 64)}, peft_type="PROMPT_TUNING", target_modules=None),
    "targets by their whole names": lora(target_modules=[Q.removeprefix("base_model.model."), "v_proj"]),
    "GGUF": glora(
        ("blk.0.attn_q.weight.lora_a", (32, 8)), ("blk.0.attn_q.weight.lora_b", (8, 64)),
        ("token_embd.weight.lora_a", (8, 64)), ("token_embd.weight.lora_b", (8, 32)),
    ),
    "a pattern": lora(target_modules=r".*\.layers\.\d+\.self_attn\.(q|v)_proj"),
}  # fmt: skip


CASES: list[Case] = [
    *(case("adapter", f"{rule} {at}", rule, each) for rule, some in ADAPTERS.items() for at, each in enumerate(some)),
    *(case("adapter", name, None, each) for name, each in CLEAN_ADAPTERS.items()),
]
