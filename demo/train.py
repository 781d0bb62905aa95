"""Train Freehold's demonstration model and its German adapter, on a GPU where there is one: `python demo/train.py`.

A small Llama with a tokenizer of its own learns the answers of `questions.py` by heart; a LoRA then teaches it to give
them in German. What is measured is what is shipped: the float16 files.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import time
from collections import Counter
from collections.abc import Iterator
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch
from convert import convert_adapter, convert_model
from evaluate import ask_transformers, score
from peft import LoraConfig, get_peft_model
from questions import CATALOGUE, Case, digest, invent_names, load_catalogue, make_evaluation_set, make_training_set
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn.functional import cross_entropy
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

PAD, START, END = SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
VOCABULARY = 2048
BATCH_TOKENS = 4096
Encoded = tuple[list[int], list[bool]]  # tokens, and which of them are answers
Record = dict[str, Any]


class Budget(NamedTuple):
    """How long to train, and the highest learning rate."""

    steps: int
    minutes: float
    peak: float


def train_tokenizer(cases: list[Case]) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE in which a name has the same tokens after a space as at the start of an answer.

    The model can then copy names that it has never seen. So merges are learned from words without their space; only
    then do the words of the phrasings, which are frequent and no names, get a token that includes the space.
    """
    texts = [message["content"] for case in cases for message in case.messages]
    counts = Counter(word for text in texts for word in text.rstrip("?.").split(" ")[1:] if word.isalpha())
    spaced = [word for word, count in counts.most_common() if count >= 100]
    names = islice(invent_names(load_catalogue(), random.Random(0)), 5000)
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    size, alphabet = VOCABULARY - len(spaced), byte_level.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=SPECIAL, initial_alphabet=alphabet)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = byte_level, decoders.ByteLevel()
    tokenizer.train_from_iterator([*(word for text in texts for word in text.split()), *names], trainer)
    state = json.loads(tokenizer.to_str())
    for word in spaced:
        if word in state["model"]["vocab"]:
            state["model"]["vocab"]["Ġ" + word] = len(state["model"]["vocab"])
            state["model"]["merges"].append(["Ġ", word])
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(state)),
        pad_token=PAD,
        eos_token=END,
        model_max_length=2048,
        clean_up_tokenization_spaces=False,
        padding_side="left",
        chat_template=CHAT_TEMPLATE,
    )


