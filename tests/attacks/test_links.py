# SPDX-License-Identifier: LGPL-2.1-or-later
"""Files that are not the caller's, under names that are: links, open modes, other users' disks."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from svirtd.core import overlays
from svirtd.host.bus import BusError, Variant
from tests.attack import REFUSED, assert_refused
from tests.attacks.arena import Arena
from tests.attacks.defences import against
from tests.attacks.stranger import Me, Stranger
from tests.sandbox.accounts import Account
from tests.support import label, resources

ACQUIRE = "saa{sv}a{sv}"
ACCESSES = ("exclusive", "readonly", "public")


def _tries(stranger: Stranger, path: Path) -> BusError | None:
    """Ask for a file in every way; the last refusal, None if it was given once."""
    refused = None
    for access in ACCESSES:
        try:
            stranger.acquire("vm", path, access=access)
        except BusError as error:
            refused = error
        else:
            return None
    return refused


@against("a file is its owner's")
def test_a_file_of_roots_that_everybody_may_write(arena: Arena, ann: Account) -> None:
    victim = arena.victim(ann, mode=0o666)
    before = label(victim)
    refused = _tries(arena.stranger(ann), victim)
    arena.verdict(refused is None, "a world-writable file of root's")
    if refused is not None:
        assert_refused(refused, REFUSED, "own")
        assert label(victim) == before


@against("a file is its owner's")
def test_a_disk_of_another_user_that_everybody_may_write(
    arena: Arena, ann: Account, ben: Account
) -> None:
    folder = arena.victim(ben).parent  # a folder that both may enter
    disk = arena.disk(ben, folder=folder)
    disk.chmod(0o666)
    refused = _tries(arena.stranger(ann), disk)
    arena.verdict(refused is None, "another user's disk")
    if refused is not None:
        assert_refused(refused, REFUSED, "own")
        # Nothing of that keeps its owner from it.
        owner = arena.stranger(ben)
        owner.acquire("his", disk)
        owner.release("his")


@against("a file is its owner's")
def test_a_disk_of_another_user_that_a_header_names(
    arena: Arena, ann: Account, ben: Account
) -> None:
    """It would become one that every VM reads."""
    disk = arena.disk(ben, folder=arena.victim(ben).parent)
    disk.chmod(0o644)
    top = arena.home(ann) / "top.qcow2"
    top.write_bytes(overlays.empty(str(disk), 1 << 20).head)
    os.chown(top, ann.uid, ann.gid)
    given = resources(top)[0] | {"format": Variant("s", "qcow2")}
    stranger = arena.stranger(ann)
    refused = None
    try:
        stranger.call("Acquire", ACQUIRE, "vm", [given], {})
    except BusError as error:
        refused = error
    arena.verdict(refused is None, "another user's disk under one's own")
    if refused is not None:
        assert_refused(refused, REFUSED, f"belongs to uid {ben.uid}")
        assert label(disk) is None
    top.unlink()


def test_a_disk_that_another_user_may_not_open(arena: Arena, ann: Account, ben: Account) -> None:
    disk = arena.disk(ben)
    before = label(disk)
    stranger = arena.stranger(ann)
    for access in ACCESSES:
        refused = stranger.error("Acquire", ACQUIRE, "vm", resources(disk, access=access), {})
        assert_refused(refused, REFUSED, "ermission denied")
    assert label(disk) == before


@against("files are opened as the caller, and owned by it")
def test_a_link_to_a_file_of_roots(arena: Arena, ann: Account) -> None:
    victim = arena.victim(ann)
    folder = arena.home(ann)
    os.symlink(victim, folder / "disk.img")
    refused = _tries(arena.stranger(ann), folder / "disk.img")
    arena.verdict(refused is None, "a link to a file of root's")


@against("a file with other names is not taken, and owned by its caller")
def test_a_hard_link_to_a_file_of_roots(arena: Arena, ann: Account) -> None:
    """The kernel lets anybody link to what he may write, where links are not protected at all."""
    victim = arena.victim(ann, mode=0o666)
    folder = arena.home(ann)
    os.link(victim, folder / "disk.img")
    refused = _tries(arena.stranger(ann), folder / "disk.img")
    arena.verdict(refused is None, "a hard link to a file of root's")
    if refused is not None:
        assert_refused(refused, REFUSED, "")
    os.unlink(folder / "disk.img")


@against("a file with other names is not taken, and owned by its caller")
def test_a_second_name_for_ones_own_file(arena: Arena, ann: Account) -> None:
    folder = arena.home(ann)
    disk = arena.disk(ann, folder=folder)
    os.link(disk, folder / "second.img")
    refused = _tries(arena.stranger(ann), disk)
    arena.verdict(refused is None, "a second name")
    if refused is not None:
        assert_refused(refused, REFUSED, "has 2 hard links")


def test_a_name_given_while_it_is_held(arena: Arena, ann: Account) -> None:
    """A second name, made after the file was taken, keeps nothing from being taken back."""
    folder = arena.home(ann)
    disk = arena.disk(ann, folder=folder)
    stranger = arena.stranger(ann)
    stranger.acquire("vm", disk)
    stranger.do(_link, str(disk), str(folder / "second.img"))
    stranger.release("vm")
    assert label(folder / "second.img") is None


def _link(_me: Me, old: str, new: str) -> None:
    os.link(old, new)


@pytest.mark.parametrize("mode", [0o4755, 0o2755, 0o6777], ids=oct)
def test_ones_own_setuid_program(arena: Arena, ann: Account, mode: int) -> None:
    folder = arena.home(ann)
    shutil.copy("/bin/true", folder / "p")
    os.chown(folder / "p", ann.uid, ann.gid)
    (folder / "p").chmod(mode)
    refused = _tries(arena.stranger(ann), folder / "p")
    assert refused is not None
    assert_refused(refused, REFUSED, "setuid or setgid")


@pytest.mark.parametrize("account", ["ann", "nobody"])
def test_whether_a_file_is_there(arena: Arena, ann: Account, nobody: Account, account: str) -> None:
    """Root would look for whoever names an override: nothing of that is told beforehand."""
    stranger = arena.stranger(ann if account == "ann" else nobody)
    closed = arena.victim(ann).parent / "closed"
    closed.mkdir(mode=0o700)
    (closed / "there").write_bytes(b"x")
    os.symlink("there", closed / "link")
    (closed / "folder").mkdir()
    override = {"override": Variant("as", ["owner"])}
    answers = set()
    for name in ("there", "link", "folder", "missing", "folder/missing"):
        named = resources(closed / name)
        for member, signature, body in (
            ("Acquire", ACQUIRE, ["vm", named, override]),
            ("Plan", ACQUIRE, ["vm", named, override]),
            ("Acquire", ACQUIRE, ["vm", named, {}]),
        ):
            refused = stranger.error(member, signature, *body)
            text = refused.text.replace(str(closed / name), "FILE")
            answers.add((member, len(body[2]), refused.name, text))
    assert len(answers) == 3, answers


def _tree(folder: Path) -> None:
    (folder / "x").mkdir()


def _to(target: str) -> Callable[[Path], None]:
    return lambda folder: os.symlink(target, folder / "x")


ODD: dict[str, Callable[[Path], None]] = {
    "folder": _tree,
    "null": _to("/dev/null"),
    "terminal": _to("/dev/ptmx"),
    "disk": _to("/dev/attacked-disk"),
    "memory": _to("/proc/self/mem"),
    "daemon's memory": _to("/proc/{daemon}/mem"),
    "daemon's root": _to("/proc/{daemon}/root/etc/shadow"),
    "daemon's descriptor": _to("/proc/{daemon}/fd/3"),
    "first process": _to("/proc/1/mem"),
    "setting of the kernel": _to("/proc/sys/kernel/core_pattern"),
    "sysfs": _to("/sys/kernel/uevent_helper"),
    "cgroup": _to("/sys/fs/cgroup/cgroup.procs"),
    "book": _to("{book}"),
    "shadow": _to("/etc/shadow"),
    "sudoers": _to("/etc/sudoers"),
    "itself": _to("x"),
}


@pytest.mark.parametrize("what", ODD)
def test_what_is_no_disk(arena: Arena, ann: Account, what: str) -> None:
    folder = arena.home(ann)
    ODD[what](folder)
    path = folder / "x"
    if path.is_symlink():
        target = os.readlink(path)
        os.unlink(path)
        book = arena.place / "book" / "book.sqlite"
        os.symlink(target.format(daemon=arena.pid, book=book), path)
    os.chown(path, ann.uid, ann.gid, follow_symlinks=False)
    stranger = arena.stranger(ann)
    refused = _tries(stranger, path)
    assert refused is not None, what
    assert_refused(refused, REFUSED, "")
    assert arena.root.vms() == {}
