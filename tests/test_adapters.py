"""An adapter on its way to an engine, and what llama.cpp is told of it."""

import json
import os
import shutil

import pytest
from conftest import DEMO
from lora_mix import GERMAN, scaled
from weight_files import entry, gguf_bytes, write

from freehold.engines.llamacpp import LlamaCpp
from freehold.errors import Refused, Unknown
from freehold.types import Adapter, Plan, Service
from freehold.weights.adapters import accept

GGUF, PEFT = DEMO.parent / "adapter.gguf", ("safetensors",)
MODEL = DEMO.parent / "model"


@pytest.fixture
def mine(tmp_path):
    """A copy of the German adapter that a test may spoil."""
    return shutil.copytree(GERMAN, tmp_path / "mine")


def take(path, folder, base=DEMO, formats=("gguf",)):
    folder.mkdir()
    return accept(path, base, folder, formats)


def test_peft_is_converted_where_the_engine_reads_gguf(tmp_path):
    taken = take(GERMAN, tmp_path / "taken")
    assert taken.converted
    assert taken.rank == 16
    assert taken.served == tmp_path / "taken" / "adapter.gguf"
    assert taken.source.digest != taken.digest
    assert [each.path for each in taken.source.artifacts] == ["adapter_config.json", "adapter_model.safetensors"]
    assert take(GERMAN, tmp_path / "again").digest == taken.digest


def test_gguf_passes_as_it_is(tmp_path):
    taken = take(GGUF, tmp_path / "taken")
    assert (taken.converted, taken.rank, taken.digest) == (False, 16, taken.source.digest)
    assert taken.served.read_bytes() == GGUF.read_bytes()


def test_peft_passes_as_it_is_where_the_engine_reads_that(tmp_path):
    taken = take(GERMAN, tmp_path / "taken", MODEL, PEFT)
    assert (taken.converted, taken.rank, taken.served) == (False, 16, tmp_path / "taken" / "given")


def test_the_largest_rank_of_a_pattern_counts(mine, tmp_path):
    config = json.loads((mine / "adapter_config.json").read_text())
    tensors = (mine / "adapter_model.safetensors").read_bytes()
    (mine / "adapter_config.json").write_text(json.dumps(config | {"r": 8, "rank_pattern": {".*_proj": 16}}))
    assert take(mine, tmp_path / "taken", MODEL, PEFT).rank == 16
    assert (mine / "adapter_model.safetensors").read_bytes() == tensors


def test_what_is_served_is_the_copy(mine, tmp_path):
    """As the hub's cache has it, with a link; whoever changes what they gave changes nothing any more."""
    repo = tmp_path / "models--owner--name"
    snapshot, blob = repo / "snapshots" / "main", repo / "blobs" / ("b" * 40)
    for folder in (snapshot, blob.parent):
        folder.mkdir(parents=True)
    shutil.copy(GERMAN / "adapter_config.json", snapshot)
    shutil.copy(GERMAN / "adapter_model.safetensors", blob)
    (snapshot / "adapter_model.safetensors").symlink_to(blob)
    taken = take(snapshot, tmp_path / "taken", MODEL, PEFT)
    (served,) = taken.served.glob("*.safetensors")
    assert not served.is_symlink()
    with blob.open("r+b") as file:
        file.seek(-8, os.SEEK_END)
        file.write(b"\xff" * 8)
    assert served.read_bytes() == (GERMAN / "adapter_model.safetensors").read_bytes()
    shutil.rmtree(repo)
    assert served.exists()


def test_a_link_that_leaves_the_folder_is_refused(mine, tmp_path):
    shutil.move(mine / "adapter_model.safetensors", tmp_path / "elsewhere")
    (mine / "adapter_model.safetensors").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(Refused, match=r"\[link-outside\]"):
        take(mine, tmp_path / "taken")


def spoil_pickle(folder):
    (folder / "training_args.bin").write_bytes(b"\x80\x04cos\nsystem\n.")


def spoil_truncated(folder):
    path = folder / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def spoil_rank(folder):
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | {"r": 8}))


def spoil_kind(folder):
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | {"use_dora": True}))


def spoil_tokenizer(folder):
    said = json.loads((MODEL / "tokenizer.json").read_text())
    words = said["model"]["vocab"]
    first, second = list(words)[300:302]
    words[first], words[second] = words[second], words[first]
    (folder / "tokenizer.json").write_text(json.dumps(said))


def spoil_shapes(folder):
    """As for a base of half the width."""
    path = folder / "adapter_model.safetensors"
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = data[8 : 8 + size].replace(b'"shape":[16,256]', b'"shape":[32,128]')
    path.write_bytes(data[:8] + header + data[8 + size :])


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (spoil_pickle, r"training_args.bin: .*\[pickle"),
        (spoil_truncated, r"\[safetensors-end\]"),
        (spoil_rank, r"\[adapter-shape\]"),
        (spoil_kind, "GGUF has no way to say what the adapter sets: use_dora"),
        (spoil_shapes, "adapter-shape|do not fit the base's"),
    ],
)
def test_what_is_refused(mine, tmp_path, spoil, why):
    spoil(mine)
    with pytest.raises(Refused, match=why) as error:
        take(mine, tmp_path / "taken")
    assert error.value.hint


