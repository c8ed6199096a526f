# SPDX-License-Identifier: LGPL-2.1-or-later
"""Watches on real files: what is told, and of which object."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from svirtd.core.model import Identity
from svirtd.host import files
from svirtd.host.watches import Watches

_QUEUED = Path("/proc/sys/fs/inotify/max_queued_events")


@pytest.fixture
def watches() -> Iterator[Watches]:
    watches = Watches()
    yield watches
    watches.close()


def made(path: Path) -> Identity:
    path.touch()
    info = path.stat()
    return Identity(info.st_dev, info.st_ino)


def told(watches: Watches) -> frozenset[Identity]:
    changed, overflow = watches.read()
    assert not overflow
    return changed


def test_what_is_told(watches: Watches, tmp_path: Path) -> None:
    path, other = tmp_path / "a", tmp_path / "b"
    one, two = made(path), made(other)
    watches.add(str(path), one)
    watches.add(str(other), two)
    watches.add(str(path), one)
    assert told(watches) == frozenset()
    path.write_text("content is not looked at")
    path.read_text()
    assert told(watches) == frozenset()
    path.chmod(0o600)  # as a label, an attribute
    assert told(watches) == {one}
    path.rename(tmp_path / "c")
    assert told(watches) == {one}
    (tmp_path / "c").unlink()
    other.chmod(0o600)
    assert told(watches) == {one, two}
    # The kernel has ended the watch with the object.
    assert (watches.watched(one), watches.watched(two)) == (False, True)
    watches.remove(two)
    watches.remove(two)
    other.chmod(0o644)
    assert told(watches) == frozenset()
    assert not watches.watched(two)


def test_only_the_object_of_the_book_is_watched(watches: Watches, tmp_path: Path) -> None:
    path = tmp_path / "a"
    identity = made(path)
    with pytest.raises(files.Missing):
        watches.add(str(tmp_path / "none"), identity)
    path.rename(tmp_path / "b")
    made(path)
    with pytest.raises(files.Replaced):
        watches.add(str(path), identity)
    path.unlink()
    path.symlink_to(tmp_path / "b")
    with pytest.raises(files.Replaced):
        watches.add(str(path), identity)
    assert not watches.watched(identity)


def test_more_than_the_kernel_keeps(watches: Watches, tmp_path: Path) -> None:
    paths = [tmp_path / "a", tmp_path / "b"]
    for path in paths:
        watches.add(str(path), made(path))
    # Two in turn: the same event twice in a row would be told once.
    for _ in range(int(_QUEUED.read_text()) // 2 + 10):
        for path in paths:
            os.chmod(path, 0o600)
    overflowed = False
    while True:
        changed, overflow = watches.read()
        overflowed = overflowed or overflow
        if not changed and not overflow:
            break
    assert overflowed
