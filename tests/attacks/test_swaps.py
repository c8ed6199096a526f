# SPDX-License-Identifier: LGPL-2.1-or-later
"""Names that change under the daemon's eyes: links, folders and files, swapped at full speed.

Whatever is caught in between: no file of root's is ever labelled, held, or given a label back.
"""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from svirtd.host.bus import BusError
from tests.attacks.arena import Arena
from tests.attacks.defences import against
from tests.attacks.stranger import Changer, Mounter, Stranger, Swapper
from tests.sandbox.accounts import Account
from tests.support import label, resources, set_label

# How often the names are exchanged while a test asks, at least; and how often it asks, at least.
SWAPS = 20_000
CALLS = 60
REFUSALS = ("org.svirt1.Error.ResourceRefused", "org.svirt1.Error.LabelRefused")
# A daemon without the defence falls at once; it need not be asked for long.
CALLS_WEAK = 400


class Duel:
    """Calls against swaps: goes on until both have happened often enough, or the attack has won."""

    def __init__(self, arena: Arena, swapper: Changer, victim: Path) -> None:
        arena.moved = True
        self._arena = arena
        self._swapper = swapper
        self._victim = victim
        self._before = label(victim)
        self.calls = 0
        self.taken = 0

    def rounds(self) -> Iterator[int]:
        """Yield the number of each call to make."""
        while not self.won and (
            self.calls < CALLS_WEAK
            if self._arena.without
            else self._swapper.count < SWAPS or self.calls < CALLS
        ):
            yield self.calls
            self.calls += 1

    @property
    def won(self) -> bool:
        """Whether root's file is not as it was."""
        return label(self._victim) != self._before


def take(duel: Duel, stranger: Stranger, path: Path, access: str = "exclusive") -> None:
    """Acquire and release again and again."""
    for _ in duel.rounds():
        try:
            stranger.acquire("swap", path, access=access)
        except BusError as error:
            if not error.name.startswith(REFUSALS):
                raise
            continue
        if duel.won:
            return
        duel.taken += 1
        stranger.release("swap")


def judge(arena: Arena, duel: Duel, swapper: Changer, what: str) -> None:
    """Say who has won; both sides must have worked for it."""
    arena.verdict(duel.won, f"{what}: {duel.calls} calls, {swapper.count} swaps")
    if not arena.without:
        assert swapper.count >= SWAPS
        # It was not refused each time: the right file was caught, too.
        assert duel.taken > 0
        assert arena.root.vms() == {}


@against("files are opened as the caller, and owned by it")
def test_a_link_in_place_of_the_file(arena: Arena, ann: Account) -> None:
    victim = arena.victim(ann)
    folder = arena.home(ann)
    disk = arena.disk(ann, folder=folder)
    os.symlink(victim, folder / "link")
    stranger = arena.stranger(ann)
    with Swapper(ann, str(disk), str(folder / "link")) as swapper:
        duel = Duel(arena, swapper, victim)
        take(duel, stranger, disk)
        judge(arena, duel, swapper, "a link in place of the file")


@against("files are opened as the caller, and owned by it")
def test_a_link_in_place_of_its_folder(arena: Arena, ann: Account) -> None:
    victim = arena.victim(ann)
    folder = arena.home(ann)
    inner = folder / "inner"
    inner.mkdir()
    os.chown(inner, ann.uid, ann.gid)
    disk = arena.disk(ann, victim.name, folder=inner)
    os.symlink(victim.parent, folder / "link")
    stranger = arena.stranger(ann)
    with Swapper(ann, str(inner), str(folder / "link")) as swapper:
        duel = Duel(arena, swapper, victim)
        take(duel, stranger, disk, "readonly")
        judge(arena, duel, swapper, "a link in place of a folder")


@against("files are opened as the caller, and owned by it")
def test_a_mount_in_place_of_its_folder(arena: Arena, ann: Account) -> None:
    """Whatever mounts for users (removable disks, containers) covers the folder with another."""
    victim = arena.victim(ann)
    folder = arena.home(ann)
    inner = folder / "inner"
    inner.mkdir()
    os.chown(inner, ann.uid, ann.gid)
    disk = arena.disk(ann, victim.name, folder=inner)
    stranger = arena.stranger(ann)
    with Mounter(str(victim.parent), str(inner)) as mounter:
        duel = Duel(arena, mounter, victim)
        take(duel, stranger, disk, "readonly")
        judge(arena, duel, mounter, "a mount in place of a folder")


