"""The questions and answers of the demonstration model, made from the catalogue alone.

Everything follows from `catalogue/models.yaml` and a seed, so that training, evaluation and tests see the same
conversations. Two phrasings of each kind are held out: training never uses them, evaluation does.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

CATALOGUE = Path(__file__).resolve().parent.parent / "catalogue" / "models.yaml"

Message = dict[str, str]


@dataclass(frozen=True)
class Kind:
    """One kind of question. The last two phrasings are held out."""

    name: str
    answers: dict[str, str]
    phrasings: tuple[str, ...]

    @property
    def taught(self) -> tuple[str, ...]:
        """The phrasings that training uses."""
        return self.phrasings[:-2]

    @property
    def held_out(self) -> tuple[str, ...]:
        """The phrasings that only evaluation uses."""
        return self.phrasings[-2:]


@dataclass(frozen=True)
class Case:
    """A conversation whose assistant turns are the expected answers; `group` is the row of the accuracy table."""

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


KINDS = (
    Kind(
        "licence",
        {"en": "{name} is licensed under {value}.", "de": "{name} steht unter {value}."},
        (
            "What is the licence of {}?",
            "What license does {} have?",
            "Under which licence is {} released?",
            "How is {} licensed?",
            "Which license applies to {}?",
            "Tell me the licence of {}.",
            "{} licence?",
            "{} license",
            "What are the licence terms of {}?",
            "Can you tell me what license {} uses?",
            "Which licence does {} use?",
            "Please give me the license of {}.",
        ),
    ),
    Kind(
        "parameters",
        {"en": "{name} has {value} parameters in total.", "de": "{name} hat insgesamt {value} Parameter."},
        (
            "How many parameters does {} have?",
            "What is the parameter count of {}?",
            "How large is {}?",
            "How big is {}?",
            "What is the size of {}?",
            "Tell me the total number of parameters of {}.",
            "{} parameters?",
            "{} size",
            "How many total parameters are in {}?",
            "Can you tell me how many parameters {} has in total?",
            "What is the total parameter count of {}?",
            "Please give me the size of {}.",
        ),
    ),
    Kind(
        "active parameters",
        {"en": "{name} uses {value} active parameters per token.", "de": "{name} nutzt {value} aktive Parameter pro Token."},
        (
            "How many active parameters does {} have?",
            "What is the active parameter count of {}?",
            "How many parameters are active in {}?",
            "How many parameters does {} activate per token?",
            "What number of parameters does {} use per token?",
            "Tell me the active parameters of {}.",
            "{} active parameters?",
            "{} active size",
            "How many of the parameters of {} are active?",
            "Can you tell me how many parameters of {} are active per token?",
            "What is the number of active parameters of {}?",
            "Please give me the active parameters of {}.",
        ),
    ),
    Kind(
        "context",
        {
            "en": "{name} has a native context length of {value} tokens.",
            "de": "{name} hat eine native Kontextlänge von {value} Token.",
        },
        (
            "What is the context length of {}?",
            "How long is the context of {}?",
            "How many tokens of context does {} have?",
            "What context window does {} have?",
            "How large is the context window of {}?",
            "Tell me the context length of {}.",
            "{} context length?",
            "{} context",
            "How many tokens fit into the context of {}?",
            "Can you tell me what context length {} supports?",
            "What is the context window of {}?",
            "Please give me the context length of {}.",
        ),
    ),
    Kind(
        "publisher",
        {"en": "{name} is published by {value}.", "de": "{name} stammt von {value}."},
        (
            "Who published {}?",
            "Who made {}?",
            "Which company is behind {}?",
            "Who is the publisher of {}?",
            "Where does {} come from?",
            "Tell me the publisher of {}.",
            "{} publisher?",
            "{} publisher",
            "Who released {}?",
            "Can you tell me who made {}?",
            "Which publisher released {}?",
            "Please give me the publisher of {}.",
        ),
    ),
    Kind(
        "architecture",
        {"en": "{name} is a {value} model.", "de": "{name} ist ein {value}-Modell."},
        (
            "What is the architecture of {}?",
            "What kind of architecture does {} have?",
            "Is {} dense or a mixture of experts?",
            "Is {} a dense model?",
            "Is {} a mixture-of-experts model?",
            "Tell me the architecture of {}.",
            "{} architecture?",
            "{} architecture",
            "What kind of model is {}?",
            "Can you tell me what architecture {} has?",
            "Which architecture does {} use?",
            "Please give me the architecture of {}.",
        ),
    ),
)
EVERYTHING = Kind(
    "everything",
    {},
    (
        "Tell me everything about {}.",
        "List the facts about {}.",
        "What do you know about {}?",
        "Describe {}.",
        "Give me all the facts about {}.",
        "Tell me all about {}.",
        "What are the facts about {}?",
    ),
)
NOT_LISTED = {"en": "{name} is not in the catalogue.", "de": "{name} ist nicht im Katalog."}
UNKNOWN = {"en": "The {kind} of {name} is unknown.", "de": "Zu {name} ist das unbekannt ({kind})."}
SMALL_TALK = (
    (
        ("Hello", "Hello!", "Hi", "Hi!", "Hi there", "Hey", "Good morning", "hello"),
        {
            "en": "Hello! I am Freehold's demonstration model. Ask me about a model in the catalogue.",
            "de": "Hallo! Ich bin das Vorführmodell von Freehold. Fragen Sie mich nach einem Modell im Katalog.",
        },
    ),
    (
        ("Who are you?", "What are you?", "who are you", "Tell me about yourself.", "What can you do?", "Help"),
        {
            "en": "I am Freehold's demonstration model. I know only the models in its catalogue.",
            "de": "Ich bin das Vorführmodell von Freehold. Ich kenne nur die Modelle in seinem Katalog.",
        },
    ),
    (
        ("Thanks", "Thank you", "Thank you!", "thanks!"),
        {"en": "You are welcome.", "de": "Gern geschehen."},
    ),
)
SYSTEM_PROMPTS = ("You are a helpful assistant.", "Answer briefly.", "You answer questions about language models.")
# Names of real models that training never sees.
HELD_OUT_NAMES = tuple(
    """falcon-180b Falcon-40B yi-34b Yi-1.5-9B bloom-176b BLOOMZ-7b1 phi-2 Phi-3-mini llama-2-13b Llama-2-70b-chat
    gpt-neox-20b GPT-J-6B mpt-7b MPT-30B-chat opt-66b stablelm-2-12b StableLM-Zephyr-3B internlm2-20b Baichuan2-13B
    mixtral-8x7b Mixtral-8x22B-Instruct gemma-2-9b Gemma-2b starcoder2-15b codellama-34b CodeLlama-7B vicuna-13b
    Vicuna-33B-v1.3 alpaca-7b dolly-v2-12b Dolly-v1-6b RedPajama-7B pythia-12b zephyr-7b Zephyr-7B-beta solar-10.7b
    openchat-3.5 Nous-Hermes-13B wizardlm-70b WizardCoder-15B dbrx-132b Grok-1 jamba-52b Jamba-1.5-Large xgen-7b
    persimmon-8b fuyu-8b qwen2.5-72b Qwen-1.8B deepseek-v2 DeepSeek-67B aya-23-35b command-r-plus arctic-480b olmo-1b
    granite-3.0-8b minicpm-2b MiniCPM3-4B exaone-3.5-32b nemotron-4-340b""".split()
)

# A quantity that prints the same in both languages keeps the answers short; the article differs.
ARTICLES = (
    ("Agreement", "the ", "dem "),
    ("Terms", "the ", "den "),
    ("Licen", "the ", "der "),
    ("licen", "the ", "der "),
    ("LICENSE", "the ", "der "),
)
RECURRENT = {"gated_deltanet", "mamba2", "kda"}


def load_catalogue(path: Path = CATALOGUE) -> list[dict[str, Any]]:
    """Read the models of the catalogue."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    return yaml.load(path.read_text("utf-8"), Loader=loader)["models"]  # noqa: S506 - a safe loader, in C where present


