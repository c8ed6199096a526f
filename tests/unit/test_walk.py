# SPDX-License-Identifier: LGPL-2.1-or-later
"""From a path to its object: by the kernel's memory and by hand, which must agree."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from svirtd.host import walk
from svirtd.host.walk import Links

Walk = Callable[..., int]
BOTH = pytest.mark.parametrize("go", [walk.hold, walk.walk], ids=["remembered", "by hand"])


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """folder/file, links to each, a loop, and a link through /proc."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "file").touch()
    for name, target in (
        ("to-file", "folder/file"),
        ("to-folder", tmp_path / "folder"),
        ("to-link", "to-file"),
        ("up", "folder/../to-folder"),
        ("loop", "loop"),
        ("nowhere", "none"),
        ("magic", "/proc/self/exe"),
        ("folder/back", ".."),
    ):
        (tmp_path / name).symlink_to(target)
    return tmp_path


def end(go: Walk, path: Path | str, links: Links = Links.ALL) -> str | int:
    """The path of what is held, or the number of the error."""
    try:
        fd = go(str(path), links)
    except OSError as error:
        return error.errno or 0
    try:
        return os.readlink(f"/proc/self/fd/{fd}")
    finally:
        os.close(fd)


@BOTH
def test_links_are_followed_as_the_kernel_does(tree: Path, go: Walk) -> None:
    for name in ("folder/file", "to-file", "to-folder/file", "to-link", "up/file", "folder//./file",
                 "to-folder/back/to-file", "folder/../folder/file"):  # fmt: skip
        assert end(go, f"{tree}/{name}") == f"{tree}/folder/file"
    for name in ("folder/", "to-folder/", "to-folder/."):
        assert end(go, f"{tree}/{name}") == f"{tree}/folder"
    assert end(go, "/") == "/"
    assert end(go, "/..") == "/"


@BOTH
@pytest.mark.parametrize("name", ["loop", "magic", "folder/file/", "folder/file/x", "nowhere",
                                  "none/x", "x" * 300, "to-file/..", "folder/file/."])  # fmt: skip
def test_what_leads_nowhere_says_why_as_the_kernel_does(tree: Path, go: Walk, name: str) -> None:
    try:
        os.close(os.open(tree / name if not name.endswith("/") else f"{tree}/{name}", os.O_PATH))
        expected = 40  # what leads through /proc, which the kernel would follow
    except OSError as error:
        expected = error.errno or 0
    if name.endswith("/."):
        expected = 20  # pathlib takes that part away
    assert end(go, f"{tree}/{name}") == expected


@BOTH
def test_links_that_are_not_followed(tree: Path, go: Walk) -> None:
    assert end(go, tree / "to-file", Links.BUT_THE_LAST) == f"{tree}/to-file"
    assert end(go, tree / "to-folder" / "file", Links.BUT_THE_LAST) == f"{tree}/folder/file"
    assert end(go, tree / "folder" / "file", Links.NONE) == f"{tree}/folder/file"
    for name in ("to-file", "to-folder/file", "loop", "magic"):
        assert end(go, tree / name, Links.NONE) == 40


def test_a_link_that_another_user_has_put_into_a_shared_folder(tree: Path) -> None:
    shared = tree / "shared"
    shared.mkdir()
    shared.chmod(0o1777)
    link = shared / "link"
    link.symlink_to(tree / "folder" / "file")
    assert end(walk.walk, link) == f"{tree}/folder/file"
    os.chown(link, 4711, 4711, follow_symlinks=False)
    assert end(walk.walk, link) == 13
    # Whoever owns the folder could put anything there.
    os.chown(shared, 4711, 4711)
    assert end(walk.walk, link) == f"{tree}/folder/file"


def test_facts_are_what_stat_says(tree: Path) -> None:
    for path in (tree / "folder" / "file", tree / "folder", Path("/dev/null")):
        fd = walk.hold(str(path))
        info, found = os.fstat(fd), walk.facts(fd)
        os.close(fd)
        assert (found.mode, found.links, found.uid, found.gid) == (
            info.st_mode,
            info.st_nlink,
            info.st_uid,
            info.st_gid,
        )
        assert (found.identity.dev, found.identity.ino) == (info.st_dev, info.st_ino)


def test_the_kind_of_a_file_system() -> None:
    for path, kind in (("/proc/self/status", "proc"), ("/sys", "sysfs"), ("/dev/pts", "devpts")):
        fd = os.open(path, os.O_PATH)
        assert walk.mount_of(fd).kind == kind
        os.close(fd)
    for fd in (os.memfd_create("nowhere"), os.eventfd(0)):
        assert walk.mount_of(fd).kind == "unknown"
        os.close(fd)


@BOTH
def test_a_descriptor_is_not_left(tree: Path, go: Walk) -> None:
    walk.prepare()
    before = sorted(os.listdir("/proc/self/fd"))
    for name in ("folder/file", "loop", "magic", "none", "folder/file/x", "to-link"):
        end(go, tree / name)
    assert sorted(os.listdir("/proc/self/fd")) == before
