"""What the planner takes for granted, measured on the card at hand: `python bench/gpu/measure.py [--json FILE]`.

Needs PyTorch, and a GPU for anything that matters; `--device cpu` runs the same steps on the processor, to see that
they run. A model of real size is made of random numbers, so nothing is downloaded: weights and KV cache as the planner
counts them, held against what PyTorch's allocator and the driver say, then the card's copy bandwidth and matrix rate
held against its data sheet in the catalogue.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import psutil
import torch

from freehold.catalogue import load, match
from freehold.catalogue.places import by_words
from freehold.plan.kv import kv_bytes_per_token
from freehold.plan.units import GIB

TOKENS = 32_768  # of KV cache
COPY_BYTES = 4 * GIB
SIDE = 8192  # of the matrices that are multiplied
TIMES = 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="qwen3-8b", help="of the catalogue: its dimensions are taken")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--scale", type=float, default=1.0, help="of all sizes, for a try on a small machine")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    device = torch.device(asked.device)
    found = {"device": name(device), "torch": torch.__version__, "model": asked.model, "scale": asked.scale}
    found |= memory(asked.model, device, asked.scale)
    found |= copies(device, asked.scale)
    found |= matrices(device, asked.scale)
    found |= against_the_catalogue(found)
    print(json.dumps(found, indent=2))
    if asked.json:
        asked.json.write_text(json.dumps(found, indent=2) + "\n")


def name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def memory(model_id: str, device: torch.device, scale: float) -> dict[str, Any]:
    """Weights in bf16 as one tensor a layer, the KV cache as one a layer too: what they take, and what was planned."""
    model = match(load(), model_id).model
    parameters = model.parameters.total
    assert parameters, f"{model_id}: its parameters are not known"
    planned_weights, planned_kv = round(2 * parameters * scale), round(kv_bytes_per_token(model) * TOKENS * scale)
    before = used(device)
    layers, kind = range(model.layers), {"device": device, "dtype": torch.bfloat16}
    kept = [torch.randn(planned_weights // 2 // len(layers), **kind) for _ in layers]
    weights = used(device)
    kept += [torch.zeros(planned_kv // 2 // len(layers), **kind) for _ in layers]
    both = used(device)
    assert kept
    return {
        "weights_planned_gib": planned_weights / GIB,
        "weights_measured_gib": (weights["allocated"] - before["allocated"]) / GIB,
        "kv_planned_gib": planned_kv / GIB,
        "kv_measured_gib": (both["allocated"] - weights["allocated"]) / GIB,
        "beside_them_gib": (both["driver"] - both["reserved"]) / GIB,  # the runtime's context, and other processes
    }


def used(device: torch.device) -> dict[str, int]:
    if device.type != "cuda":
        resident = psutil.Process().memory_info().rss
        return {"allocated": resident, "reserved": resident, "driver": resident}
    torch.cuda.synchronize(device)
    free, total = torch.cuda.mem_get_info(device)
    return {
        "allocated": torch.cuda.memory_allocated(device),
        "reserved": torch.cuda.memory_reserved(device),
        "driver": total - free,
    }


def copies(device: torch.device, scale: float) -> dict[str, float]:
    """Each byte is read and written once."""
    here = torch.empty(round(COPY_BYTES * scale), dtype=torch.uint8, device=device)
    there = torch.empty_like(here)
    seconds = best(lambda: there.copy_(here), device)
    return {"copy_gb_s": 2 * here.numel() / seconds / 1e9}


def matrices(device: torch.device, scale: float) -> dict[str, float]:
    """Dense, square: 2 x side^3 operations. FP8 where PyTorch has it for this card."""
    side = max(256, round(SIDE * scale ** (1 / 3)) // 64 * 64)
    one, other = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    found = {"bf16_tflops": 2 * side**3 / best(lambda: one @ other, device) / 1e12}
    if device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 9):
        left, right = one.to(torch.float8_e4m3fn), other.to(torch.float8_e4m3fn).t().contiguous().t()
        scales = torch.ones((), device=device)
        seconds = best(lambda: torch._scaled_mm(left, right, scales, scales, out_dtype=torch.bfloat16), device)  # noqa: SLF001
        found["fp8_tflops"] = 2 * side**3 / seconds / 1e12
    return found


def best(work, device: torch.device) -> float:
    """Seconds of the fastest of TIMES, after three that do not count."""
    fastest = float("inf")
    for turn in range(TIMES + 3):
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        began_s = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        if turn >= 3:
            fastest = min(fastest, time.perf_counter() - began_s)
    return fastest


def against_the_catalogue(found: dict[str, Any]) -> dict[str, float | str]:
    """What was measured, as a share of the data sheet."""
    known = by_words(load().cards, found["device"])
    if not known:
        return {"card": "not in the catalogue"}
    card, said = known[0], {}
    sheets = {"copy_gb_s": "bandwidth_gb_s", "bf16_tflops": "bf16_tflops", "fp8_tflops": "fp8_tflops"}
    for measured, sheet in sheets.items():
        if measured in found and (stated := getattr(card, sheet)):
            said[f"{measured}_of_sheet"] = found[measured] / stated
    return {"card": card.id, **said}


if __name__ == "__main__":
    main()
