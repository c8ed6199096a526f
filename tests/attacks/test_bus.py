# SPDX-License-Identifier: LGPL-2.1-or-later
"""Attacks on the bus itself: to be the service, to overhear it, to speak for others."""

import time
from typing import Any

import pytest

from svirtd.host.bus import BUS, BUS_PATH, BusError, Message, MessageType
from tests.attack import DENIED
from tests.attacks.arena import Arena
from tests.attacks.stranger import Me
from tests.sandbox.accounts import Account
from tests.support import DEADLINE_S, MANAGER, NAME, PROPERTIES, ROOT, VM, wait_for


def _ask_bus(me: Me, interface: str, member: str, signature: str, body: list[Any]) -> str:
    try:
        call = me.client.connection.call(
            BUS, BUS_PATH, interface, member, signature, body, timeout_s=DEADLINE_S
        )
        return repr(me.client.runner.run(call).body)
    except BusError as error:
        return error.name


@pytest.mark.parametrize("flags", [0, 1, 2, 3, 4])
def test_owning_the_name(arena: Arena, nobody: Account, flags: int) -> None:
    stranger = arena.stranger(nobody)
    assert stranger.do(_ask_bus, BUS, "RequestName", "su", [NAME, flags]) == DENIED
    assert stranger.vms() == {}


def test_overhearing(arena: Arena, ann: Account, nobody: Account) -> None:
    """Neither as a monitor, nor by a rule that asks for what is meant for others."""
    stranger = arena.stranger(nobody)
    monitor = stranger.do(
        _ask_bus, "org.freedesktop.DBus.Monitoring", "BecomeMonitor", "asu", [[], 0]
    )
    assert monitor == DENIED
    rule = f"eavesdrop='true',sender='{NAME}'"
    stranger.do(_collect)
    stranger.do(_ask_bus, BUS, "AddMatch", "s", [rule])
    stranger.do(_ask_bus, BUS, "AddMatch", "s", [f"eavesdrop='true',destination='{NAME}'"])
    owner = arena.stranger(ann)
    owner.acquire("anns")
    context = owner.properties("anns")["ImageContext"]
    owner.release("anns")
    heard = stranger.do(_collected)
    assert context not in heard
    assert "Acquire" not in heard


def _collect(me: Me) -> None:
    wire = me.client.connection._wire
    receive = wire.receive
    assert receive is not None

    def keep(msg: Message) -> None:
        me.client.signals.append(msg)
        receive(msg)

    wire.receive = keep


def _collected(me: Me) -> str:
    me.client.idle(0.2)
    return repr([(msg.member, msg.body, msg.destination) for msg in me.client.signals])


@pytest.mark.parametrize("to", ["name", "unique name"])
def test_members_that_are_not_listed(arena: Arena, ann: Account, to: str) -> None:
    """The bus's list holds for the daemon's unique name as well."""
    stranger = arena.stranger(ann)
    stranger.acquire("anns")
    destination = NAME if to == "name" else stranger.do(_owner_of, NAME)
    for interface, member, signature, body in (
        (PROPERTIES, "Set", "ssv", [VM, "State", ("s", "failed")]),
        (MANAGER, "Reboot", "", []),
        (f"{NAME}.Debug", "Eval", "s", ["1"]),
        ("org.freedesktop.DBus.Properties", "SetAll", "", []),
    ):
        assert stranger.do(_send_to, destination, interface, member, signature, body) == DENIED
    stranger.release("anns")


def _owner_of(me: Me, name: str) -> str:
    (owner,) = me.client.runner.run(me.client.connection.call_bus("GetNameOwner", "s", [name]))
    return str(owner)


def _send_to(
    me: Me, destination: str, interface: str, member: str, signature: str, body: list[Any]
) -> str:
    path = f"{ROOT}/vm/anns" if member == "Set" else ROOT
    try:
        me.client.runner.run(
            me.client.connection.call(
                destination, path, interface, member, signature, body, timeout_s=DEADLINE_S
            )
        )
    except BusError as error:
        return error.name
    return ""


def test_forged_answers_and_signals(arena: Arena, ann: Account, ben: Account) -> None:
    """Said in systemd's, polkit's and the bus's stead, straight to the daemon; it believes none."""
    owner, stranger = arena.stranger(ann), arena.stranger(ben)
    owner.launch("anns", ["/bin/sleep", "1000"])
    owner.call("Acquire", "saa{sv}a{sv}", "left", [], {})
    before = owner.properties("anns")
    daemon = stranger.do(_owner_of, NAME)
    unique = owner.do(_own_name)
    stranger.do(_forge, daemon, before["Unit"], unique)
    time.sleep(0.3)
    assert owner.properties("anns") == before
    assert arena.root.vms() == {"anns": "running", "left": "reserved"}
    for name in ("anns", "left"):
        owner.release(name)
    wait_for("both are gone", lambda: arena.root.vms() == {})


def _own_name(me: Me) -> str:
    return me.client.connection.unique_name


def _forge(me: Me, daemon: str, unit: str, other: str) -> None:
    send = me.client.connection.send
    escaped = "".join(c if c.isalnum() else f"_{ord(c):02x}" for c in unit)
    systemd = "org.freedesktop.systemd1.Manager"
    for interface, path, member, signature, body in (
        (systemd, "/org/freedesktop/systemd1", "UnitRemoved", "so",
         [unit, f"/org/freedesktop/systemd1/unit/{escaped}"]),
        (systemd, "/org/freedesktop/systemd1", "JobRemoved", "uoss",
         [1, "/org/freedesktop/systemd1/job/1", unit, "done"]),
        (systemd, "/org/freedesktop/systemd1", "Reloading", "b", [False]),
        (BUS, BUS_PATH, "NameOwnerChanged", "sss", [other, other, ""]),
        (BUS, BUS_PATH, "NameOwnerChanged", "sss", ["org.freedesktop.systemd1", ":1.1", ":1.999"]),
        ("org.freedesktop.PolicyKit1.Authority", "/org/freedesktop/PolicyKit1/Authority", "Changed",
         "", []),
    ):  # fmt: skip
        for _ in range(20):
            send(Message(MessageType.SIGNAL, path=path, interface=interface, member=member,
                         destination=daemon, signature=signature, body=body))  # fmt: skip
    # An answer to each call that the daemon may be waiting for.
    for serial in range(1, 2000):
        send(Message(MessageType.METHOD_RETURN, destination=daemon, reply_serial=serial,
                     signature="bba{ss}", body=[True, False, {}]))  # fmt: skip
    me.client.runner.run(me.client.connection.call_bus("GetId"))
