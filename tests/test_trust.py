"""Which weights are started: pins, where they come from, and reading again."""

import json
import os

import msgspec
import pytest
from conftest import DEMO, ME

from freehold.errors import BadRequest, Refused
from freehold.ledger.signing import holds, signer
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
    fake_endpoint = fake(team, weights)
    team.write(demo=fake_endpoint)
    with (team.folder / "freehold.toml").open("a") as file:
        file.write("\n[weights]\nverify_hours = 0.0003\n")
    team.serve()
    team.ask("demo")
    team.until(lambda: len(team.events("weights.accepted")) > 1)  # read again, while it serves
    flip(weights)
    team.until(lambda: team.events("weights.refused"))
    team.until(lambda: team.status("demo")["state"] == "stopped")
    assert "digest-changed" in team.status("demo")["reason"]
    assert "stopped" in refusal(team.post("demo"))


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
    assert load(path) == load(path, ours.public) == MANIFEST
    assert (tmp_path / "signing.key").stat().st_mode & 0o777 == 0o600
    assert signer(tmp_path).public == ours.public


@pytest.mark.parametrize(
    "change",
    [{"digest": "cd" * 32}, {"made_by": "eve"}, {"evidence": {}}, {"artifacts": MANIFEST.artifacts[:1]}],
    ids=lambda change: next(iter(change)),
)
def test_a_manifest_that_was_changed_is_refused(tmp_path, change):
    path = save(tmp_path, MANIFEST, signer(tmp_path))
    signed = json.loads(path.read_text())
    path.write_bytes(msgspec.json.encode({**signed, "manifest": {**signed["manifest"], **msgspec.to_builtins(change)}}))
    with pytest.raises(Refused, match="does not hold"):
        load(path)


def test_a_manifest_of_somebody_else_is_refused(tmp_path):
    theirs, ours = tmp_path / "theirs", tmp_path / "ours"
    theirs.mkdir()
    ours.mkdir()
    path = save(theirs, MANIFEST, signer(theirs))
    with pytest.raises(Refused, match="is signed with the key"):
        load(path, signer(ours).public)
    (tmp_path / "no.json").write_text("{}")
    with pytest.raises(BadRequest, match="is no manifest"):
        load(tmp_path / "no.json")


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