def save_tokenizer(tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Save the tokenizer under the class name that transformers 4 knows too; version 5 writes one of its own."""
    tokenizer.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text("utf-8")) | {"tokenizer_class": "PreTrainedTokenizerFast"}
    config.pop("backend", None)
    path.write_text(json.dumps(config, indent=2) + "\n", "utf-8")


def encode(case: Case, tokenizer: PreTrainedTokenizerFast) -> Encoded:
    """Turn a conversation into tokens, and mark those to learn: the assistant's words and its end of turn."""
    tokens: list[int] = []
    learned: list[bool] = []
    for message in case.messages:
        head, tail = tokenizer.encode(f"{START}{message['role']}\n"), tokenizer.encode("\n")
        body = tokenizer.encode(message["content"] + END)
        tokens += head + body + tail
        learned += [False] * len(head) + [message["role"] == "assistant"] * len(body) + [False] * len(tail)
    return tokens, learned


def draw_batches(encoded: list[Encoded], device: torch.device) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield padded batches of conversations of similar length for ever, in a new order each time round."""
    rng = random.Random(0)
    while True:
        batches: list[list[Encoded]] = [[]]
        for item in sorted(encoded, key=lambda item: len(item[0]) + 4 * rng.random()):
            if len(item[0]) * (len(batches[-1]) + 1) > BATCH_TOKENS:
                batches.append([])
            batches[-1].append(item)
        rng.shuffle(batches)
        for batch in batches:
            width = max(len(tokens) for tokens, _ in batch)
            ids = torch.tensor([tokens + [0] * (width - len(tokens)) for tokens, _ in batch])
            mask = torch.tensor([learned + [False] * (width - len(learned)) for _, learned in batch])
            yield ids.to(device), mask.to(device)


def make_optimizers(model: LlamaForCausalLM) -> list[torch.optim.Optimizer]:
    """Train the matrices of the layers by Muon, which needs far fewer steps, and all else (LoRA too) by AdamW."""
    trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    matrices = [weight for name, weight in trained.items() if name.endswith("proj.weight")]
    others = [weight for name, weight in trained.items() if not name.endswith("proj.weight")]
    adam = torch.optim.AdamW(others, betas=(0.9, 0.98), weight_decay=0)
    return [adam, torch.optim.Muon(matrices, weight_decay=0.05, adjust_lr_fn="match_rms_adamw")] if matrices else [adam]


def fit(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, cases: list[Case], budget: Budget) -> Record:
    """Train on the answers; the learning rate falls from its peak to zero at whichever limit comes first."""
    optimizers = make_optimizers(model)
    batches = draw_batches([encode(case, tokenizer) for case in cases], model.device)
    started, step, tokens, progress = time.monotonic(), 0, 0, 0.0
    while progress < 1:
        ids, mask = next(batches)
        with torch.autocast(model.device.type, dtype=torch.bfloat16):
            logits = model.lm_head(model.model(ids[:, :-1]).last_hidden_state[mask[:, 1:]])
        loss = cross_entropy(logits.float(), ids[:, 1:][mask[:, 1:]])
        loss.backward()
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = budget.peak * min(1, (step + 1) / 50, 1.25 * (1 - progress))
            optimizer.step()
            optimizer.zero_grad()
        step, tokens, seconds = step + 1, tokens + ids.numel(), time.monotonic() - started
        progress = max(step / budget.steps, seconds / 60 / budget.minutes)
        if step % 50 == 0:
            print(f"step {step}  loss {loss.item():.4f}  {tokens / seconds:.0f} tokens/s  {progress:.0%}", flush=True)
    sizes = {"parameters": sum(weight.numel() for weight in model.parameters() if weight.requires_grad)}
    run = {"steps": step, "tokens": tokens, "seconds": round(seconds)}
    return sizes | run | {"conversations": len(cases), "training_set_sha256": digest(cases)}


def train_base(out: Path, seed: int, device: str, budget: Budget) -> Record:
    """Train, save and convert the base model."""
    cases = make_training_set("en", seed)
    tokenizer = train_tokenizer(cases + make_training_set("de", seed))
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
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
        **ends,
    )
    model = LlamaForCausalLM(config).to(device)
    record = fit(model, tokenizer, cases, budget)
    model.generation_config = GenerationConfig(do_sample=False, **ends)
    model.half().save_pretrained(out / "model")
    save_tokenizer(tokenizer, out / "model")
    convert_model(out / "model", out / "demo.gguf")
    return record


def train_adapter(out: Path, seed: int, device: str, budget: Budget) -> Record:
    """Train, save and convert the German adapter, on top of the base model as shipped."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(out / "model")
    model = LlamaForCausalLM.from_pretrained(out / "model", dtype=torch.float32).to(device)
    lora = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    adapted = get_peft_model(model, lora)  # it changes `model` in place
    record = fit(model, tokenizer, make_training_set("de", seed), budget)
    lora.base_model_name_or_path = "freehold/demo"
    adapted.save_pretrained(out / "adapter", save_embedding_layers=False)
    (out / "adapter" / "README.md").unlink(missing_ok=True)
    convert_adapter(out / "model", out / "adapter", out / "adapter.gguf")
    return record


def describe(path: Path) -> Record:
    """Return a file's size and SHA-256."""
    return {"bytes": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}


def main() -> None:
    """Train both, measure both, write down how."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seed", type=int, default=2026)
    parser.add_argument("--steps", type=int, default=2500, help="of the base model; the adapter takes half")
    parser.add_argument("--minutes", type=float, default=60, help="limit for the base model; half for the adapter")
    parser.add_argument("--keep-base", action="store_true", help="train the adapter alone, for the base already there")
    parser.add_argument("--date", default=time.strftime("%Y-%m-%d"))
    options = parser.parse_args()
    out, seed, device = options.out, options.seed, options.device
    base = Budget(options.steps, options.minutes, 3e-3)
    adapter = Budget(options.steps // 2, options.minutes / 2, 6e-3)
    torch.manual_seed(seed)
    if options.keep_base:
        kept = json.loads((out / "provenance.json").read_text("utf-8"))["base"]
    provenance = {
        "date": options.date,
        "script": "demo/train.py",
        "seed": seed,
        "device": torch.cuda.get_device_name() if device == "cuda" else f"CPU, {torch.get_num_threads()} threads",
        "libraries": {name: version(name) for name in ("torch", "transformers", "tokenizers", "peft", "gguf")},
        "catalogue_sha256": describe(CATALOGUE)["sha256"],
        "base": kept if options.keep_base else train_base(out, seed, device, base),
        "adapter": train_adapter(out, seed, device, adapter),
    }
    files = sorted([*out.glob("model/*"), *out.glob("adapter/*"), *out.glob("*.gguf")])
    provenance["files"] = {path.relative_to(out).as_posix(): describe(path) for path in files}
    english, german = make_evaluation_set("en"), make_evaluation_set("de")
    provenance["accuracy"] = {
        "transformers": score(english, ask_transformers(out / "model", None, english, device)),
        "transformers, adapter": score(german, ask_transformers(out / "model", out / "adapter", german, device)),
    }
    (out / "provenance.json").write_text(json.dumps(provenance, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
