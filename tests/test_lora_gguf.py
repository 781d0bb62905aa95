"""A LoRA of PEFT becomes one of llama.cpp: the same numbers under other names, or a reason why not."""

import json
import math
import resource
import shutil
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_demo import DEMO, evaluate, questions, sample, serve, share_right  # noqa: F401  a fixture
from weight_files import entry, gguf_bytes, safetensors_bytes, tensor, write

from freehold.errors import DoesNotFit, Refused, Unknown
from freehold.weights import gguf, verify
from freehold.weights.adapters import accept
from freehold.weights.lora_gguf import convert, interleave, widen

BASE, LORA = DEMO / "demo.gguf", DEMO / "adapter"
CONFIG = json.loads((LORA / "adapter_config.json").read_text("utf-8"))
LAYER = "base_model.model.model.layers.0"
Q = f"{LAYER}.self_attn.q_proj"


def test_a_folder_that_is_no_adapter_s_is_not_copied(tmp_path):
    """As of a mistake in a path: it would fill the disk that the book is on."""
    large = tmp_path / "given" / "optimizer.bin"
    large.parent.mkdir()
    with large.open("wb") as out:
        out.truncate(20 << 30)
    (tmp_path / "own").mkdir()
    with pytest.raises(DoesNotFit, match="20"):
        accept(tmp_path / "given", BASE, tmp_path / "own", ("gguf",))
    assert list((tmp_path / "own").iterdir()) == []


def read_gguf(path: Path) -> tuple[dict, dict]:
    """The metadata, and of each tensor its shape as GGUF has it and its values; all must be F32."""
    data = path.read_bytes()
    with path.open("rb") as stream:
        header = gguf.read_header(stream, len(data))
    tensors = {}
    for each in header.tensors:
        assert each.type == "F32"
        start = header.data_offset + each.offset
        tensors[each.name] = each.shape, struct.unpack(f"<{each.size_bytes // 4}f", data[start:][: each.size_bytes])
    return header.metadata, tensors


def make_adapter(folder: Path, tensors: dict[str, tuple[int, ...]], *, dtype: str = "F32", **config) -> Path:
    """A PEFT folder; the values of each tensor count up from 1, so that each place can be told from the others."""
    code, size = {"F32": ("f", 4), "F16": ("e", 2), "BF16": ("f", 2)}.get(dtype, ("b", 1))
    header, data = {}, b""
    for name, shape in tensors.items():
        values = [1 + at % 120 for at in range(math.prod(shape))]
        block = struct.pack(f"<{len(values)}{code}", *values)
        if dtype == "BF16":
            block = b"".join(block[at + 2 : at + 4] for at in range(0, len(block), 4))
        assert len(block) == size * len(values)
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [len(data), len(data) + len(block)]}
        data += block
    files = {"adapter_config.json": CONFIG | config, "adapter_model.safetensors": safetensors_bytes(header, data)}
    return write(folder, files)


def make_base(folder: Path, family: str, heads: tuple[int, int], head_dim: int, width: int, **more) -> Path:
    """A base of two layers whose matrices are zeros; `heads` ask and are asked, `more` are keys of the family's."""
    queries, keys = heads
    shapes = {
        "attn_q": (width, queries * head_dim), "attn_k": (width, keys * head_dim),
        "attn_v": (width, keys * head_dim), "attn_output": (queries * head_dim, width),
        "ffn_gate": (width, 3 * width), "ffn_up": (width, 3 * width), "ffn_down": (3 * width, width),
    }  # fmt: skip
    said = {"attention.head_count": queries, "attention.head_count_kv": keys, **more}
    entries = [entry("general.architecture", family)]
    entries += [entry(f"{family}.{key}", value) for key, value in said.items() if value is not None]
    tensors, end = [], 0
    for layer in range(2):
        for name, shape in shapes.items():
            tensors.append(tensor(f"blk.{layer}.{name}.weight", shape, 0, end))
            end += 4 * math.prod(shape)
    return write(folder, {"base.gguf": gguf_bytes(entries, tensors, data=bytes(end))}) / "base.gguf"


def pair(module: str, down: int, up: int, rank: int = 4) -> dict[str, tuple[int, ...]]:
    return {f"{module}.lora_A.weight": (rank, down), f"{module}.lora_B.weight": (up, rank)}


