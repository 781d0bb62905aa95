"""What starts of engines took, beside what was predicted, and how fast the memory is: measurements in the book.

They are figures for people and plans, not evidence: the trail has the event of each start.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from typing import Any

import msgspec

from freehold.ledger.sql import QUERIES
from freehold.plan.cpu_speed import Memory
from freehold.plan.deployment import Deployment
from freehold.plan.performance import alike
from freehold.types import Host, Measurement, Service, Stated

_COLUMNS = Measurement.__struct_fields__
_NAMES = ", ".join(_COLUMNS)
_JSON = {"predicted": Stated, "stated": Stated, "start_s": dict[str, float]}
INSERT = QUERIES["insert_measurement"].format(measured=_NAMES, values=", ".join("?" * len(_COLUMNS)))
_NEWEST = QUERIES["measurements"].format(measured=_NAMES)


def about(service: Service) -> dict[str, Any]:
    """The fields of a Measurement that a service says."""
    copied = ("build", "host", "card", "tp", "pp", "context", "parallel", "kv_dtype", "predicted")
    options = service.options
    change_memory = {
        "speculative": options.speculative,
        "draft_tokens": options.speculative and options.draft_tokens,
        "embeddings": options.embeddings,
        "adapters": len(service.adapters),
        "max_loras": service.adapter_folder and options.max_loras,  # room for them, whether or not they are there
        "max_lora_rank": service.adapter_folder and options.max_lora_rank,
        "arguments": options.arguments,
    }
    said = {name: value for name, value in change_memory.items() if value}
    return {name: getattr(service.plan, name) for name in copied} | {
        "engine_version": ".".join(map(str, service.version)),
        "options": msgspec.json.encode(said).decode() if said else "",
    }


def row(measurement: Measurement) -> tuple[str | int, ...]:
    """As INSERT takes it."""
    values = msgspec.structs.astuple(measurement)
    return tuple(each if isinstance(each, str | int) else msgspec.json.encode(each).decode() for each in values)


def measurements(db: sqlite3.Connection) -> list[Measurement]:
    """The newest of each model, engine, cards and machine, the newest first; none of a book from before there were."""
    if not db.execute(QUERIES["has_measurements"]).fetchone():
        return []
    found = []
    for values in db.execute(_NEWEST):
        said = dict(zip(_COLUMNS, values, strict=True))
        said |= {name: msgspec.json.decode(said[name], type=kind) for name, kind in _JSON.items()}
        found.append(Measurement(**said))
    return found


def memory_of(host: str) -> str:
    """What the book calls the speed of that machine's memory, which it has once."""
    return f"memory of {host}"


def memory(db: sqlite3.Connection, host: Host) -> Memory | None:
    """As it was measured last on this machine; None where nobody did so, or its processor is another one by now."""
    row = db.execute(QUERIES["about"], (memory_of(host.name),)).fetchone()
    try:
        found = msgspec.json.decode(row[0], type=Memory) if row else None
    except msgspec.DecodeError:  # another edition measured something else
        return None
    return found if found and (found.cpu, found.cores) == (host.cpu, host.cores) else None


def find(those: Iterable[Measurement], plan: Deployment, digest: str = "") -> Measurement | None:
    """The newest start of this model by this engine on such cards.

    `digest`: of the files that are planned for, where it is files; else the model is the catalogue's, at one precision.
    """
    return next((each for each in those if alike(each, plan, digest)), None)
