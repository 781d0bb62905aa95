"""Train Freehold's demonstration model and its German adapter: `python demo/train.py` (GPU if present, else CPU).

A small Llama learns the questions and answers of `questions.py` by heart, with a tokenizer of its own; a LoRA then
teaches it to give the same answers in German. Accuracy is measured on what is shipped: the float16 files.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from convert import convert_adapter, convert_model
from evaluate import Scores, ask_transformers, score
from peft import LoraConfig, get_peft_model
from questions import CATALOGUE, Case, digest, invent_names, load_catalogue, make_evaluation_set, make_training_set
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn import functional
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

PAD, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
VOCABULARY = 2048
BATCH_TOKENS = 4096


@dataclass(frozen=True)
class Budget:
    """How long to train; the learning rate falls to zero at whichever limit comes first."""

    steps: int
    minutes: float
    learning_rate: float


def train_tokenizer(cases: list[Case]) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE in which a name has the same tokens after a space as at the start of an answer.

    The model can then copy a name that it has never seen. So merges are learned from words without their space, and
    only then do the words of the phrasings, which are frequent and no names, get a token that includes the space.
    """
    words = [word for case in cases for message in case.messages for word in message["content"].split()]
    names = [name for name in islice(invent_names(load_catalogue(), random.Random(0)), 5000)]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    spaced = [word for word, count in count_words(cases).items() if count >= 100 and word.isalpha()]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - len(spaced),
        special_tokens=[PAD, START, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(words + names, trainer)
    state = json.loads(tokenizer.to_str())
    vocabulary, merges = state["model"]["vocab"], state["model"]["merges"]
    for word in spaced:
        if word in vocabulary:
            vocabulary["Ġ" + word] = len(vocabulary)
            merges.append(["Ġ", word])
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(state)),
        pad_token=PAD,
        eos_token=END,
        additional_special_tokens=[START],
        model_max_length=2048,
        clean_up_tokenization_spaces=False,
        padding_side="left",
        chat_template=CHAT_TEMPLATE,
    )


def count_words(cases: list[Case]) -> dict[str, int]:
    """Count the words that stand after a space, most frequent first."""
    counts: dict[str, int] = {}
    for case in cases:
        for message in case.messages:
            for word in message["content"].rstrip("?.").split(" ")[1:]:
                counts[word] = counts.get(word, 0) + 1
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def encode(cases: list[Case], tokenizer: PreTrainedTokenizerFast) -> list[tuple[list[int], list[bool]]]:
    """Turn conversations into tokens, and mark those to learn: the assistant's words and its end of turn."""
    encoded = []
    for case in cases:
        tokens: list[int] = []
        learned: list[bool] = []
        for message in case.messages:
            head = tokenizer.encode(f"{START}{message['role']}\n")
            body = tokenizer.encode(message["content"] + END)
            tail = tokenizer.encode("\n")
            tokens += head + body + tail
            learned += [False] * len(head) + [message["role"] == "assistant"] * len(body) + [False] * len(tail)
        encoded.append((tokens, learned))
    return encoded


