"""An adapter held against the weights it is to be put on."""

import pytest
from conftest import DEMO
from corpus_adapters import Q, glora, lora
from weight_files import gguf_bytes, safetensors_bytes, tensor, write

from freehold.weights import verify

PAIR = (("blk.0.attn_q.weight.lora_a", (64, 8)), ("blk.0.attn_q.weight.lora_b", (8, 32)))
DEEP = Q.replace(".0.", ".9.")
MODULE = "model.layers.0.self_attn.q_proj.weight"


def plain(shape, name=MODULE) -> dict:
    size = 4 * shape[0] * shape[1]
    facts = {name: {"dtype": "F32", "shape": list(shape), "data_offsets": [0, size]}}
    return {"model.safetensors": safetensors_bytes(facts, b"\0" * size)}


def gguf_base(shape, name="blk.0.attn_q.weight") -> dict:
    size = 4
    for each in shape:
        size *= each
    return {"base.gguf": gguf_bytes(tensors=[tensor(name, shape, 0, 0)], data=b"\1" * size)}


CASES = {
    "safetensors": (lora(), plain((64, 64)), ""),
    "safetensors, another width": (lora(), plain((64, 128)), "made for 64 x 64"),
    "safetensors, other modules": (lora(), plain((64, 64), "model.norm.weight"), "the base has 0 layers"),
    "safetensors, too few layers": (
        lora({f"{DEEP}.lora_A.weight": (8, 64), f"{DEEP}.lora_B.weight": (64, 8)}),
        plain((64, 64)),
        "the base has 1 layers",
    ),
    "GGUF": (glora(*PAIR), gguf_base((64, 32)), ""),
    "GGUF, another inner side": (glora(*PAIR), gguf_base((96, 32)), "made for 64, the base has 96"),
    "GGUF, another outer side": (glora(*PAIR), gguf_base((64, 96)), "made for 32, the base has 96"),
    "GGUF, no such tensor": (glora(*PAIR), gguf_base((64, 32), "blk.1.attn_q.weight"), "no such tensor"),
    "GGUF, no matrix": (glora(*PAIR), gguf_base((64,)), "no two matrices"),
    "two formats": (lora(), gguf_base((64, 32)), "no weights of one format"),
    "no base at all": (lora(), {"README.md": "nothing"}, "no weights of one format"),
}


@pytest.mark.parametrize("case", CASES)
def test_an_adapter_fits_its_base_or_says_why_not(tmp_path, case):
    adapter, base, said = CASES[case]
    verdict = verify(write(tmp_path / "adapter", adapter), base=write(tmp_path / "base", base))
    found = [each.why for each in verdict.findings if each.rule == "adapter-base-differs"]
    assert bool(found) == bool(said), verdict.findings
    assert all(said in why for why in found)
    assert verdict.base == verify(tmp_path / "base").digest


def test_the_adapters_of_the_demonstration_fit_its_models():
    for adapter, base in (("adapter", "model"), ("adapter.gguf", "demo.gguf")):
        verdict = verify(DEMO.parent / adapter, base=DEMO.parent / base)
        assert verdict.accepted, verdict.findings
        assert verdict.base == verify(DEMO.parent / base).digest