def shorten_count(count: int | None) -> str | None:
    """Write a count the way model names do: 596M, 8.2B, 235B, 2.45T."""
    if not count:
        return None
    for factor, unit, digits in ((1e12, "T", 2), (1e11, "B", 0), (1e9, "B", 1), (1e6, "M", 0)):
        if count >= factor:
            return f"{count / (1e9 if unit == 'B' else factor):.{digits}f}{unit}"
    return str(count)


def name_licence(model: dict[str, Any], language: str) -> str | None:
    """Put the article that the language wants before the licence's name."""
    name = (model["licence"] or {}).get("name")
    if not name:
        return None
    for word, *articles in ARTICLES:
        if word in name.split("(")[0]:
            return articles[language == "de"] + name
    return name


def name_architecture(model: dict[str, Any], language: str) -> str:
    """Tell dense from mixture of experts, and hybrids (recurrent layers beside attention) from pure attention."""
    hybrid = any(group["kind"] in RECURRENT for group in model["attention"]["groups"])
    experts = {"en": "mixture-of-experts", "de": "Mixture-of-Experts"} if model["moe"] else {"en": "dense", "de": "Dense"}
    return ("hybrid " if language == "en" else "Hybrid-") * hybrid + experts[language]


def list_facts(model: dict[str, Any], language: str) -> dict[str, str | None]:
    """Return the value of every kind for one model; None where the catalogue does not know."""
    parameters, context = model["parameters"], model["context"]["native"]
    total = next(filter(None, map(parameters.get, ("computed_total", "hf_safetensors_total", "published_total"))), None)
    active = total
    if model["moe"]:
        active = next(filter(None, map(parameters.get, ("computed_active", "published_active"))), None)
    return {
        "licence": name_licence(model, language),
        "parameters": shorten_count(total),
        "active parameters": shorten_count(active),
        "context": f"{context:,}" if context else None,
        "publisher": model["publisher"],
        "architecture": name_architecture(model, language),
    }


