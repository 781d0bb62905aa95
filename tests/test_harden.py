"""Units and rules for hosts without bubblewrap: what they say, that systemd and nft can read them, and what cannot be
written into them. Nothing here loads them."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from freehold.cli.main import cli
from freehold.errors import BadConfig
from freehold.executors.nftables import rules
from freehold.executors.systemd import Service, plain, unit

SERVICE = Service(
    user="freehold",
    command=("/opt/freehold/bin/python", "-m", "freehold", "-c", "/etc/freehold/freehold.toml", "serve"),
    port=8080,
    writable=("/home/ai/state",),
    readable=("/home/ai/models", "/opt/freehold"),
)
OPEN = replace(
    SERVICE,
    port=8443,
    clients=("10.0.0.0/8", "192.168.7.4/32", "2001:db8::/32"),
    peers=(("10.9.9.9", 9000), ("2001:db8::9", 9000), ("", 443)),
    nameservers=("10.0.0.53",),
    devices=("/dev/nvidia0", "/dev/nvidiactl"),
)
SERVICES = {"plain": SERVICE, "open": OPEN}


def settings(text: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name, value in re.findall(r"^([A-Za-z]+)=(.*)$", text, re.MULTILINE):
        found.setdefault(name, []).append(value)
    return found


@pytest.mark.parametrize(
    ("service", "expected"),
    [
        ("plain", {"User": ["freehold"], "PrivateDevices": ["yes"], "ProtectHome": ["tmpfs"], "PrivateTmp": ["yes"]}),
        ("plain", {"ReadWritePaths": ["/home/ai/state"], "BindPaths": ["/home/ai/state"]}),
        ("plain", {"BindReadOnlyPaths": ["-/home/ai/models -/opt/freehold"]}),
        ("plain", {"IPAddressDeny": ["any"], "IPAddressAllow": ["localhost"], "SocketBindAllow": ["tcp:8080"]}),
        ("plain", {"CapabilityBoundingSet": [""], "AmbientCapabilities": [""], "NoNewPrivileges": ["yes"]}),
        ("plain", {"RestrictNamespaces": ["yes"], "MemoryDenyWriteExecute": ["yes"], "LimitCORE": ["0"]}),
        ("plain", {"KillMode": ["control-group"], "Restart": ["on-failure"], "UMask": ["0077"]}),
        ("plain", {"SystemCallFilter": ["@system-service", "~@privileged"], "KeyringMode": ["private"]}),
        ("open", {"DevicePolicy": ["closed"], "DeviceAllow": ["/dev/nvidia0 rw", "/dev/nvidiactl rw"]}),
        (
            "open",
            {
                "IPAddressAllow": [
                    "localhost 10.0.0.0/8 192.168.7.4/32 2001:db8::/32 10.9.9.9 2001:db8::9 10.0.0.53",
                ],
            },
        ),
    ],
)
def test_the_unit_says(service, expected):
    found = settings(unit(SERVICES[service]))
    assert {name: found[name] for name in expected} == expected


def test_with_cards_the_unit_does_not_say_what_would_break_their_drivers():
    assert not {"PrivateDevices", "MemoryDenyWriteExecute"} & settings(unit(OPEN)).keys()


def test_the_rules():
    assert (
        rules(OPEN).splitlines()[4:]
        == """
