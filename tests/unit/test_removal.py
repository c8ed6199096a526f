# SPDX-License-Identifier: LGPL-2.1-or-later
"""Folders that hostile hands have made, taken away."""

import os
import resource
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from svirtd.host import removal

DEEP = 5000


def _dig(folder: Path, depth: int) -> None:
    fd = os.open(folder, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir("d", dir_fd=fd)
        os.mkdir("e", dir_fd=fd)
        below = os.open("d", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(fd)


def test_a_deep_tree(tmp_path: Path) -> None:
    """Deeper than descriptors, Python's stack and a path's length reach."""
    _dig(tmp_path, DEEP)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 60, limits[1]))
    try:
        removal.empty(str(tmp_path))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert os.listdir(tmp_path) == []


def test_every_kind(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").touch()
    inside = tmp_path / "inside"
    (inside / "a" / "b").mkdir(parents=True)
    os.symlink(outside, inside / "a" / "link")
    os.symlink("nowhere", inside / "dangling")
    os.mkfifo(inside / "fifo")
    (inside / "a" / "b" / "file").touch()
    removal.empty(str(inside))
    assert os.listdir(inside) == []
    assert os.listdir(outside) == ["kept"]
    with pytest.raises(OSError, match="Not a directory"):
        removal.empty(str(outside / "kept"))


class Exchanged:
    """An entry that was something else when the folder was read."""

    def __init__(self, path: Path) -> None:
        self.name = path.name
        self._was_folder = not path.is_dir() or path.is_symlink()

    def is_dir(self, *, follow_symlinks: bool) -> bool:
        assert not follow_symlinks
        return self._was_folder


def test_what_is_exchanged_meanwhile(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    os.symlink("/etc", tmp_path / "link")
    (tmp_path / "full" / "file").mkdir(parents=True)
    here = os.open(tmp_path, os.O_RDONLY)
    try:
        for name, stays in (("folder", False), ("file", False), ("link", False), ("full", True)):
            entry: Any = Exchanged(tmp_path / name)
            assert removal._remove(here, entry, time.monotonic() + 10) is stays
    finally:
        os.close(here)
    assert os.listdir(tmp_path) == ["full"]


def test_a_folder_that_is_moved_away(tmp_path: Path) -> None:
    """What is above it then is not touched."""
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").touch()
    (inside / "a" / "b" / "c").mkdir(parents=True)
    (inside / "a" / "b" / "c" / "file").touch()
    real = os.open
    moved = threading.Event()

    def opens(path: str, flags: int, **kwargs: int) -> int:
        fd = real(path, flags, **kwargs)
        if path == "c" and not moved.is_set():
            moved.set()
            os.rename(inside / "a" / "b" / "c", outside / "c")
        return fd

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "open", opens)
        with pytest.raises(OSError, match="moved about"):
            removal.empty(str(inside))
    assert (outside / "kept").exists()


def test_not_for_ever(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(removal, "_REMOVE_S", -1.0)
        with pytest.raises(OSError, match="not removed within"):
            removal.empty(str(tmp_path))
    assert os.listdir(tmp_path) == ["file"]
