"""What any engine must keep, for the tests of whoever writes one. Each check raises AssertionError and says what broke.

    from freehold.engines import contract

    def test_the_contract() -> None:
        contract.check(MyEngine(), contract.service(program="/opt/mine/bin/mine"))

Nothing is started: an engine describes, and what it describes is looked at. That it is also true is for a test with the
engine itself.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePosixPath
from unittest.mock import patch

from msgspec.structs import replace

from freehold.engines.base import Launchable, Stage
from freehold.engines.flags import Flags, modules, problems
from freehold.errors import FreeholdError
from freehold.types import Adapter, Call, Launch, Plan, Service, Signals, Stated, Tokens, WireError

# What a broken engine, or a proxy in its place, may send; logs come from it as well.
BLOBS: tuple[bytes, ...] = (
    *(b"", b"\0", b"\xff\xfe\xfd", b"{", b"[]", b"null", b'{"error":null}', b'{"error":"no"}', b'{"message":1}'),
    *(b'{"error":{"message":"no","type":"x","code":7,"param":null}}', b'{"error":{"message":1}}', b"<html>502</html>"),
    *(b'{"object":"error","message":"no","type":"BadRequestError","param":null,"code":400}', b"[" * 5000),
    *(b"x_total NaN\nx_total +Inf\nx_total{\n} 1\n", b'x_total{a="} 1"} 2\nx_total 1e400\nx_total one\n', b"\n" * 50),
    *(b"x" * 100_000, "größer 100% of … GiB".encode(), b"took . GiB, 1.2.3 GiB, -1 GiB, 999% Completed"),
)
_CHANGES = {
    "prefix_caching": False,
    "speculative": "ngram",
    "tool_parser": "one",
    "reasoning_parser": "one",
    "chat_template": "/models/template.jinja",
    "embeddings": True,
    "max_loras": 3,
}
_SYSTEM = ("/usr", "/bin", "/lib", "/lib64", "/tmp", "/dev", "/proc")  # noqa: S108  what any sandbox has


def check(
    engine: Launchable, service: Service, *, flags: Mapping[str, Flags] | None = None, blobs: Sequence[bytes] = BLOBS
) -> None:
    """All of it. `flags`: what its programs take, by the module that each is started as; see parser_dump.py."""
    check_launch(engine, service, flags or {})
    check_isolation(engine)
    check_refusals(engine)
    check_adapters(engine, service)
    check_answers(engine, blobs)
    check_log(engine, service.plan, blobs)


def service(**changes: object) -> Service:
    """One to describe a launch of; `changes`: its fields."""
    given = Service(
        name="demo",
        weights="/models/demo",
        files=("/models/demo/config.json", "/models/demo/model.safetensors"),
        socket="/run/team/e-1/engine.sock",
        plan=plan(),
        cache_folder="/var/cache/team/compiled",
    )
    return replace(given, **changes)


def plan(**changes: object) -> Plan:
    """For a card of 80 GiB; `changes`: its fields."""
    gib = 1 << 30
    given = Plan(
        build="demo", host="here", context=4096, parallel=32, threads=4, weight_bytes=16 * gib,
        kv_bytes_per_token=131_072, kv_bytes=40 * gib, compute_bytes=6 * gib, available_bytes=72 * gib,
        requests_that_fit=80, steps=("made up for a test",), card="h100-sxm-80gb", card_share=0.9,
    )  # fmt: skip
    return replace(given, **changes)


def check_launch(engine: Launchable, service: Service, flags: Mapping[str, Flags]) -> None:
    launch = engine.launch(service)
    with patch.dict(os.environ, {"FREEHOLD_CONTRACT": "/etc/leaked", "HOME": "/etc/leaked", "PATH": "/etc/leaked"}):
        again = engine.launch(service)
    _hold(launch == again, "the same service must give the same launch, whatever the daemon's environment and clock")
    words = (*launch.argv, *launch.env, *launch.env.values())
    _hold(all(type(word) is str and "\0" not in word for word in words), "argv and env are strings")
    _hold(PurePosixPath(launch.argv[0]).is_absolute(), f"{launch.argv[0]}: the program is an absolute path")
    _hold(launch.socket == service.socket, "its socket is the one that it was given")
    said = " ".join(launch.argv)
    for what, value in (("socket", service.socket), ("weights", service.weights), ("name", service.name)):
        _hold(value in said, f"its command line must say the {what}: {value}")
    _hold(set(service.files) <= set(launch.weights), "it may read the files of the weights that were verified")
    for path in (*launch.weights, *launch.readable, *launch.writable, *launch.devices):
        _hold(
            PurePosixPath(path).is_absolute() and ".." not in PurePosixPath(path).parts, f"{path} is no absolute path"
        )
        _hold(len(PurePosixPath(path).parts) > 1, "nothing may be bound at /")
    for path in _named(launch):
        _hold(_reached(path, launch), f"its command line names {path}, which it could not see in the sandbox")
    _hold(set(launch.writable) <= {service.cache_folder}, "it may keep things in its cache folder only")
    _hold(set(launch.devices) <= set(service.devices), "it may open the devices of its own cards only")
    for key, value in _CHANGES.items():
        changed = replace(service, options=replace(service.options, **{key: value}))
        _hold(
            key in engine.takes or engine.launch(changed) == launch, f"it does not say that it `takes` {key}, and does"
        )
    for module, given in modules(launch.argv):
        if module in flags:
            wrong = problems(given, flags[module])
            _hold(not wrong, f"{module} would refuse its options: {'; '.join(wrong)}")


def _named(launch: Launch) -> Iterator[str]:
    """The files that its command line names, as a word or after an equals sign."""
    for word in launch.argv:
        for path in (word, word.partition("=")[2]):
            if path.startswith("/"):
                yield path


def _reached(path: str, launch: Launch) -> bool:
    """It is there in the sandbox: bound, in something bound, or a folder of what is bound."""
    seen = [*launch.weights, *launch.readable, *launch.writable, *launch.devices, *_SYSTEM]
    seen.append(str(PurePosixPath(launch.socket).parent))
    pure = PurePosixPath(path)
    return any(pure.is_relative_to(each) or PurePosixPath(each).is_relative_to(pure) for each in seen)


def check_isolation(engine: Launchable) -> None:
    """No two groups of callers may read one another's cached prompts."""
    if engine.salts:
        asked = [
            engine.isolate(salt, None, same=same, salted=True) for salt in ("s-1", "s-2") for same in (False, True)
        ]
        _hold(asked[0] not in asked[2:] and asked[1] not in asked[2:], "two groups must not get the same salt")
        _hold(all("s-1" in json.dumps(fields) for fields in asked[:2]), "the salt must be what it was given")
        for field in asked[0]:
            _hold(
                field in engine.refused_fields, f"callers must not say `{field}`: Freehold does, to keep groups apart"
            )
    elif not engine.hides_cache_hits:
        first, second = (engine.isolate("s", 0, same=same, salted=False) for same in (False, True))
        _hold(first != second, "whoever may see hits must read only what the same group left: `same` must matter")
    plain = engine.isolate("s-1", None, same=False, salted=False)
    _hold("s-1" not in json.dumps(plain), "an engine that is not known to know salts must not be sent one")


