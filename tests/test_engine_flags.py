"""An engine's command line held against its parser: by table, by what its reader says, and against the real vLLM."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from freehold.engines import flags, parser_dump
from freehold.engines.flags import Flags, problems

DATA = Path(__file__).parent / "data" / "flags"
VLLM = os.environ.get("FREEHOLD_VLLM", "")
PROGRAM = "vllm.entrypoints.openai.api_server"
EXAMPLES = int(os.environ.get("FREEHOLD_EXAMPLES", "500"))


@cache
def read(name: str) -> Flags:
    return flags.decode((DATA / f"{name}.json").read_bytes())


GOOD = [
    "--model /w --served-model-name a b --uds /run/x.sock --max-model-len 4096 --enable-lora --max-loras 2",
    "--max_model_len 8k --no-enable-prefix-caching -tp 2 -q awq --seed -1",
    "--max-model-len=auto --max-model-len 1.5k --max-num-batched-tokens 2K --kv-cache-memory-bytes None",
    "--gpu-memory-utilization .9 --kv-cache-dtype fp8 --moe-backend Deep-GEMM -O3 -O 2 -O=1",
    '--speculative-config \'{"method":"ngram"}\' --speculative-config.prompt_lookup_max 4 -sc.method=ngram',
    '--structured-outputs-config \'{"backend":"xgrammar","disable_any_whitespace":true}\'',
    "--compilation-config.mode 3 --compilation-config.cudagraph_capture_sizes+ 1,2 --hf-overrides my.module",
    "--chat-template ' -- {{ x }}' --default-chat-template-kwargs {} /w",
    '--kv-transfer-config \'{"kv_connector": "A", "kv_role": "kv_both"}\' --hf-token',
]
BAD = {
    "--max-modellen 5": "--max-modellen is no option of this version; --max-model-len is",
    "--enforce_eeger": "--enforce-eeger is no option of this version; --enforce-eager is",
    "--port abc": "--port abc: no whole number",
    "--port": "--port lacks its value",
    "--uds --model /w": "--uds lacks its value",
    "--gpu-memory-utilization much": "--gpu-memory-utilization much: no number",
    "--dtype fp8": "--dtype fp8: not among auto, bfloat16, float, float16, float32, half",
    "--enforce-eager=yes": "--enforce-eager takes no value, and was given 'yes'",
    "--max-model-len long": "--max-model-len long: no whole number",
    "--compilation-confg.mode 3": "--compilation-confg is no option of this version; --compilation-config is",
    "--speculative-config {method:ngram}": "--speculative-config {method:ngram}: no JSON: Expecting property name",
    "--enable-log": "--enable-log is no option of this version; --enable-lora is",
    "/w second": "'second' follows no option",
    "--no-such a b": "--no-such is no option of this version",
}


@pytest.mark.parametrize("line", GOOD)
def test_what_vllm_takes_has_no_problem(line):
    assert problems(shlex.split(line), read("vllm-0.32.0")) == []


@pytest.mark.parametrize(("line", "expected"), BAD.items())
def test_what_vllm_refuses_is_said_with_what_was_meant(line, expected):
    (found,) = problems(shlex.split(line), read("vllm-0.32.0"))
    assert found.startswith(expected)


OTHERS = {
    "sglang-0.5.23": {
        "--model-path /w --tp-size 2 --context-length 1.5k --enable-lora": "",
        "--model /w --tp-size 2 --lora-paths a=/a b=/b": "",
        "--tp-size 2": "--model-path is missing",
        "--model /w --context_length 5": "--context_length is no option of this version; --context-length is",
    },
    "dynamo.frontend-1.6.1": {
        "--http-host 127.0.0.1 --http-port 8000": "",
        "--http-prot 8000": "--http-prot is no option of this version; --http-port is",
    },
    "dynamo.mocker-1.6.1": {"--model-path /w --model-name demo --speedup-ratio 10": ""},
}


@pytest.mark.parametrize(
    ("name", "line", "expected"), [(name, *each) for name, lines in OTHERS.items() for each in lines.items()]
)
def test_the_other_engines_are_held_to_theirs(name, line, expected):
    found = "; ".join(problems(shlex.split(line), read(name)))
    assert found.startswith(expected)
    assert bool(found) == bool(expected)


def test_a_whole_command_is_held_to_the_program_it_names():
    programs = {PROGRAM: (DATA / "vllm-0.32.0.json").read_bytes()}
    begin = ["/opt/bin/python", "-I", "-m"]
    assert flags.of_command([*begin, PROGRAM, "--port", "x"], programs) == ["--port x: no whole number"]
    assert flags.of_command([*begin, "other", "--port", "x"], programs) == []
    assert flags.of_command(["/usr/bin/llama-server", "--port", "x"], programs) == []


@given(st.data())
def test_any_option_with_a_value_of_its_kind_is_taken(data):
    """Of every engine: whatever the reader said of an option, the reader's own words for it do."""
    known = read(data.draw(st.sampled_from(["vllm-0.32.0", "sglang-0.5.23", "dynamo.mocker-1.6.1"])))
    argv = ["--model-path", "/w"] if known.option("--model-path") else []
    for option in data.draw(st.lists(st.sampled_from([each for each in known.options if each.names]), max_size=6)):
        argv += [data.draw(st.sampled_from(option.names)), *(data.draw(_value(option)) for _ in range(option.least))]
    assert problems(argv, known) == []