def draw_batches(
    encoded: list[tuple[list[int], list[bool]]], device: torch.device, seed: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield padded batches of similar length for ever, in a new order each time round."""
    rng = random.Random(seed)
    while True:
        order = sorted(encoded, key=lambda item: len(item[0]) + rng.random() * 4)
        batches: list[list[tuple[list[int], list[bool]]]] = [[]]
        for item in order:
            if len(item[0]) * (len(batches[-1]) + 1) > BATCH_TOKENS:
                batches.append([])
            batches[-1].append(item)
        rng.shuffle(batches)
        for batch in batches:
            width = max(len(tokens) for tokens, _ in batch)
            ids = torch.tensor([tokens + [0] * (width - len(tokens)) for tokens, _ in batch])
            mask = torch.tensor([learned + [False] * (width - len(learned)) for _, learned in batch])
            yield ids.to(device), mask.to(device)


def fit(model: LlamaForCausalLM, cases: list[Case], tokenizer: PreTrainedTokenizerFast, budget: Budget) -> dict[str, Any]:
    """Train the model's trainable parameters on the answers; matrices by Muon, the rest by AdamW."""
    device = model.device
    matrices = [p for n, p in model.named_parameters() if p.requires_grad and p.ndim == 2 and "embed" not in n and "lora" not in n]
    chosen = {id(p) for p in matrices}
    others = [p for p in model.parameters() if p.requires_grad and id(p) not in chosen]
    optimizers: list[torch.optim.Optimizer] = [torch.optim.AdamW(others, lr=budget.learning_rate, betas=(0.9, 0.98), weight_decay=0.0)]
    if matrices:
        optimizers.append(torch.optim.Muon(matrices, lr=budget.learning_rate, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"))
    batches = draw_batches(encode(cases, tokenizer), device, seed=0)
    started, tokens, step, mean, progress = time.monotonic(), 0, 0, 0.0, 0.0
    while progress < 1:
        ids, mask = next(batches)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = budget.learning_rate * min(1, (step + 1) / 50, 1.25 * (1 - progress))
        with torch.autocast(device.type, dtype=torch.bfloat16):
            hidden = model.model(ids[:, :-1]).last_hidden_state[mask[:, 1:]]
            logits = model.lm_head(hidden)
        loss = functional.cross_entropy(logits.float(), ids[:, 1:][mask[:, 1:]])
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        step, tokens = step + 1, tokens + ids.numel()
        mean = loss.item() if step == 1 else 0.95 * mean + 0.05 * loss.item()
        elapsed = time.monotonic() - started
        progress = max(step / budget.steps, elapsed / 60 / budget.minutes)
        if step % 50 == 0:
            print(f"step {step} loss {mean:.4f} {tokens / elapsed:.0f} tokens/s {progress:.0%}", flush=True)
    return {"steps": step, "tokens": tokens, "seconds": round(time.monotonic() - started), "final_loss": round(mean, 5)}


def build_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """Make an untrained Llama of about 4.5 million parameters."""
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=1024,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=2048,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(
        do_sample=False, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    return model


def train_base(out: Path, budget: Budget, seed: int, device: torch.device) -> dict[str, Any]:
    """Train, save and convert the base model."""
    cases = make_training_set("en", seed)
    tokenizer = train_tokenizer(cases + make_training_set("de", seed))
    model = build_model(tokenizer).to(device)
    print(sum(p.numel() for p in model.parameters()), "parameters", flush=True)
    record = fit(model, cases, tokenizer, budget)
    model.half().save_pretrained(out / "model")
    tokenizer.save_pretrained(out / "model")
    convert_model(out / "model", out / "demo.gguf")
    return record | {"parameters": model.num_parameters(), "training_set_sha256": digest(cases), "conversations": len(cases)}


def train_adapter(out: Path, budget: Budget, seed: int, device: torch.device) -> dict[str, Any]:
    """Train, save and convert the German adapter on top of the shipped base model."""
    cases = make_training_set("de", seed)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(out / "model")
    base = LlamaForCausalLM.from_pretrained(out / "model", dtype=torch.float32).to(device)
    adapted = get_peft_model(base, LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"))
    record = fit(base, cases, tokenizer, budget)
    adapted.peft_config["default"].base_model_name_or_path = "freehold/demo"
    adapted.save_pretrained(out / "adapter")
    (out / "adapter" / "README.md").unlink(missing_ok=True)
    convert_adapter(out / "model", out / "adapter", out / "adapter.gguf")
    return record | {"training_set_sha256": digest(cases), "conversations": len(cases)}


def describe_files(out: Path) -> dict[str, dict[str, Any]]:
    """Return size and SHA-256 of everything shipped."""
    paths = [*sorted((out / "model").iterdir()), *sorted((out / "adapter").iterdir()), out / "demo.gguf", out / "adapter.gguf"]
    return {
        path.relative_to(out).as_posix(): {"bytes": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
        for path in paths
    }


def measure(out: Path, device: torch.device) -> dict[str, Scores]:
    """Score the shipped base model in English and the shipped adapter in German."""
    english, german = make_evaluation_set("en"), make_evaluation_set("de")
    return {
        "transformers": score(english, ask_transformers(out / "model", None, english, str(device))),
        "transformers, German adapter": score(german, ask_transformers(out / "model", out / "adapter", german, str(device))),
    }


def main() -> None:
    """Train both, measure both, write down how."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seed", type=int, default=2026)
    parser.add_argument("--steps", type=int, default=1800, help="of the base model; the adapter takes a third")
    parser.add_argument("--minutes", type=float, default=60.0, help="limit for the base model; a third for the adapter")
    parser.add_argument("--date", default=time.strftime("%Y-%m-%d"))
    arguments = parser.parse_args()
    out, device = arguments.out, torch.device(arguments.device)
    torch.manual_seed(arguments.seed)
    base = train_base(out, Budget(arguments.steps, arguments.minutes, 3e-3), arguments.seed, device)
    adapter = train_adapter(out, Budget(arguments.steps // 3, arguments.minutes / 3, 2e-3), arguments.seed, device)
    provenance = {
        "date": arguments.date,
        "script": "demo/train.py",
        "seed": arguments.seed,
        "device": torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads",
        "python": platform.python_version(),
        "libraries": {name: version(name) for name in ("torch", "transformers", "tokenizers", "peft", "safetensors", "gguf")},
        "catalogue_sha256": hashlib.sha256(CATALOGUE.read_bytes()).hexdigest(),
        "base": base,
        "adapter": adapter,
        "files": describe_files(out),
        "accuracy": measure(out, device),
    }
    (out / "provenance.json").write_text(json.dumps(provenance, indent=2, ensure_ascii=False) + "\n", "utf-8")


if __name__ == "__main__":
    main()
