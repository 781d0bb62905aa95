"""What a hub, its CDN, the network and the disk can do to a pull: in this process, against a hub of our own."""

from __future__ import annotations

import errno
import hashlib
import json
import shutil
import subprocess
import sys
import threading
from types import SimpleNamespace

import pytest
from hub_server import COMMIT, Hub
from hypothesis import given
from hypothesis import strategies as st
from weight_files import CONFIG, gguf_bytes, safetensors_bytes, tensor

from freehold.errors import BadConfig, BadRequest, DoesNotFit, Forbidden, FreeholdError, HubFailed, Refused, Unknown
from freehold.sources import hub as adapter
from freehold.sources.hub import Listed, Listing
from freehold.weights import fetch
from freehold.weights.choice import choose
from freehold.weights.fetch import Fetch

REPO = "acme/tiny"
NAME = "tiny.gguf"
BIG = gguf_bytes(tensors=[tensor("a", (256, 1024), 0, 0)], data=b"\1" * (1 << 20))


class Quiet:
    """A Watcher that remembers."""

    def __init__(self):
        self.said, self.done, self.total = [], 0, 0

    def say(self, text):
        self.said.append(text)

    def show(self, have_bytes, total_bytes):
        self.done, self.total = have_bytes, total_bytes


@pytest.fixture
def server():
    server = Hub(REPO, {NAME: BIG, "README.md": b"# Tiny\n"})
    yield server
    server.close()


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(adapter, "_STALL_S", 0.4)
    monkeypatch.setattr(adapter, "_PAUSES_S", (0, 0.01, 0.01, 0.01, 0.01))


def pull(server, root, watcher=None, revision="main"):
    door = adapter.Hub(server.url)
    try:
        listing = door.listing(REPO, revision)
        fetch = Fetch(door, listing, choose(listing), root, watcher or Quiet())
        with fetch.alone():
            return fetch.run()
    finally:
        door.close()


def nothing_published(root) -> bool:
    return not (root / REPO / COMMIT).exists()


def test_progress_ends_where_the_files_do(server, tmp_path):
    watcher = Quiet()
    done = pull(server, tmp_path, watcher)
    assert watcher.done == watcher.total == done.downloaded_bytes == len(BIG) + 7
    assert (done.folder / NAME).read_bytes() == BIG


def test_a_broken_connection_is_taken_up_again_where_it_broke(server, tmp_path):
    server.cuts[NAME] = [100_000, 200_000, 0]
    assert pull(server, tmp_path).downloaded_bytes == len(BIG) + 7
    sent = [count for name, count in server.sent if name == NAME]
    assert sent == [100_000, 200_000, len(BIG) - 300_000]


def test_only_tries_that_bring_nothing_are_counted(server, tmp_path):
    server.cuts[NAME] = [1000] * 9
    assert pull(server, tmp_path).downloaded_bytes == len(BIG) + 7


def test_a_refusal_ends_the_other_downloads(server, tmp_path):
    server.served["README.md"], server.rate_bytes_s = b"# Evil\n", 100_000
    with pytest.raises(Refused):
        pull(server, tmp_path)
    threads = [each for each in threading.enumerate() if "ThreadPool" in each.name]
    for each in threads:
        each.join(2)
    assert not any(each.is_alive() for each in threads)
    assert dict(server.sent)[NAME] < len(BIG) / 2


def test_compressed_answers_are_not_unpacked(server, tmp_path):
    server.headers = {"Content-Encoding": "gzip"}
    with pytest.raises(HubFailed, match="compressed"):
        pull(server, tmp_path)


def test_a_server_without_ranges_sends_all_again(server, tmp_path):
    server.cuts[NAME], server.ranges = [100_000, 0], False
    assert pull(server, tmp_path).downloaded_bytes == len(BIG) + 7
    assert [count for name, count in server.sent if name == NAME] == [100_000, len(BIG)]


def test_silence_ends_and_the_file_is_asked_for_again(server, tmp_path):
    server.stall_once = {NAME}
    pull(server, tmp_path)
    assert [count for name, count in server.sent if name == NAME] == [0, len(BIG)]


