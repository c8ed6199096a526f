# SPDX-License-Identifier: LGPL-2.1-or-later
"""A name is used again while somebody still means the VM that had it before."""

import random
from typing import Any

from svirtd.host.bus import BusError, Variant
from tests.attacks.arena import DENIALS, Arena, tries
from tests.attacks.defences import against
from tests.attacks.stranger import Me
from tests.sandbox.accounts import Account
from tests.support import ROOT, VM

NO_VM = "org.svirt1.Error.NoSuchVM"
GONE = "org.freedesktop.DBus.Error.UnknownObject"
ROUNDS = 80


def meant(id_: str) -> dict[str, Variant]:
    """The options that say which VM is meant."""
    return {"id": Variant("s", id_)}


@against("a VM is meant by its Id")
def test_released_and_acquired_by_another(arena: Arena, ann: Account, ben: Account) -> None:
    """Root looks, Ann leaves the name to Ben, root acts on what it saw: Ben's VM must stay."""
    first, second = arena.stranger(ann), arena.stranger(ben)
    first.acquire("web")
    seen = arena.root.properties("web")["Id"]
    first.release("web")
    second.acquire("web")
    answer = tries(arena.root, "Release", "sa{sv}", "web", meant(seen))
    assert answer in {"", NO_VM}
    arena.verdict(arena.root.vms() == {}, "the next VM of the name was released")
    if not arena.without:
        arena.root.call("Release", "sa{sv}", "web", meant(second.properties("web")["Id"]))


@against("a VM is meant by its Id")
def test_released_through_its_object(arena: Arena, ann: Account, ben: Account) -> None:
    """The object's path is the name's, too."""
    first, second = arena.stranger(ann), arena.stranger(ben)
    path = first.acquire("web")
    seen = first.properties("web")["Id"]
    first.release("web")
    second.acquire("web")
    answer = tries(arena.root, "Release", "a{sv}", meant(seen), path=path, interface=VM)
    assert answer in {"", NO_VM, GONE}
    arena.verdict(arena.root.vms() == {}, "the next VM of the path was released")
    if not arena.without:
        second.release("web")


def test_a_name_that_never_rests(arena: Arena, ann: Account, ben: Account) -> None:
    """Both take the name whenever it is free; root releases by Id whatever it has seen."""
    strangers = [arena.stranger(ann), arena.stranger(ben)]
    for number, stranger in enumerate(strangers):
        stranger.start(_come_and_go, number)
    released = stale = 0
    while not all(one.ready() for one in strangers):
        try:
            seen = arena.root.properties("web")
            arena.root.call("Release", "sa{sv}", "web", meant(seen["Id"]))
            released += 1
        except BusError as error:
            if error.name not in {NO_VM, GONE}:
                raise
            stale += 1
    counts = [stranger.result() for stranger in strangers]
    for took, lost, others in counts:
        assert took > 0
        # Whatever ended a VM of mine, it was root, by its own Id; never a Release of the other's.
        assert others == 0
        assert lost <= released
    assert arena.root.vms() == {}


def _come_and_go(me: Me, seed: int) -> tuple[int, int, int]:
    """Take the name and leave it; how often, how often it was gone, and whose it was not."""
    took = lost = others = 0
    pick = random.Random(seed)
    for _ in range(ROUNDS):
        try:
            me.client.acquire("web")
        except BusError as error:
            if error.name not in {"org.svirt1.Error.VMExists", *DENIALS}:
                raise
            continue
        took += 1
        try:
            id_ = me.client.properties("web")["Id"]
            if pick.random() < 0.5:
                me.client.call("Release", "sa{sv}", "web", meant(id_))
            else:
                me.client.call("Release", "a{sv}", meant(id_), path=f"{ROOT}/vm/web", interface=VM)
        except KeyError:
            lost += 1  # it is the other's by now, and tells nothing
        except BusError as error:
            if error.name in DENIALS:
                # By then the other's; it was not released in my name.
                lost += 1
            elif error.name in {NO_VM, GONE}:
                lost += 1
            else:
                others += 1
    return took, lost, others


def test_odd_ids(arena: Arena, ann: Account) -> None:
    stranger = arena.stranger(ann)
    stranger.acquire("web")
    odd: list[Any] = ["x", "0", "*", "%", "' OR 1=1 --", "\x1b[2J", "a" * 10_000]
    for one in odd:
        refused = stranger.error("Release", "sa{sv}", "web", meant(one))
        assert refused.name == NO_VM
        assert refused.text.isprintable()
    stranger.release("web")
