# SPDX-License-Identifier: LGPL-2.1-or-later
"""Trees whose entries are exchanged while they are labelled: no file of others ever is."""

import contextlib
import os
from pathlib import Path

from svirtd.host.bus import BusError, Variant
from tests.attacks.arena import Arena
from tests.attacks.defences import against
from tests.attacks.stranger import Stranger, Swapper
from tests.attacks.test_swaps import REFUSALS, Duel, judge
from tests.sandbox.accounts import Account


def grown(arena: Arena, account: Account) -> Path:
    """A tree of the account's, with a file in a folder of it."""
    tree = arena.home(account) / "tree"
    (tree / "inner").mkdir(parents=True)
    for folder in (tree, tree / "inner"):
        os.chown(folder, account.uid, account.gid)
    arena.disk(account, "disk.img", folder=tree / "inner")
    return tree


def take(duel: Duel, stranger: Stranger, tree: Path) -> None:
    """Acquire and release the tree again and again."""
    resource = {"path": Variant("s", str(tree)), "recursive": Variant("b", True)}
    for _ in duel.rounds():
        try:
            stranger.call("Acquire", "saa{sv}a{sv}", "swap", [resource], {})
        except BusError as error:
            if not error.name.startswith(REFUSALS):
                raise
        else:
            if duel.won:
                return
            duel.taken += 1
            stranger.release("swap")
        # What is outside of the tree when it is given back keeps its label.
        for path in (tree.parent, *tree.parent.rglob("*")):
            with contextlib.suppress(OSError):
                if not path.is_symlink():
                    os.removexattr(path, "security.selinux")


@against("a tree is walked by descriptors, and each entry looked at")
def test_files_of_others_moved_in(arena: Arena, ann: Account) -> None:
    """Whoever may write a folder may move what is in it, his own or not."""
    tree = grown(arena, ann)
    victim = tree.parent / "roots"
    victim.write_text("secret")
    victim.chmod(0o600)
    stranger = arena.stranger(ann)
    held = os.open(victim, os.O_RDONLY)
    try:
        with Swapper(ann, str(tree / "inner" / "disk.img"), str(victim)) as swapper:
            duel = Duel(arena, swapper, Path(f"/proc/self/fd/{held}"))
            take(duel, stranger, tree)
            judge(arena, duel, swapper, "a file of root's, moved in and out")
    finally:
        os.close(held)


@against("a tree is walked by descriptors, and each entry looked at")
def test_a_link_in_place_of_a_folder(arena: Arena, ann: Account) -> None:
    victim = arena.victim(ann)
    tree = grown(arena, ann)
    os.symlink(victim.parent, tree.parent / "link")
    os.lchown(tree.parent / "link", ann.uid, ann.gid)
    stranger = arena.stranger(ann)
    with Swapper(ann, str(tree / "inner"), str(tree.parent / "link")) as swapper:
        duel = Duel(arena, swapper, victim)
        take(duel, stranger, tree)
        judge(arena, duel, swapper, "a link to a folder of root's")
