"""The trail from the outside: what the commands show, where checkpoints go, what the daemon notes of itself."""

import asyncio
import json
import os
import pwd
import re
import resource
import shutil
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from conftest import DEMO
from trails import a_record, an_event, book_in, breaks, tampering

from freehold.fleet.config import Trail
from freehold.gateway import custody as custodies
from freehold.gateway import limits as limiting
from freehold.gateway.custody import Custody
from freehold.gateway.limits import Limits
from freehold.ledger import chain
from freehold.ledger.book import Book

DOCS = Path(__file__).parents[1] / "docs" / "trail.md"
SSHD = "/usr/sbin/sshd"


def trail(team, lines):
    """Its configuration, with a table [trail]."""
    path = team.folder / "freehold.toml"
    path.write_text(f"{path.read_text()}\n[trail]\n{lines}\n")


def test_a_day_of_a_team_and_its_checkpoints(team):
    team.write(demo=team.fake(), other=f'weights = "{DEMO}"')
    trail(team, 'checkpoint_file = "kept/checkpoints"')
    (team.folder / "kept").mkdir()
    team.serve()
    request = team.ask("demo")["id"]
    request = team.records()[-1]["request"] or request
    said = team.run("audit", "verify")
    assert re.search(r"\d+ events and 2 usage rows are as they were written", said), said
    assert "Without a checkpoint that was kept elsewhere" in said
    printed = json.loads(team.run("audit", "checkpoint"))  # by the daemon
    team.kill()
    assert json.loads(team.run("audit", "checkpoint"))["public"] == printed["public"]  # without it
    team.serve()
    team.end()

    path = team.folder / "kept" / "checkpoints"
    assert path.stat().st_mode & 0o777 == 0o600
    assert [set(json.loads(line)) for line in path.read_bytes().splitlines()] == [set(printed)] * 3
    said = team.run("audit", "verify", "--checkpoint", "kept/checkpoints")
    assert "signed by the key beside this book" in said
    assert "by the key that you gave" in team.run(
        "audit", "verify", "--checkpoint", "kept/checkpoints", "--key", printed["public"]
    )
    assert "another key signed it" in team.run(
        "audit", "verify", "--checkpoint", "kept/checkpoints", "--key", "0" * 64, code=3
    )
    with tampering(team.state) as db:
        db.execute("update usage set completion_tokens = 0 where request = ?", (request,))
        db.execute("delete from event where seq = (select max(seq) from event)")
    said = team.run("audit", "verify", "--checkpoint", "kept/checkpoints", code=3)
    assert re.search(r"CHANGED +usage row 2: .*\n", said), said
    assert re.search(r"CUT +checkpoint 3", said), said
    (team.state / "book.db").write_bytes(b"no database")
    for name in ("book.db-wal", "book.db-shm"):
        (team.state / name).unlink(missing_ok=True)
    assert "restore a backup" in team.run("audit", "verify", code=3)
    team.run("audit", "verify", "--key", "x", code=2)


def test_the_log_is_sifted_by_time_kind_and_subject(team):
    team.write(demo=team.fake())
    team.serve()
    team.run("keys", "create", "ada")
    lines = team.run("audit", "log", "--json").splitlines()
    events = [json.loads(line) for line in lines]
    assert [event["number"] for event in events] == list(range(1, len(events) + 1))
    assert events[0]["kind"] == "config.loaded"
    assert json.loads(team.run("audit", "log", "-n", "1", "--json"))["number"] >= len(events)
    assert team.run("audit", "log", "--kind", "key.*").count("key.created") == 2
    assert "ada" in team.run("audit", "log", "--since", "1h", "--kind", "key.created")
    assert team.run("audit", "log", "--since", "2100-01-01") == ""
    assert team.run("audit", "log", "--subject", "nobody") == ""
    team.run("audit", "log", "--since", "soon", code=2)


def test_the_configuration_and_its_changes_are_noted_without_secrets(team):
    team.write(demo=team.fake())
    path = team.folder / "freehold.toml"
    path.write_text(path.read_text() + '\n[hub]\nproxy = "http://ada:hunter2/@x@proxy:3128"\n')
    trail(team, f'checkpoint_command = ["/bin/true", "--token={"hunter2" * 100}"]')
    team.serve()
    team.end()
    (loaded,) = team.events("config.loaded")
    assert re.search(r'^hub.proxy = "\*\*\*" \(the whole: [0-9a-f]{4}\)$', loaded["detail"]["config"], re.MULTILINE)
    assert 'trail.checkpoint_command = "/bin/true" (the whole: ' in loaded["detail"]["config"]
    said = team.run("audit", "log", "--kind", "config.loaded").splitlines()
    assert max(map(len, said)) < 450
    assert said[0].endswith("... (--json has all)")
    assert "hunter2" not in (team.state / "book.db").read_bytes().decode(errors="replace")
    team.serve()  # nothing is new
    team.end()
    path.write_text(path.read_text().replace("drain_seconds = 2", "drain_seconds = 3"))
    team.serve()
    team.end()
    (changed,) = team.events("config.changed")
    diff = changed["detail"]["diff"].splitlines()
    assert [line for line in diff if not line.startswith(("---", "+++", "@@"))] == [
        "-server.drain_seconds = 2.0",
        "+server.drain_seconds = 3.0",
    ]


