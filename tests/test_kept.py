"""Folders that outlive engines: what a compromised one may leave there, and what becomes of it."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from freehold.executors import kept


@pytest.fixture
def parent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(kept, "LIMIT_BYTES", 1 << 20)
    return tmp_path / "compiled"


def test_it_is_there_again_for_the_next_start(parent: Path) -> None:
    folder = kept.keep(parent, "demo-1")
    (folder / "graph").write_bytes(b"x")
    assert (kept.keep(parent, "demo-1") / "graph").read_bytes() == b"x"
    assert (parent.stat().st_mode & 0o777, folder.stat().st_mode & 0o777) == (0o700, 0o700)


def test_one_that_grew_too_large_is_emptied(parent: Path) -> None:
    (kept.keep(parent, "demo-1") / "graph").write_bytes(b"x" * (2 << 20))
    assert list(kept.keep(parent, "demo-1").iterdir()) == []


def test_links_and_pipes_are_neither_followed_nor_opened(parent: Path, tmp_path: Path) -> None:
    (tmp_path / "large").mkdir()
    (tmp_path / "large" / "own").write_bytes(b"x" * (2 << 20))
    folder = kept.keep(parent, "demo-1")
    (folder / "link").symlink_to(tmp_path / "large")
    os.mkfifo(folder / "pipe")
    assert sorted(each.name for each in kept.keep(parent, "demo-1").iterdir()) == ["link", "pipe"]
    (folder / "graph").write_bytes(b"x" * (2 << 20))
    kept.keep(parent, "demo-1")
    assert (tmp_path / "large" / "own").exists()


def test_what_no_start_has_used_for_long_goes(parent: Path) -> None:
    kept.keep(parent, "demo-1")
    long_ago_s = time.time() - kept.UNUSED_S - 60
    os.utime(parent / "demo-1", (long_ago_s, long_ago_s))
    kept.keep(parent, "demo-2")
    assert [each.name for each in parent.iterdir()] == ["demo-2"]


@pytest.mark.skipif(os.getuid() == 0, reason="root may look into anything")
def test_what_hides_its_size_does_not_count_as_small(parent: Path) -> None:
    hidden = kept.keep(parent, "demo-1") / "hidden"
    hidden.mkdir()
    (hidden.parent / "beside").touch()
    hidden.chmod(0)
    assert kept._size_bytes(hidden.parent) > kept.LIMIT_BYTES
