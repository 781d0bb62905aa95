"""The embedded llama.cpp as a process: run as a script in the sandbox, with llama-server's own flags.

Imports nothing of ours, so that the sandbox need not see Freehold. HTTP answers 503 while the model loads.
There is no handler for SIGTERM on purpose: the default ends the process at once, where llama.cpp's own farewell keeps
connections open for 30 s. Whoever stops it has drained it before.
"""

from __future__ import annotations

import argparse
import ctypes
import signal
import sys
from typing import Any

import xllamacpp

llama: Any = xllamacpp  # it has no stubs
TYPES = llama.common_speculative_type
SPECULATION = {
    "ngram-simple": TYPES.COMMON_SPECULATIVE_TYPE_NGRAM_SIMPLE,
    "draft-simple": TYPES.COMMON_SPECULATIVE_TYPE_DRAFT_SIMPLE,
    "draft-mtp": TYPES.COMMON_SPECULATIVE_TYPE_DRAFT_MTP,
}
POOLING = {"mean": llama.llama_pooling_type.LLAMA_POOLING_TYPE_MEAN}
LOADING_VERBOSITY = 4  # it says how large its buffers are
SET_VERBOSITY = "_Z30common_log_set_verbosity_tholdi"  # the library's own; Python has no door to it


def flags() -> argparse.ArgumentParser:
    """The subset of llama-server's flags that Freehold uses, spelled the same, so that either binary will do."""
    parser = argparse.ArgumentParser(prog="llamacpp_server", allow_abbrev=False)
    parser.add_argument("--model", required=True)
    parser.add_argument("--alias", required=True)
    parser.add_argument("--host", required=True, help="a Unix socket; the name ends in .sock")
    parser.add_argument("--ctx-size", type=int, required=True, help="tokens of all slots together")
    parser.add_argument("--parallel", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--threads-batch", type=int, required=True)
    parser.add_argument("--threads-http", type=int, default=-1)
    parser.add_argument("--cache-ram", type=int, default=8192, help="MiB of prompts kept beside the slots")
    parser.add_argument("--fit", choices=("on", "off"), default="on")
    parser.add_argument("--log-verbosity", type=int, default=3, help="once it is loaded: a start says more")
    parser.add_argument("--lora-scaled", action="append", default=[], metavar="PATH:SCALE", help="more than once")
    parser.add_argument("--spec-type", choices=tuple(SPECULATION))
    parser.add_argument("--spec-draft-n-max", type=int, default=3)
    parser.add_argument("--spec-draft-model")
    parser.add_argument("--embeddings", action="store_true", help="beside answers")
    parser.add_argument("--pooling", choices=tuple(POOLING), help="of a model that does not say it itself")
    parser.add_argument("--metrics", action="store_true")
    parser.add_argument("--slots", action="store_true")
    parser.add_argument("--jinja", action="store_true")
    parser.add_argument("--no-webui", action="store_true")
    return parser


def params(args: argparse.Namespace) -> Any:
    common = llama.CommonParams()
    common.model.path = args.model
    common.model_alias = {args.alias}
    common.hostnames = [args.host]
    common.n_ctx = args.ctx_size
    common.n_parallel = args.parallel
    common.cpuparams.n_threads = args.threads
    common.cpuparams_batch.n_threads = args.threads_batch
    common.n_threads_http = args.threads_http
    common.cache_ram_mib = args.cache_ram
    common.fit_params = args.fit == "on"
    common.verbosity = LOADING_VERBOSITY
    adapters = [each.rpartition(":") for each in args.lora_scaled]
    common.lora_adapters = [llama.CommonAdapterLoraInfo(path, float(scale)) for path, _, scale in adapters]
    if args.spec_type:
        common.speculative.types = [SPECULATION[args.spec_type]]
        common.speculative.draft.n_max = args.spec_draft_n_max
        if args.spec_draft_model:
            common.speculative.draft.mparams.path = args.spec_draft_model
    common.embedding = args.embeddings
    if args.pooling:
        common.pooling_type = POOLING[args.pooling]
    common.endpoint_metrics = args.metrics
    common.endpoint_slots = args.slots
    common.use_jinja = args.jinja
    common.ui = not args.no_webui
    return common


def main() -> int:
    args = flags().parse_args()
    if not args.host.endswith(".sock"):  # llama.cpp would take it for a host name and listen on TCP
        return _fail(f"--host {args.host}: the socket's name must end in .sock")
    try:
        server = llama.Server(params(args))  # blocks while it loads; must stay alive
    except RuntimeError as error:
        return _fail(f"{args.model} could not be loaded; llama.cpp says why above ({error})")
    ctypes.CDLL(llama.xllamacpp.__file__)[SET_VERBOSITY](args.log_verbosity)
    sys.stderr.write(f"llamacpp_server: listening on {server.listening_address}\n")
    while True:
        signal.pause()


def _fail(why: str) -> int:
    sys.stderr.write(f"llamacpp_server: {why}\n")
    return 1


if __name__ == "__main__":
    sys.exit(main())