def test_connections_that_always_break_are_given_up_and_taken_up_by_the_next_pull(server, tmp_path):
    server.served[NAME] = b""
    with pytest.raises(HubFailed, match="ended after 0 of"):
        pull(server, tmp_path)
    assert nothing_published(tmp_path)
    server.served.clear()
    pull(server, tmp_path)


def test_a_changed_byte_is_fetched_once_more_and_then_refused(server, tmp_path):
    server.served[NAME] = BIG[:-1] + b"\2"
    watcher = Quiet()
    with pytest.raises(
        Refused, match=f"{NAME} came twice with the digest {hashlib.sha256(server.served[NAME]).hexdigest()}"
    ):
        pull(server, tmp_path, watcher)
    assert [name for name, _ in server.sent].count(NAME) == 2
    assert nothing_published(tmp_path)
    assert not (tmp_path / REPO / f".{COMMIT}.partial" / NAME).exists()
    server.served.clear()
    pull(server, tmp_path)


def test_a_part_that_was_damaged_here_heals(server, tmp_path):
    partial = tmp_path / REPO / f".{COMMIT}.partial"
    partial.mkdir(parents=True)
    (partial / NAME).write_bytes(b"\0" * 1000)
    (partial / "README.md").write_bytes(b"much longer than it was listed")
    (partial / "stray.py").write_text("from another pull")
    (partial / "LICENSE").symlink_to(secret := tmp_path / "secret")
    server.files["LICENSE"] = b"As you like.\n"
    secret.touch(0o600)
    assert pull(server, tmp_path).folder.joinpath(NAME).read_bytes() == BIG
    assert not (tmp_path / REPO / COMMIT / "stray.py").exists()
    assert (secret.stat().st_size, secret.stat().st_mode & 0o777) == (0, 0o600)


def test_small_files_are_held_to_gits_digest(server, tmp_path):
    server.served["README.md"] = b"# Evil\n"
    with pytest.raises(Refused, match=r"README\.md came twice"):
        pull(server, tmp_path)


@pytest.mark.parametrize("more", [1, 1 << 20])
def test_more_bytes_than_were_listed_stop_at_the_limit(server, tmp_path, more):
    server.served[NAME] = BIG + b"\0" * more
    with pytest.raises(Refused, match="sends more"):
        pull(server, tmp_path)
    path = tmp_path / REPO / f".{COMMIT}.partial" / NAME
    assert path.stat().st_size <= len(BIG)


@pytest.mark.parametrize(
    ("revision", "lie", "said"),
    [
        (COMMIT, {"sha": "beef" * 10}, "with commit 'beef"),
        ("main", {"sha": "main"}, "with commit 'main'"),
        ("main", {"sha": "../../../" + COMMIT}, "with commit '../"),
        ("main", {"id": "acme/new\x1b[2J"}, r"answers for 'acme/new\\x1b\[2J', not for acme/tiny"),
        ("main", {"id": "acme/../../tiny"}, "answers for 'acme/"),
    ],
)
def test_another_repository_or_commit_than_was_asked_for(server, tmp_path, revision, lie, said):
    server.lied = lie
    with pytest.raises(Refused, match=said):
        pull(server, tmp_path, revision=revision)


@pytest.mark.parametrize(
    ("error", "kind", "said"),
    [
        ((404, "RepoNotFound"), Unknown, r"is not there, .*404 RepoNotFound"),
        ((404, "RevisionNotFound"), Unknown, "acme/tiny at main is not there, .*404 RevisionNotFound"),
        ((401, ""), Forbidden, "token_file is not set"),
        ((401, "RepoNotFound"), Forbidden, "token_file is not set"),
        ((403, "GatedRepo"), Forbidden, "was not let in .403 GatedRepo"),
        ((418, ""), HubFailed, "answers 418"),
        ((503, "100000"), HubFailed, "answers 503"),
        ((500, ""), HubFailed, "answers 500"),
    ],
)
def test_what_a_status_means(server, tmp_path, error, kind, said):
    server.error = error
    with pytest.raises(kind, match=said) as raised:
        pull(server, tmp_path)
    assert raised.value.hint


@pytest.mark.parametrize("status", [429, 503])
def test_a_busy_hub_is_asked_again(server, tmp_path, status):
    server.busy = [(status, "0"), (status, "")]
    pull(server, tmp_path)
    assert server.busy == []