def move_last_event(folder, ahead_s):
    """As the last daemon would have written it under another clock."""
    ahead_ns = time.time_ns() + ahead_s * 10**9
    with tampering(folder) as db:
        seq, content = db.execute("select seq, content from event order by seq desc limit 1").fetchone()
        db.execute("delete from event where seq = ?", (seq,))
        content = re.sub(r'"at_ns":\d+', f'"at_ns":{ahead_ns}', content).encode()
        before = db.execute("select hash from event order by seq desc limit 1").fetchone()[0]
        row = chain.link(seq, before, bytes(16), content)
        db.execute("insert into event values (?, ?, ?, ?, ?)", row._replace(content=content.decode()))


def test_keys_live_by_the_clock_of_the_book(team):
    team.write(demo=team.fake())
    team.serve()
    team.run("keys", "create", "short", "--expires", "1h")
    team.end()
    move_last_event(team.state, 400 * 86_400)
    team.serve()
    secret = team.run("keys", "create", "ada", "--expires", "1h").split()[0]
    assert team.post("demo", key=secret).status == 200
    assert "answer" in team.run("up")  # with a key for ten minutes
    listed = {key["name"]: key["state"] for key in json.loads(team.run("keys", "list", "--all", "--json"))}
    assert (listed["ada"], listed["short"]) == ("alive", "expired")
    assert "short" not in team.run("keys", "list")


def test_a_book_that_was_emptied_is_no_new_one(team):
    team.write(demo=team.fake())
    team.serve()
    team.end()
    for path in team.state.glob("book.db*"):
        path.unlink()
    (team.state / "book.db").touch()
    assert "empty or tampered with" in team.run("audit", "verify", code=3)
    assert "restore it" in team.run("serve", code=3)
    (team.state / "book.id").unlink()
    assert "empty or tampered with" in team.run("audit", "verify", code=3)
    with tampering(team.state) as db:
        db.execute("create table event (seq integer primary key)")
    assert "empty or tampered with" in team.run("audit", "verify", code=3)


def test_a_clock_that_was_set_back_is_said_and_times_go_on(team):
    team.write(demo=team.fake())
    team.serve()
    team.end()
    move_last_event(team.state, 90)
    team.serve()
    team.end()
    (said,) = team.events("daemon.clock_behind")
    assert 60 < said["detail"]["seconds"] < 90
    with sqlite3.connect(team.state / "book.db") as db:
        times_ns = [json.loads(row[0])["at_ns"] for row in db.execute("select content from event order by seq")]
    db.close()
    assert times_ns == sorted(times_ns)
    assert breaks(team.state) == []


def test_two_daemons_on_one_book_are_refused(team):
    team.write(demo=team.fake())
    team.serve()
    assert "a daemon already runs" in team.run("serve", code=3)


def test_a_kill_leaves_a_book_that_holds(team):
    team.write(demo=team.fake())
    team.serve()
    for _ in range(3):
        team.ask("demo")
        team.kill()
        assert "the trail holds" in team.run("audit", "verify")
        team.serve()
    team.end()
    assert "the trail holds" in team.run("audit", "verify")
    assert len(team.records()) == 3


def test_limits_that_are_hit_are_told_once_a_minute_and_counted(team):
    team.write(demo=team.fake("max_waiting = 0", delay_s=1.5))
    team.serve()
    dead = team.daemon.ask("POST", "/keys", {"name": "dead"})
    team.run("keys", "revoke", "dead")
    for _ in range(3):
        assert team.post("demo", key=dead["secret"]).status == 401
        assert team.post("demo").status == 503  # it only wakes
    team.end()
    hits = [(e["detail"]["limit"], e["detail"]["endpoint"], e["detail"]["times"]) for e in team.events("limit.hit")]
    assert hits[:2] == [("revoked key", "", 1), ("requests waiting", "demo", 1)]
    assert sorted(hits[2:]) == [("requests waiting", "demo", 2), ("revoked key", "", 2)]  # at the end of the daemon
    assert dead["key"]["id"] in {e["subject"] for e in team.events("limit.hit")}


