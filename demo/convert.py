"""Convert the demonstration model and its LoRA to GGUF, with numpy alone.

Only for Llama models whose tokenizer is a byte-level BPE with GPT-2's pre-tokenizer: it is no general converter.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from safetensors.numpy import load_file

Array = np.ndarray[Any, np.dtype[Any]]


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON file."""
    return json.loads(path.read_text("utf-8"))


def permute_heads(weight: Array, heads: int) -> Array:
    """Reorder the rows of a query or key projection: llama.cpp rotates neighbours, Hugging Face rotates halves."""
    half = weight.shape[0] // heads // 2
    return weight.reshape(heads, 2, half, -1).swapaxes(1, 2).reshape(weight.shape)


def permute_if_rotary(name: str, weight: Array, config: dict[str, Any]) -> Array:
    """Apply `permute_heads` to the projections that RoPE acts on."""
    if ".q_proj." in name:
        return permute_heads(weight, config["num_attention_heads"])
    if ".k_proj." in name:
        return permute_heads(weight, config["num_key_value_heads"])
    return weight


def write_file(writer: gguf.GGUFWriter) -> None:
    """Write header, metadata and tensors in the order that the format wants."""
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def name_tensors(config: dict[str, Any]) -> gguf.TensorNameMap:
    """Return the map from Hugging Face's tensor names to llama.cpp's."""
    return gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config["num_hidden_layers"])


def add_dimensions(writer: gguf.GGUFWriter, config: dict[str, Any]) -> None:
    """Add what llama.cpp needs to build the network."""
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


def add_tokenizer(writer: gguf.GGUFWriter, folder: Path, config: dict[str, Any]) -> None:
    """Add vocabulary, merges, special tokens and the chat template."""
    tokenizer = read_json(folder / "tokenizer.json")
    size = config["vocab_size"]
    tokens, types = [f"[UNUSED{i}]" for i in range(size)], [gguf.TokenType.UNUSED] * size
    for token, i in tokenizer["model"]["vocab"].items():
        tokens[i], types[i] = token, gguf.TokenType.NORMAL
    for added in tokenizer["added_tokens"]:
        tokens[added["id"]], types[added["id"]] = added["content"], gguf.TokenType.CONTROL
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges([" ".join(merge) for merge in tokenizer["model"]["merges"]])
    writer.add_bos_token_id(config["pad_token_id"])  # never used, but absent it defaults to another token
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
    add_dimensions(writer, config)
    add_tokenizer(writer, folder, config)
    names = name_tensors(config)
    for name, weight in load_file(folder / "model.safetensors").items():
        permuted = permute_if_rotary(name, weight, config)
        kept = permuted.astype(np.float32 if weight.ndim == 1 else np.float16)
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight",)), np.ascontiguousarray(kept))
    write_file(writer)


def convert_adapter(base: Path, folder: Path, target: Path) -> None:
    """Convert a PEFT LoRA folder; only the B matrices have the rows that RoPE acts on."""
    config, adapter = read_json(base / "config.json"), read_json(folder / "adapter_config.json")
    writer = gguf.GGUFWriter(target, "llama")
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, float(adapter["lora_alpha"]))
    names = name_tensors(config)
    for name, weight in load_file(folder / "adapter_model.safetensors").items():
        found = re.fullmatch(r"base_model\.model\.(.*)\.lora_([AB])\.weight", name)
        if not found:
            raise ValueError(f"{name} is no LoRA matrix")
        layer, side = found[1] + ".weight", found[2]
        permuted = permute_if_rotary(layer, weight, config) if side == "B" else weight
        renamed = f"{names.get_name(layer, try_suffixes=('.weight',))}.lora_{side.lower()}"
        writer.add_tensor(renamed, np.ascontiguousarray(permuted.astype(np.float32)))
    write_file(writer)


def main() -> None:
    """Convert the files beside this script again."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path(__file__).parent)
    folder = parser.parse_args().folder
    convert_model(folder / "model", folder / "demo.gguf")
    convert_adapter(folder / "model", folder / "adapter", folder / "adapter.gguf")


if __name__ == "__main__":
    main()
