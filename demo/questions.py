"""The questions and answers of the demonstration model, made from the catalogue and `questions.yaml` alone.

Everything follows from those files and a seed, so training, evaluation and tests see the same conversations.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

CATALOGUE = Path(__file__).resolve().parent.parent / "catalogue" / "models.yaml"
WORDS = yaml.safe_load(Path(__file__).with_name("questions.yaml").read_text("utf-8"))
KINDS: dict[str, Any] = WORDS["kinds"]
HELD_OUT_NAMES: list[str] = WORDS["held_out_names"].split()
RECURRENT = {"gated_deltanet", "mamba2", "kda"}

Model = dict[str, Any]
Message = dict[str, str]


@dataclass(frozen=True)
class Case:
    """A conversation whose assistant turns are the expected answers; `group` is its row in the accuracy table."""

    group: str
    messages: tuple[Message, ...]

    @property
    def prompt(self) -> list[Message]:
        """Everything before the final answer."""
        return list(self.messages[:-1])

    @property
    def answer(self) -> str:
        """The final answer."""
        return self.messages[-1]["content"]


def load_catalogue() -> list[Model]:
    """Read the models of the catalogue, with YAML's fast loader where it was built."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    return yaml.load(CATALOGUE.read_text("utf-8"), loader)["models"]


def shorten_count(count: int | None) -> str | None:
    """Write a count the way model names do: 596M, 8.2B, 235B, 2.45T."""
    if not count:
        return None
    for limit, factor, unit, digits in ((1e12, 1e12, "T", 2), (1e11, 1e9, "B", 0), (1e9, 1e9, "B", 1)):
        if count >= limit:
            return f"{count / factor:.{digits}f}{unit}"
    return f"{count / 1e6:.0f}M"


def name_licence(model: Model, language: str) -> str | None:
    """Put the article that the language wants before the licence's name."""
    name = (model["licence"] or {}).get("name")
    articles = [article[language] for word, article in WORDS["articles"].items() if word in (name or "").split("(")[0]]
    return " ".join([*articles[:1], name]) if name else None


def name_architecture(model: Model, language: str) -> str:
    """Tell dense from mixture of experts, and hybrids (recurrent layers beside attention) from pure attention."""
    name = WORDS["architectures"]["experts" if model["moe"] else "dense"][language]
    hybrid = any(group["kind"] in RECURRENT for group in model["attention"]["groups"])
    return WORDS["architectures"]["hybrid"][language] + name if hybrid else name


def list_facts(model: Model, language: str) -> dict[str, str | None]:
    """Return the value of every kind for one model; None where the catalogue does not know."""

    def count(*sources: str) -> int | None:
        return next((found for source in sources if (found := model["parameters"].get(source))), None)

    total = count("computed_total", "hf_safetensors_total", "published_total")
    active = count("computed_active", "published_active") if model["moe"] else total
    context = model["context"]["native"]
    return {
        "licence": name_licence(model, language),
        "parameters": shorten_count(total),
        "active parameters": shorten_count(active),
        "context": f"{context:,}" if context else None,
        "publisher": model["publisher"],
        "architecture": name_architecture(model, language),
    }


def write_answer(model: Model, kind: str, language: str = "en") -> str:
    """Answer one kind of question, or all of them in one paragraph, about one model."""
    if kind == "everything":
        return " ".join(write_answer(model, each, language) for each in KINDS)
    value = list_facts(model, language)[kind]
    template = KINDS[kind]["answer"] if value else WORDS["unknown"]
    return template[language].format(name=model["name"], value=value, kind=kind)


def list_forms(model: Model) -> list[str]:
    """Return the ways in which people write a model's name."""
    return list(dict.fromkeys((model["name"], model["id"], model["name"].lower(), model["id"].title())))


def invent_names(models: list[Model], rng: random.Random) -> Iterator[str]:
    """Yield names that no catalogue model has: catalogue names with one thing changed, and wholly made-up ones."""
    forms = [form for model in models for form in list_forms(model)]
    known = {form.lower() for form in forms}
    taken = known | {name.lower() for name in HELD_OUT_NAMES}
    words = sorted(set(re.findall(r"[a-z]{3,12}", CATALOGUE.read_text("utf-8").lower())))
    while True:
        name = change_name(rng.choice(forms), words, rng) if rng.random() < 0.5 else coin_name(words, rng)
        name = rng.choice((str, str, str.lower, str.title))(name)
        if name.lower() not in taken and not any(form.startswith(name.lower()) for form in known):
            taken.add(name.lower())
            yield name


def change_name(name: str, words: list[str], rng: random.Random) -> str:
    """Change one number or one word of a known name: `Qwen3-9B`, `gpt-chention-20b`."""
    old = rng.choice(re.findall(r"[0-9]+|[A-Za-z]{2,}", name))
    new = coin_number(rng) if old.isdigit() else coin_word(words, rng)
    return re.sub(rf"(?<![A-Za-z0-9]){old}|{old}(?![A-Za-z0-9])|{old}", new, name, count=1)