class Stand:
    """What is used of a Ground."""

    def __init__(self, folder, book=None):
        self.state, self.book, self.told, self.now_ns = folder, book, [], 0

    def clock_ns(self):
        return self.now_ns or time.time_ns()

    def tell(self, kind, subject, **detail):
        self.told.append((kind, subject, detail))


def test_a_flood_is_a_few_events(tmp_path):
    stand = Stand(tmp_path)
    stand.now_ns = 1
    limits = Limits(stand)
    for _ in range(1000):
        limits.hit("requests waiting", "k", "demo")
    assert [detail["times"] for _, _, detail in stand.told] == [1]
    stand.now_ns += limiting.QUIET_NS
    for _ in range(5):
        limits.hit("requests waiting", "k", "demo")
    assert [detail["times"] for _, _, detail in stand.told] == [1, 1000]
    limits.close()
    assert [detail["times"] for _, _, detail in stand.told] == [1, 1000, 4]


# where checkpoints go


@pytest.fixture
async def stand(tmp_path):
    (tmp_path / "state").mkdir()
    book = Book(tmp_path / "state")
    book.add_event(an_event())
    yield Stand(tmp_path / "state", book)
    await book.close()


def failures(stand):
    return [(subject, detail["error"]) for kind, subject, detail in stand.told if kind == "trail.checkpoint_failed"]


async def test_a_place_that_fails_is_told_once_until_it_works_again(stand, tmp_path):
    path = tmp_path / "there" / "checkpoints"
    custody = Custody(stand, Trail(checkpoint_file=str(path)))
    await custody.attest()
    await custody.attest()
    assert len(failures(stand)) == 1
    path.parent.mkdir()
    await custody.attest()
    path.unlink()
    path.symlink_to(tmp_path / "elsewhere")
    await custody.attest()
    assert len(failures(stand)) == 2
    assert not (tmp_path / "elsewhere").exists()
    await Custody(stand, Trail(checkpoint_file="/dev/full")).attest()
    assert "no regular file" in failures(stand)[-1][1]


@pytest.mark.parametrize(
    ("address", "place"),
    [
        ("http://proxy:3128", "http://proxy:3128"),
        ("http://ada:pass@proxy:3128/deep?token=x#y", "http://proxy:3128"),
        ("http://[::1]:80/x", "http://[::1]:80"),
        ("unix:/run/engine.sock", "unix:/run/engine.sock"),
        ("http://ada:pa/ss@proxy:3128", "***"),
        ("http://ada:12/ss@proxy:3128", "***"),
        ("http://ada:p@ss@proxy:3128", "***"),
        ("http://ada:pa?ss@proxy:3128", "***"),
        ("http://ada:1#ss@proxy:3128", "***"),
        ("ada:pass@proxy:3128", "***"),
        ("", ""),
    ],
)
def test_of_an_address_only_what_holds_no_secret_is_noted(address, place):
    tables = {"hub": {"proxy": address}, "endpoints": {"far": {"url": address}}}
    said = [line.partition(" = ")[2].partition(" (the whole")[0] for line in custodies._lines(tables)]
    assert said == [json.dumps(place)] * 2
    other = [*custodies._lines({"hub": {"proxy": f"{address}/other"}})]
    assert other != [*custodies._lines(tables)][:1]


async def test_a_place_that_hangs_does_not_hold_the_daemon(stand, tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe")
    await Custody(stand, Trail(checkpoint_file=str(tmp_path / "pipe"))).attest()  # nobody reads it
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    await Custody(stand, Trail(checkpoint_file=str(tmp_path / "pipe"))).attest()
    os.close(reader)
    assert "no regular file" in failures(stand)[-1][1]
    stuck = threading.Event()
    monkeypatch.setattr(custodies, "SEND_S", 0.2)
    monkeypatch.setattr(custodies, "_append", lambda *_: stuck.wait(30))
    custody = Custody(stand, Trail(checkpoint_file="/dead/server"))
    began = time.monotonic()
    await custody.attest()
    await custody.attest()  # and no second thread
    stuck.set()
    assert time.monotonic() - began < 5
    assert [said for place, said in failures(stand) if place == "/dead/server"] == [
        "/dead/server took longer than 0.2 s"
    ]
    assert custody._writing
    assert custody._writing.daemon


async def test_half_a_line_does_not_stay_on_a_full_disk(stand, tmp_path):
    path = tmp_path / "checkpoints"
    custody = Custody(stand, Trail(checkpoint_file=str(path)))
    await custody.attest()
    before = path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 50, hard))
    try:
        with pytest.raises(OSError, match="no space"):
            custodies._append(path, before)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == before


