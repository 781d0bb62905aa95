"""`freehold pull`, as a person runs it, against a hub of our own: real processes, sockets, certificates."""

from __future__ import annotations

import fcntl
import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from conftest import DEMO
from hub_server import COMMIT, Hub, proxy
from weight_files import CONFIG, gguf_bytes, safetensors_bytes, tensor

from freehold.cli import pull as command
from freehold.cli.main import cli

REPO = "acme/tiny"
ACCEPTED = f'[policy.accepted."{REPO}"]\nby = "J. Weber"\non = 2026-01-01\nwhy = "ours"\n'
BIG = gguf_bytes(tensors=[tensor("a", (256, 4096), 0, 0)], data=b"\1" * (4 << 20))
FILES = {
    "tiny-Q4.gguf": BIG,
    "README.md": b"# Tiny\n",
    "LICENSE": b"Do as you like.\n",
    "run.py": b"print()\n",
    "pytorch_model.bin": b"\x80\x04.",
    ".gitattributes": b"*.gguf filter=lfs\n",
}


@pytest.fixture
def hub():
    hub = Hub(REPO, FILES)
    yield hub
    hub.close()


def write(team, hub, policy="", more="", accepted=ACCEPTED):
    (team.folder / "freehold.toml").write_text(f'[policy]\n{policy}\n{accepted}\n[hub]\nurl = "{hub.url}"\n{more}\n')


def pull(team, *args: str, code: int = 0) -> str:
    return team.run("pull", REPO, *args, code=code)


def result(said: str) -> dict:
    """What went to standard output: the progress on standard error follows it here."""
    return json.JSONDecoder().raw_decode(said)[0]


def home(team) -> Path:
    return team.folder / "models" / REPO


def start(team, *args: str) -> subprocess.Popen:
    """A pull that runs while the test does something to it."""
    return subprocess.Popen(
        [sys.executable, "-m", "freehold", "pull", REPO, *args],
        cwd=team.folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def partly(team, process, least=256 << 10) -> Path:
    """Until a part of the weights has come."""
    path = home(team) / f".{COMMIT}.partial" / "tiny-Q4.gguf"

    def there() -> bool:
        assert process.poll() is None, process.communicate()
        return path.exists() and path.stat().st_size > least

    team.until(there)
    return path


def test_what_is_pulled_is_in_place_read_only_pinned_signed_and_in_the_book(team, hub):
    write(team, hub)
    said = pull(team)
    folder = home(team) / COMMIT
    assert {each.name for each in folder.iterdir()} == {"tiny-Q4.gguf", "README.md", "LICENSE"}
    assert {each.stat().st_mode & 0o777 for each in folder.iterdir()} == {0o444}
    assert "left out  3 files: .gitattributes, pytorch_model.bin, run.py" in said
    (event,) = team.events("weights.pulled")
    digest = event["detail"]["digest"]
    assert event["subject"] == str(folder)
    assert event["detail"]["revision"] == COMMIT
    assert event["detail"]["pin"] == digest
    assert json.loads(event["detail"]["scan"]) == {"scansDone": True, "filesWithIssues": []}
    assert f'weights = "models/{REPO}/{COMMIT}"' in said
    assert f'pin = "{digest}"' in said
    signed = json.loads((team.state / "manifests" / f"{digest}.json").read_text())["manifest"]
    assert (signed["repo"], signed["revision"], signed["source"]) == (REPO, COMMIT, hub.url)
    assert signed["evidence"] == {"hub_scan": event["detail"]["scan"]}
    assert "PINNED" in team.run("verify", str(folder))

    before = hub.sent_bytes
    again = result(pull(team, "--json"))
    assert again["already"]
    assert again["digest"] == digest
    assert hub.sent_bytes == before
    assert len(team.events("weights.pulled")) == 1


def test_what_is_pulled_is_served_by_its_pin(team):
    """By the real llama.cpp, from a folder of models that lies elsewhere, with the lines that the pull printed."""
    hub = Hub(REPO, {"demo.gguf": DEMO.read_bytes(), "README.md": b"# Demo\n"})
    elsewhere = team.folder / "elsewhere"
    elsewhere.mkdir()
    (team.folder / "models").symlink_to(elsewhere)
    write(team, hub, "require_pin = true")
    weights = next(line for line in pull(team).splitlines() if line.startswith("weights"))
    hub.close()
    with (team.folder / "freehold.toml").open("a") as config:
        config.write(f'[server]\nlisten = "127.0.0.1:0"\n[endpoints.tiny]\n{weights}\ncontext = 512\n')
    team.serve()
    assert team.up("tiny")["up"], team.status("tiny")
    assert team.ask("tiny")["usage"]["completion_tokens"]
    (accepted,) = team.events("weights.accepted")
    assert accepted["detail"]["pinned"] == "pinned"


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_an_interrupted_pull_goes_on_where_it_stopped(team, hub, how):
    write(team, hub)
    hub.rate_bytes_s = 2 << 20
    process = start(team)
    path = partly(team, process)
    process.send_signal(how)
    said, _ = process.communicate(timeout=20)
    assert process.returncode == (-9 if how == signal.SIGKILL else 130), said
    assert how == signal.SIGKILL or "goes on where it stopped" in said
    have = path.stat().st_size
    assert 0 < have < len(BIG)
    assert not (home(team) / COMMIT).exists()

    hub.rate_bytes_s, answers = 0, len(hub.sent)
    assert result(pull(team, "--json"))["downloaded_bytes"] == len(BIG) - have
    assert hub.sent[answers:] == [["tiny-Q4.gguf", len(BIG) - have]]


def test_an_interrupt_does_not_wait_for_a_hub_that_is_silent(team, hub):
    write(team, hub)
    hub.stall_once = {"tiny-Q4.gguf"}
    process = start(team)
    team.until(lambda: hub.asked("cdn"))
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=10)
    assert process.returncode == 130, said


