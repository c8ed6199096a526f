# SPDX-License-Identifier: LGPL-2.1-or-later
"""Callers that leave in the middle, come back, or are somebody else a moment later."""

import os
import random
import signal
import time
from pathlib import Path
from typing import Any

from svirtd.host.bus import Variant
from tests.attacks.arena import DENIALS, Arena, tries
from tests.attacks.defences import against
from tests.attacks.stranger import Me, Stranger
from tests.sandbox.accounts import Account
from tests.support import PROPERTIES, ROOT, VM, label, resources, wait_for

ACQUIRE = "saa{sv}a{sv}"
ROUNDS = 40
LIFETIME = {"lifetime": Variant("s", "caller")}


def test_leaving_at_any_moment(arena: Arena, ann: Account) -> None:
    """Killed while the daemon opens, labels, starts or answers: it all comes back by itself."""
    pick = random.Random(6)
    disks = [arena.disk(ann) for _ in range(4)]
    next_one = arena.stranger(ann)
    again: list[Any] = [ACQUIRE, "next", resources(*disks), {}]
    for number in range(ROUNDS):
        stranger = Stranger(ann)
        name = stranger.do(_greet)
        if number % 2:
            stranger.start(_launch, f"vm{number}", [str(disk) for disk in disks])
        else:
            stranger.start(_acquire, f"vm{number}", [str(disk) for disk in disks])
        time.sleep(pick.random() * 0.06)
        stranger.close()
        # The daemon is told what it has sent before it is told that it has left.
        wait_for("it has left", lambda gone=name: not next_one.do(_is_there, gone))  # type: ignore[misc]
        # Whatever of that is still under way: then the same disks are somebody's next VM's.
        wait_for("its disks are free", lambda: tries(next_one, "Acquire", *again) == "")
        next_one.release("next")
        wait_for("its VM is gone", lambda: arena.root.vms() == {})
        assert [label(disk) for disk in disks] == [None] * len(disks)


def _greet(me: Me) -> str:
    me.client.call("ListVMs")
    return me.client.connection.unique_name


def _is_there(me: Me, name: str) -> bool:
    return me.client.runner.run(me.client.connection.has_owner(name))


def _acquire(me: Me, name: str, disks: list[str]) -> None:
    me.client.call("Acquire", ACQUIRE, name, resources(*disks), LIFETIME)


def _launch(me: Me, name: str, disks: list[str]) -> None:
    command = ["/bin/sleep", "1000"]
    me.client.call("Launch", "sasaa{sv}a{sv}", name, command, resources(*disks), LIFETIME)


def test_leaving_at_once_many_times(arena: Arena, ann: Account) -> None:
    """What was sent before leaving is done or not, but nothing of it stays."""
    stranger = arena.stranger(ann)
    disk = arena.disk(ann)
    for _ in range(5):
        stranger.do(_send_and_leave, str(disk), 20)
    wait_for("their VMs are gone", lambda: arena.root.vms() == {})
    wait_for("the disk is as it was", lambda: label(disk) is None)


def _send_and_leave(_me: Me, disk: str, times: int) -> None:
    from tests.attack import RawConnection
    from tests.attacks.messages import Draft
    from tests.support import MANAGER

    address = os.environ.get("DBUS_SYSTEM_BUS_ADDRESS", "unix:path=/run/dbus/system_bus_socket")
    for number in range(times):
        raw = RawConnection(address)
        resource = [[("path"), ("s", disk)]]
        options = [["lifetime", ("s", "caller")]]
        values = [f"left{number}", [resource], options]
        draft = Draft(ROOT, MANAGER, "Acquire", ACQUIRE, values, 0, 1, "<")
        raw.sock.sendall(draft.encode(2))
        raw.close()


def test_a_name_of_the_bus_is_not_used_again(arena: Arena, ann: Account, ben: Account) -> None:
    """Whoever comes next is asked for by its own name: nobody inherits what another was."""
    owner = arena.stranger(ann)
    owner.acquire("anns")
    names = set()
    for number in range(60):
        account = (ann, ben)[number % 2]
        stranger = Stranger(account)
        try:
            name, seen = stranger.do(_who_and_what)
        finally:
            stranger.close()
        assert name not in names
        names.add(name)
        assert ("ImageContext" in seen) == (account is ann)
    owner.release("anns")


def _who_and_what(me: Me) -> tuple[str, list[str]]:
    path = f"{ROOT}/vm/anns"
    (shown,) = me.client.call("GetAll", "s", VM, path=path, interface=PROPERTIES)
    return me.client.connection.unique_name, list(shown)


def test_its_process_is_somebody_elses_later(arena: Arena, ann: Account, nobody: Account) -> None:
    """A pid decides nothing: the connection stays whose it was when it was made."""
    stranger = arena.stranger(ann)
    stranger.acquire("vm")
    assert stranger.do(_who_and_what_of, "vm")
    # The same pid executes a program that is setuid root: the bus's word does not change.
    stranger.do(_run_setuid)
    other = arena.stranger(nobody)
    assert other.error("Release", "sa{sv}", "vm", {}).name in DENIALS
    stranger.release("vm")


def _who_and_what_of(me: Me, name: str) -> bool:
    path = f"{ROOT}/vm/{name}"
    (shown,) = me.client.call("GetAll", "s", VM, path=path, interface=PROPERTIES)
    return "ImageContext" in shown


def _run_setuid(_me: Me) -> int:
    return os.spawnv(os.P_WAIT, "/usr/bin/passwd", ["passwd", "-S"])


def test_stopped_in_the_middle_of_everything(arena: Arena, ann: Account, ben: Account) -> None:
    """A client that no longer reads holds nobody up, and is not waited for."""
    stranger, other = arena.stranger(ann), arena.stranger(ben)
    stranger.do(_greet)
    os.kill(stranger.pid, signal.SIGSTOP)
    try:
        other.acquire("bens")
        other.release("bens")
        assert arena.root.vms() == {}
    finally:
        os.kill(stranger.pid, signal.SIGCONT)
    assert stranger.vms() == {}


@against("a caller's VM ends with the caller")
def test_what_it_leaves_behind(arena: Arena, ann: Account) -> None:
    disk = arena.disk(ann)
    stranger = Stranger(ann)
    stranger.call("Acquire", ACQUIRE, "vm", resources(disk), LIFETIME)
    assert label(disk) is not None
    stranger.close()
    if arena.without:
        time.sleep(0.5)
    else:
        wait_for("its VM is gone", lambda: arena.root.vms() == {})
    arena.verdict(arena.root.vms(), "a VM without its caller")
    assert Path(disk).exists()