async def test_a_book_that_cannot_be_cleared_does_not_end_the_checkpoints(stand, monkeypatch):
    """Whatever SQLite says about it."""
    stand.book.settle_request(a_record())

    def fail(*_, **__):
        raise sqlite3.DatabaseError("database disk image is malformed")

    monkeypatch.setattr("freehold.ledger.book.sqlite3.connect", fail)
    await Custody(stand, Trail(keep_usage_days=1)).retain()


async def test_a_command_gets_the_line_and_next_to_no_environment(stand, tmp_path, monkeypatch):
    monkeypatch.setenv("FREEHOLD_SECRET", "x")
    monkeypatch.setattr(custodies, "SEND_S", 0.5)
    sh = ("/bin/sh", "-c")
    await Custody(stand, Trail(checkpoint_command=(*sh, f"env > {tmp_path}/env; cat > {tmp_path}/line"))).attest()
    assert failures(stand) == []
    assert json.loads((tmp_path / "line").read_bytes())["event"] == 1
    names = {line.partition("=")[0] for line in (tmp_path / "env").read_text().splitlines()}
    assert names - {"PWD", "SHLVL", "_", "OLDPWD"} == {"PATH", "HOME"}  # a shell adds its own
    for command, said in (
        (("/nowhere/at/all",), "No such file"),
        ((*sh, "echo no disk >&2; exit 7"), "ended with 7: no disk"),
        ((*sh, f"echo $$ > {tmp_path}/pid; sleep 1000"), "took longer"),
    ):
        await Custody(stand, Trail(checkpoint_command=command)).attest()
        assert said in failures(stand)[-1][1]
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def vault(tmp_path):
    """Another machine, as far as OpenSSH can tell: the command that reaches it, the file it writes, its server."""
    if not Path(SSHD).exists() or not shutil.which("ssh"):
        pytest.skip("no OpenSSH server here")
    if os.getuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # where a server that root runs must be able to go
    me, port, vault = pwd.getpwuid(os.getuid()).pw_name, free_port(), tmp_path / "vault"
    for name in ("host", "mine"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / name], check=True)
    (tmp_path / "authorized").write_text(f'restrict,command="cat >> {vault}" {(tmp_path / "mine.pub").read_text()}')
    (tmp_path / "known").write_text(f"[127.0.0.1]:{port} {(tmp_path / 'host.pub').read_text()}")
    (tmp_path / "sshd_config").write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {tmp_path}/host\nAuthorizedKeysFile {tmp_path}/authorized\n"
        "StrictModes no\nPasswordAuthentication no\nPidFile none\nUsePAM no\nPermitRootLogin yes\n"
    )
    server = subprocess.Popen([SSHD, "-D", "-e", "-f", tmp_path / "sshd_config"], stderr=subprocess.PIPE, text=True)
    try:
        while "listening on" not in (line := server.stderr.readline()):
            assert line, "the server did not start"
        options = f"-F none -o BatchMode=yes -o UserKnownHostsFile={tmp_path}/known -i {tmp_path}/mine -p {port}"
        yield ("ssh", *options.split(), f"{me}@127.0.0.1", "rm -rf everything"), vault, server
    finally:
        server.kill()
        server.wait()
        server.stderr.close()


async def test_checkpoints_reach_another_machine_over_ssh(stand, vault):
    command, file, server = vault  # whatever the command asks for, the server runs its own
    custody = Custody(stand, Trail(checkpoint_command=command))
    await custody.attest()
    stand.book.settle_request(a_record())
    await custody.attest()
    assert failures(stand) == []
    assert [json.loads(line)["event"] for line in file.read_bytes().splitlines()] == [1, 2]
    server.terminate()
    server.wait()
    await custody.attest()
    assert "ssh ended with 255" in failures(stand)[-1][1]


# a check that is not ours


def test_the_check_in_the_documents_agrees(tmp_path):
    (script,) = re.findall(r"```py\n(.+?)```", DOCS.read_text(), re.DOTALL)
    (tmp_path / "check.py").write_text(script)
    asyncio.run(book_in(tmp_path, events=20, rows=450, seal_each=70))

    def check():
        command = [sys.executable, tmp_path / "check.py", tmp_path / "book.db"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        return done.returncode, done.stdout + done.stderr

    code, said = check()
    assert (code, "and 450 usage rows" in said) == (0, True), said
    for change, found in (
        ("update usage set total_ms = 0.5 where number = 449", "usage row 449"),
        ("update event set content = replace(content, 'ada', 'eve') where seq = 15", "event 15"),
    ):
        with tampering(tmp_path) as db:
            db.execute(change)
        code, said = check()
        assert (code, found in said) == (1, True), said