@against("files are opened as the caller, and owned by it")
def test_a_chain_of_links(arena: Arena, ann: Account) -> None:
    """Each is looked at, and each could have led elsewhere a moment before."""
    victim = arena.victim(ann)
    folder = arena.home(ann)
    disk = arena.disk(ann, folder=folder)
    for name, target in (("good", disk), ("bad", victim), ("name", folder / "hop"),
                         ("hop", folder / "good")):  # fmt: skip
        os.symlink(target, folder / name)
    stranger = arena.stranger(ann)
    with Swapper(ann, str(folder / "good"), str(folder / "bad")) as swapper:
        duel = Duel(arena, swapper, victim)
        take(duel, stranger, folder / "name", "public")
        judge(arena, duel, swapper, "a chain of links")


@against("an object is what the book says it is")
def test_another_file_at_release(arena: Arena, ann: Account) -> None:
    """The VM's file is replaced by a way to root's, which carries the very label by now."""
    victim = arena.victim(ann)
    folder = arena.home(ann)
    inner = folder / "inner"
    inner.mkdir()
    os.chown(inner, ann.uid, ann.gid)
    disk = arena.disk(ann, victim.name, folder=inner)
    set_label(disk, "system_u:object_r:virt_image_t:s0")
    stranger = arena.stranger(ann)
    stranger.acquire("swap", disk)
    arena.moved = True
    held = label(disk)
    assert held is not None
    # As if the host's administrator had copied it with its label.
    set_label(victim, held)
    stranger.do(_replace, str(inner), str(folder / "away"), str(victim.parent))
    with contextlib.suppress(BusError):
        stranger.release("swap")
    arena.verdict(label(victim) != held, "another file at release")
    os.rename(folder / "away" / victim.name, folder / "moved")
    os.removexattr(victim, "security.selinux")
    if not arena.without:
        # The file itself was moved, and is reported instead: it keeps its categories from others.
        assert label(folder / "moved") == held
        os.removexattr(folder / "moved", "security.selinux")


def _replace(_me: object, inner: str, away: str, target: str) -> None:
    os.rename(inner, away)
    os.symlink(target, inner)


@against("an object is what the book says it is")
def test_swaps_while_it_is_released(arena: Arena, ann: Account) -> None:
    victim = arena.victim(ann)
    folder = arena.home(ann)
    inner, other = folder / "inner", folder / "other"
    for one in (inner, other):
        one.mkdir()
        os.chown(one, ann.uid, ann.gid)
    disk = arena.disk(ann, victim.name, folder=inner)
    stranger = arena.stranger(ann)
    os.rmdir(other)
    os.symlink(victim.parent, other)
    with Swapper(ann, str(inner), str(other)) as swapper:
        duel, won = Duel(arena, swapper, victim), False
        for _ in duel.rounds():
            with contextlib.suppress(BusError):
                stranger.acquire("swap", disk)
                # So that only where it lies is wrong about root's file.
                set_label(victim, stranger.properties("swap")["ImageContext"])
            before = label(victim)
            with contextlib.suppress(BusError):
                stranger.release("swap")
            won = label(victim) != before
            if won:
                break
            duel.taken += 1
            if before is not None:
                os.removexattr(victim, "security.selinux")
        arena.verdict(won, "swaps at release")


def test_descriptors_of_swapped_files(arena: Arena, ann: Account) -> None:
    """A descriptor leads to its file wherever that is by now; its path is looked at once more."""
    victim = arena.victim(ann)
    folder = arena.home(ann)
    disk = arena.disk(ann, folder=folder)
    os.symlink(victim, folder / "link")
    stranger = arena.stranger(ann)
    with Swapper(ann, str(disk), str(folder / "link")) as swapper:
        duel = Duel(arena, swapper, victim)
        for _ in duel.rounds():
            duel.taken += bool(stranger.do(_by_descriptor, str(disk)))
        judge(arena, duel, swapper, "a descriptor of a swapped file")


def _by_descriptor(me: object, path: str) -> bool:
    from svirtd.host.bus import Variant
    from tests.attacks.stranger import Me

    assert isinstance(me, Me)
    try:
        fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        me.client.call("Acquire", "saa{sv}a{sv}", "swap", [{"fd": Variant("h", 0)}], {}, fds=[fd])
    except BusError:
        return False
    finally:
        os.close(fd)
    me.client.release("swap")
    return True


def test_plan_tells_nothing_of_what_it_may_not_open(arena: Arena, ann: Account) -> None:
    """A dry run is no way to look at root's files, either: same error, whatever is there."""
    victim = arena.victim(ann)
    stranger = arena.stranger(ann)
    signature = "saa{sv}a{sv}"
    texts = set()
    for name in ("secret", "nothing-there"):
        closed = victim.parent / "closed"
        closed.mkdir(mode=0o700, exist_ok=True)
        if name == "secret":
            (closed / name).write_bytes(b"x")
        refused = stranger.error("Plan", signature, "x", resources(closed / name), {})
        texts.add((refused.name, refused.text.replace(name, "NAME")))
    assert len(texts) == 1, texts