def test_two_pulls_of_one_model_bring_it_once(team, hub):
    write(team, hub)
    hub.rate_bytes_s = 4 << 20
    first = start(team)
    partly(team, first)
    second = start(team)
    team.until(lambda: len([path for path in hub.asked("hub") if "/api/" in path]) == 2)
    said = [each.communicate(timeout=30)[0] for each in (first, second)]
    assert (first.returncode, second.returncode) == (0, 0), said
    assert hub.sent_bytes == sum(len(FILES[name]) for name in ("tiny-Q4.gguf", "README.md", "LICENSE"))
    assert "was there already" in said[1]


def test_the_next_pull_waits_until_this_one_is_in_the_book(team, hub, monkeypatch):
    """Else it looks for the pin in a book that is just being made."""
    write(team, hub)
    held = []

    def record(*_) -> None:
        with (home(team) / ".lock").open() as file, pytest.raises(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        held.append(True)

    monkeypatch.setattr(command._Pull, "_record", record)
    monkeypatch.chdir(team.folder)
    assert CliRunner().invoke(cli, ["pull", REPO], catch_exceptions=False).exit_code == 0
    assert held


@pytest.mark.parametrize(
    ("policy", "said"),
    [
        ("", 'policy.accepted."acme/tiny"'),
        ('publishers = ["Mistral AI"]', "policy.publishers"),
        ('publisher_countries = ["EU"]', "policy.publisher_countries"),
    ],
)
def test_policy_is_asked_before_the_first_byte(team, hub, policy, said):
    write(team, hub, policy, accepted=ACCEPTED if policy else "")
    assert said in pull(team, code=3)
    assert hub.log == []
    (event,) = team.events("weights.pull_refused")
    assert event["subject"] == REPO


def test_a_licence_that_nobody_read_is_refused_however_plans_show_it(team, hub):
    write(team, hub, 'unreviewed = "show"')
    assert 'policy.accepted."apertus-70b-2509"' in team.run("pull", "apertus-70b-2509", code=3)
    assert hub.log == []


def test_formats_of_policy_choose(team, hub):
    hub.files["model.safetensors"] = safetensors_bytes()
    hub.lfs.add("model.safetensors")
    hub.files["config.json"] = json.dumps(CONFIG).encode()
    write(team, hub)
    assert "--include '*.safetensors'" in pull(team, code=2)
    write(team, hub, 'formats = ["safetensors"]')
    assert "model.safetensors" in pull(team, "--json")
    assert not (home(team) / COMMIT / "tiny-Q4.gguf").exists()
    assert (
        "holds other files of this commit: model.safetensors"
        in (write(team, hub), pull(team, "--include", "*.gguf", code=2))[1]
    )


def test_a_model_of_the_catalogue_by_its_id(team, tmp_path):
    """Apache 2.0: nobody need accept it."""
    hub = Hub("Qwen/Qwen3-8B", {"model.safetensors": safetensors_bytes(), "config.json": json.dumps(CONFIG).encode()})
    write(team, hub, accepted="")
    assert 'model = "qwen3-8b"' in team.run("pull", "qwen3-8b", "--revision", "v1.0")
    assert "the catalogue has no" in team.run("pull", "qwen3-8b-instruct", code=2)
    hub.close()


def test_digests_that_a_team_names_are_the_only_ones(team, hub):
    own = f'[models.tiny]\nlike = "qwen3-8b"\nrepo = "{REPO}"\ndigests = ["{"0" * 64}"]\n'
    write(team, hub, accepted=own)
    assert "none expected" in team.run("pull", "tiny", code=3)
    assert not (home(team) / COMMIT).exists()


def test_what_the_gate_refuses_is_never_in_place(team, hub):
    hub.files["config.json"] = b'{"auto_map": {"AutoModel": "evil.Model"}}'
    write(team, hub)
    assert "the gate refuses" in pull(team, code=3)
    assert not (home(team) / COMMIT).exists()
    (event,) = team.events("weights.pull_refused")
    assert "config.json" in event["detail"]["reason"]
    assert event["detail"]["revision"] == COMMIT
    assert not (team.state / "manifests").exists()


def test_offline_takes_only_what_is_there_and_pinned(team, hub):
    write(team, hub)
    assert "offline" in pull(team, "--offline", code=2)
    pull(team)
    asked = len(hub.log)
    assert "was there already" in pull(team, "--offline")
    assert "was there already" in pull(team, "--offline", "--revision", COMMIT)
    file = home(team) / COMMIT / "tiny-Q4.gguf"
    file.chmod(0o644)
    file.write_bytes(BIG[:-1] + b"\2")
    assert "is not what was pulled" in pull(team, "--offline", code=3)
    elsewhere = team.folder / "copied"
    (elsewhere / REPO).mkdir(parents=True)
    (home(team) / COMMIT).rename(elsewhere / REPO / COMMIT)
    assert "is not what was pulled" in pull(team, "--offline", "--to", "copied", code=3)
    assert len(hub.log) == asked


def test_a_token_goes_to_the_hub_and_to_nobody_else(team, hub):
    hub.token = "hf_secret"
    token = team.folder / "token"
    write(team, hub)
    assert "token_file" in pull(team, code=3)
    token.write_text("hf_secret\n")
    token.chmod(0o644)
    write(team, hub, more='token_file = "token"')
    assert "others can read" in pull(team, code=2)
    token.chmod(0o600)
    said = pull(team, "--json")
    sent = {place: headers.get("Authorization") for place, _, headers in hub.log}
    assert sent == {"hub": "Bearer hf_secret", "cdn": None}
    assert "hf_secret" not in said + (team.state / "book.db").read_bytes().decode(errors="replace")
    agents = {headers["User-Agent"].partition("/")[0] for _, _, headers in hub.log}
    assert agents == {"freehold"}
    assert {headers["Accept-Encoding"] for _, _, headers in hub.log} == {"identity"}


def test_the_environment_names_no_hub_and_no_token(team, hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_of_somebody")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")  # for other machines than this
    monkeypatch.setenv("HF_HOME", str(team.folder / "hf"))
    write(team, hub)
    pull(team)
    assert {headers.get("Authorization") for _, _, headers in hub.log} == {None}
    assert not (team.folder / "hf").exists()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    asked = len(hub.log)
    pull(team)
    assert len(hub.log) == asked


def certificate(folder: Path) -> tuple[Path, Path, Path]:
    """An authority of our own, and a certificate of it for localhost."""
    from datetime import UTC, datetime, timedelta

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    now = datetime.now(UTC)

    def sign(name, key, issuer, issuer_key, extensions):
        named = [x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, each)]) for each in (name, issuer)]
        built = x509.CertificateBuilder().subject_name(named[0]).issuer_name(named[1]).public_key(key.public_key())
        built = built.serial_number(x509.random_serial_number()).not_valid_before(now - timedelta(1))
        built = built.not_valid_after(now + timedelta(1))
        for extension, critical in extensions:
            built = built.add_extension(extension, critical)
        return built.sign(issuer_key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

    own, servers = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    usage = x509.KeyUsage(
        digital_signature=True, key_cert_sign=True, crl_sign=True, content_commitment=False, key_encipherment=False,
        data_encipherment=False, key_agreement=False, encipher_only=False, decipher_only=False,
    )  # fmt: skip
    known = (x509.SubjectKeyIdentifier.from_public_key(own.public_key()), False)
    ours = [(x509.BasicConstraints(ca=True, path_length=0), True), (usage, True), known]
    by = (x509.AuthorityKeyIdentifier.from_issuer_public_key(own.public_key()), False)
    theirs = [(x509.SubjectAlternativeName([x509.DNSName("localhost")]), False), by]
    files = {
        "ca.pem": sign("Our CA", own, "Our CA", own, ours),
        "server.pem": sign("localhost", servers, "Our CA", own, theirs),
        "server.key": servers.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ),
    }
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder / "ca.pem", folder / "server.pem", folder / "server.key"


@pytest.fixture
def tls(tmp_path):
    import ssl

    folder = tmp_path / "tls"
    folder.mkdir()
    _, chain, key = certificate(folder)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(chain, key)
    return context


def test_a_private_authority_through_a_proxy(team, tls):
    hub = Hub(REPO, FILES, tls=tls)
    write(team, hub)
    assert "ca_file" in pull(team, code=5)
    way, seen = proxy()
    write(team, hub, more=f'ca_file = "tls/ca.pem"\nproxy = "{way.url}"')
    pull(team)
    assert set(seen) == {f"localhost:{hub.door.server_port}", f"localhost:{hub.cdn.server_port}"}
    hub.close()
    way.close()


def test_no_redirect_leads_from_https_to_http(team, tls):
    hub = Hub(REPO, FILES, tls=tls)
    write(team, hub, more='ca_file = "tls/ca.pem"')
    for target in ("http://127.0.0.1:1/blob", "file:///etc/passwd"):
        hub.redirect = target
        assert f"redirects to {target.partition('://')[0]}" in pull(team, code=3)
    hub.close()