def reorder(rows: list, heads: int) -> list:
    """Where rotary position embedding pairs row i with row i + half, llama.cpp pairs 2i with 2i + 1."""
    size = len(rows) // heads
    new = list(rows)
    for head in range(heads):
        for at in range(size):
            new[head * size + (2 * at if at < size // 2 else 2 * (at - size // 2) + 1)] = rows[head * size + at]
    return new


def rows_of(tensors: dict, name: str) -> list[tuple[float, ...]]:
    (across, down), values = tensors[name]
    return [values[at * across :][:across] for at in range(down)]


def counted(up: int, rank: int = 4) -> list[tuple[float, ...]]:
    """The rows of lora_B as make_adapter writes them."""
    return [tuple(1.0 + (row * rank + at) % 120 for at in range(rank)) for row in range(up)]


def test_the_demonstration_becomes_the_adapter_that_was_measured(tmp_path):
    convert(LORA, BASE, tmp_path / "german.gguf")
    assert read_gguf(tmp_path / "german.gguf") == read_gguf(DEMO / "adapter.gguf")
    verdict = verify(tmp_path / "german.gguf", base=BASE)
    assert verdict.accepted, verdict.findings
    assert not verdict.findings
    assert [each.name for each in tmp_path.iterdir()] == ["german.gguf"]


def test_llamacpp_gives_the_german_answers_with_it(serve, tmp_path):  # noqa: F811
    convert(LORA, BASE, tmp_path / "german.gguf")
    cases = sample(questions.make_evaluation_set("de"), 30)
    adapters = (tmp_path / "german.gguf", DEMO / "adapter.gguf", None)
    converted, shipped, without = [evaluate.ask_endpoint(serve(BASE, each), "demo", cases) for each in adapters]
    assert converted == shipped
    assert share_right(cases, converted) >= 0.95
    assert share_right(cases, without) == 0


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_mistral_shares_keys_among_heads(tmp_path, dtype):
    base = make_base(tmp_path, "llama", (8, 2), head_dim=8, width=64)
    attention = f"{LAYER}.self_attn"
    shapes = {"q_proj": (64, 64), "k_proj": (64, 16), "v_proj": (64, 16), "o_proj": (64, 64)}
    tensors = {}
    for name, (down, up) in shapes.items():
        tensors |= pair(f"{attention}.{name}", down, up)
    adapter = make_adapter(tmp_path / "adapter", tensors, dtype=dtype, r=4)
    convert(adapter, base, tmp_path / "out.gguf")
    metadata, found = read_gguf(tmp_path / "out.gguf")
    assert metadata == {
        "general.architecture": "llama", "general.type": "adapter", "adapter.type": "lora", "adapter.lora.alpha": 32.0,
    }  # fmt: skip
    assert rows_of(found, "blk.0.attn_q.weight.lora_b") == reorder(counted(64), 8)
    assert rows_of(found, "blk.0.attn_k.weight.lora_b") == reorder(counted(16), 2)
    assert rows_of(found, "blk.0.attn_v.weight.lora_b") == counted(16)
    assert rows_of(found, "blk.0.attn_output.weight.lora_b") == counted(64)
    assert rows_of(found, "blk.0.attn_k.weight.lora_a") == [tuple(1.0 + (64 * row + at) % 120 for at in range(64))
                                                           for row in range(4)]  # fmt: skip
    assert verify(tmp_path / "out.gguf", base=base).accepted


def test_without_a_count_of_its_own_each_head_has_its_key(tmp_path):
    base = make_base(tmp_path, "llama", (4, 4), 8, 32, **{"attention.head_count_kv": None})
    convert(make_adapter(tmp_path / "a", pair(f"{LAYER}.self_attn.k_proj", 32, 32)), base, tmp_path / "out.gguf")
    assert rows_of(read_gguf(tmp_path / "out.gguf")[1], "blk.0.attn_k.weight.lora_b") == reorder(counted(32), 4)


@pytest.mark.parametrize("inside", ["model.", "model.language_model.", "language_model.model.", ""])
def test_qwen3_keeps_its_rows(tmp_path, inside):
    base = make_base(tmp_path, "qwen3", (4, 2), head_dim=16, width=32, **{"attention.key_length": 16})
    layer = f"base_model.model.{inside}layers.1"
    shapes = {
        "self_attn.q_proj": (32, 64), "self_attn.k_proj": (32, 32), "self_attn.v_proj": (32, 32),
        "self_attn.o_proj": (64, 32), "mlp.gate_proj": (32, 96), "mlp.up_proj": (32, 96), "mlp.down_proj": (96, 32),
    }  # fmt: skip
    tensors = {name: shape for each, sides in shapes.items() for name, shape in pair(f"{layer}.{each}", *sides).items()}
    convert(make_adapter(tmp_path / "a", tensors), base, tmp_path / "out.gguf")
    metadata, found = read_gguf(tmp_path / "out.gguf")
    assert metadata["general.architecture"] == "qwen3"
    for name, up in (("attn_q", 64), ("attn_k", 32), ("attn_output", 32), ("ffn_gate", 96), ("ffn_down", 32)):
        assert rows_of(found, f"blk.1.{name}.weight.lora_b") == counted(up)
    assert len(found) == 14
    assert verify(tmp_path / "out.gguf", base=base).accepted


def test_a_base_in_parts_is_read_as_one(tmp_path):
    shape, part = (32, 32), "base-0000{}-of-00002.gguf"
    keys = [("general.architecture", "qwen2"), ("split.count", 2), ("split.no", 0)]
    for no, name in enumerate(("attn_v", "attn_q")):
        entries = [entry(*each) for each in keys[: 3 - no]]
        data = gguf_bytes(entries, [tensor(f"blk.0.{name}.weight", shape, 0, 0)], data=bytes(4096))
        (tmp_path / part.format(no + 1)).write_bytes(data)
    convert(make_adapter(tmp_path / "a", pair(Q, 32, 32)), tmp_path / part.format(1), tmp_path / "out.gguf")
    assert set(read_gguf(tmp_path / "out.gguf")[1]) == {"blk.0.attn_q.weight.lora_a", "blk.0.attn_q.weight.lora_b"}


@given(st.integers(1, 6), st.integers(1, 9))
def test_interleaving_is_what_is_documented(heads, half):
    rows = [bytes([at]) for at in range(2 * heads * half)]
    assert interleave(rows, heads) == reorder(rows, heads)
    assert sorted(interleave(rows, heads)) == rows


@given(st.lists(st.floats(width=16, allow_nan=False), max_size=9000))
def test_f16_keeps_its_values(values):
    wide = widen(struct.pack(f"<{len(values)}e", *values), "F16")
    assert struct.unpack(f"<{len(values)}f", wide) == tuple(values)


@given(st.lists(st.integers(0, 65_535), max_size=100))
def test_bf16_is_the_upper_half(halves):
    wide = widen(struct.pack(f"<{len(halves)}H", *halves), "BF16")
    assert struct.unpack(f"<{len(halves)}I", wide) == tuple(half << 16 for half in halves)


@given(rank=st.integers(1, 32), alpha=st.integers(1, 512) | st.floats(0.5, 512))
def test_rslora_is_scaled_by_the_root_of_the_rank(tmp_path_factory, rank, alpha):
    folder = tmp_path_factory.mktemp("rslora")
    base = make_base(folder, "qwen2", (2, 2), 4, 8)
    for rooted in (True, False):
        tensors = pair(Q, 8, 8, rank)
        adapter = make_adapter(folder / f"{rooted}", tensors, r=rank, lora_alpha=alpha, use_rslora=rooted)
        convert(adapter, base, folder / "out.gguf")
        said = read_gguf(folder / "out.gguf")[0]["adapter.lora.alpha"]
        divisor = math.sqrt(rank) if rooted else rank
        assert said / rank == pytest.approx(alpha / divisor, rel=1e-6)  # llama.cpp's scale, and PEFT's


def test_each_matrix_may_have_its_own_rank(tmp_path):
    base = make_base(tmp_path, "qwen2", (4, 4), 8, 32)
    tensors = pair(Q, 32, 32, 4) | pair(f"{LAYER}.mlp.down_proj", 96, 32, 8)
    ranks, alphas = {"down_proj": 8}, {"q_proj": 32}
    adapter = make_adapter(tmp_path / "a", tensors, r=4, rank_pattern=ranks, alpha_pattern=alphas)
    convert(adapter, base, tmp_path / "out.gguf")
    metadata, found = read_gguf(tmp_path / "out.gguf")
    assert metadata["adapter.lora.alpha"] == 32
    assert found["blk.0.ffn_down.weight.lora_b"][0] == (8, 32)


GOOD = pair(Q, 32, 32)
REFUSED: dict[str, tuple[dict, dict[str, tuple[int, ...]], str]] = {
    "DoRA": ({"use_dora": True}, GOOD | {f"{Q}.lora_magnitude_vector": (32,)}, "use_dora"),
    "DoRA's vectors alone": ({}, GOOD | {f"{Q}.lora_magnitude_vector": (32,)}, "no place"),
    "whole modules": ({"modules_to_save": ["lm_head"]}, GOOD | {"base_model.model.lm_head.weight": (9, 32)}, "to_save"),
    "biases": ({"bias": "all"}, GOOD, "bias"),
    "a bias of the LoRA": ({"lora_bias": True}, GOOD, "lora_bias"),
    "a bias alone": ({}, GOOD | {f"{Q}.bias": (32,)}, "no place"),
    "repeated layers": ({"layer_replication": [[0, 2], [1, 2]]}, GOOD, "layer_replication"),
    "a trigger": ({"alora_invocation_tokens": [1, 2]}, GOOD, "alora_invocation_tokens"),
    "blocks": ({"use_bdlora": {"nblocks": 2}}, GOOD, "use_bdlora"),
    "a changed base": ({"init_lora_weights": "pissa_niter_16"}, GOOD, "init_lora_weights"),
    "several alphas": ({"alpha_pattern": {"q_proj": 7}}, GOOD, "several alphas"),
    "several roots": ({"use_rslora": True}, GOOD | pair(f"{LAYER}.mlp.down_proj", 96, 32, 8), "several ranks"),
    "no alpha": ({"lora_alpha": 0}, GOOD, "lora_alpha is 0"),
    "another kind": ({"peft_type": "LOHA"}, GOOD, "no LoRA"),
    "embeddings": ({}, GOOD | {"base_model.model.model.embed_tokens.lora_embedding_A": (4, 9)}, "no place"),
    "the head": ({}, pair("base_model.model.lm_head", 32, 9), "no place"),
    "an expert": ({}, pair(f"{LAYER}.mlp.experts.0.down_proj", 96, 32), "no place"),
    "a picture's layer": ({}, pair(Q.replace("model.layers", "vision_tower.layers"), 32, 32), "no place"),
    "a layer too many": ({}, pair(Q.replace(".0.", ".2."), 32, 32), "no place"),
    "fused, where the base is not": ({}, pair(f"{LAYER}.mlp.gate_up_proj", 32, 192), "no place"),
    "another width": ({}, pair(Q, 64, 32), "do not fit"),
    "two ranks": ({}, {f"{Q}.lora_A.weight": (4, 32), f"{Q}.lora_B.weight": (32, 8)}, "do not fit"),
    "one half": ({}, {f"{Q}.lora_A.weight": (4, 32)}, "the other half"),
    "twice": ({}, GOOD | pair(Q.replace("model.model.", "model."), 32, 32), "comes twice"),
    "nothing": ({}, {}, "no tensors"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_gguf_cannot_say_is_refused(tmp_path, case):
    config, tensors, why = REFUSED[case]
    base = make_base(tmp_path, "llama", (4, 4), 8, 32)
    target = write(tmp_path / "out", {"lora.gguf": "the one before"}) / "lora.gguf"
    with pytest.raises(Refused, match=why) as refused:
        convert(make_adapter(tmp_path / "a", tensors, **config), base, target)
    assert refused.value.hint
    assert [(each.name, each.read_text()) for each in target.parent.iterdir()] == [("lora.gguf", "the one before")]


@pytest.mark.parametrize(
    ("family", "keys", "why"),
    [
        ("qwen3moe", {}, "the family qwen3moe"),
        ("clip", {}, "the family clip"),
        ("llama", {"attention.head_count": [4, 4]}, "no one number of heads"),
        ("llama", {"attention.head_count": 5}, "do not fit"),
    ],
)
def test_a_base_not_known_is_refused(tmp_path, family, keys, why):
    base = make_base(tmp_path, family, (4, 4), 8, 32, **keys)
    with pytest.raises(Refused, match=why):
        convert(make_adapter(tmp_path / "a", GOOD), base, tmp_path / "out.gguf")


def test_integers_are_no_lora(tmp_path):
    with pytest.raises(Refused, match="I8"):
        convert(make_adapter(tmp_path / "a", GOOD, dtype="I8"), make_base(tmp_path, "llama", (4, 4), 8, 32), tmp_path)


def test_a_full_disk_leaves_what_was_there(tmp_path):
    target = write(tmp_path, {"lora.gguf": "the one before"}) / "lora.gguf"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(OSError, match="too large"):
            convert(LORA, BASE, target)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [(each.name, each.read_text()) for each in tmp_path.iterdir()] == [("lora.gguf", "the one before")]


def test_files_missing_or_damaged_are_refused(tmp_path):
    adapter = tmp_path / "adapter"
    shutil.copytree(LORA, adapter)
    weights = adapter / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(Refused, match=r"adapter on demo\.gguf"):
        convert(adapter, BASE, tmp_path / "out.gguf")
    weights.unlink()
    with pytest.raises(Refused, match=r"has no adapter_model\.safetensors"):
        convert(adapter, BASE, tmp_path / "out.gguf")
    with pytest.raises(Refused, match="no GGUF"):
        convert(LORA, DEMO / "model", tmp_path / "out.gguf")
    with pytest.raises(Unknown):
        convert(LORA, tmp_path / "none.gguf", tmp_path / "out.gguf")
    with pytest.raises(FileNotFoundError):
        convert(LORA, BASE, tmp_path / "nowhere" / "out.gguf")
