# SPDX-License-Identifier: LGPL-2.1-or-later
"""Descriptors that prove less than they seem to, or lead to what is no file of the caller's."""

import ctypes
import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from svirtd.host.bus import BusError, Variant
from tests.attack import assert_refused
from tests.attacks.arena import Arena
from tests.attacks.defences import against
from tests.attacks.stranger import Me
from tests.sandbox.accounts import Account
from tests.support import label

ACQUIRE = "saa{sv}a{sv}"
_CLONE_NEWNS = 0x00020000
_CLONE_NEWUSER = 0x10000000


def acquire_by(me: Me, opened: Callable[[Me, str], int], path: str, access: str) -> str:
    """Acquire what a function opens; the refusal, "" if it was given."""
    fd = opened(me, path)
    resource = {"fd": Variant("h", 0), "access": Variant("s", access)}
    try:
        me.client.call("Acquire", ACQUIRE, "vm", [resource], {}, fds=[fd])
    except BusError as error:
        assert_refused(error, error.name, "")
        return f"{error.name}: {error.text}"
    finally:
        os.close(fd)
    return ""


def _given(me: Me, _path: str) -> int:
    return me.given()


def _reading(_me: Me, path: str) -> int:
    return os.open(path, os.O_RDONLY)


def _writing(_me: Me, path: str) -> int:
    return os.open(path, os.O_WRONLY)


def _appending(_me: Me, path: str) -> int:
    return os.open(path, os.O_WRONLY | os.O_APPEND)


def _both(_me: Me, path: str) -> int:
    return os.open(path, os.O_RDWR)


def _path_only(_me: Me, path: str) -> int:
    return os.open(path, os.O_PATH)


def _memory(_me: Me, _path: str) -> int:
    return os.open("/proc/self/mem", os.O_RDWR)


def _memfd(_me: Me, _path: str) -> int:
    fd = os.memfd_create("disk")
    os.ftruncate(fd, 4096)
    return fd


def _deleted(_me: Me, path: str) -> int:
    fd = os.open(path, os.O_RDWR)
    os.unlink(path)
    return fd


def _nameless(_me: Me, path: str) -> int:
    return os.open(os.path.dirname(path), os.O_TMPFILE | os.O_RDWR)


def _pipe(_me: Me, _path: str) -> int:
    reader, writer = os.pipe()
    os.close(reader)
    return writer


def _fifo(_me: Me, path: str) -> int:
    os.mkfifo(f"{path}.fifo")
    return os.open(f"{path}.fifo", os.O_RDWR)


def _socket(_me: Me, _path: str) -> int:
    return socket.socket(socket.AF_UNIX).detach()


def _null(_me: Me, _path: str) -> int:
    return os.open("/dev/null", os.O_RDWR)


def _folder(_me: Me, path: str) -> int:
    return os.open(os.path.dirname(path), os.O_RDONLY)


def _own_mounts(_me: Me, path: str) -> int:
    """A file of a mount namespace of its own, where a user mounts whatever he likes."""
    libc = ctypes.CDLL(None, use_errno=True)
    uid, gid = os.getuid(), os.getgid()
    if libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNS):
        raise OSError(ctypes.get_errno(), "unshare")
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"{uid} {uid} 1")
    Path("/proc/self/gid_map").write_text(f"{gid} {gid} 1")
    folder = os.path.dirname(path).encode()
    if libc.mount(b"tmpfs", folder, b"tmpfs", 0, None):
        raise OSError(ctypes.get_errno(), "mount")
    return os.open(path, os.O_RDWR | os.O_CREAT, 0o600)


REFUSED: list[tuple[str, Callable[[Me, str], int], str, str]] = [
    ("read-only, for writing", _reading, "exclusive", "not open for reading and writing"),
    ("write-only, for reading", _writing, "readonly", "not open for reading"),
    ("append-only", _appending, "exclusive", "not open for reading and writing"),
    ("path only", _path_only, "exclusive", "O_PATH, which proves nothing"),
    ("path only, for reading", _path_only, "public", "O_PATH, which proves nothing"),
    ("own memory", _memory, "exclusive", ""),
    ("memfd", _memfd, "exclusive", ""),
    ("deleted", _deleted, "exclusive", ""),
    ("nameless", _nameless, "exclusive", ""),
    ("pipe", _pipe, "exclusive", ""),
    ("socket", _socket, "exclusive", ""),
    ("character device", _null, "exclusive", ""),
    ("folder", _folder, "readonly", ""),
    ("mount of its own", _own_mounts, "exclusive", ""),
]


@pytest.mark.parametrize(("opened", "access", "text"), [c[1:] for c in REFUSED],
                         ids=[c[0] for c in REFUSED])  # fmt: skip
def test_refused(
    arena: Arena, ann: Account, opened: Callable[[Me, str], int], access: str, text: str
) -> None:
    disk = arena.disk(ann)
    answer = arena.stranger(ann).do(acquire_by, opened, str(disk), access)
    assert answer.startswith("org.svirt1.Error.ResourceRefused"), answer
    assert text in answer
    assert arena.root.vms() == {}


@against("the open mode of a descriptor proves the right")
def test_what_one_may_only_read_is_not_ones_own(arena: Arena, ann: Account) -> None:
    """Held exclusively it would be taken from everybody else, by somebody who may not write it."""
    disk = arena.disk(ann)
    answer = arena.stranger(ann).do(acquire_by, _reading, str(disk), "exclusive")
    arena.verdict(answer == "", "a descriptor for reading")


@against("a file is its owner's")
@pytest.mark.parametrize("opened", [_reading, _both])
def test_a_descriptor_of_a_file_of_roots(
    arena: Arena, ann: Account, opened: Callable[[Me, str], int]
) -> None:
    victim = arena.victim(ann, mode=0o666)
    access = "exclusive" if opened is _both else "readonly"
    answer = arena.stranger(ann).do(acquire_by, opened, str(victim), access)
    arena.verdict(answer == "", "a descriptor of root's file")
    if answer:
        assert "own" in answer
        assert label(victim) is None


def test_a_descriptor_of_roots_that_leaked(arena: Arena, ann: Account) -> None:
    """As a careless service may pass one on: open for everything, and yet not the caller's file."""
    victim = arena.victim(ann)
    stranger = arena.stranger(ann)
    with open(victim, "r+b") as file:
        stranger.give(file.fileno())
    answer = stranger.do(acquire_by, _given, "", "exclusive")
    assert answer.startswith("org.svirt1.Error.ResourceRefused"), answer
    assert label(victim) is None


def test_a_block_device_that_leaked(arena: Arena, ann: Account, tmp_path: Path) -> None:
    """A node of root's for a device that exists nowhere: opened by path, held by descriptor."""
    node = arena.home(ann) / "node"
    os.mknod(node, 0o060666, os.makedev(259, 1048000))
    stranger = arena.stranger(ann)
    held = os.open(node, os.O_PATH)
    stranger.give(held)
    os.close(held)
    answer = stranger.do(acquire_by, _given, "", "exclusive")
    assert "O_PATH" in answer
    try:
        stranger.acquire("vm", node)
    except BusError as error:
        assert_refused(error, "org.svirt1.Error.ResourceRefused", "")
    assert arena.root.vms() == {}
