"""Convert the demonstration model and its LoRA to GGUF, with numpy alone: `python demo/convert.py`.

Only for Llamas whose tokenizer is a byte-level BPE with GPT-2's pre-tokenizer; this is no general converter.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from safetensors.numpy import load_file

Array = np.ndarray[Any, np.dtype[Any]]
Config = dict[str, Any]


def read_json(path: Path) -> Config:
    """Read a JSON file."""
    return json.loads(path.read_text("utf-8"))


def reorder_rows(name: str, weight: Array, config: Config) -> Array:
    """Interleave the rows of query and key heads: llama.cpp rotates neighbours where Hugging Face rotates halves."""
    heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}.get(name.split(".")[-2])
    if not heads:
        return weight
    return weight.reshape(heads, 2, -1, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)


def write_file(writer: gguf.GGUFWriter, tensors: dict[str, Array]) -> None:
    """Write header, metadata and tensors in the order that the format wants."""
    for name, tensor in tensors.items():
        writer.add_tensor(name, np.ascontiguousarray(tensor))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def rename(name: str, config: Config) -> str:
    """Return llama.cpp's name of a tensor."""
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config["num_hidden_layers"])
    return names.get_name(name, try_suffixes=(".weight",)) or name


def add_tokenizer(writer: gguf.GGUFWriter, folder: Path, config: Config) -> None:
    """Add vocabulary, merges, special tokens and the chat template."""
    tokenizer = read_json(folder / "tokenizer.json")
    tokens = [f"[UNUSED{i}]" for i in range(config["vocab_size"])]
    types = [gguf.TokenType.UNUSED] * len(tokens)
    for token, i in tokenizer["model"]["vocab"].items():
        tokens[i], types[i] = token, gguf.TokenType.NORMAL
    for added in tokenizer["added_tokens"]:
        tokens[added["id"]], types[added["id"]] = added["content"], gguf.TokenType.CONTROL
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges([" ".join(merge) for merge in tokenizer["model"]["merges"]])
    writer.add_bos_token_id(config["pad_token_id"])  # not used, but without it llama.cpp picks some other token
    writer.add_add_bos_token(False)
    writer.add_eos_token_id(config["eos_token_id"])
    writer.add_pad_token_id(config["pad_token_id"])
    writer.add_chat_template((folder / "chat_template.jinja").read_text("utf-8"))


def convert_model(folder: Path, target: Path) -> None:
    """Convert a model folder; matrices keep their float16 values exactly."""
    config = read_json(folder / "config.json")
    writer = gguf.GGUFWriter(target, "llama")
    writer.add_name("Freehold demonstration model")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    add_tokenizer(writer, folder, config)
    tensors = {}
    for name, weight in load_file(folder / "model.safetensors").items():
        wanted = np.float32 if weight.ndim == 1 else np.float16
        tensors[rename(name, config)] = reorder_rows(name, weight, config).astype(wanted)
    write_file(writer, tensors)


def convert_adapter(base: Path, folder: Path, target: Path) -> None:
    """Convert a PEFT LoRA folder; only its B matrices have the rows that are reordered."""
    config, adapter = read_json(base / "config.json"), read_json(folder / "adapter_config.json")
    writer = gguf.GGUFWriter(target, "llama")
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, float(adapter["lora_alpha"]))
    tensors = {}
    for name, weight in load_file(folder / "adapter_model.safetensors").items():
        layer, side = re.sub(r"^base_model\.model\.|lora_[AB]\.", "", name), name.split(".lora_")[1][0]
        rows = reorder_rows(layer, weight, config) if side == "B" else weight
        tensors[f"{rename(layer, config)}.lora_{side.lower()}"] = rows.astype(np.float32)
    write_file(writer, tensors)


if __name__ == "__main__":
    here = Path(__file__).parent
    convert_model(here / "model", here / "demo.gguf")
    convert_adapter(here / "model", here / "adapter", here / "adapter.gguf")
