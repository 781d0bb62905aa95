"""The machine: what is probed, what each check says, and how to get what is missing."""

# ruff: noqa: N802 - the fake driver has NVML's own names
from __future__ import annotations

import json
import shutil
import socket
import sqlite3
import sys
from contextlib import closing
from pathlib import Path

import msgspec
import psutil
import pynvml
import pytest
from click.testing import CliRunner
from conftest import DEMO
from msgspec.structs import replace

from freehold.cli.doctor import command
from freehold.errors import FreeholdError
from freehold.fleet import doctor
from freehold.fleet.bandwidth import measure
from freehold.fleet.doctor import Check
from freehold.fleet.host import cpu_facts, gpus, probe
from freehold.ledger.measured import memory
from freehold.ledger.report import reading
from freehold.plan.cpu_speed import Memory
from freehold.types import Gpu, Host
from freehold.weights import describe

GIB = 1 << 30
HOST = Host(name="box", cpu="a CPU", cores=4, memory_bytes=8 * GIB, available_bytes=4 * GIB)


def fake_root(root: Path, files: dict[str, str]) -> Path:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return root


# -- probe -----------------------------------------------------------------------------------------------------------


def test_probe_sees_this_machine():
    host = probe()
    assert host.name
    assert host.cpu
    assert 1 <= host.cores <= (psutil.cpu_count() or 1)
    assert 0 < host.available_bytes <= host.memory_bytes <= psutil.virtual_memory().total


def test_probe_without_proc_or_sys_still_answers(tmp_path):
    host = probe(tmp_path)
    assert host.memory_bytes == psutil.virtual_memory().total
    assert host.cpu


def test_probe_takes_the_lowest_cgroup_limit_and_counts_droppable_cache_as_free(tmp_path):
    cgroup = "sys/fs/cgroup"
    root = fake_root(
        tmp_path,
        {
            "proc/self/cgroup": "0::/slice/job\n",
            "proc/cpuinfo": "processor : 0\nmodel name : Fake CPU\nflags : avx2 fma\n\nprocessor : 1\n",
            f"{cgroup}/slice/job/memory.max": "max\n",
            f"{cgroup}/slice/job/memory.current": "1000\n",
            f"{cgroup}/slice/job/cpu.max": "max 100000\n",
            f"{cgroup}/slice/memory.max": f"{64 << 20}\n",
            f"{cgroup}/slice/memory.current": f"{48 << 20}\n",
            f"{cgroup}/slice/memory.stat": f"anon 1\ninactive_file {16 << 20}\n",
            f"{cgroup}/slice/cpu.max": "150000 100000\n",
        },
    )
    host = probe(root)
    assert (host.memory_bytes, host.available_bytes, host.cores, host.cpu) == (64 << 20, 32 << 20, 1, "Fake CPU")
    assert cpu_facts(root)["flags"] == "avx2 fma"


def test_a_limit_above_what_there_is_changes_nothing(tmp_path):
    files = {
        "proc/self/cgroup": "0::/\n",
        "sys/fs/cgroup/memory.max": f"{1 << 60}",
        "sys/fs/cgroup/memory.current": "1",
    }
    assert probe(fake_root(tmp_path, files)).memory_bytes == psutil.virtual_memory().total


class FakeNvml:
    """A driver with two cards, the second of which fell off the bus."""

    NVMLError = pynvml.NVMLError

    def __init__(self, *, driver: bool = True) -> None:
        self.driver, self.open = driver, 0

    def nvmlInit(self):
        if not self.driver:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)
        self.open += 1

    def nvmlShutdown(self):
        self.open -= 1

    def nvmlSystemGetDriverVersion(self):
        return "580.1"

    def nvmlDeviceGetCount(self):
        return 2

    def nvmlDeviceGetMinorNumber(self, card):
        return card

    def nvmlDeviceGetHandleByIndex(self, index):
        if index == 1:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_GPU_IS_LOST)
        return index

    def nvmlDeviceGetMemoryInfo(self, card):
        return msgspec.defstruct("Memory", ["total", "free"])(24 * GIB, 20 * GIB)

    def nvmlDeviceGetName(self, card):
        return "NVIDIA L4"