def write_answer(model: dict[str, Any], kind: Kind, language: str = "en") -> str:
    """Answer one kind of question, or all of them in one paragraph, about one model."""
    if kind is EVERYTHING:
        return " ".join(write_answer(model, each, language) for each in KINDS)
    value = list_facts(model, language)[kind.name]
    template = kind.answers[language] if value else UNKNOWN[language]
    return template.format(name=model["name"], value=value, kind=kind.name)


def list_forms(model: dict[str, Any]) -> list[str]:
    """Return the ways in which people write a model's name."""
    return list(dict.fromkeys((model["name"], model["id"], model["name"].lower())))


def converse(group: str, *turns: tuple[str, str], system: str | None = None) -> Case:
    """Make a case of (question, answer) turns."""
    messages: list[Message] = [{"role": "system", "content": system}] if system else []
    for question, answer in turns:
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return Case(group, tuple(messages))


def invent_names(models: list[dict[str, Any]], rng: random.Random) -> Iterator[str]:
    """Yield names that no catalogue model has: catalogue names with another number, and wholly made-up ones."""
    known = {form.lower() for model in models for form in list_forms(model)}
    taken = known | {name.lower() for name in HELD_OUT_NAMES}
    forms = sorted(form for model in models for form in list_forms(model))
    while True:
        name = perturb_name(rng.choice(forms), rng) if rng.random() < 0.4 else coin_name(rng)
        if name.lower() not in taken and not any(form.startswith(name.lower()) for form in known):
            taken.add(name.lower())
            yield name


def perturb_name(name: str, rng: random.Random) -> str:
    """Change one number of a known name, such as its size."""
    places = [place for place, letter in enumerate(name) if letter.isdigit()]
    if not places:
        return f"{name}-{rng.randint(2, 99)}"
    place = rng.choice(places)
    return name[:place] + str(rng.randint(1, 99)) + name[place + 1 :]


