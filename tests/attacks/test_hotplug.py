# SPDX-License-Identifier: LGPL-2.1-or-later
"""Strangers who attach and detach: another's VM, a race with its end, swapped links."""

import os
from pathlib import Path
from typing import Any

from svirtd.host.bus import BusError, Variant
from tests.attacks.arena import DENIALS, Arena, tries
from tests.attacks.defences import against
from tests.attacks.stranger import Me, Stranger, Swapper
from tests.attacks.test_swaps import Duel, judge
from tests.sandbox.accounts import Account
from tests.support import ROOT, VM, label, resources

PATH = f"{ROOT}/vm/anns"
ATTACH = "a{sv}a{sv}"
ROUNDS = 400


def attach(stranger: Stranger, file: Path, path: str = PATH) -> str:
    (wanted,) = resources(file)
    return tries(stranger, "Attach", ATTACH, wanted, {}, path=path, interface=VM)


@against("only the owner may")
def test_to_another_users_vm(arena: Arena, ann: Account, ben: Account) -> None:
    """Ben has a file of his labelled for Ann's VM: she would read, and be given, what is his."""
    owner = arena.stranger(ann)
    owner.acquire("anns", arena.disk(ann))
    theirs = arena.disk(ben)
    answer = attach(arena.stranger(ben), theirs)
    arena.verdict(answer == "" or label(theirs), "Attach to another user's VM")
    assert answer in {"", *DENIALS}
    owner.release("anns")
    assert label(theirs) is None


@against("only the owner may")
def test_detached_from_another_users_vm(arena: Arena, ann: Account, ben: Account) -> None:
    owner, disk = arena.stranger(ann), arena.disk(ann)
    owner.acquire("anns", disk)
    answer = tries(arena.stranger(ben), "Detach", "sa{sv}", "r1", {}, path=PATH, interface=VM)
    arena.verdict(answer == "" or label(disk) is None, "Detach from another user's VM")
    assert answer in {"", *DENIALS}
    owner.release("anns")


def test_a_file_of_somebody_else(arena: Arena, ann: Account, ben: Account) -> None:
    """Her own VM gets her no file of Ben's, by whatever name, and no word of who holds it."""
    owner, other = arena.stranger(ann), arena.stranger(ben)
    owner.acquire("anns", arena.disk(ann))
    theirs = arena.disk(ben)
    other.acquire("bens", theirs)
    before = label(theirs)
    refused = owner.error("Attach", ATTACH, resources(theirs)[0], {}, path=PATH, interface=VM)
    assert refused.name.endswith("ResourceRefused")
    assert "bens" not in refused.text
    assert label(theirs) == before
    other.release("bens")
    owner.release("anns")


def test_what_is_somebody_elses_by_now(arena: Arena, ann: Account, ben: Account) -> None:
    """Her VM has it, and may lose the right to write it; every VM's it is not hers to make."""
    owner, disk = arena.stranger(ann), arena.disk(ann)
    owner.acquire("anns", disk)
    os.chown(disk, ben.uid, ben.gid)
    disk.chmod(0o644)
    (public,) = resources(disk, access="public")
    refused = owner.error("Attach", ATTACH, public, {}, path=PATH, interface=VM)
    assert refused.name.endswith("ResourceRefused")
    assert "only its owner may have a file labelled" in refused.text
    (readonly,) = resources(disk, access="readonly")
    owner.call("Attach", ATTACH, readonly, {}, path=PATH, interface=VM)
    assert "virt_content_t:s0:c" in (label(disk) or "")
    owner.release("anns")


def test_a_race_with_the_end(arena: Arena, ann: Account) -> None:
    """One attaches and another releases, again and again: nothing stays labelled, or held."""
    first, second = arena.stranger(ann), arena.stranger(ann)
    disk, more = arena.disk(ann), arena.disk(ann)
    second.start(_attach_again_and_again, str(more))
    while not second.ready():
        first.acquire("anns", disk)
        first.release("anns")
        assert label(disk) is None
    answers = second.result()
    assert "" in answers
    assert set(answers) - {""}
    assert set(answers) <= {
        "",
        "org.freedesktop.DBus.Error.UnknownObject",
        "org.svirt1.Error.NoSuchVM",
        "org.svirt1.Error.Failed",
        "org.svirt1.Error.ResourceBusy",
    }
    assert label(more) is None
    assert first.vms() == {}


def _attach_again_and_again(me: Me, file: str) -> list[str]:
    answers: list[str] = []
    wanted: dict[str, Any] = {"path": Variant("s", file)}
    # Until it was in time and late, both: on a machine with much to do that takes its time.
    while len(answers) < ROUNDS or (len(set(answers)) < 2 and len(answers) < 100 * ROUNDS):
        try:
            me.client.call("Attach", ATTACH, wanted, {}, path=PATH, interface=VM)
            answers.append("")
        except BusError as error:
            answers.append(error.name)
    return answers


@against("files are opened as the caller, and owned by it")
def test_a_link_in_place_of_the_file(arena: Arena, ann: Account) -> None:
    owner, victim = arena.stranger(ann), arena.victim(ann)
    owner.acquire("anns", arena.disk(ann))
    folder = arena.home(ann)
    disk = arena.disk(ann, folder=folder)
    link = folder / "link"
    link.symlink_to(victim)
    with Swapper(ann, str(disk), str(link)) as swapper:
        duel = Duel(arena, swapper, victim)
        for _ in duel.rounds():
            if attach(owner, disk) == "" and not duel.won:
                duel.taken += 1
                held = owner.properties("anns")["Resources"]
                (id_,) = [one["id"] for one in held if one["id"] != "r1"]
                tries(owner, "Detach", "sa{sv}", id_, {}, path=PATH, interface=VM)
        if not arena.without:
            owner.release("anns")
        judge(arena, duel, swapper, "Attach")
    if arena.without:
        owner.release("anns")  # with root's file