def check_refusals(engine: Launchable) -> None:
    for field, why in engine.refused_fields.items():
        _hold(bool(field) and len(why) > 8, f"`{field}` is refused without a reason")
    for field, (values, hint) in engine.holds_only.items():
        _hold(bool(values) and len(hint) > 8, f"`{field}` is held to values without a way out")
        for value in values:
            json.loads(value)


def check_adapters(engine: Launchable, service: Service) -> None:
    first, second = Adapter(name="one@1", path="/adapters/one", rank=8), Adapter(name="two@1", path="/adapters/two")
    calls = (engine.load(first), engine.unload(first))
    if engine.adapters != "hot":
        _hold(calls == (None, None), "an engine that is not `hot` has no call to load an adapter, or to unload one")
    if not engine.adapters:
        return
    asked = engine.ask(first, (first, second)), engine.ask(second, (first, second))
    _hold(bool(asked[0]) and asked[0] != asked[1], "a request must say which adapter it is for")
    for field in asked[0]:
        _hold(field == "model" or field in engine.refused_fields, f"callers must ask by `model`, not by `{field}`")
    if engine.adapters == "launch":
        launch = engine.launch(replace(service, adapters=(first, second)))
        for each in (first, second):
            _hold(
                each.path in " ".join(launch.argv) and _reached(each.path, launch),
                f"it must be started with {each.path}",
            )
        return
    for call in calls:
        assert isinstance(call, Call), "an engine that is `hot` says how to load and unload"  # noqa: S101
        _hold(call.path.startswith("/") and call.method == call.method.upper(), f"{call} is no request")
        _hold(first.name in call.body.decode() + call.path, "the call must name the adapter")
    _hold(first.path.encode() in calls[0].body if calls[0] else False, "the call to load must say where it is")
    options = replace(service.options, max_loras=2)
    launch = engine.launch(replace(service, options=options, adapter_folder="/adapters"))
    _hold(_reached(first.path, launch), "it may read the folder of adapters that come while it serves")


def check_answers(engine: Launchable, blobs: Sequence[bytes]) -> None:
    """Whatever comes back is a count or an error, never an exception."""
    for path in (engine.ready_path, engine.metrics_path):
        _hold(path.startswith("/"), f"{path} is no path")
    for blob in blobs:
        for status in (200, 302, 400, 401, 403, 404, 422, 429, 500, 503):
            answered, error = engine.error(status, blob)
            _hold(400 <= answered <= 599, f"{status} with {blob[:40]!r} became {answered}")
            _hold(isinstance(error, WireError) and bool(error.message), f"no words for {status} with {blob[:40]!r}")
        counted = engine.counters(blob)
        _hold(isinstance(counted, Tokens) and counted.cached <= max(counted.prompt, 0), f"{counted} cannot be")
        _hold(isinstance(engine.signals(blob), Signals), f"no signals of {blob[:40]!r}")


def check_log(engine: Launchable, plan: Plan, blobs: Sequence[bytes]) -> None:
    """Whatever it prints is read without an exception."""
    for blob in blobs:
        log = blob.decode("utf-8", "replace")
        for line in log.splitlines()[:100]:
            stage = engine.stage(line)
            _hold(stage is None or (isinstance(stage, Stage) and 0 <= (stage.share or 0) <= 1), f"{stage} cannot be")
        _hold(isinstance(engine.stated(log, blob), Stated), f"nothing stated by {log[:40]!r}")
        why = engine.complaint(log, plan)
        _hold(why is None or (isinstance(why, FreeholdError) and bool(why.hint)), f"{why!r} says nothing to do")


def _hold(kept: bool, otherwise: str) -> None:
    """A plain assert would be taken out by python -O."""
    if not kept:
        raise AssertionError(otherwise)