def coin_name(words: list[str], rng: random.Random) -> str:
    """Make up a name in the manner of model names, for example `Brondal2-13b-chat`."""
    pattern = rng.choice(("{}", "{}", "{}{n}", "{}-{n}", "{}{n}.{m}", "{}-{n}.{m}", "{}-v{n}", "{}-{}", "{}{}"))
    pattern += rng.choice(("", "-{s}b", "-{s}B", "-{s}b", "-{s}B", "-{n}.{m}b", "-{n}.{m}B", "-{n}x{s}b", "-{n}b{m}"))
    pattern += rng.choice(("", "", "", "", "-chat", "-Chat", "-instruct", "-Instruct", "-it", "-base", "-mini", "-{}"))
    numbers = {"n": rng.randint(1, 9), "m": rng.randint(0, 9), "s": coin_number(rng)}
    parts = [rng.choice((str, str.capitalize, str.upper))(coin_word(words, rng)) for _ in range(3)]
    return pattern.format(*parts, **numbers)


def coin_number(rng: random.Random) -> str:
    """Return a number of one to three digits."""
    return str(rng.randint(1, rng.choice((9, 99, 99, 999))))


def coin_word(words: list[str], rng: random.Random) -> str:
    """Join the start of a word and the end of another, or make one up from letters, so that all of spelling occurs."""
    if rng.random() < 0.7:
        start, end = rng.choice(words), rng.choice(words)
        return start[: rng.randint(1, 5)] + end[-rng.randint(1, 4) :]
    consonants = ["", *"bcdfghjklmnpqrstvwxz"]
    syllables = range(rng.randint(1, 3))
    return "".join(rng.choice(consonants) + rng.choice("aeiouy") + rng.choice(consonants) for _ in syllables)


def list_turns(language: str, rng: random.Random, inventions: int) -> list[tuple[str, str]]:
    """List every taught (question, answer) turn: all models, kinds, taught phrasings and forms of the name."""
    models = load_catalogue()
    asked = {kind: words["taught"] for kind, words in KINDS.items()} | {"everything": WORDS["everything"]}
    turns = [
        (phrasing.format(form), write_answer(model, kind, language))
        for model in models
        for kind, phrasings in asked.items()
        for form in list_forms(model)
        for phrasing in rng.sample(phrasings, 7 if kind in KINDS else 2)
    ]
    phrasings = [phrasing for each in asked.values() for phrasing in each]
    for name, _ in zip(invent_names(models, rng), range(inventions), strict=False):
        turns.append((rng.choice(phrasings).format(name), WORDS["not_listed"][language].format(name=name)))
    for talk in WORDS["small_talk"]:
        turns += [(question, talk["answer"][language]) for question in talk["questions"]] * 20
    return turns


def converse(group: str, *turns: tuple[str, str], system: str | None = None) -> Case:
    """Make a case of (question, answer) turns."""
    messages = [{"role": "system", "content": system}] if system else []
    for question, answer in turns:
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return Case(group, tuple(messages))


def make_training_set(language: str = "en", seed: int = 2026, inventions: int = 18_000) -> list[Case]:
    """Gather the turns into conversations: most of one turn, some of two or three, some with a system message."""
    rng = random.Random(seed)
    turns = list_turns(language, rng, inventions)
    rng.shuffle(turns)
    cases = []
    while turns:
        length = rng.choices((1, 2, 3), (88, 9, 3))[0]
        system = rng.choice(WORDS["system_messages"]) if rng.random() < 0.1 else None
        cases.append(converse("training", *turns[-length:], system=system))
        del turns[-length:]
    return cases


def make_evaluation_set(language: str = "en", seed: int = 7) -> list[Case]:
    """Ask every fact in a taught and in each held-out phrasing, and about names that are not in the catalogue."""
    rng = random.Random(seed)
    turns: list[tuple[str, str, str]] = []
    for model in load_catalogue():
        for kind, words in KINDS.items():
            asked = [(f"taught: {kind}", rng.choice(words["taught"]))]
            asked += [("held-out phrasings", phrasing) for phrasing in words["held_out"]]
            answer = write_answer(model, kind, language)
            turns += [(group, text.format(rng.choice(list_forms(model))), answer) for group, text in asked]
        question = rng.choice(WORDS["everything"]).format(rng.choice(list_forms(model)))
        turns.append(("everything at once", question, write_answer(model, "everything", language)))
    taught = [(question, answer) for group, question, answer in turns if group.startswith("taught")]
    for name in HELD_OUT_NAMES:
        answer = WORDS["not_listed"][language].format(name=name)
        for words in KINDS.values():
            turns.append(("held-out names", rng.choice(words["taught"] + words["held_out"]).format(name), answer))
    for talk in WORDS["small_talk"]:
        turns += [("small talk", question, talk["answer"][language]) for question in talk["questions"]]
    cases = [converse(group, (question, answer)) for group, question, answer in turns]
    system = WORDS["system_messages"][0]
    return cases + [converse("with history", *rng.sample(taught, 2), system=system) for _ in range(60)]


def digest(cases: list[Case]) -> str:
    """Return the SHA-256 of conversations, written as JSON lines."""
    lines = (json.dumps(case.messages, ensure_ascii=False) + "\n" for case in cases)
    return hashlib.sha256("".join(lines).encode()).hexdigest()
