# SPDX-License-Identifier: LGPL-2.1-or-later
"""Objects that must not be labelled, under whatever name they come: refused with a reason."""

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from svirtd.host.bus import BusError, Variant
from tests.attack import INVALID, OWN, REFUSED, assert_refused, nothing_changes
from tests.mounts import mounted, remount
from tests.support import Client, Daemon, image, label, resources, set_label

ACQUIRE = "saa{sv}a{sv}"
LAUNCH = "sasaa{sv}a{sv}"
ACCESSES = ("exclusive", "readonly", "public")


def _link_to(target: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        os.symlink(target, folder / "x")
        return folder / "x"

    return make


def _loop(folder: Path) -> Path:
    os.symlink(folder / "y", folder / "x")
    os.symlink(folder / "x", folder / "y")
    return folder / "x"


def _mode(mode: int) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        os.chmod(image(folder / "x"), mode)
        return folder / "x"

    return make


def _hard_link(folder: Path) -> Path:
    os.link(image(folder / "x"), folder / "y")
    return folder / "x"


def _labelled(text: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        set_label(image(folder / "x"), text)
        return folder / "x"

    return make


def _odd_name(name: bytes) -> Callable[[Path], Path]:
    """A link with a plain name to a file whose own name cannot be shown."""

    def make(folder: Path) -> Path:
        target = os.fsencode(folder) + b"/" + name
        with open(target, "wb") as file:
            file.truncate(4096)
        os.symlink(target, os.fsencode(folder) + b"/x")
        return folder / "x"

    return make


def _path(text: str) -> Callable[[Path], Path]:
    return lambda _folder: Path(text)


ODD: list[tuple[str, Callable[[Path], Path], str]] = [
    ("missing", lambda folder: folder / "x", "no such file; check the path"),
    ("missing folder", lambda folder: folder / "x" / "y", "no such file"),
    ("below a file", lambda folder: image(folder / "x") / "y", "Not a directory"),
    ("name too long", _path("/" + "a" * 300), "File name too long"),
    ("dangling link", _link_to("/nowhere/x"), "no such file"),
    ("directory", lambda folder: folder, "is a directory"),
    ("root", _path("/"), "is a directory"),
    ("null", _path("/dev/null"), "is a character device"),
    ("tty", _path("/dev/tty"), "is a character device"),
    ("ptmx", _path("/dev/ptmx"), "is a character device"),
    ("link to a device", _link_to("/dev/zero"), "is a character device"),
    ("link loop", _loop, "leads through /proc or in a circle"),
    ("link to itself", _link_to("x"), "leads through /proc or in a circle"),
    ("magic link", _path("/proc/self/fd/0"), "leads through /proc"),
    ("own program", _path("/proc/self/exe"), "leads through /proc"),
    ("stdin", _path("/dev/stdin"), "leads through /proc"),
    ("magic root", _path("/proc/1/root/etc/passwd"), "leads through /proc"),
    ("magic cwd", _path("/proc/self/cwd/README.md"), "leads through /proc"),
    ("link to a magic link", _link_to("/proc/self/fd/1"), "leads through /proc"),
    ("setuid", _mode(0o4755), "is a setuid or setgid file"),
    ("setgid", _mode(0o2755), "is a setuid or setgid file"),
    ("hard link", _hard_link, "has 2 hard links"),
    ("host type", _labelled("system_u:object_r:shadow_t:s0"), "type shadow_t, which is not in"),
    ("another's", _labelled("system_u:object_r:svirt_image_t:s0:c1,c2"), "type svirt_image_t"),
    ("not a context", _labelled("nonsense"), "'nonsense', which is not a context"),
    ("no range", _labelled("system_u:object_r:virt_image_t"), "which is not a context"),
    ("odd label", _labelled("a\nb:object_r:virt_image_t:s0"), "which is not a context"),
    ("long label", _labelled("a" * 3000), "which is not a context"),
    ("not UTF-8", _odd_name(b"\xff.img"), "cannot be shown"),
    ("newline", _odd_name(b"a\nb.img"), "cannot be shown"),
    ("escape", _odd_name(b"a\x1b[2Jb.img"), "cannot be shown"),
]  # fmt: skip


def planned(client: Client, two: list[dict[str, Variant]]) -> BusError:
    """How Plan refuses the second of two resources: as a whole if it cannot even be opened."""
    try:
        (steps,) = client.call("Plan", ACQUIRE, "vm", two, {})
    except BusError as error:
        return error
    assert "error" not in steps[0]
    return BusError(steps[1]["error"].value, steps[1]["reason"].value)


@pytest.mark.parametrize(("make", "text"), [c[1:] for c in ODD], ids=[c[0] for c in ODD])
def test_odd_objects(
    daemon: Daemon, client: Client, tmp_path: Path, make: Callable[[Path], Path], text: str
) -> None:
    path = make(tmp_path)
    good = image(tmp_path / "good.img")
    with nothing_changes(client, tmp_path):
        for access in ACCESSES:
            both = resources(good, path, access=access)
            refused = client.error("Acquire", ACQUIRE, "vm", both, {})
            assert_refused(refused, REFUSED, text, str(path)[:64])
            refused = client.error("Launch", LAUNCH, "vm", ["/bin/true"], both, {})
            assert_refused(refused, REFUSED, text)
            assert_refused(planned(client, both), REFUSED, text)
    if path.is_relative_to(tmp_path) and path.is_file() and label(path) is not None:
        os.removexattr(path, "security.selinux")


def _keep(ends: tuple[int, int]) -> int:
    os.close(ends[1])
    return ends[0]


def _epoll(_folder: Path) -> int:
    import select

    with select.epoll() as poll:
        return os.dup(poll.fileno())


def _memfd(_folder: Path) -> int:
    fd = os.memfd_create("disk")
    os.ftruncate(fd, 4096)
    return fd


def _opened(folder: Path, flags: int) -> int:
    return os.open(image(folder / "x"), flags)


def _deleted(folder: Path) -> int:
    fd = _opened(folder, os.O_RDWR)
    os.unlink(folder / "x")
    return fd


FDS: list[tuple[str, Callable[[Path], int], str]] = [
    ("pipe", lambda _: _keep(os.pipe()), "is not open for"),
    ("socket", lambda _: socket.socket(socket.AF_UNIX).detach(), "is not found at"),
    ("directory", lambda folder: os.open(folder, os.O_RDONLY), "is a directory; ask for it"),
    ("null", lambda _: os.open("/dev/null", os.O_RDWR), "is a character device"),
    ("epoll", _epoll, "is a"),
    ("memfd", _memfd, "is deleted; its label could not be given back"),
    ("deleted", _deleted, "is deleted"),
    ("nameless", lambda folder: os.open(folder, os.O_TMPFILE | os.O_RDWR), "is deleted"),
    ("path only", lambda folder: os.open(folder, os.O_PATH), "O_PATH, which proves nothing"),
    ("write only", lambda folder: _opened(folder, os.O_WRONLY), "not open for reading and"),
    ("setuid", lambda folder: os.open(_mode(0o4755)(folder), os.O_RDWR), "setuid or setgid"),
    ("hard link", lambda folder: os.open(_hard_link(folder), os.O_RDWR), "has 2 hard links"),
    ("procfs", lambda _: os.open("/proc/self/comm", os.O_RDWR), "file system of kind proc"),
    ("not UTF-8", lambda folder: os.open(_odd_name(b"\xff")(folder), os.O_RDWR), "be shown"),
]  # fmt: skip


@pytest.mark.parametrize(("make", "text"), [c[1:] for c in FDS], ids=[c[0] for c in FDS])
def test_odd_descriptors(
    daemon: Daemon, client: Client, tmp_path: Path, make: Callable[[Path], int], text: str
) -> None:
    fd = make(tmp_path)
    by_fd = [{"fd": Variant("h", 0)}]
    with nothing_changes(client, tmp_path):
        refused = client.error("Acquire", ACQUIRE, "vm", by_fd, {}, fds=[fd])
        assert_refused(refused, REFUSED, text)
        refused = client.error("Launch", LAUNCH, "vm", ["/bin/true"], by_fd, {}, fds=[fd])
        assert_refused(refused, REFUSED, text)
    os.close(fd)


def test_a_fifo_that_nobody_reads_blocks_nobody(
    daemon: Daemon, client: Client, tmp_path: Path
) -> None:
    fifos = []
    for number in range(12):  # more than the daemon has threads for files
        os.mkfifo(tmp_path / f"{number}")
        fifos.append(tmp_path / f"{number}")
    client.acquire("vm", *fifos)
    for fifo in fifos:
        (owners,) = client.call("FindOwners", "s", str(fifo))
        assert len(owners) == 1
    client.release("vm")
    assert [label(fifo) for fifo in fifos] == [None] * len(fifos)


def test_one_resource_twice(daemon: Daemon, client: Client, tmp_path: Path) -> None:
    disk = image(tmp_path / "a.img")
    os.symlink(tmp_path, tmp_path / "here")
    with nothing_changes(client, tmp_path):
        for other in (disk, f"{tmp_path}//./a.img", tmp_path / "here" / "a.img"):
            for access in ACCESSES:
                twice = [*resources(disk), *resources(other, access=access)]
                for member in ("Acquire", "Plan"):
                    refused = client.error(member, ACQUIRE, "vm", twice, {})
                    assert_refused(refused, INVALID, "same file", "name each resource once")


@pytest.mark.parametrize("kind", ["ramfs", "mqueue"])
def test_a_file_system_without_labels(
    daemon: Daemon, client: Client, tmp_path: Path, kind: str
) -> None:
    good = image(tmp_path / "good.img")
    with mounted(tmp_path / "m", "-t", kind, "none") as folder:
        (folder / "a.img").touch()
        with nothing_changes(client, tmp_path):
            for access in ACCESSES:
                both = resources(good, folder / "a.img", access=access)
                acquired = client.error("Acquire", ACQUIRE, "vm", both, {})
                for refused in (acquired, planned(client, both)):
                    what = f"file system of kind {kind}"
                    assert_refused(refused, REFUSED, what, str(folder), "ext4")


def test_a_read_only_file_system(daemon: Daemon, client: Client, tmp_path: Path) -> None:
    good = image(tmp_path / "good.img")
    with mounted(tmp_path / "m", "-t", "tmpfs", "none") as folder:
        disk = image(folder / "a.img")
        remount(folder, "ro")
        with nothing_changes(client, tmp_path):
            refused = client.error("Acquire", ACQUIRE, "vm", resources(good, disk), {})
            assert_refused(refused, REFUSED, "for reading and writing", "remount it read-write")
            for access in ("readonly", "public"):
                # Opened, and refused by the kernel while it is labelled: the first is undone.
                both = resources(good, disk, access=access)
                refused = client.error("Acquire", ACQUIRE, "vm", both, {})
                assert_refused(refused, OWN + "LabelRefused", "remount it read-write")


def test_a_read_only_bind_mount(daemon: Daemon, client: Client, tmp_path: Path) -> None:
    disk = image(tmp_path / "a.img")
    with mounted(tmp_path / "m", "--bind", tmp_path) as folder:
        remount(folder, "bind,ro")
        refused = client.error("Acquire", ACQUIRE, "vm", resources(folder / "a.img"), {})
        assert_refused(refused, REFUSED, "mounted read-only")
    assert label(disk) is None
    assert client.vms() == {}


def test_find_owners_of_odd_things(daemon: Daemon, client: Client, tmp_path: Path) -> None:
    with nothing_changes(client, tmp_path):
        for path in ("/", "/nowhere", "/dev/null", "/proc/self/fd/0", "/" + "a" * 5000, "/a/../.."):
            assert client.call("FindOwners", "s", path) == [[]]
        for what in ("disk.img", "c1,c1", "c2000", "c5.c1", "c0.c767", "a:b:c:s0:c0.c767",
                     "a:b:c", "x" * 100_000, "c1," * 30_000, "c1\n", "-", "s0:c1,c2"):  # fmt: skip
            refused = client.error("FindOwners", "s", what)
            assert_refused(refused, INVALID, "is not an absolute path")