def test_one_with_the_tokenizer_of_its_base_is_taken(mine, tmp_path):
    shutil.copy(MODEL / "tokenizer.json", mine)
    assert take(mine, tmp_path / "taken").rank == 16


def test_one_that_numbers_words_otherwise_than_its_base_is_refused(mine, tmp_path):
    spoil_tokenizer(mine)
    with pytest.raises(Refused, match="the adapter's tokenizer numbers 2 words otherwise than the base's"):
        take(mine, tmp_path / "taken", MODEL, PEFT)


def test_one_with_more_words_than_its_base_is_refused(mine, tmp_path):
    said = json.loads((MODEL / "tokenizer.json").read_text())
    said["model"]["vocab"]["one more"] = 10**6
    (mine / "tokenizer.json").write_text(json.dumps(said))
    with pytest.raises(Refused, match="the adapter's tokenizer has 1,000,001 words, the base"):
        take(mine, tmp_path / "taken")


def test_one_for_other_shapes_is_refused_whatever_the_engine_reads(mine, tmp_path):
    spoil_shapes(mine)
    with pytest.raises(Refused):
        take(mine, tmp_path / "taken", MODEL, PEFT)


def test_gguf_for_an_engine_that_does_not_read_it(tmp_path):
    with pytest.raises(Refused, match="does not read"):
        take(GGUF, tmp_path / "taken", MODEL, PEFT)


def test_gguf_for_another_family_is_refused(tmp_path):
    path = tmp_path / "other.gguf"
    path.write_bytes(GGUF.read_bytes().replace(b"llama", b"gemma", 1))
    with pytest.raises(Refused, match="the adapter is for the family gemma, the base is llama"):
        take(path, tmp_path / "taken")


def test_gguf_that_is_no_adapter_is_refused(tmp_path):
    write(tmp_path / "model", {"model.gguf": gguf_bytes([entry("general.architecture", "llama")])})
    with pytest.raises(Refused):
        take(tmp_path / "model", tmp_path / "taken")


def test_there_is_nothing_there(tmp_path):
    with pytest.raises((Refused, Unknown)):
        take(tmp_path / "nowhere", tmp_path / "taken")


def test_a_folder_without_its_configuration_is_refused_in_words(mine, tmp_path):
    (mine / "adapter_config.json").unlink()
    with pytest.raises(Refused, match=r"adapter_config\.json"):
        take(mine, tmp_path / "taken", base=MODEL, formats=PEFT)


def test_an_empty_folder_is_named(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(Unknown, match="empty is empty"):
        take(tmp_path / "empty", tmp_path / "taken")


def test_one_with_a_value_that_is_no_number_is_refused(mine, tmp_path):
    path = mine / "adapter_model.safetensors"
    data = bytearray(path.read_bytes())
    data[-4:] = b"\0\0\xc0\x7f"
    path.write_bytes(data)
    with pytest.raises(Refused, match="no finite numbers"):
        take(mine, tmp_path / "taken")


def test_other_matrices_are_another_adapter(tmp_path):
    other = take(scaled(tmp_path / "inverse", -1), tmp_path / "other")
    assert other.digest != take(GERMAN, tmp_path / "taken").digest


ONE, TWO = (
    Adapter(name=f"{name}@1-dddddddd", path=f"/a/{name}/adapter.gguf", digest="d" * 64, rank=16)
    for name in ("one", "two")
)


def launched(*adapters: Adapter):
    plan = Plan(
        build="", host="", context=512, parallel=2, threads=1, weight_bytes=0, kv_bytes_per_token=0, kv_bytes=0,
        compute_bytes=0, available_bytes=0, requests_that_fit=2, steps=(),
    )  # fmt: skip
    service = Service(name="demo", weights="/m.gguf", socket="/run/engine.sock", plan=plan, adapters=adapters)
    return LlamaCpp().launch(service)


def test_llamacpp_loads_them_for_nobody_who_does_not_ask():
    with_two, without = launched(ONE, TWO), launched()
    added = [each for each in with_two.argv if each not in without.argv]
    assert added == ["--lora-scaled", f"{ONE.path}:0", "--lora-scaled", f"{TWO.path}:0"]
    assert {ONE.path, TWO.path} <= set(with_two.readable)
    assert {ONE.path, TWO.path}.isdisjoint(without.readable)


@pytest.mark.parametrize(("adapter", "number"), [(ONE, 0), (TWO, 1)])
def test_a_request_names_one_by_its_place_at_the_launch(adapter, number):
    assert LlamaCpp().ask(adapter, (ONE, TWO)) == {"lora": [{"id": number, "scale": 1.0}]}


def test_llamacpp_is_told_of_adapters_only_when_it_starts():
    engine = LlamaCpp()
    assert engine.adapters == "launch"
    assert engine.load(ONE) is None
    assert engine.unload(ONE) is None