def test_a_hub_that_is_busy_for_long_is_not_waited_for(server, tmp_path):
    server.busy = [(503, "100000")]
    with pytest.raises(HubFailed, match="answers 503") as raised:
        pull(server, tmp_path)
    assert "100000 s" in raised.value.hint


def test_a_revision_that_is_not_there(server, tmp_path):
    with pytest.raises(Unknown, match="acme/tiny at nope is not there"):
        pull(server, tmp_path, revision="nope")


def test_a_hub_that_is_not_there(tmp_path):
    with pytest.raises(HubFailed, match="cannot be reached"):
        adapter.Hub("http://127.0.0.1:1").listing(REPO, "main")


@pytest.mark.parametrize("lie", [{"siblings": "x"}, {"siblings": [1]}, {"siblings": [{"size": 1}]}])
def test_nonsense_is_no_listing(server, tmp_path, lie):
    server.lied = lie
    with pytest.raises(FreeholdError):
        pull(server, tmp_path)
    assert nothing_published(tmp_path)


def test_a_huge_listing_is_not_read_to_its_end(server, tmp_path, monkeypatch):
    monkeypatch.setattr(adapter, "_MAX_ANSWER_BYTES", 1 << 16)
    server.lied = {"padding": "x" * (1 << 17)}
    with pytest.raises(Refused, match="no listing"):
        pull(server, tmp_path)


def test_the_disk_is_asked_first(server, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=len(BIG) + (1 << 30)))
    with pytest.raises(DoesNotFit, match="must stay free"):
        pull(server, tmp_path)
    assert server.sent == []


def test_a_disk_that_fills_up_keeps_what_came(server, tmp_path, monkeypatch):
    """The kernel says so in the middle: a file system of 256 KiB would need root."""
    real = fetch.os.fsync

    def full(descriptor):
        if fetch.os.fstat(descriptor).st_size == len(BIG):
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(descriptor)

    monkeypatch.setattr(fetch.os, "fsync", full)
    with pytest.raises(DoesNotFit, match="No space left"):
        pull(server, tmp_path)
    monkeypatch.undo()
    before = len(server.sent)
    pull(server, tmp_path)
    assert NAME not in [name for name, _ in server.sent[before:]]


@pytest.mark.parametrize(("name", "data"), [(NAME, BIG[:-1] + b"\2"), ("README.md", b"# Evil\n")])
def test_what_lies_there_is_checked_before_it_is_believed(server, tmp_path, name, data):
    """Also the small files, of which the hub gives Git's digest: a chat template is one."""
    file = pull(server, tmp_path).folder / name
    assert pull(server, tmp_path).already
    file.chmod(0o644)
    file.write_bytes(data)
    with pytest.raises(Refused, match="not what the hub listed"):
        pull(server, tmp_path)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "huggingface.co",
        "ftp://hub",
        "https://",
        "https://u:p@hub",
        "https://hub:x",
        "http://mirror.example",
        "http://localhost.example",
    ],
)
def test_addresses_that_are_none(url):
    with pytest.raises(BadConfig, match=r"\[hub\] url"):
        adapter.Hub(url)


@pytest.mark.parametrize("proxy", ["nonsense", "http://proxy:x", "socks5://localhost:1080", "ftp://proxy"])
def test_proxies_that_are_none(proxy):
    with pytest.raises(BadConfig, match="the proxy on the way"):
        adapter.Hub("https://hub.example", proxy=proxy).listing(REPO, "main")


def test_without_the_extra_it_says_how_to_get_it():
    code = "import sys; sys.modules['huggingface_hub'] = None; from freehold.sources.hub import Hub; Hub('https://hub')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "needs huggingface_hub" in done.stderr


def listing(*names: str, size=10) -> Listing:
    files = tuple(Listed(name=name, size_bytes=size, digest="a" * 64) for name in names)
    return Listing(repo=REPO, commit=COMMIT, files=files, scan="")