table inet freehold
delete table inet freehold
table inet freehold {
  counter dropped {
  }
  chain output {
    type filter hook output priority filter; policy accept;
    meta skuid "freehold" jump daemon
  }
  chain daemon {
    oifname "lo" accept
    ip daddr 10.0.0.0/8 tcp sport 8443 ct direction reply accept
    ip daddr 192.168.7.4/32 tcp sport 8443 ct direction reply accept
    ip6 daddr 2001:db8::/32 tcp sport 8443 ct direction reply accept
    ip daddr 10.0.0.53 meta l4proto { tcp, udp } th dport 53 accept
    ip daddr 10.9.9.9 tcp dport 9000 accept
    ip6 daddr 2001:db8::9 tcp dport 9000 accept
    meta nfproto { ipv4, ipv6 } tcp dport 443 accept
    counter name dropped drop
  }
}""".splitlines()[1:]
    )


def test_a_daemon_on_loopback_without_peers_has_loopback_and_nothing_else():
    chain = rules(SERVICE).split("chain daemon {")[1]
    assert [line.strip() for line in chain.splitlines() if line.strip(" }")] == [
        'oifname "lo" accept',
        "counter name dropped drop",
    ]


@pytest.mark.parametrize("text", [unit(SERVICE), rules(SERVICE)])
def test_the_first_line_says_that_it_was_not_run(text):
    assert text.startswith("# generated, not run here\n")


@given(st.text())
def test_a_word_of_a_unit_means_itself_or_is_refused(word):
    try:
        assert plain(word) == word
    except BadConfig:
        return
    assert not set(word) & set(" \t\n%$;#\"'\\:*?[]{}")


@pytest.mark.parametrize("service", SERVICES)
def test_systemd_can_read_the_unit(service, tmp_path):
    program = shutil.which("systemd-analyze") or pytest.skip("systemd-analyze is not installed")
    path = tmp_path / "freehold-test.service"
    command = (shutil.which("true"), *SERVICES[service].command[1:])  # it looks whether the program is there
    path.write_text(unit(replace(SERVICES[service], command=command)))
    done = subprocess.run([program, "verify", "--man=no", path], capture_output=True, text=True, check=False)
    assert (done.returncode, [line for line in done.stderr.splitlines() if path.name in line]) == (0, [])


@pytest.mark.parametrize("service", SERVICES)
def test_nft_can_read_the_rules(service):
    program = shutil.which("nft", path="/usr/sbin:/usr/bin") or pytest.skip("nft is not installed")
    text = rules(replace(SERVICES[service], user="nobody"))
    done = subprocess.run([program, "-c", "-f", "-"], input=text, capture_output=True, text=True, check=False)
    if "Operation not permitted" in done.stderr:
        pytest.skip("nft -c asks the kernel, which only root may")
    assert (done.returncode, done.stderr) == (0, "")


def run(folder: Path, toml: str, *args: str):
    (folder / "freehold.toml").write_text(toml)
    return CliRunner().invoke(cli, ["-c", str(folder / "freehold.toml"), "harden", *args])


TOML = """
state_dir = "/var/lib/freehold"
[server]
listen = "0.0.0.0:8443"
behind_proxy = true
[policy]
isolation = "off"
[trail]
checkpoint_file = "/mnt/worm/checkpoints"
checkpoint_command = ["ssh", "log@vault"]
[endpoints.demo]
weights = "/srv/models/demo.gguf"
binary = "/opt/llama/llama-server"
[endpoints.far]
engine = "external"
url = "http://192.0.2.7:9000"
api_key_file = "/etc/freehold/far.key"
[endpoints.near]
engine = "external"
url = "http://127.0.0.1:9000"
[endpoints.socket]
engine = "external"
url = "unix:/run/x.sock"
"""


def test_the_command_takes_everything_from_the_configuration(tmp_path):
    said = run(tmp_path, TOML, "systemd", "--user", "llm", "--clients", "10.0.0.0/8")
    found = settings(said.output)
    assert found["User"] == ["llm"]
    assert found["ExecStart"] == [f"{sys.executable} -m freehold -c {tmp_path}/freehold.toml serve"]
    assert found["ReadWritePaths"] == ["/var/lib/freehold /mnt/worm"]
    readable = {"/srv/models/demo.gguf", "/opt/llama", "/etc/freehold/far.key", f"{tmp_path}/freehold.toml"}
    assert {f"-{path}" for path in readable} <= set(found["BindReadOnlyPaths"][0].split())
    assert found["IPAddressAllow"] == ["localhost 10.0.0.0/8 192.0.2.7"]


def test_the_hub_only_if_that_is_said(tmp_path):
    without, with_hub = (
        run(tmp_path, TOML, "nftables", "--clients", "10.0.0.0/8", *more).output for more in ((), ("--allow-hub",))
    )
    hub = "    meta nfproto { ipv4, ipv6 } tcp dport 443 accept\n"
    assert hub not in without
    assert hub in with_hub
    assert "    ip daddr 192.0.2.7 tcp dport 9000 accept\n" in without


@pytest.mark.parametrize(
    ("toml", "args", "why"),
    [
        (TOML, (), "is open to the network"),
        (TOML, ("--clients", "10.0.0.1/8"), "has host bits set"),
        ("", ("--user", "a b"), "is no user's name"),
        ('state_dir = "/srv/a b"', (), "cannot be written into a unit"),
        ('[policy]\nisolation = "required"', (), "policy.isolation requires it"),
        ('[endpoints.x]\nengine = "external"\nurl = "http://no.such.host.invalid"', (), "has no address here"),
    ],
)
def test_what_cannot_be_made_into_a_unit_is_said(tmp_path, toml, args, why):
    said = run(tmp_path, toml, "systemd", *args)
    assert isinstance(said.exception, BadConfig)
    assert why in str(said.exception)