def test_cards_are_listed_and_a_lost_one_does_not_hide_the_others(monkeypatch):
    monkeypatch.setattr("freehold.fleet.host.pynvml", nvml := FakeNvml())
    assert gpus() == (
        Gpu(name="NVIDIA L4", memory_bytes=24 * GIB, free_bytes=20 * GIB, driver="580.1", node="/dev/nvidia0"),
    )
    assert nvml.open == 0


def test_no_driver_means_no_cards(monkeypatch):
    monkeypatch.setattr("freehold.fleet.host.pynvml", FakeNvml(driver=False))
    assert gpus() == ()


# -- checks ----------------------------------------------------------------------------------------------------------

CARD = Gpu(name="NVIDIA L4", memory_bytes=24 * GIB, free_bytes=20 * GIB, driver="580.1")


@pytest.mark.parametrize(
    ("check", "state", "says"),
    [
        (doctor.check_python((3, 11, 2)), "ok", "3.11.2"),
        (doctor.check_python((3, 10, 9)), "fail", "apt install"),
        (doctor.check_machine(HOST), "ok", "4 physical cores, 4.0 GiB available of 8.0 GiB RAM"),
        (doctor.check_machine(replace(HOST, available_bytes=GIB)), "warn", "free some memory"),
        (doctor.check_cpu("x86_64", "sse2 avx2 fma f16c"), "ok", "avx2"),
        (doctor.check_cpu("x86_64", "sse2 avx fma"), "fail", "no avx2, f16c"),
        (doctor.check_cpu("x86_64", ""), "warn", "AVX2"),
        (doctor.check_cpu("aarch64", ""), "ok", "aarch64"),
        (doctor.check_library("libc.so.6", "libc6"), "ok", "loads"),
        (doctor.check_library("libnothing-of-the-kind.so.9", "libnothing9"), "fail", "apt install libnothing9"),
        (doctor.check_bubblewrap(None), "warn", "apt install bubblewrap"),
        (doctor.check_gpus(HOST), "ok", "none"),
        (doctor.check_gpus(replace(HOST, gpus=(CARD,))), "ok", "NVIDIA L4 (20.0 of 24.0 GiB free); driver 580.1"),
        (doctor.check_listen("nonsense"), "fail", "no address"),
        (doctor.check_listen("127.0.0.1:99999"), "fail", "no address"),
    ],
)
def test_each_check_says_what_was_found_and_how_to_mend_it(check, state, says):
    assert check.state == state
    assert says in check.found + " " + check.fix
    assert bool(check.fix) == (state != "ok")


@pytest.mark.skipif(sys.platform != "linux", reason="bubblewrap exists on Linux only")
def test_bubblewrap_is_run_and_its_complaint_is_shown(tmp_path):
    broken = tmp_path / "bwrap"
    broken.write_text("#!/bin/sh\necho 'bwrap: No permissions to create new namespace' >&2\nexit 1\n")
    broken.chmod(0o755)
    check = doctor.check_bubblewrap(str(broken))
    assert check.state == "warn"
    assert "NOT ISOLATED: bubblewrap does not work here: bwrap: No permissions to create new namespace" in check.found
    assert "unprivileged" in check.fix
    assert doctor.check_bubblewrap(str(tmp_path / "gone")).state == "warn"
    if program := shutil.which("bwrap"):
        assert doctor.check_bubblewrap(program).state in {"ok", "warn"}


def test_disk_is_measured_where_the_state_would_be(tmp_path, monkeypatch):
    for free_gib, state in ((50, "ok"), (5, "warn"), (0.5, "fail")):
        usage = msgspec.defstruct("Usage", ["free"])(int(free_gib * GIB))
        monkeypatch.setattr("shutil.disk_usage", lambda folder, usage=usage: usage)
        check = doctor.check_disk(tmp_path / "not" / "yet")
        assert check.state == state
        assert str(tmp_path) in check.found


def test_a_taken_port_is_noticed_and_a_free_one_is_left_free():
    with socket.create_server(("127.0.0.1", 0)) as server:
        listen = f"127.0.0.1:{server.getsockname()[1]}"
        assert doctor.check_listen(listen).state == "warn"
    assert doctor.check_listen(listen).state == "ok"
    assert doctor.check_listen(listen).state == "ok"