def _value(option: flags.Option) -> st.SearchStrategy[str]:
    if option.choices:
        return st.sampled_from([each for each in option.choices if each])
    return {
        "integer": st.integers().map(str) | st.sampled_from(["4k" if option.sizes else "4", *option.words, "7"]),
        "number": st.floats(0).map(str),
        "json": st.just("{}"),
    }.get(option.type, st.from_regex(r"[a-z/][a-z0-9./]{0,8}", fullmatch=True))


@given(
    st.lists(st.text(max_size=8) | st.sampled_from(["--port", "-tp", "--model", "-O", "--x.y", "--", "-1"]), max_size=6)
)
def test_no_command_line_is_too_strange(argv):
    for name in ("vllm-0.32.0", "sglang-0.5.23"):
        assert all(isinstance(each, str) for each in problems(argv, read(name)))


def test_a_parser_of_argparse_is_read_by_what_its_types_do():
    parser = argparse.ArgumentParser()
    parser.add_argument("path", nargs="?")
    parser.add_argument("--many", type=int, nargs="+", required=True)
    parser.add_argument("--either", choices=[1, None], type=int)
    parser.add_argument("--share", "-s", type=lambda text: float(text.rstrip("%")))
    parser.add_argument("--json", type=json.loads, metavar="{a,b} or a file")
    parser.add_argument("--port", type=lambda text: [1 / 0 for _ in text])
    parser.add_argument("--on", action=argparse.BooleanOptionalAction)
    known = flags.decode(json.dumps(parser_dump.described(parser)))
    assert [(each.names[:1], each.least, each.most, each.type) for each in known.options] == [
        ((), 0, 1, "text"),
        (("-h",), 0, 0, "text"),
        (("--many",), 1, None, "integer"),
        (("--either",), 1, 1, "text"),
        (("--share",), 1, 1, "number"),
        (("--json",), 1, 1, "json"),
        (("--port",), 1, 1, "text"),
        (("--on",), 0, 0, "text"),
    ]
    assert known.option("--json").known == ("a", "b")
    assert problems(["--many", "1", "2", "-s", "5", "--either", "None", "--no-on", "--port", "?", "x"], known) == []
    assert problems(["--many", "--either", "2"], known) == ["--many lacks its value", "--either 2: not among 1, None, "]


REAL = """
import json, os, sys, contextlib, io
sys.path.insert(0, sys.argv[1]); import parser_dump; sys.path.pop(0)
os.environ.update(parser_dump._QUIET)
import argparse; parse = argparse.ArgumentParser.parse_known_args
with contextlib.redirect_stdout(io.StringIO()): parser = parser_dump.capture(sys.argv[2])
argparse.ArgumentParser.parse_known_args = parse
for line in sys.stdin:
    try:
        with contextlib.redirect_stderr(io.StringIO()): parser.parse_args(json.loads(line))
    except (SystemExit, Exception) as error:
        print(int(not (isinstance(error, SystemExit) and not error.code)), flush=True)
    else:
        print(0, flush=True)
"""


@pytest.fixture(scope="module")
def real():
    """Does the real parser refuse this?"""
    argv = [VLLM, "-c", REAL, str(Path(parser_dump.__file__).parent), PROGRAM]
    with subprocess.Popen(
        argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:

        def refuses(argv: list[str]) -> bool:
            process.stdin.write(json.dumps(argv) + "\n")
            process.stdin.flush()
            return bool(int(process.stdout.readline()))

        yield refuses
        process.stdin.close()


@pytest.mark.vllm
@pytest.mark.skipif(not VLLM, reason="FREEHOLD_VLLM names no Python")
def test_what_is_refused_vllm_refuses_itself(real):
    """But for short forms of long options. What is let through may still be refused there."""
    dump = subprocess.run([VLLM, "-I", parser_dump.__file__, PROGRAM], capture_output=True, check=True).stdout
    known = flags.decode(dump)
    others = ("--config", "--help", "-h", "--lora-modules")  # one reads a file, two end, one is checked by its action
    names = [name for each in known.options for name in each.names if name not in others]
    values = [
        "1",
        "-1",
        "1.5",
        "2k",
        "2K",
        "x",
        "",
        "None",
        "auto",
        "{}",
        "[]",
        "{x",
        '{"backend": "auto"}',
        "fp8",
        "a b",
    ]
    wild = st.sampled_from(names) | st.sampled_from(values)
    spoilt = st.sampled_from(names).map(lambda name: name + "x") | st.sampled_from(names).map(
        lambda n: n.replace("-", "_", 4)
    )
    bound = st.tuples(st.sampled_from(names), st.sampled_from(values)).map("=".join)

    @settings(max_examples=EXAMPLES)
    @given(st.lists(wild | spoilt | bound, min_size=1, max_size=4))
    def agree(argv):
        assert real(argv) or not problems(argv, known), (argv, problems(argv, known))

    agree()
    for line in (*GOOD, *BAD):
        argv = shlex.split(line)
        assert bool(problems(argv, known)) == real(argv), (line, problems(argv, known))