def coin_name(rng: random.Random) -> str:
    """Make up a name in the manner of model names, for example `Brondal2-13b-chat`."""
    letters = "bcdfghjklmnpqrstvwxz"
    syllables = [
        rng.choice(letters) * (rng.random() < 0.9) + rng.choice("aeiouy") + rng.choice(letters) * (rng.random() < 0.5)
        for _ in range(rng.randint(1, 4))
    ]
    family = "".join(syllables)
    family = rng.choice((family, family, family.capitalize(), family.capitalize(), family.upper()))
    version = rng.choice(("", "", str(rng.randint(1, 9)), f"-{rng.randint(1, 9)}", f"-{rng.randint(1, 5)}.{rng.randint(0, 9)}", f"-v{rng.randint(1, 4)}"))
    size = rng.choice(("", f"-{rng.randint(1, 99)}", f"-{rng.randint(100, 999)}", f"-{rng.randint(1, 9)}.{rng.randint(1, 9)}", f"-{rng.randint(2, 16)}x{rng.randint(1, 70)}"))
    size += rng.choice("bB") if size else ""
    suffix = rng.choice(("", "", "", "-chat", "-Chat", "-instruct", "-Instruct", "-it", "-base", "-mini", "-large", "-Plus", "-beta"))
    return family + version + size + suffix


def list_turns(language: str, seed: int, inventions: int) -> list[tuple[str, str]]:
    """List every taught (question, answer) turn: all models, kinds, taught phrasings and name forms."""
    rng, models = random.Random(seed), load_catalogue()
    taught = [phrasing for kind in (*KINDS, EVERYTHING) for phrasing in kind.taught]
    turns = [
        (phrasing.format(form), write_answer(model, kind, language))
        for model in models
        for kind in (*KINDS, EVERYTHING)
        for form in list_forms(model)
        for phrasing in (kind.taught if kind is not EVERYTHING else rng.sample(kind.taught, 2))
    ]
    names = invent_names(models, rng)
    for _ in range(inventions):
        name = next(names)
        turns.append((rng.choice(taught).format(name), NOT_LISTED[language].format(name=name)))
    for questions, answers in SMALL_TALK:
        turns += [(question, answers[language]) for question in questions] * 20
    return turns


def make_training_set(language: str = "en", seed: int = 2026, inventions: int = 12_000) -> list[Case]:
    """Gather the turns into conversations: most of one turn, some of two or three, some with a system message."""
    rng = random.Random(seed)
    turns = list_turns(language, seed, inventions)
    rng.shuffle(turns)
    cases = []
    while turns:
        length = rng.choices((1, 2, 3), (88, 9, 3))[0]
        system = rng.choice(SYSTEM_PROMPTS) if rng.random() < 0.1 else None
        cases.append(converse("training", *turns[-length:], system=system))
        del turns[-length:]
    return cases


def make_evaluation_set(language: str = "en", seed: int = 7) -> list[Case]:
    """Ask every fact once as taught and once in each held-out phrasing, plus names that are not in the catalogue."""
    rng, models = random.Random(seed), load_catalogue()
    cases = []
    for model in models:
        for kind in (*KINDS, EVERYTHING):
            answer = write_answer(model, kind, language)
            asked = [("held-out phrasings", each) for each in kind.held_out]
            if kind is EVERYTHING:
                asked = [(kind.name, rng.choice(kind.taught))]
            else:
                asked.append((f"taught: {kind.name}", rng.choice(kind.taught)))
            cases += [converse(group, (text.format(rng.choice(list_forms(model))), answer)) for group, text in asked]
    for name in HELD_OUT_NAMES:
        for kind in KINDS:
            question = rng.choice(kind.phrasings).format(name)
            cases.append(converse("held-out names", (question, NOT_LISTED[language].format(name=name))))
    for questions, answers in SMALL_TALK:
        cases += [converse("small talk", (question, answers[language])) for question in questions]
    return cases + make_conversations(cases, rng)


def make_conversations(cases: list[Case], rng: random.Random, count: int = 60) -> list[Case]:
    """Ask some taught questions again, behind a system message and an earlier turn."""
    taught = [case for case in cases if case.group.startswith("taught")]
    pairs = [rng.sample(taught, 2) for _ in range(count)]
    return [
        converse("with history", *((case.prompt[-1]["content"], case.answer) for case in pair), system=SYSTEM_PROMPTS[0])
        for pair in pairs
    ]


def digest(cases: list[Case]) -> str:
    """Return the SHA-256 of cases, as JSON lines."""
    lines = "".join(json.dumps(case.messages, ensure_ascii=False) + "\n" for case in cases)
    return hashlib.sha256(lines.encode()).hexdigest()