# -- the command -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("state", "status"), [("ok", 0), ("warn", 0), ("fail", 1)])
def test_doctor_command_fails_only_when_a_check_does(monkeypatch, state, status):
    found = [Check(name="thing", state=state, found="as it is", fix="apt install thing")]
    monkeypatch.setattr("freehold.fleet.doctor.checks", lambda **_: found)
    shown = CliRunner().invoke(command, [], obj=Path("no.toml"))
    assert (shown.exit_code, "apt install thing" in shown.stdout) == (status, True)
    as_json = CliRunner().invoke(command, ["--json"], obj=Path("no.toml"))
    assert set(found) < set(msgspec.json.decode(as_json.stdout, type=list[Check]))


def test_doctor_command_on_this_machine():
    done = CliRunner().invoke(command, ["--json"], obj=Path("no.toml"))
    names = [check.name for check in msgspec.json.decode(done.stdout, type=list[Check])]
    assert names[:4] == ["Python", "cores and RAM", "memory speed", "CPU features"]
    assert {"bubblewrap", "NVIDIA cards", "disk", "listen"} <= set(names)


# -- how fast the memory is ------------------------------------------------------------------------------------------


def test_memory_and_cache_are_read(tmp_path):
    """Its shape: how fast a machine is no test can know."""
    cache = "sys/devices/system/cpu/cpu0/cache"
    root = fake_root(tmp_path, {f"{cache}/index0/size": "48K\n", f"{cache}/index3/size": "2048K\n"})
    found = measure(replace(HOST, cores=2, available_bytes=0), 7, root)
    assert (found.cores, found.cpu, found.at_ns, found.cache_bytes) == (2, "a CPU", 7, 2 << 20)
    for rate in (found.one_gb_s, found.all_gb_s, found.cache_gb_s):
        assert 0.1 < rate < 100_000


def test_a_machine_that_says_nothing_of_its_cache_is_measured_all_the_same(tmp_path):
    assert measure(replace(HOST, available_bytes=0), 7, tmp_path).cache_bytes == 16 << 20


def speed(team) -> dict:
    found = next(check for check in json.loads(team.run("doctor", "--json")) if check["name"] == "memory speed")
    assert "GB/s read by" in found["found"]
    return found


def test_the_memory_is_measured_once_and_kept_for_plans(team):
    """Without a daemon, and again with one."""
    team.write()
    first = speed(team)
    assert (first["state"], speed(team)) == ("ok", first)
    (event,) = team.events("machine.measured")
    kept = msgspec.convert(event["detail"], Memory)
    assert (event["subject"], kept.cpu, kept.cores) == (probe().name, probe().cpu, probe().cores)
    (plan,) = json.loads(team.run("plan", str(DEMO), "--here", "--json"))["choice"]["plans"]
    read = describe(DEMO).weight_bytes
    assert plan["ceiling"] == pytest.approx(kept.all_gb_s * 1e9 / read)
    team.serve()
    team.run("doctor", "--measure")
    events = team.events("machine.measured")
    assert len(events) == 2
    assert events[1]["detail"]["at_ns"] > kept.at_ns
    with reading(team.state) as db:
        assert memory(db, probe()) == msgspec.convert(events[1]["detail"], Memory)
        assert memory(db, replace(probe(), cpu="another one")) is None
        assert memory(db, replace(probe(), name="another machine")) is None
    with pytest.raises(FreeholdError, match="not what was measured of a memory"):
        team.daemon.ask("POST", "/events", {"kind": "machine.measured", "subject": "box", "detail": {"one_gb_s": "x"}})


def test_what_another_edition_measured_is_measured_again(team):
    team.write()
    first = speed(team)
    with closing(sqlite3.connect(team.state / "book.db")) as db, db:
        db.execute("update about set value = '{\"one_gb_s\": 1.0}' where name like 'memory of %'")
    assert speed(team) != first


def test_without_a_team_it_is_measured_and_not_kept(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(command, ["--json"], obj=Path("freehold.toml"))
    (found,) = (check for check in msgspec.json.decode(done.stdout, type=list[Check]) if check.name == "memory speed")
    assert found.state == "warn"
    assert "not kept for plans" in found.found
    assert "there is no freehold.toml here" in found.fix
    assert list(tmp_path.iterdir()) == []


def test_a_book_that_cannot_be_read_is_no_reason_not_to_show_the_rest(team):
    team.write()
    speed(team)
    (team.state / "book.db").write_bytes(b"no database at all, but longer than a header of one" * 40)
    found = speed(team)
    assert (found["state"], "cannot be read" in found["fix"]) == ("warn", True)
