"""Which weights are started: pins, where they come from, and reading again."""

import asyncio
import json
import os
from types import SimpleNamespace

import msgspec
import pytest
from conftest import DEMO, ME

from freehold.errors import BadRequest, FreeholdError, Refused
from freehold.fleet.config import Endpoint
from freehold.fleet.replica import Replica
from freehold.fleet.trust import Trust
from freehold.ledger.book import Book
from freehold.ledger.signing import holds, signer
from freehold.policy.law import Rules as Policy
from freehold.types import Artifact, Manifest
from freehold.weights import verify
from freehold.weights.manifest import differences, load, save

OTHER = "0" * 64


def refusal(answer) -> str:
    body = json.loads(answer.read())
    assert answer.status in (403, 503), body
    return body["error"]["message"]


@pytest.fixture
def weights(team):
    path = team.folder / "copy.gguf"
    path.write_bytes(DEMO.read_bytes())
    return path


def fake(team, weights, more="", **behaviour) -> str:
    return team.fake(more, **behaviour).replace(str(DEMO), str(weights))


def flip(weights) -> None:
    """Change one byte, and put the time back: only the inode's own time tells."""
    before = weights.stat()
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    os.utime(weights, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_weights_that_changed_are_not_started(team, weights):
    team.write(demo=fake(team, weights, "idle_seconds = 0.1"))
    team.serve()
    team.ask("demo")
    team.until(lambda: team.status("demo")["state"] == "cold")
    flip(weights)
    assert "digest" not in refusal(team.post("demo"))
    said = team.run("up", code=3)
    assert "digest-changed" in said
    assert "copy.gguf: has the sha256" in said  # the list that the first use signed names the file
    assert "digest-changed" in team.run("verify", str(weights), code=3)
    team.run("pin", "demo")
    team.ask("demo")
    first, second = team.events("weights.pinned")
    assert (first["actor"], first["detail"]["reason"], first["detail"]["before"]) == ("freehold", "first use", None)
    assert (second["actor"], second["detail"]["before"]) == (ME, first["detail"]["pin"])


def test_only_pinned_weights_where_policy_says_so(team):
    team.write(policy="require_pin = true", demo=team.fake())
    team.serve()
    refusal(team.post("demo"))
    assert "is not pinned, and policy.require_pin is set" in team.run("up", code=3)
    assert team.events("engine.launching") == []
    team.run("pin", "demo")
    team.ask("demo")
    assert [event["detail"]["reason"] for event in team.events("weights.pinned")] == ["freehold pin"]


def test_a_pin_before_the_first_daemon(team):
    team.write(policy="require_pin = true", demo=team.fake())
    assert "for freehold.toml: pin = " in team.run("pin", str(DEMO))
    team.serve()
    team.ask("demo")
    assert "the trail holds" in team.run("audit", "verify")


def test_a_pin_in_the_configuration(team, weights):
    team.write(demo=fake(team, weights, f'pin = "{OTHER}"'))
    team.serve()
    assert f"the pin is {OTHER}" in team.run("up", code=3)
    team.end()
    team.write(demo=fake(team, weights, f'pin = "{verify(weights).digest}"'))
    team.serve()
    team.ask("demo")
    (pinned,) = team.events("weights.pinned")
    assert pinned["detail"]["reason"] == "freehold.toml"


def test_only_builds_that_the_catalogue_has_of_a_model(team, weights):
    own = '\n[models.ours]\nlike = "qwen3-8b"\ndigests = ["{}"]\n'
    for digest, code in ((OTHER, 3), (verify(weights).digest, 0)):
        team.write(demo=fake(team, weights, 'model = "ours"'))
        with (team.folder / "freehold.toml").open("a") as file:
            file.write(own.format(digest))
        team.serve()
        said = team.run("up", "demo", code=code)
        assert ("are none of ours" in said) == (code == 3)
        team.end()


def test_what_was_read_in_full_is_not_read_again_while_it_looks_the_same(team, weights):
    team.write(demo=fake(team, weights))
    for _ in range(2):
        team.serve()
        team.run("up")
        team.end()
    assert len(team.events("weights.accepted")) == len(team.events("weights.unchanged")) == 1
    team.serve()
    team.run("up", "--full")
    assert len(team.events("weights.accepted")) == 2


def test_reading_again_on_a_schedule_stops_what_was_changed(team, weights):
    scheduled(team, fake(team, weights))
    team.until(lambda: len(team.events("weights.accepted")) > 1)  # read again, while it serves
    flip(weights)
    team.until(lambda: team.events("weights.refused"))
    team.until(lambda: team.status("demo")["state"] == "stopped")
    assert "digest-changed" in team.status("demo")["reason"]
    assert "stopped" in refusal(team.post("demo"))


def scheduled(team, settings) -> None:
    team.write(demo=settings)
    with (team.folder / "freehold.toml").open("a") as file:
        file.write("\n[weights]\nverify_hours = 0.0003\n")
    team.serve()
    team.ask("demo")


def test_weights_that_vanish_while_they_are_served_stop_it_and_that_is_on_record(team, weights):
    scheduled(team, fake(team, weights))
    weights.unlink()
    team.until(lambda: team.status("demo")["state"] == "stopped")
    (stop,) = team.events("endpoint.stop")
    assert (stop["actor"], stop["detail"]["reason"]) == ("freehold", team.status("demo")["reason"])
    assert "there is nothing at" in stop["detail"]["reason"]


def test_a_rereading_that_fails_of_itself_stops_the_endpoint_and_not_the_daemon(team, weights):
    scheduled(team, fake(team, weights))
    (team.state / "signing.key").unlink()
    (team.state / "signing.key").mkdir()
    team.until(lambda: team.status("demo")["state"] == "stopped")
    assert "could not be read again: IsADirectoryError" in team.status("demo")["reason"]
    assert team.daemon.running()


def test_others_that_were_pinned_meanwhile_are_not_taken_for_what_is_served(team, weights):
    team.write(demo=fake(team, weights))
    team.serve()
    team.ask("demo")
    other = team.folder / "other.gguf"
    other.write_bytes(with_context(1024))
    other.replace(weights)
    team.run("pin", "demo")
    assert "not those that its engine was started with" in team.run("up", "--full", code=3)
    assert team.status("demo")["state"] == "stopped"
    team.run("up")
    assert json.loads(team.engine("demo", "/launch"))["model_bytes"] == weights.stat().st_size


def with_context(trained: int) -> bytes:
    """The demonstration model, trained on another context."""
    content, key = bytearray(DEMO.read_bytes()), b"llama.context_length"
    at = content.index(key) + len(key) + 4  # behind the value's type
    content[at : at + 4] = trained.to_bytes(4, "little")
    return bytes(content)


def test_a_plan_is_made_for_the_weights_that_are_there(team, weights):
    weights.write_bytes(with_context(2048))
    team.write(demo=fake(team, weights, "parallel = 1").replace("context = 512\n", ""))
    team.serve()
    for context in (2048, 1024):
        weights.write_bytes(with_context(context))
        team.run("pin", "demo")
        team.run("up", "--full")
        assert json.loads(team.engine("demo", "/launch"))["args"]["--ctx-size"] == str(context)
        team.run("stop", "demo")
        team.until(lambda: team.status("demo")["state"] == "stopped")


def trust_in(tmp_path, weights, **rules):
    """A trust without a daemon, and the book it goes by."""
    book = Book(tmp_path / "state")
    told = []
    ground = SimpleNamespace(
        book=book, state=tmp_path / "state", clock_ns=book.clock_ns, tell=lambda kind, *_, **more: told.append(kind)
    )
    permission = SimpleNamespace(require=lambda: None, digests=rules.pop("digests", ()))
    made = Trust("demo", Endpoint(weights=str(weights)), ground, permission, rules=Policy(**rules), lasts_ns=1 << 62)
    return made, ground, told


@pytest.fixture
def copy(tmp_path):
    (tmp_path / "state").mkdir()
    path = tmp_path / "copy.gguf"
    path.write_bytes(DEMO.read_bytes())
    return path


async def test_what_policy_refused_is_not_started_the_second_time_either(tmp_path, copy):
    trust, ground, _ = trust_in(tmp_path, copy, formats=("gguf",))
    await trust.ensure()
    trust._rules = Policy(formats=("safetensors",))  # as if others were in their place
    flip(copy)
    await ground.book.set_pin(str(copy), verify(copy).digest, "ada", replace=True)
    for _ in range(2):
        with pytest.raises(Refused, match="policy refuses"):
            await trust.ensure()
    await ground.book.close()


async def test_what_a_rereading_refused_is_not_started_although_it_looks_as_before(tmp_path, copy):
    trust, ground, _ = trust_in(tmp_path, copy)
    await trust.ensure()
    await ground.book.set_pin(str(copy), OTHER, "ada", replace=True)  # as a disk that rots: no time of change tells
    trust.expire()
    with pytest.raises(Refused, match="digest-changed"):
        await trust.reread()
    with pytest.raises(Refused, match="digest-changed"):
        await trust.ensure()
    with pytest.raises(Refused, match="changed after"):
        await trust.recheck()
    await ground.book.close()


async def test_what_is_recalled_is_held_to_the_catalogue_too(tmp_path, copy):
    trust, ground, told = trust_in(tmp_path, copy)
    await trust.ensure()
    await ground.book.close()
    trust, ground, told = trust_in(tmp_path, copy, digests=(OTHER,))
    with pytest.raises(Refused, match="are none of"):
        await trust.ensure()
    assert "weights.unchanged" not in told
    await ground.book.close()


async def test_two_who_want_them_read_at_once_read_them_once(tmp_path, copy):
    trust, ground, told = trust_in(tmp_path, copy)
    await trust.ensure()
    trust.expire()
    await asyncio.gather(trust.reread(), trust.reread(), trust.ensure())
    assert told.count("weights.checking") == 2
    await ground.book.close()


def test_a_refusal_that_comes_late_does_not_stop_the_next_run():
    """Two had them read at once; the second is refused when an operator has already opened it again."""
    closed = []
    life = SimpleNamespace(run=2, state="ready")
    replica = Replica.__new__(Replica)
    replica.name, replica._life, replica._inbox = "demo", life, SimpleNamespace(put_nowait=closed.append)
    replica._ground = SimpleNamespace(tell=lambda *_, **__: None)
    replica.close(1, Refused("old"))
    assert closed == []
    replica.close(2, Refused("new"))
    assert [note.run for note in closed] == [2]


async def test_a_rereading_leaves_the_cores_to_others(tmp_path, copy, monkeypatch):
    trust, ground, _ = trust_in(tmp_path, copy)
    await trust.ensure()
    trust.expire()
    nice = tmp_path / "bin" / "nice"
    nice.parent.mkdir()
    nice.write_text(f'#!/bin/sh\necho "$1 $2" > {tmp_path}/asked\nshift 2\nexec "$@"\n')
    nice.chmod(0o755)
    monkeypatch.setenv("PATH", f"{nice.parent}:/usr/bin:/bin")
    await trust.reread()
    assert not trust.due
    assert (tmp_path / "asked").read_text() == "-n 19\n"
    await ground.book.close()


def test_an_engine_whose_weights_changed_while_it_loaded_them_serves_nothing(team, weights):
    team.write(demo=fake(team, weights, delay_s=1.0))
    team.serve()
    answer = team.connect()
    body = {"model": "demo", "messages": [{"role": "user", "content": "hi"}]}
    answer.request("POST", "/v1/chat/completions", json.dumps(body), {"Authorization": f"Bearer {team.key}"})
    team.until(lambda: team.events("isolation.tested"))
    flip(weights)
    team.until(lambda: team.events("engine.failed"))
    assert "changed after they were verified" in team.events("engine.failed")[0]["detail"]["reason"]
    assert answer.getresponse().status == 503


MANIFEST = Manifest(
    digest="ab" * 32,
    artifacts=(Artifact(path="a", size_bytes=1, sha256="1" * 64), Artifact(path="b", size_bytes=2, sha256="2" * 64)),
    made_ns=1,
    made_by="ada",
    repo="owner/name",
    evidence={"scan": "clean"},
)


def test_a_manifest_comes_back_as_it_was_signed(tmp_path):
    ours = signer(tmp_path)
    path = save(tmp_path, MANIFEST, ours)
    assert load(path, ours.public) == MANIFEST
    with pytest.raises(Refused, match="which nobody vouched for"):
        load(path, None)
    assert (tmp_path / "signing.key").stat().st_mode & 0o777 == 0o600
    assert signer(tmp_path).public == ours.public


@pytest.mark.parametrize(
    "change",
    [{"digest": "cd" * 32}, {"made_by": "eve"}, {"evidence": {}}, {"artifacts": MANIFEST.artifacts[:1]}],
    ids=lambda change: next(iter(change)),
)
def test_a_manifest_that_was_changed_is_refused(tmp_path, change):
    ours = signer(tmp_path)
    path = save(tmp_path, MANIFEST, ours)
    signed = json.loads(path.read_text())
    path.write_bytes(msgspec.json.encode({**signed, "manifest": {**signed["manifest"], **msgspec.to_builtins(change)}}))
    with pytest.raises(Refused, match="does not hold"):
        load(path, ours.public)


def test_a_manifest_of_somebody_else_is_refused(tmp_path):
    theirs, ours = tmp_path / "theirs", tmp_path / "ours"
    theirs.mkdir()
    ours.mkdir()
    path = save(theirs, MANIFEST, signer(theirs))
    with pytest.raises(Refused, match="is signed with the key"):
        load(path, signer(ours).public)
    (tmp_path / "no.json").write_text("{}")
    with pytest.raises(BadRequest, match="is no manifest"):
        load(tmp_path / "no.json", None)


def test_a_signature_of_one_kind_is_none_of_another(tmp_path):
    ours = signer(tmp_path)
    signature = ours.sign("manifest", b"x")
    assert holds(ours.public, signature, "manifest", b"x")
    assert not holds(ours.public, signature, "checkpoint", b"x")
    assert not holds(ours.public, "00", "manifest", b"x")
    assert not holds("no key", signature, "manifest", b"x")


def test_differences_are_named_file_by_file():
    a, b = MANIFEST.artifacts
    changed = Artifact(path="b", size_bytes=2, sha256="3" * 64)
    stray = Artifact(path="c", size_bytes=1, sha256="1" * 64)
    assert list(differences(MANIFEST, [b, a])) == []
    found = [(each.path, each.rule) for each in differences(MANIFEST, [changed, stray])]
    assert found == [("a", "missing-file"), ("b", "file-changed"), ("c", "stray-file")]


def test_a_manifest_travels_and_names_what_is_not_as_it_says(team, weights):
    team.write(demo=fake(team, weights))
    signed = next(line[8:] for line in team.run("pin", str(weights)).splitlines() if line.startswith("signed: "))
    key = signer(team.state).public
    assert "ACCEPTED, PINNED" in team.run("verify", str(weights), "--manifest", signed, "--key", key)
    assert "is signed with the key" in team.run("verify", str(weights), "--manifest", signed, "--key", OTHER, code=3)
    flip(weights)
    assert "[file-changed]" in team.run("verify", str(weights), "--manifest", signed, code=3)
    assert "REFUSED" in team.run("pin", str(weights), "--manifest", signed, code=3)


def test_verify_can_ask_for_a_pin(team, weights):
    assert "[no-pin]" in team.run("verify", str(weights), "--require-pin", code=3)
    digest = verify(weights).digest
    assert "ACCEPTED, PINNED" in team.run("verify", str(weights), "--require-pin", "--pin", digest)


def test_a_list_that_a_stranger_signed_pins_nothing(team, weights, tmp_path_factory):
    theirs = tmp_path_factory.mktemp("theirs")
    verdict = verify(weights)
    stranger = Manifest(digest=verdict.digest, artifacts=verdict.artifacts, made_ns=1, made_by="eve", repo="good/name")
    path = str(save(theirs, stranger, signer(theirs)))
    team.write(demo=fake(team, weights))
    for command in ("verify", "pin"):
        assert "which nobody vouched for" in team.run(command, str(weights), "--manifest", path, code=3)
        team.run(command, str(weights), "--manifest", path, "--key", signer(theirs).public)


def test_the_pin_of_freehold_toml_goes_first_for_verify_and_pin_too(team, weights):
    team.write(demo=fake(team, weights, f'pin = "{verify(weights).digest}"'))
    assert "ACCEPTED, PINNED" in team.run("verify", str(weights), "--require-pin")
    team.write(demo=fake(team, weights, f'pin = "{OTHER}"'))
    assert "[digest-changed]" in team.run("verify", str(weights), code=3)
    assert f"holds `demo` to {OTHER}" in team.run("pin", "demo", code=3)


@pytest.mark.parametrize("broken", ["book", "configuration"])
def test_a_verdict_needs_neither_book_nor_configuration(team, weights, broken):
    team.write(demo=fake(team, weights))
    team.run("pin", "demo")
    if broken == "book":
        (team.state / "book.db").write_bytes(b"no book" * 999)
    else:
        (team.folder / "freehold.toml").write_text("[server")
    said = team.run("verify", str(weights))
    assert "judged without a pin" in said
    assert "ACCEPTED, UNPINNED" in said
    assert "[no-pin]" in team.run("verify", str(weights), "--require-pin", code=3)


def test_only_what_pins_may_pin(team):
    team.write(demo=team.fake())
    team.serve()
    for ask in ({"kind": "decision.made", "pin": OTHER}, {"kind": "weights.pinned", "pin": "x"}, {"kind": "key.made"}):
        with pytest.raises(FreeholdError):
            team.daemon.ask("POST", "/events", {"subject": "demo", "detail": {}, **ask})
    assert team.events("decision.made") == team.events("weights.pinned") == []