@pytest.mark.parametrize(
    "name", ["/etc/passwd", "../x.gguf", "a/../../x.gguf", "a//b.gguf", ".", "a\\b.gguf", "x\0.gguf", ""]
)
def test_names_that_are_not_plain_are_never_chosen(name):
    assert [each.name for each in choose(listing("good.gguf", name))] == ["good.gguf"]
    with pytest.raises(Refused, match="no weights"):
        choose(listing(name))


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["a.gguf", "README.md", "readme.md"], "only in case"),
        (["a.gguf", "LICENSE", "LICENSE/x.md"], "also a folder"),
        (["a.gguf", *(f"{n}.md" for n in range(10_001))], "10,002 files"),
    ],
)
def test_listings_that_cannot_be_true(names, said):
    with pytest.raises(Refused, match=said):
        choose(listing(*names))


@pytest.mark.parametrize("lie", [{"size": None}, {"size": -1}, {"blobId": None}, {"blobId": "x"}, {"lfs": {"size": 1}}])
def test_files_without_size_and_digest(server, tmp_path, lie):
    server.listed = server.listing()["siblings"]
    server.listed[1] |= lie
    with pytest.raises((Refused, HubFailed)):
        pull(server, tmp_path)
    assert server.sent == []


@pytest.mark.parametrize(
    ("names", "include", "chosen"),
    [
        ("m.gguf mmproj-m.gguf m.imatrix run.py x.bin README.md", (), "m.gguf README.md"),
        ("m-00001-of-00002.gguf m-00002-of-00002.gguf x.gguf", ("m-*",), "m-00001-of-00002.gguf m-00002-of-00002.gguf"),
        ("m.gguf mmproj-m.gguf", ("*.gguf",), "m.gguf mmproj-m.gguf"),
        ("model.safetensors consolidated.safetensors config.json", (), "model.safetensors config.json"),
        ("consolidated.safetensors tokenizer.model.v3", (), "consolidated.safetensors tokenizer.model.v3"),
        (
            "model-00001-of-00001.safetensors model.safetensors.index.json pytorch_model.bin.index.json x.pth",
            (),
            "model-00001-of-00001.safetensors model.safetensors.index.json",
        ),
        ("model.safetensors 1_Pool/a.json onnx/m.onnx onnx/a.json", (), "model.safetensors 1_Pool/a.json"),
        ("model-1.safetensors original/model.safetensors original/a.json", (), "model-1.safetensors"),
        ("model.safetensors consolidated.safetensors", ("c*",), "consolidated.safetensors"),
        ("m.gguf model.safetensors config.json", ("*.safetensors",), "model.safetensors config.json"),
        ("model.safetensors .cache/x.json -x.json é.md a.png", (), "model.safetensors"),
    ],
)  # fmt: skip
def test_what_is_chosen(names, include, chosen):
    found = choose(listing(*names.split()), include=include)
    assert [each.name for each in found] == sorted(chosen.split())


def test_many_quantisations_ask_for_a_choice_with_their_sizes():
    several = listing("m-Q4.gguf", "m-Q8-00001-of-00002.gguf", "m-Q8-00002-of-00002.gguf", size=10**9)
    with pytest.raises(BadRequest, match="choose one model of acme/tiny with --include") as raised:
        choose(several)
    assert "--include 'm-Q4.gguf'  (1.0 GB)" in raised.value.hint
    assert "--include 'm-Q8-*-of-00002.gguf'  (2.0 GB)" in raised.value.hint
    with pytest.raises(BadRequest, match="choose one model"):
        choose(several, include=["*Q5*"])


def test_pickles_alone_are_no_weights():
    with pytest.raises(Refused, match="no weights in gguf or safetensors"):
        choose(listing("pytorch_model.bin", "config.json"))


@given(st.lists(st.text("aA./é \\-", max_size=12).map(lambda name: name + ".json"), max_size=6))
def test_whatever_is_listed_nothing_is_written_elsewhere(names):
    try:
        found = choose(listing("model.safetensors", *names))
    except FreeholdError:
        return
    for each in found:
        assert each.name.isascii()
        assert ".." not in each.name.split("/")
        assert not each.name.startswith("/")


def test_a_sharded_model_in_folders(tmp_path):
    shard, empty = safetensors_bytes(), b'{"weight_map": {"w": "model-00001-of-00001.safetensors"}}'
    server = Hub(
        REPO,
        {
            "model-00001-of-00001.safetensors": shard,
            "model.safetensors.index.json": empty,
            "config.json": json.dumps(CONFIG).encode(),
        },
    )
    assert len(pull(server, tmp_path).verdict.artifacts) == 3
    server.close()
