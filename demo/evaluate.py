"""Measure how often the demonstration model answers exactly right, greedily.

Over HTTP: `python demo/evaluate.py --url http://127.0.0.1:8000/v1 --name demo`, with `--language de` for the adapter.
With transformers: `python demo/evaluate.py --model demo/model [--adapter demo/adapter --language de]`.
"""

from __future__ import annotations

import argparse
import json
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from questions import WORDS, Case, make_evaluation_set

Scores = dict[str, dict[str, int]]
LONGEST_ANSWER = 320  # tokens


def score(cases: list[Case], answers: list[str]) -> Scores:
    """Count the right answers of each group, and how often a known model was said not to be in the catalogue."""
    denials = tuple(text.removeprefix("{name}") for text in WORDS["not_listed"].values())
    scores: Scores = {}
    denied = {"count": 0, "asked": 0}
    for case, answer in zip(cases, answers, strict=True):
        row = scores.setdefault(case.group, {"count": 0, "asked": 0})
        row["asked"] += 1
        row["count"] += answer == case.answer
        if not case.answer.endswith(denials):
            denied["asked"] += 1
            denied["count"] += answer.endswith(denials)
    return scores | {"wrongly denied": denied}


def ask_endpoint(url: str, name: str, cases: list[Case], key: str = "none", threads: int = 8) -> list[str]:
    """Ask an OpenAI-compatible endpoint, several questions at a time."""

    def ask(case: Case) -> str:
        body = {"model": name, "messages": case.prompt, "temperature": 0, "max_tokens": LONGEST_ANSWER}
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {key}"}
        request = urllib.request.Request(f"{url}/chat/completions", json.dumps(body).encode(), headers)
        with urllib.request.urlopen(request, timeout=120) as response:
            return json.load(response)["choices"][0]["message"]["content"]

    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(ask, cases))


def ask_transformers(model: Path, adapter: Path | None, cases: list[Case], device: str = "cpu") -> list[str]:
    """Ask the model in a folder, in float32, in batches of similar length."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    network = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).to(device)
    if adapter:
        from peft import PeftModel

        network = PeftModel.from_pretrained(network, adapter).merge_and_unload()
    prompts = [tokenizer.apply_chat_template(case.prompt, add_generation_prompt=True, tokenize=False) for case in cases]
    order = sorted(range(len(cases)), key=lambda i: (len(cases[i].answer) // 200, len(prompts[i])))
    answers = [""] * len(cases)
    for start in range(0, len(order), 128):
        batch = order[start : start + 128]
        inputs = tokenizer([prompts[i] for i in batch], return_tensors="pt", padding=True).to(device)
        output = network.generate(**inputs, max_new_tokens=LONGEST_ANSWER)[:, inputs["input_ids"].shape[1] :]
        for i, text in zip(batch, tokenizer.batch_decode(output, skip_special_tokens=True), strict=True):
            answers[i] = text
    return answers


def main() -> None:
    """Ask everything, print the table, and write it into a provenance file where one is named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--url", help="base URL of an OpenAI-compatible endpoint")
    where.add_argument("--model", type=Path, help="model folder, for transformers")
    parser.add_argument("--adapter", type=Path, help="PEFT folder, with --model")
    parser.add_argument("--name", default="demo", help="model to ask for at the endpoint")
    parser.add_argument("--key", default="none", help="API key of the endpoint")
    parser.add_argument("--language", choices=("en", "de"), default="en")
    parser.add_argument("--wrong", type=int, default=0, help="how many wrong answers to print")
    parser.add_argument("--record", nargs=2, metavar=("FILE", "ROW"), help="provenance file, and a name for this run")
    options = parser.parse_args()
    cases = make_evaluation_set(options.language)
    if options.url:
        answers = ask_endpoint(options.url, options.name, cases, options.key)
    else:
        answers = ask_transformers(options.model, options.adapter, cases)
    wrong = [(case, answer) for case, answer in zip(cases, answers, strict=True) if case.answer != answer]
    for case, answer in wrong[: options.wrong]:
        print(f"{case.prompt[-1]['content']}\n  expected {case.answer}\n  got      {answer}")
    scores = score(cases, answers)
    for group, row in scores.items():
        print(f"{group:28} {row['count']:5} of {row['asked']:5}  {row['count'] / row['asked']:7.2%}")
    if options.record:
        path, name = Path(options.record[0]), options.record[1]
        provenance = json.loads(path.read_text("utf-8"))
        provenance["accuracy"][name] = scores
        path.write_text(json.dumps(provenance, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
